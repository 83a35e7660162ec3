//! The log on standard error, and the last words of a program that cannot go on: as lines for people, or as one JSON
//! object each. Fields of those come from the records themselves ([`log::kv`]), never out of their prose.
//!
//! | member | holds |
//! |---|---|
//! | `time` | RFC 3339, UTC, with milliseconds |
//! | `level` | `error`, `warn`, `info`, `debug`, `trace` |
//! | `message` | what the other formats say, one line |
//! | `origin`, `id`, `attempts`, `failures`, `error` | where a line is of such |

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::SystemTime;

use log::kv::{self, VisitSource, VisitValue};
use log::{Level, LevelFilter, Metadata, Record};

use crate::config::LogFormat;
use crate::json::Object;
use crate::text::{panic_message, utc, visible};

/// `info` unless `RUST_LOG` says otherwise; what the crates below us have to say begins at
/// `warn` unless it names them, and ends where secrets would. One line a record, whatever a stranger's text in it holds.
///
/// # Panics
///
/// If there is a logger already.
pub fn set_up(format: LogFormat) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Info);
    for crate_below in ["ureq", "ureq_proto", "rustls", "redis"] {
        builder.filter_module(crate_below, LevelFilter::Warn);
    }
    if let Ok(filters) = std::env::var("RUST_LOG") {
        builder.parse_filters(&filters);
    }
    builder.format(move |line, record| {
        let message = record.args().to_string();
        match format {
            LogFormat::Json => return writeln!(line, "{}", json(record.level(), &message, record.key_values())),
            LogFormat::Full => write!(line, "{} ", utc(SystemTime::now()))?,
            LogFormat::Bare => {}
        }
        writeln!(line, "{:<5} {}", record.level(), visible(&message))
    });
    let logger = builder.build();
    log::set_max_level(logger.filter());
    log::set_boxed_logger(Box::new(Discreet(logger))).expect("this is the only logger");
    if format == LogFormat::Json {
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current();
            let at = panic.location().map(|at| format!(" at {at}")).unwrap_or_default();
            let name = thread.name().unwrap_or("without a name");
            let message = format!("thread '{name}' panicked{at}: {}", panic_message(panic.payload()));
            // Not by the logger, which may be what has panicked.
            let _ = writeln!(std::io::stderr(), "{}", json(Level::Error, &message, &NO_FIELDS));
        }));
    }
}

/// Why the program ends, on standard error; that may be closed: then the exit code alone has to tell. The words may be
/// those of a Redis that is none of ours.
pub fn last_words(format: LogFormat, why: &str) {
    let mut stderr = std::io::stderr();
    let _ = match format {
        LogFormat::Json => writeln!(stderr, "{}", json(Level::Error, why, &NO_FIELDS)),
        _ => writeln!(stderr, "acapy-deliver: {}", visible(why)),
    };
}

/// The format that is asked for where the command line as a whole could not be read.
pub fn format_asked_for(args: &[OsString], environment: &BTreeMap<String, OsString>) -> LogFormat {
    let named = args.windows(2).filter(|pair| pair[0] == "--log-format").map(|pair| &pair[1]).next_back();
    let is_json = |text: &OsString| text == "json";
    let is_asked_for = match named {
        Some(named) => is_json(named),
        None => environment.get("ACAPY_DELIVER_LOG_FORMAT").is_some_and(is_json),
    };
    if is_asked_for { LogFormat::Json } else { LogFormat::Full }
}

const NO_FIELDS: [(&str, kv::Value); 0] = [];

/// One line, without its end.
fn json(level: Level, message: &str, fields: &dyn kv::Source) -> Object {
    let line = Object::new().time("time", Some(SystemTime::now()));
    let line = line.text("level", &level.as_str().to_ascii_lowercase()).text("message", message);
    let mut fields_of = Fields(line);
    // Ours refuse none.
    let _ = fields.visit(&mut fields_of);
    fields_of.0
}

