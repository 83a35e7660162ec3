//! Completion for fish.

use super::{Values, cases, following, takes_a_file, values};
use crate::config::{AnyRow, COMMANDS};

pub(super) fn script() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    let with_actions = COMMANDS.iter().filter(|command| !command.actions.is_empty());
    let with_actions: Vec<&str> = with_actions.map(|command| command.name).collect();
    let mut text = format!(
        "\
# Completion of acapy-deliver for fish; made by 'acapy-deliver generate complete-fish'.

# Whether the words so far are those of a command, with its action if it has any.
function __acapy_deliver_is
    set -l words (commandline -opc)
    set -e words[1]
    set -l command run
    if contains -- \"$words[1]\" {names}
        set command $words[1]
        if contains -- $command {with_actions}; and set -q words[2]
            set command $command $words[2]
        end
    end
    test \"$command\" = \"$argv\"
end

function __acapy_deliver_begins
    test (count (commandline -opc)) = $argv[1]
end

complete -c acapy-deliver -f
",
        names = names.join(" "),
        with_actions = with_actions.join(" ")
    );
    for command in COMMANDS {
        text += &format!(
            "complete -c acapy-deliver -n '__acapy_deliver_begins 1' -a {} -d {}\n",
            command.name,
            quoted(command.summary)
        );
        for (word, summary) in following(command) {
            text += &format!(
                "complete -c acapy-deliver -n '__acapy_deliver_is {}; and __acapy_deliver_begins 2' -a {word} -d {}\n",
                command.name,
                quoted(summary)
            );
        }
    }
    for case in cases() {
        let on = format!("complete -c acapy-deliver -n '__acapy_deliver_is {}'", case.words);
        for row in case.rows {
            text += &format!("{on}{}\n", option(row));
        }
        if takes_a_file(&case.words) {
            text += &format!("{on} -F\n");
        }
    }
    text + "complete -c acapy-deliver -s h -l help -d 'show help'\n"
}

fn option(row: &dyn AnyRow) -> String {
    let short = row.short().map_or(String::new(), |short| format!(" -o {}", short.trim_start_matches('-')));
    let value = match values(row) {
        Values::Flag => String::new(),
        Values::Words(words) => format!(" -x -a '{}'", words.join(" ")),
        Values::File => " -r -F".to_owned(),
        Values::Free => " -x".to_owned(),
    };
    format!("{short} -l {}{value} -d {}", row.name().trim_start_matches('-'), quoted(row.help()))
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
