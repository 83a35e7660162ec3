//! Takes a command's options one by one from the command line or the environment, by their rows, and refuses
//! what is left. It knows how options are given, not what they mean.

use std::ffi::OsString;
use std::fmt;

use super::help::COMMANDS;
use super::row::{AnyRow, CommandRow, Row};
use super::{Environment, Error};
use crate::text::{exact, redacted};

/// One command's arguments while they are being read.
pub(super) struct Reader<'a> {
    /// `dead show` once the action is known.
    command: String,
    rows: Vec<&'static dyn AnyRow>,
    arguments: pico_args::Arguments,
    environment: &'a Environment,
}

/// A value and where it came from.
pub(super) struct Given {
    pub(super) value: String,
    /// As a message names it: `option '--workers'`, `variable ACAPY_DELIVER_WORKERS`.
    source: String,
}

impl Given {
    pub(super) fn is_from_variable(&self) -> bool {
        self.source.starts_with("variable")
    }

    /// `parse` says what is wrong with it as the end of a sentence.
    pub(super) fn parsed<T>(&self, parse: fn(&str) -> Result<T, String>) -> Result<T, Error> {
        parse(&self.value).map_err(|why| {
            let shown = match self.value.split_once(':') {
                // What stands in a header may be a credential.
                Some((name, _)) if self.source.contains("'--header'") => format!("{name}: …"),
                _ => redacted(&self.value),
            };
            Error(format!("{}: '{}' {why}", self.source, shown.escape_debug()))
        })
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl<'a> Reader<'a> {
    /// # Errors
    ///
    /// If there is an option among the arguments that this command does not have.
    pub(super) fn new(
        command: &CommandRow,
        mut arguments: Vec<String>,
        environment: &'a Environment,
    ) -> Result<Reader<'a>, Error> {
        let mut reader = Reader {
            command: command.name.to_owned(),
            rows: command.rows().collect(),
            arguments: pico_args::Arguments::from_vec(Vec::new()),
            environment,
        };
        if !command.actions.is_empty() {
            let names = || command.actions.iter().map(|action| action.name);
            let action = arguments.first().and_then(|word| command.actions.iter().find(|action| action.name == word));
            let Some(action) = action else {
                let word = arguments.first().filter(|word| !word.starts_with('-'));
                return Err(no_such_action(command.name, word.map_or("", String::as_str), names()));
            };
            arguments.remove(0);
            reader.command = format!("{} {}", command.name, action.name);
            reader.rows = command.rows_of(action);
        }
        reader.refuse_unknown(&arguments)?;
        let arguments = arguments.into_iter().map(OsString::from).collect();
        reader.arguments = pico_args::Arguments::from_vec(arguments);
        Ok(reader)
    }

    /// What follows the command's name as its action; nothing for a command without actions.
    pub(super) fn action(&self) -> &str {
        self.command.split_once(' ').map_or("", |(_, action)| action)
    }

    /// The command, and its action if it has any.
    pub(super) fn command(&self) -> &str {
        &self.command
    }

    /// An option with one value, if it is given.
    pub(super) fn optional<T>(&mut self, row: &'static Row<T>) -> Result<Option<T>, Error> {
        self.given(row)?.map(|given| given.parsed(row.parse)).transpose()
    }

    /// An option with one value, or its default.
    pub(super) fn value<T>(&mut self, row: &'static Row<T>) -> Result<T, Error> {
        Ok(self.optional(row)?.unwrap_or_else(|| row.default_value()))
    }

    /// The same under a bound that has a name: a default shrinks with it, what was given must not be over it.
    pub(super) fn bounded<T: Bounded>(&mut self, row: &'static Row<T>, (name, bound): (&str, T)) -> Result<T, Error> {
        match self.optional(row)? {
            Some(value) if value > bound => Err(Error(format!(
                "option '{}' ({}) is over {name} ({}); lower the one or raise the other",
                row.name(),
                value.shown(),
                bound.shown()
            ))),
            Some(value) => Ok(value),
            None => Ok(row.default_value().min(bound)),
        }
    }

    /// An option with one value, as text.
    pub(super) fn given<T>(&mut self, row: &'static Row<T>) -> Result<Option<Given>, Error> {
        let mut all = self.typed(row)?;
        match (all.pop(), row.variable()) {
            (Some(_), _) if !all.is_empty() => Err(twice(row.name())),
            (Some(given), _) => Ok(Some(given)),
            (None, Some(variable)) => self.foreign(&variable),
            (None, None) => Ok(None),
        }
    }

    /// A variable that belongs to no option.
    pub(super) fn foreign(&self, variable: &str) -> Result<Option<Given>, Error> {
        let Some(value) = self.environment.get(variable).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let source = format!("variable {variable}");
        match value.to_str() {
            Some(value) => Ok(Some(Given { value: value.to_owned(), source })),
            None => Err(Error(format!("{source} is not UTF-8"))),
        }
    }

    /// An option that may be repeated; in the environment its values have commas between them.
    pub(super) fn list<T>(&mut self, row: &'static Row<Vec<T>>) -> Result<Vec<T>, Error> {
        let mut all = self.typed(row)?;
        if let (true, Some(variable)) = (all.is_empty(), row.variable())
            && let Some(Given { value, source }) = self.foreign(&variable)?
        {
            let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
            all = parts.map(|part| Given { value: part.to_owned(), source: source.clone() }).collect();
        }
        let mut values = Vec::new();
        for given in &all {
            values.extend(given.parsed(row.parse)?);
        }
        Ok(values)
    }

    /// An option without a value.
    pub(super) fn flag(&mut self, row: &'static Row<bool>) -> Result<bool, Error> {
        self.must_have(row);
        let name = row.name();
        if self.arguments.contains(name) {
            return if self.arguments.contains(name) { Err(twice(name)) } else { Ok(true) };
        }
        match row.variable() {
            Some(variable) => self.foreign(&variable)?.map_or(Ok(false), |given| given.parsed(row.parse)),
            None => Ok(false),
        }
    }

    /// What is left: at most so many arguments.
    pub(super) fn rest(&mut self, most: usize) -> Result<Vec<String>, Error> {
        let none = pico_args::Arguments::from_vec(Vec::new());
        let rest = std::mem::replace(&mut self.arguments, none).finish();
        let rest: Vec<String> = rest.into_iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
        match rest.get(most) {
            Some(command) if COMMANDS.iter().any(|row| row.name == command) => Err(must_come_first(command)),
            Some(argument) => {
                Err(Error(format!("argument '{}' is one too many for '{}'", redacted(argument), self.command)))
            }
            None => Ok(rest),
        }
    }

    /// What begins with a dash is an option, never a value.
    fn refuse_unknown(&self, arguments: &[String]) -> Result<(), Error> {
        let mut before: Option<&dyn AnyRow> = None;
        for argument in arguments {
            let row = self.rows.iter().find(|row| row.name() == argument).copied();
            if argument.starts_with('-') && argument != "-" && row.is_none() {
                return Err(match before {
                    Some(row) => needs_a_value(row.name()),
                    None => self.unknown_option(argument),
                });
            }
            // A queue that is missing as well is not what is wrong.
            if self.command == "run" && before.is_none() && COMMANDS.iter().any(|row| row.name == argument) {
                return Err(must_come_first(argument));
            }
            before = row.filter(|row| !row.value().is_empty());
        }
        Ok(())
    }

    fn unknown_option(&self, name: &str) -> Error {
        let owner = COMMANDS.iter().find(|command| command.rows().any(|row| row.name() == name));
        let names = self.rows.iter().map(|row| row.name()).chain(["--help", "--version"]);
        let hint = match owner {
            Some(owner) => format!(" (it is one of '{}')", owner.name),
            None => did_you_mean(name, names),
        };
        Error(format!(
            "'{}' is not an option of '{command}'{hint}; see 'acapy-deliver {command} --help'",
            redacted(name),
            command = self.command
        ))
    }

    fn typed<T>(&mut self, row: &'static Row<T>) -> Result<Vec<Given>, Error> {
        self.must_have(row);
        let name = row.name();
        let as_it_is = |value: &str| Ok::<String, String>(value.to_owned());
        let values = self.arguments.values_from_fn(name, as_it_is).map_err(|_| needs_a_value(name))?;
        if values.iter().any(|value| value.starts_with('-')) {
            return Err(needs_a_value(name));
        }
        let source = format!("option '{name}'");
        Ok(values.into_iter().map(|value| Given { value, source: source.clone() }).collect())
    }

    /// What is read must be in the command's table, or help would not show it.
    fn must_have(&self, row: &'static dyn AnyRow) {
        debug_assert!(
            self.rows.iter().any(|known| known.name() == row.name()),
            "'{}' has no row for {}",
            self.command,
            row.name()
        );
    }
}

/// A value that a bound can be set to, as a message shows it.
pub(super) trait Bounded: Ord + Copy {
    fn shown(self) -> String;
}

impl Bounded for usize {
    fn shown(self) -> String {
        self.to_string()
    }
}

impl Bounded for std::time::Duration {
    fn shown(self) -> String {
        exact(self)
    }
}

fn no_such_action(command: &str, word: &str, names: impl Iterator<Item = &'static str> + Clone) -> Error {
    let what = match word {
        "" => format!("'{command}' needs to be told what to do"),
        word => format!("'{command}' knows no '{}'{}", redacted(word), did_you_mean(word, names.clone())),
    };
    let names: Vec<&str> = names.collect();
    Error(format!("{what}; right after it comes one of {}", names.join(", ")))
}

fn must_come_first(command: &str) -> Error {
    Error(format!("'{command}' must come first, as in 'acapy-deliver {command} …'"))
}

fn needs_a_value(name: &str) -> Error {
    Error(format!("option '{name}' needs a value, one that does not begin with a dash"))
}

/// The arguments as text, with short names made long and `--name=value` made two, for
/// pico-args panics at short names of several letters and strips quotes off values after `=`.
pub(super) fn normalised(arguments: Vec<OsString>) -> Result<Vec<String>, Error> {
    let mut normalised = Vec::with_capacity(arguments.len());
    for (n, argument) in arguments.into_iter().enumerate() {
        let argument = argument.into_string().map_err(|_| Error(format!("argument {} is not UTF-8", n + 1)))?;
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name, Some(value)),
            _ => (argument.as_str(), None),
        };
        normalised.push(match name {
            "-oq" => "--outbound-queue".to_owned(),
            "-oqp" => "--outbound-queue-prefix".to_owned(),
            "-oqc" => "--outbound-queue-class".to_owned(),
            "-h" => "--help".to_owned(),
            "-V" => "--version".to_owned(),
            other => other.to_owned(),
        });
        normalised.extend(value.map(str::to_owned));
    }
    Ok(normalised)
}

fn twice(name: &str) -> Error {
    Error(format!("option '{name}' is given twice"))
}

/// ` (did you mean '--workers'?)` or nothing.
pub(super) fn did_you_mean<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    let nearest = known.map(|candidate| (edits(name, candidate), candidate)).min();
    match nearest {
        Some((distance, candidate)) if distance <= 2 && distance < candidate.len() / 2 => {
            format!(" (did you mean '{candidate}'?)")
        }
        _ => String::new(),
    }
}

/// How many letters must be put in, taken out or changed to make one word of the other.
fn edits(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}
