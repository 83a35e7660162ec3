//! All commands, and their help texts, which are made from their rows.

use super::row::{AnyRow, CommandRow, Section};
use super::{endpoint, messages, operator, run};

/// All commands, in the order in which help names them.
pub static COMMANDS: &[&CommandRow] = &[
    &run::COMMAND,
    &operator::ENQUEUE,
    &operator::LISTEN,
    &operator::CHECK,
    &operator::STATUS,
    &messages::DEAD,
    &endpoint::ENDPOINT,
    &messages::RETRY,
    &messages::WAITING,
    &operator::GENERATE,
    &HELP,
];

static HELP: CommandRow = CommandRow {
    name: "help",
    summary: "the same as acapy-deliver CMD --help",
    usage: "acapy-deliver help [CMD]",
    about: "Shows the help of a command.",
    sections: &[],
    after: "",
    actions: &[],
};

/// The column at which an option's help begins, that of its variable, and the one that no line reaches.
const HELP_AT: usize = 29;
const VARIABLE_AT: usize = 53;
const WIDTH: usize = 84;

/// The help of a command; of the program for an empty name.
pub(super) fn of(command: &str) -> Option<String> {
    match command {
        "" => Some(format!("{}\n{}", main(), of_command(&run::COMMAND))),
        name => COMMANDS.iter().find(|command| command.name == name).map(|command| of_command(command)),
    }
}

fn main() -> String {
    let mut text = format!("{ABOUT}\n");
    for command in COMMANDS {
        let name = match command.name {
            "run" => "[run]",
            "help" => "help CMD",
            name => name,
        };
        text += &format!("  acapy-deliver {name:<9} {}\n", command.summary);
    }
    text + END
}

const ABOUT: &str = "\
acapy-deliver delivers what ACA-Py puts into its outbound queue: it takes each
message from Redis and POSTs it to its endpoint, losing none. In the place of the
'deliverer' of ACA-Py's plugin redis_events it needs that one's environment alone.
";

const END: &str = "
  -h, --help      this text
  -V, --version   the version

Exit codes: 0 clean, 1 could not continue, or nothing matched, 2 wrong usage.
";

fn of_command(command: &CommandRow) -> String {
    let mut text = format!("{}\n\n{}\n", command.usage, command.about);
    for section in command.sections {
        text += &of_section(section);
    }
    if !command.after.is_empty() {
        text += &format!("{}\n", command.after);
    }
    text
}

fn of_section(section: &Section) -> String {
    let mut text = "\n".to_owned();
    if !section.heading.is_empty() {
        text += &format!("{}\n", section.heading);
    }
    for row in section.rows {
        text += &of_row(*row);
    }
    text
}

fn of_row(row: &dyn AnyRow) -> String {
    let short = row.short().map_or(String::new(), |short| format!("{short}, "));
    let name = format!("  {short}{} {}", row.name(), row.value());
    let name = name.trim_end();
    let default = row.default().map_or(String::new(), |default| format!("[{default}]"));
    let mut lines = wrapped(row.help(), WIDTH - HELP_AT);
    match row.variable() {
        Some(variable) => lines.push(format!("{default:width$}{variable}", width = VARIABLE_AT - HELP_AT)),
        None => lines.extend(wrapped(&default, WIDTH - HELP_AT)),
    }
    let mut text = match name.len() < HELP_AT {
        true => format!("{name:HELP_AT$}{}\n", lines.remove(0)),
        false => format!("{name}\n"),
    };
    for line in lines {
        text += &format!("{:HELP_AT$}{line}\n", "");
    }
    text
}

/// Lines of at most so many characters, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
