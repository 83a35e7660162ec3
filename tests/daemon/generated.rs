//! What `generate` writes, put before those who read it: mandoc, bash, zsh and fish.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{Agent, TempDir, run_to_end};

fn generated(what: &str) -> String {
    let output = run_to_end(&["generate", what]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// All options that the help of a command names, `--help` aside.
fn options(command: &str) -> BTreeSet<String> {
    let help = run_to_end(&["help", command]);
    let help = String::from_utf8(help.stdout).unwrap();
    let words = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.len() > 2 && word.starts_with("--") && *word != "--help").map(str::to_string).collect()
}

/// Runs a program on a generated file in a directory of its own.
fn run(program: &str, arguments: &[&str], at: &Path) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(at).stdin(Stdio::null()).env("HOME", at).env("TERM", "dumb");
    command.output().unwrap_or_else(|error| panic!("cannot run {program} ({error}): run scripts/test"))
}

#[track_caller]
fn printed(output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_manual_page_is_clean_and_names_every_option_and_its_variable() {
    let dir = TempDir::new("man");
    fs::write(dir.path().join("acapy-deliver.1"), generated("man")).unwrap();
    let lint = run("mandoc", &["-T", "lint", "-W", "warning", "acapy-deliver.1"], dir.path());
    let faults = String::from_utf8(lint.stdout).unwrap();
    // The time is that of the package, which bears one.
    let faults: Vec<&str> = faults.lines().filter(|line| !line.contains("missing date")).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    let text = printed(run("mandoc", &["-T", "ascii", "-O", "width=500", "acapy-deliver.1"], dir.path()));
    // Letters are printed over themselves where they are bold.
    let text = without_overstrikes(&text);
    let words: BTreeSet<&str> = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c))).collect();
    for command in ["run", "enqueue", "listen", "check", "status", "dead", "endpoint", "retry", "waiting"] {
        for option in options(command) {
            assert!(words.contains(option.as_str()), "no {option} of {command} in:\n{text}");
        }
    }
    assert!(words.contains("ACAPY_DELIVER_RETRY_FIRST") && words.contains("REDIS_SERVER_URL"), "{text}");
    assert!(words.contains("-oq") && text.contains("[5s] ACAPY_DELIVER_RETRY_FIRST"), "{text}");
}

fn without_overstrikes(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            '\u{8}' => drop(plain.pop()),
            c => plain.push(c),
        }
    }
    plain
}

/// What bash, zsh and fish must all offer for some beginnings of a line.
fn offers(complete: impl Fn(&[&str]) -> BTreeSet<String>) {
    let words = |text: &str| text.split(' ').map(str::to_string).collect::<BTreeSet<String>>();
    assert_eq!(complete(&["d"]), words("dead"));
    assert_eq!(complete(&["run", "--pop", ""]), words("peek blpop"));
    assert_eq!(complete(&["--pop", "b"]), words("blpop"));
    assert_eq!(complete(&["dead", ""]), words("list show replay drop export"));
    assert_eq!(complete(&["generate", "complete-"]), words("complete-bash complete-zsh complete-fish"));
    assert_eq!(complete(&["dead", "show", "--p"]), words("--payload"));
    assert_eq!(complete(&["retry", "li"]), words("list"));
    assert_eq!(complete(&["status", "--l"]), words("--limit"));
    assert_eq!(complete(&["--ca-file", "roots"]), words("roots.pem"));
    assert_eq!(complete(&["enqueue", "roots"]), words("roots.pem"));
    for command in ["run", "check", "listen", "enqueue"] {
        let offered = complete(&[command, "--"]);
        let missing: Vec<String> = options(command).into_iter().filter(|option| !offered.contains(option)).collect();
        assert!(missing.is_empty(), "{command} does not offer {missing:?}: {offered:?}");
    }
}

#[test]
fn bash_completes_commands_options_and_values() {
    let dir = TempDir::new("bash");
    fs::write(dir.path().join("roots.pem"), "").unwrap();
    fs::write(dir.path().join("completion"), generated("complete-bash")).unwrap();
    printed(run("bash", &["-n", "completion"], dir.path()));
    offers(|words| {
        // As bash itself calls it when somebody presses the tabulator.
        let line: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let script = format!(
            "source ./completion; complete -p acapy-deliver >/dev/null; COMP_WORDS=(acapy-deliver {}); \
             COMP_CWORD={}; _acapy_deliver; ((${{#COMPREPLY[@]}} == 0)) || printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            line.join(" "),
            words.len()
        );
        let output = run("bash", &["--norc", "-c", &script], dir.path());
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_string).collect()
    });
}

#[test]
fn fish_completes_commands_options_and_values() {
    let dir = TempDir::new("fish");
    fs::write(dir.path().join("roots.pem"), "").unwrap();
    fs::write(dir.path().join("completion"), generated("complete-fish")).unwrap();
    printed(run("fish", &["--no-execute", "completion"], dir.path()));
    offers(|words| {
        let line = format!("acapy-deliver {}", words.join(" "));
        let script = format!("source ./completion; complete -C '{line}'");
        let text = printed(run("fish", &["--no-config", "-c", &script], dir.path()));
        text.lines().filter_map(|line| line.split('\t').next()).map(str::to_string).collect()
    });
}

#[test]
fn zsh_completes_commands_options_and_values() {
    let dir = TempDir::new("zsh");
    fs::write(dir.path().join("roots.pem"), "").unwrap();
    fs::create_dir(dir.path().join("functions")).unwrap();
    fs::write(dir.path().join("functions/_acapy-deliver"), generated("complete-zsh")).unwrap();
    fs::write(dir.path().join("ask"), ASK_ZSH).unwrap();
    printed(run("zsh", &["-f", "-n", "functions/_acapy-deliver"], dir.path()));
    offers(|words| {
        let output = run("zsh", &["-f", "ask", &format!("acapy-deliver {}", words.join(" "))], dir.path());
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        let (_, text) = text.split_once("OFFERED\n").unwrap_or_else(|| panic!("{output:?}"));
        text.lines().filter(|line| !line.is_empty()).map(|line| line.trim().to_string()).collect()
    });
}

/// An interactive zsh at a terminal of its own, in which the tabulator is pressed; what its completion would
/// add is caught where it adds it.
const ASK_ZSH: &str = r#"
zmodload zsh/zpty
zpty asked zsh -f -i
zpty -w asked "PROMPT= RPROMPT= ; stty -echo; fpath=($PWD/functions \$fpath); autoload -U compinit; compinit -u -D"
zpty -w asked 'compadd() {
    if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
    local -a found; builtin compadd -O found "$@"; (( $#found )) && print -rl -- $found >>offered; builtin compadd "$@"
}'
zpty -w asked 'finish() { zle complete-word; print >done; }; zle -N finish; bindkey "^X" finish; print -r re''ady'
while zpty -r asked line; do [[ $line == *ready* ]] && break; done
: >offered
zpty -w -n asked "$1"$'\x18'
integer tries=0
while [[ ! -e done ]] && (( tries++ < 1000 )); do zpty -rt asked line; sleep 0.01; done
rm -f done
zpty -d asked
print OFFERED
sort -u offered
"#;

#[test]
fn what_is_generated_is_said_when_it_is_not() {
    let output = run_to_end(&["generate", "complete-csh"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("complete-bash, complete-zsh, complete-fish"), "{said}");
    // It needs no queue, and none is looked for.
    let mut command = Agent::command();
    let output = command.args(["generate", "man"]).env("REDIS_SERVER_URL", "nonsense").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
