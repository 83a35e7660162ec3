//! Parse, set up the log, run the agent or a command, turn the result into an exit code.

use std::process::ExitCode;

use acapy_deliver::commands::{self, Error, Exit};
use acapy_deliver::config::{self, Command, LogFormat};
use acapy_deliver::{agent, logger};

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
    match obey(command) {
        Ok(Exit::Done) | Err(Error::OutputClosed) => ExitCode::SUCCESS,
        Ok(Exit::Nothing) => ExitCode::from(1),
        Err(Error::Failed(why)) => fail(format, 1, &why),
        Err(Error::Usage(why)) => fail(format, 2, &why),
    }
}

fn obey(command: Command) -> Result<Exit, Error> {
    match command {
        Command::Run(config) => agent::run(&config).map(|()| Exit::Done).map_err(Error::Failed),
        Command::Enqueue(options) => commands::enqueue::run(&options),
        Command::Listen(options) => commands::listen::run(&options),
        Command::Check(options) => commands::check::run(&options),
        Command::Status(options) => commands::status::run(&options),
        Command::Dead(options) => commands::dead::run(&options),
        Command::Endpoint(options) => commands::endpoint::run(&options),
        Command::Retry(options) => commands::retry::run(&options),
        Command::Waiting(options) => commands::waiting::run(&options),
        Command::Generate(what) => commands::generate::run(what),
        Command::Print(text) => commands::print(&text),
    }
}

fn fail(format: LogFormat, code: u8, why: &str) -> ExitCode {
    logger::last_words(format, why);
    ExitCode::from(code)
}