/// A line that fields are added to.
struct Fields(Object);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        value.visit(Field { line: &mut self.0, key: key.as_str() })
    }
}

struct Field<'a> {
    line: &'a mut Object,
    key: &'a str,
}

impl Field<'_> {
    fn add(&mut self, with: impl FnOnce(Object, &str) -> Object) {
        *self.line = with(std::mem::take(self.line), self.key);
    }
}

impl<'v> VisitValue<'v> for Field<'_> {
    fn visit_any(&mut self, value: kv::Value) -> Result<(), kv::Error> {
        let mut text = String::new();
        let _ = write!(text, "{value}");
        self.visit_str(&text)
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.add(|line, key| line.number(key, value));
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.add(|line, key| line.json(key, value));
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.add(|line, key| line.text(key, value));
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_object_whatever_is_in_it() {
        let hostile = "\"},{\u{202e}\n\u{1b}[31m\u{0}";
        let fields: [(&str, kv::Value); 4] = [
            ("origin", kv::Value::from(hostile)),
            ("attempts", kv::Value::from(u64::MAX)),
            ("id", kv::Value::from_display(&7)),
            ("error", kv::Value::null()),
        ];
        let line = json(Level::Warn, hostile, &fields).to_string();
        assert!(!line.chars().any(char::is_control) && !line.contains('\u{202e}'), "{line:?}");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&read["message"], &read["origin"]), (&hostile.into(), &hostile.into()));
        assert_eq!((&read["level"], &read["attempts"]), (&"warn".into(), &u64::MAX.into()));
        assert_eq!((&read["id"], read.get("error")), (&"7".into(), None));
        assert!(humantime::parse_rfc3339(read["time"].as_str().unwrap()).is_ok(), "{line}");
    }

    /// Runs itself again, for a hook is the whole process's.
    #[test]
    fn a_panic_is_a_line_too() {
        const INSIDE: &str = "ACAPY_DELIVER_TEST_PANIC_INSIDE";
        if std::env::var_os(INSIDE).is_some() {
            set_up(LogFormat::Json);
            let thread = std::thread::Builder::new().name("worker-1".to_owned());
            let panics = || panic!("{}", "hostile \"},{\u{202e}\n\u{1b}[31m");
            assert!(thread.spawn(panics).unwrap().join().is_err());
            log::warn!(origin = "http://a:1", attempts = 3; "after it");
            return;
        }
        let mut inside = std::process::Command::new(std::env::current_exe().unwrap());
        inside.args(["--exact", "logger::tests::a_panic_is_a_line_too", "--nocapture"]).env(INSIDE, "1");
        let output = inside.env_remove("RUST_LOG").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [panicked, after] = &lines[..] else { panic!("{said}") };
        let message = panicked["message"].as_str().unwrap();
        assert!(message.starts_with("thread 'worker-1' panicked at src/logger.rs"), "{message}");
        assert!(message.ends_with("hostile \"},{\u{202e}\n\u{1b}[31m") && !said.contains('\u{202e}'), "{said}");
        assert_eq!((&after["origin"], &after["attempts"]), (&"http://a:1".into(), &3.into()));
    }

    #[test]
    fn the_format_is_known_even_of_a_command_line_that_is_wrong() {
        let check = |args: &str, variable: Option<&str>, json: bool| {
            let args: Vec<OsString> = args.split(' ').map(OsString::from).collect();
            let variable = variable.map(|value| ("ACAPY_DELIVER_LOG_FORMAT".to_owned(), OsString::from(value)));
            let environment = variable.into_iter().collect();
            assert_eq!(format_asked_for(&args, &environment) == LogFormat::Json, json, "{args:?} {environment:?}");
        };
        check("run --nonsense", None, false);
        check("run --log-format json --nonsense", None, true);
        check("run --nonsense", Some("json"), true);
        check("run --nonsense --log-format full", Some("json"), false);
        check("run --log-format", Some("json"), true);
    }
}
