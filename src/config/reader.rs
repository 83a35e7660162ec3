//! Takes options one by one from the command line or the environment, by name, and refuses
//! what is left. It knows how options are given, not what they mean.

use std::ffi::OsString;
use std::fmt;

use super::{COMMANDS, Environment, Error, options_of, redacted};

/// One command's arguments while they are being read.
pub(super) struct Reader<'a> {
    /// `dead show` once the action is known.
    command: String,
    arguments: pico_args::Arguments,
    environment: &'a Environment,
    /// Every option asked for so far: these are the options that there are.
    pub(super) asked: Vec<Asked>,
}

/// An option that there is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    pub(super) name: &'static str,
    pub(super) variable: Option<String>,
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
    pub(super) fn parsed<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, Error> {
        parsed(self, &parse)
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(command: &str, arguments: Vec<String>, environment: &'a Environment) -> Reader<'a> {
        let command = if command.is_empty() { "run" } else { command };
        let arguments = arguments.into_iter().map(OsString::from).collect();
        let arguments = pico_args::Arguments::from_vec(arguments);
        Reader { command: command.to_owned(), arguments, environment, asked: Vec::new() }
    }

    /// An option with one value; `parse` says what is wrong with it as the end of a sentence.
    pub(super) fn value<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Error> {
        self.given(name)?.map(|given| parsed(&given, &parse)).transpose()
    }

    /// The same for an option that the environment cannot give.
    pub(super) fn value_without_variable<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Error> {
        self.ask(name, None);
        self.typed_once(name)?.map(|given| parsed(&given, &parse)).transpose()
    }

    /// An option with one value, as text.
    pub(super) fn given(&mut self, name: &'static str) -> Result<Option<Given>, Error> {
        let variable = variable_of(name);
        self.ask(name, Some(variable.clone()));
        match self.typed_once(name)? {
            Some(given) => Ok(Some(given)),
            None => self.in_environment(&variable),
        }
    }

    /// A variable that is none of ours and belongs to no option.
    pub(super) fn foreign(&self, variable: &str) -> Result<Option<Given>, Error> {
        self.in_environment(variable)
    }

    /// An option that may be repeated; in the environment its values have commas between them.
    pub(super) fn list<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<Vec<T>, String>,
    ) -> Result<Vec<T>, Error> {
        let variable = variable_of(name);
        self.ask(name, Some(variable.clone()));
        let mut all = self.typed(name)?;
        if all.is_empty()
            && let Some(Given { value, source }) = self.in_environment(&variable)?
        {
            let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
            all = parts.map(|part| Given { value: part.to_owned(), source: source.clone() }).collect();
        }
        let mut values = Vec::new();
        for given in &all {
            values.extend(parsed(given, &parse)?);
        }
        Ok(values)
    }

    /// An option without a value.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, Error> {
        let variable = variable_of(name);
        self.ask(name, Some(variable.clone()));
        if self.flag_is_typed(name)? {
            return Ok(true);
        }
        match self.in_environment(&variable)? {
            Some(given) => parsed(&given, &boolean),
            None => Ok(false),
        }
    }

    /// The same for one that the environment cannot give.
    pub(super) fn flag_without_variable(&mut self, name: &'static str) -> Result<bool, Error> {
        self.ask(name, None);
        self.flag_is_typed(name)
    }

    /// The word that must come next, one of `actions`.
    pub(super) fn subcommand(&mut self, command: &str, actions: &[&'static str]) -> Result<&'static str, Error> {
        let word = self.arguments.subcommand().ok().flatten().unwrap_or_default();
        let Some(action) = actions.iter().find(|action| **action == word) else {
            let what = match word.as_str() {
                "" => format!("'{command}' needs to be told what to do"),
                word => {
                    format!("'{command}' knows no '{}'{}", redacted(word), did_you_mean(word, actions.iter().copied()))
                }
            };
            return Err(Error(format!("{what}; right after it comes one of {}", actions.join(", "))));
        };
        self.command = format!("{command} {action}");
        Ok(action)
    }

    /// What is left, at most so many arguments; options among them are unknown.
    pub(super) fn finish(&mut self, most: usize) -> Result<Vec<String>, Error> {
        let none = pico_args::Arguments::from_vec(Vec::new());
        let rest = std::mem::replace(&mut self.arguments, none).finish();
        let rest: Vec<String> = rest.into_iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
        if let Some(option) = rest.iter().find(|argument| argument.starts_with('-') && *argument != "-") {
            return Err(self.unknown_option(option));
        }
        match rest.get(most) {
            Some(command) if COMMANDS.contains(&command.as_str()) => {
                Err(Error(format!("'{command}' must come first, as in 'acapy-deliver {command} …'")))
            }
            Some(argument) => {
                Err(Error(format!("argument '{}' is one too many for '{}'", redacted(argument), self.command)))
            }
            None => Ok(rest),
        }
    }

    fn unknown_option(&self, name: &str) -> Error {
        let owner = COMMANDS.into_iter().find(|command| options_of(command).iter().any(|asked| asked.name == name));
        let hint = match owner {
            Some(owner) => format!(" (it is one of '{owner}')"),
            None => did_you_mean(name, self.asked.iter().map(|asked| asked.name).chain(["--help", "--version"])),
        };
        Error(format!(
            "'{}' is not an option of '{command}'{hint}; see 'acapy-deliver {command} --help'",
            redacted(name),
            command = self.command
        ))
    }

    fn ask(&mut self, name: &'static str, variable: Option<String>) {
        self.asked.push(Asked { name, variable });
    }

    fn flag_is_typed(&mut self, name: &'static str) -> Result<bool, Error> {
        let typed = self.arguments.contains(name);
        if typed && self.arguments.contains(name) {
            return Err(twice(name));
        }
        Ok(typed)
    }

    fn typed_once(&mut self, name: &'static str) -> Result<Option<Given>, Error> {
        let mut all = self.typed(name)?;
        if all.len() > 1 {
            return Err(twice(name));
        }
        Ok(all.pop())
    }

    fn typed(&mut self, name: &'static str) -> Result<Vec<Given>, Error> {
        let as_it_is = |value: &str| Ok::<String, String>(value.to_owned());
        let needs_a_value = || Error(format!("option '{name}' needs a value, one that does not begin with a dash"));
        let values = self.arguments.values_from_fn(name, as_it_is).map_err(|_| needs_a_value())?;
        let source = format!("option '{name}'");
        values
            .into_iter()
            .map(|value| {
                if value.starts_with('-') { Err(needs_a_value()) } else { Ok(Given { value, source: source.clone() }) }
            })
            .collect()
    }

    fn in_environment(&self, variable: &str) -> Result<Option<Given>, Error> {
        let Some(value) = self.environment.get(variable).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let source = format!("variable {variable}");
        match value.to_str() {
            Some(value) => Ok(Some(Given { value: value.to_owned(), source })),
            None => Err(Error(format!("{source} is not UTF-8"))),
        }
    }
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

/// ACA-Py's name where it has one.
fn variable_of(name: &str) -> String {
    match name {
        "--outbound-queue" => "ACAPY_OUTBOUND_TRANSPORT_QUEUE".to_owned(),
        "--outbound-queue-prefix" => "ACAPY_OUTBOUND_TRANSPORT_QUEUE_PREFIX".to_owned(),
        "--outbound-queue-class" => "ACAPY_OUTBOUND_TRANSPORT_QUEUE_CLASS".to_owned(),
        _ => format!("ACAPY_DELIVER_{}", name.trim_start_matches('-').replace('-', "_").to_ascii_uppercase()),
    }
}

fn parsed<T>(given: &Given, parse: &impl Fn(&str) -> Result<T, String>) -> Result<T, Error> {
    parse(&given.value).map_err(|why| {
        let shown = match given.value.split_once(':') {
            // What stands in a header may be a credential.
            Some((name, _)) if given.source.to_ascii_lowercase().contains("header") => {
                format!("{name}: …")
            }
            _ => redacted(&given.value),
        };
        Error(format!("{}: '{}' {why}", given.source, shown.escape_debug()))
    })
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("is neither 1, true, yes, on nor 0, false, no, off".to_owned()),
    }
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
