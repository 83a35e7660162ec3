//! Parse, set up the log, run the agent or a command, turn the result into an exit code.

use std::io::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use acapy_deliver::agent;
use acapy_deliver::commands::{self, Error, Exit};
use acapy_deliver::config::{self, Command, LogFormat};
use acapy_deliver::text;
use log::{LevelFilter, Metadata, Record};

fn main() -> ExitCode {
    let command = match config::parse(std::env::args_os().skip(1).collect(), &config::environment()) {
        Ok(command) => command,
        Err(error) => return fail(2, &error.to_string()),
    };
    let format = match &command {
        Command::Run(config) => config.log_format,
        _ => LogFormat::Full,
    };
    set_up_log(format);
    match obey(command) {
        Ok(Exit::Done) | Err(Error::OutputClosed) => ExitCode::SUCCESS,
        Ok(Exit::Nothing) => ExitCode::from(1),
        Err(Error::Failed(why)) => fail(1, &why),
        Err(Error::Usage(why)) => fail(2, &why),
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
        Command::Print(text) => commands::print(&text),
    }
}

/// `info` unless `RUST_LOG` says otherwise; what the crates below us have to say begins at
/// `warn` unless it names them, and ends where secrets would. One line a record, whatever a stranger's text in it holds.
fn set_up_log(format: LogFormat) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Info);
    for crate_below in ["ureq", "ureq_proto", "rustls", "redis"] {
        builder.filter_module(crate_below, LevelFilter::Warn);
    }
    if let Ok(filters) = std::env::var("RUST_LOG") {
        builder.parse_filters(&filters);
    }
    builder.format(move |line, record| {
        if format == LogFormat::Full {
            write!(line, "{} ", text::utc(SystemTime::now()))?;
        }
        let message = text::visible(&record.args().to_string());
        writeln!(line, "{:<5} {message}", record.level())
    });
    let logger = builder.build();
    log::set_max_level(logger.filter());
    log::set_boxed_logger(Box::new(Discreet(logger))).expect("this is the only logger");
}

/// What the crates below us say beyond `info` may be a request with all its headers, or an answer:
/// it is not to be had, whatever `RUST_LOG` asks for. TLS says no such thing.
struct Discreet(env_logger::Logger);

impl log::Log for Discreet {
    fn enabled(&self, metadata: &Metadata) -> bool {
        let most = match metadata.target().split("::").next() {
            Some("acapy_deliver") => LevelFilter::Trace,
            Some("rustls") => LevelFilter::Debug,
            _ => LevelFilter::Info,
        };
        metadata.level() <= most && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Standard error may be closed: then the exit code alone has to tell. The words may be those of
/// a Redis that is none of ours.
fn fail(code: u8, why: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "acapy-deliver: {}", text::visible(why));
    ExitCode::from(code)
}
