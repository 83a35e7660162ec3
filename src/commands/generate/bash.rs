//! Completion for bash, with nothing but bash.

use std::collections::BTreeMap;

use super::{Values, cases, following, names, takes_a_file, values};
use crate::config::COMMANDS;

pub(super) fn script() -> String {
    let commands: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    let commands = commands.join(" ");
    let mut text = format!(
        "\
# Completion of acapy-deliver for bash; made by 'acapy-deliver generate complete-bash'.
_acapy_deliver() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} command=run first=1
    COMPREPLY=()
    if ((COMP_CWORD > 1)); then
        case \" {commands} \" in *\" ${{COMP_WORDS[1]}} \"*) command=${{COMP_WORDS[1]}} first=2 ;; esac
    elif [[ $current != -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '{commands}' -- \"$current\")
        return
    fi
"
    );
    for command in COMMANDS {
        let words: Vec<&str> = following(command).iter().map(|(word, _)| *word).collect();
        if words.is_empty() {
            continue;
        }
        let words = words.join(" ");
        text += &format!(
            "    if [[ $command = {name} ]]; then
        if ((COMP_CWORD == first)); then
            mapfile -t COMPREPLY < <(compgen -W '{words}' -- \"$current\")
            return
        fi
        command=\"{name} ${{COMP_WORDS[first]}}\"
    fi
",
            name = command.name
        );
    }
    text += "    case $command:$previous in\n";
    for (answer, patterns) in answers() {
        text += &format!("    {})\n        {answer}return\n        ;;\n", patterns.join(" | "));
    }
    text += "    esac\n    local options=\n    case $command in\n";
    for case in cases() {
        let options: Vec<&str> = case.rows.iter().flat_map(|row| names(*row)).chain(["--help"]).collect();
        text += &format!("    '{}') options='{}' ;;\n", case.words, options.join(" "));
    }
    text += "    esac
    if [[ $current = -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W \"$options\" -- \"$current\")
";
    for case in cases().iter().filter(|case| takes_a_file(&case.words)) {
        text += &format!("    elif [[ $command = {} ]]; then\n        {FILES}", case.words);
    }
    text + "    fi\n}\ncomplete -F _acapy_deliver acapy-deliver\n"
}

const FILES: &str = "compopt -o filenames 2>/dev/null\n        mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n";

/// What is answered after which option of which command, as a case of the shell.
fn answers() -> BTreeMap<String, Vec<String>> {
    let mut answers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for case in cases() {
        for row in &case.rows {
            let answer = match values(*row) {
                Values::Flag => continue,
                Values::Words(words) => {
                    format!("mapfile -t COMPREPLY < <(compgen -W '{}' -- \"$current\")\n        ", words.join(" "))
                }
                Values::File => format!("{FILES}        "),
                Values::Free => String::new(),
            };
            let patterns = names(*row).into_iter().map(|name| format!("'{}:{name}'", case.words));
            answers.entry(answer).or_default().extend(patterns);
        }
    }
    answers
}
