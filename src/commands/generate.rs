//! `acapy-deliver generate`: the manual page, and what shells complete by, made of the rows of the options
//! like the help, so that they name what this binary takes and nothing else. Packages bring them.

mod bash;
mod fish;
mod man;
mod zsh;

use crate::commands::{Error, Exit, print};
use crate::config::{AnyRow, COMMANDS, CommandRow, Generate};

/// Writes one of them to standard output.
///
/// # Errors
///
/// If standard output is closed or full.
pub fn run(what: Generate) -> Result<Exit, Error> {
    print(&match what {
        Generate::Man => man::page(),
        Generate::Bash => bash::script(),
        Generate::Zsh => zsh::script(),
        Generate::Fish => fish::script(),
    })
}

/// What may stand before options: a command, or `dead list` where one of several actions must follow.
struct Case {
    words: String,
    rows: Vec<&'static dyn AnyRow>,
}

fn cases() -> Vec<Case> {
    COMMANDS.iter().flat_map(|command| cases_of(command)).collect()
}

fn cases_of(command: &CommandRow) -> Vec<Case> {
    if command.actions.is_empty() {
        return vec![Case { words: command.name.to_owned(), rows: command.rows().collect() }];
    }
    let actions = command.actions.iter();
    let cases = actions.map(|action| {
        let words = format!("{} {}", command.name, action.name);
        Case { words, rows: command.rows_of(action) }
    });
    cases.collect()
}

/// What a shell can offer for an option's value.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Values {
    /// It takes none.
    Flag,
    /// One of these words.
    Words(Vec<&'static str>),
    /// The name of a file.
    File,
    /// What only the user knows.
    Free,
}

fn values(row: &dyn AnyRow) -> Values {
    match row.value() {
        "" => Values::Flag,
        "FILE" | "PEM" => Values::File,
        value if value.contains('|') => Values::Words(value.split('|').collect()),
        _ => Values::Free,
    }
}

/// An option's names, as they are typed.
fn names(row: &dyn AnyRow) -> Vec<&'static str> {
    row.short().into_iter().chain([row.name()]).collect()
}

/// A command's words that are not options: its actions, or for `help` the commands.
fn following(command: &CommandRow) -> Vec<(&'static str, &'static str)> {
    match command.name {
        "help" => COMMANDS.iter().map(|command| (command.name, command.summary)).collect(),
        _ => command.actions.iter().map(|action| (action.name, action.summary)).collect(),
    }
}

/// Whether a command takes the name of a file beside its options.
fn takes_a_file(words: &str) -> bool {
    words == "enqueue"
}
