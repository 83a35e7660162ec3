//! Parse, set up the log, run the agent or a command, turn the result into an exit code.

use std::process::ExitCode;

use acapy_deliver::LogFormat;
use acapy_deliver::internals::commands::{self, Error, Exit};
use acapy_deliver::internals::config::{self, Command};
use acapy_deliver::internals::logger;

fn main() -> ExitCode {
    let (args, environment): (Vec<_>, _) = (std::env::args_os().skip(1).collect(), config::environment());
    let format = logger::format_asked_for(&args, &environment);
    let command = match config::parse(args, &environment) {
        Ok(command) => command,
        Err(error) => return fail(format, 2, &error.to_string()),
    };
    let format = match &command {
        Command::Run(config) => config.log_format,
        _ => LogFormat::Full,
    };
    logger::set_up(format);
    match commands::obey(command) {
        Ok(Exit::Done) | Err(Error::OutputClosed) => ExitCode::SUCCESS,
        Ok(Exit::Nothing) => ExitCode::from(1),
        Err(Error::Failed(why)) => fail(format, 1, &why),
        Err(Error::Usage(why)) => fail(format, 2, &why),
    }
}

fn fail(format: LogFormat, code: u8, why: &str) -> ExitCode {
    logger::last_words(format, why);
    ExitCode::from(code)
}
