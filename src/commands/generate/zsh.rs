//! Completion for zsh, by its `_arguments`.

use super::{Values, following, names, takes_a_file, values};
use crate::config::{AnyRow, COMMANDS, CommandRow};

pub(super) fn script() -> String {
    let mut text = "\
#compdef acapy-deliver
# Completion of acapy-deliver for zsh; made by 'acapy-deliver generate complete-zsh'. It belongs into a
# directory of $fpath, as _acapy-deliver.

_acapy-deliver() {
    local command=run
    local -a commands
    commands=(
"
    .to_owned();
    for command in COMMANDS {
        text += &format!("        {}\n", described(command.name, command.summary));
    }
    text += "    )
    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then
        _describe -t commands command commands
        return
    fi
    if (( CURRENT > 2 )) && [[ -n ${(M)commands:#$words[2]:*} ]]; then
        command=$words[2]
        shift words
        (( CURRENT-- ))
    fi
    case $command in
";
    for command in COMMANDS {
        text += &of_command(command);
    }
    // Loaded by its name it is called, and sourced it is only defined.
    text + "    esac
}

if [[ $funcstack[1] = _acapy-deliver ]]; then
    _acapy-deliver \"$@\"
else
    compdef _acapy-deliver acapy-deliver
fi
"
}

fn of_command(command: &CommandRow) -> String {
    let mut text = format!("    {})\n", command.name);
    let following = following(command);
    if following.is_empty() {
        return text + &arguments("        ", command.rows(), takes_a_file(command.name)) + "        ;;\n";
    }
    text += "        if (( CURRENT == 2 )); then\n            local -a following\n            following=(\n";
    for (word, summary) in following {
        text += &format!("                {}\n", described(word, summary));
    }
    text += "            )\n            _describe -t following word following\n            return\n        fi\n";
    if !command.actions.is_empty() {
        text +=
            "        local action=$words[2]\n        shift words\n        (( CURRENT-- ))\n        case $action in\n";
        for action in command.actions {
            text += &format!("        {})\n", action.name);
            text += &arguments("            ", command.rows_of(action).into_iter(), false);
            text += "            ;;\n";
        }
        text += "        esac\n";
    }
    text + "        ;;\n"
}

fn arguments(indent: &str, rows: impl Iterator<Item = &'static dyn AnyRow>, takes_a_file: bool) -> String {
    let mut text = format!("{indent}_arguments");
    for row in rows {
        text += &format!(" \\\n{indent}    {}", argument(row));
    }
    text += &format!(" \\\n{indent}    '(- *)'{{-h,--help}}'[show help]'");
    if takes_a_file {
        text += &format!(" \\\n{indent}    '::file:_files'");
    }
    text + "\n"
}

/// As in `'*--pop[how to wait]:peek|blpop:(peek blpop)'`. What takes a value may be given again, for some may be.
fn argument(row: &dyn AnyRow) -> String {
    let names = names(row);
    let help = row.help().replace('[', "\\[").replace(']', "\\]");
    let value = row.value().replace('\'', "").replace(':', "\\:");
    let rest = match values(row) {
        Values::Flag => String::new(),
        Values::Words(words) => format!(":{value}:({})", words.join(" ")),
        Values::File => format!(":{value}:_files"),
        Values::Free => format!(":{value}: "),
    };
    let rest = quoted(&format!("[{help}]{rest}"));
    match names[..] {
        [name] if rest.contains("]:") => format!("'*{name}'{rest}"),
        [name] => format!("{name}{rest}"),
        _ => format!("'*'{{{}}}{rest}", names.join(",")),
    }
}

fn described(word: &str, summary: &str) -> String {
    quoted(&format!("{word}:{summary}"))
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
