//! The manual page, in the macros of man(7). It says what the help says; README and OPERATING.md say more.

use crate::config::{AnyRow, COMMANDS, CommandRow, Section};

pub(super) fn page() -> String {
    let mut text = format!(
        "\
.TH ACAPY-DELIVER 1 \"\" \"acapy-deliver {version}\" \"User Commands\"
.SH NAME
acapy-deliver \\- deliver what ACA-Py puts into its outbound queue
.SH SYNOPSIS
.nf
",
        version = env!("CARGO_PKG_VERSION")
    );
    for command in COMMANDS {
        text += &lines(command.usage);
    }
    text += ".fi\n.SH DESCRIPTION\n";
    text += &lines(DESCRIPTION);
    for command in COMMANDS {
        text += &of_command(command);
    }
    text += &format!(
        "\
.SH ENVIRONMENT
{}\
.TP
.B RUST_LOG
How much is logged:
.BR error ,
.BR warn ,
.B info
(unless set),
.BR debug .
.SH EXIT STATUS
.TP
.B 0
Done, or stopped when told so.
.TP
.B 1
Could not continue; for
.BR dead ,
.BR endpoint ,
.B retry
and
.BR waiting ,
nothing matched; for
.BR check ,
something to mend.
.TP
.B 2
Wrong usage.
.SH FILES
.TP
.I /etc/acapy\\-deliver/environment
Variables of the service, where a package was installed.
.SH SEE ALSO
.BR redis\\-server (1),
.BR systemctl (1);
README.md and OPERATING.md, which packages put into
.IR /usr/share/doc/acapy\\-deliver .
",
        lines(ENVIRONMENT)
    );
    text
}

const DESCRIPTION: &str = "\
acapy-deliver takes each message from the Redis list into which ACA-Py puts its outbound DIDComm messages and webhooks,
and POSTs it to its endpoint, losing none: from then until its recipient has answered, a message is recorded in Redis.
In the place of the 'deliverer' of ACA-Py's plugin redis_events it needs that one's environment alone.";

const ENVIRONMENT: &str = "\
Each option of 'run' can be given by the variable that is named beside it; the command line wins. So do variables of
the plugin's deliverer: REDIS_SERVER_URL, TOPIC_PREFIX and STATUS_ENDPOINT_HOST, _PORT and _API_KEY. HTTP_PROXY,
HTTPS_PROXY, ALL_PROXY and NO_PROXY say which proxies lead to endpoints, SSL_CERT_FILE and SSL_CERT_DIR where the
system's roots are.";

fn of_command(command: &CommandRow) -> String {
    let mut text = format!(".SH ACAPY\\-DELIVER {}\n{}", escaped(&command.name.to_uppercase()), lines(command.about));
    for action in command.actions {
        text += &format!(".TP\n.B {}\n{}", escaped(action.name), lines(action.summary));
    }
    for section in command.sections {
        text += &of_section(command, section);
    }
    if !command.after.is_empty() {
        text += &format!(".PP\n{}", lines(command.after));
    }
    text
}

/// What several commands have is shown once, with the first of them.
fn of_section(command: &CommandRow, section: &Section) -> String {
    let first = COMMANDS.iter().find(|other| other.sections.iter().any(|theirs| same(theirs, section)));
    let heading = match section.heading.lines().next() {
        Some(heading) if !heading.is_empty() => heading.trim_end_matches(':'),
        _ => "Options",
    };
    let mut text = format!(".SS {}\n", escaped(heading));
    match first {
        Some(first) if first.name != command.name => {
            text += &lines(&format!("As for '{}'.", first.name));
        }
        _ => {
            text += &lines(&section.heading.lines().skip(1).collect::<Vec<_>>().join("\n"));
            text += &section.rows.iter().map(|row| of_row(*row)).collect::<String>();
        }
    }
    text
}

fn same(one: &Section, other: &Section) -> bool {
    let names = |section: &Section| section.rows.iter().map(|row| (row.name(), row.help())).collect::<Vec<_>>();
    names(one) == names(other)
}

fn of_row(row: &dyn AnyRow) -> String {
    let names: Vec<String> = super::names(row).iter().map(|name| format!("\\fB{}\\fR", escaped(name))).collect();
    let mut text = format!(".TP\n{}", names.join(", "));
    if !row.value().is_empty() {
        text += &format!(" \\fI{}\\fR", escaped(row.value()));
    }
    text += &format!("\n{}", lines(row.help()));
    let default = row.default().map(|default| format!("[{}]", escaped(default)));
    let variable = row.variable().map(|variable| format!("\\fB{}\\fR", escaped(&variable)));
    let known: Vec<String> = default.into_iter().chain(variable).collect();
    if !known.is_empty() {
        text += &format!(".br\n{}\n", known.join(" "));
    }
    text
}

/// Lines of text, none of which can be taken for a macro; empty ones part paragraphs.
fn lines(text: &str) -> String {
    let line = |line: &str| match line.trim_end() {
        "" => ".PP\n".to_owned(),
        line => format!("{}\n", escaped(line)),
    };
    text.lines().map(line).collect()
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (n, c) in text.chars().enumerate() {
        match c {
            '.' if n == 0 => escaped.push_str("\\&."),
            '\'' if n == 0 => escaped.push_str("\\&\\(aq"),
            '\\' => escaped.push_str("\\(rs"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            c if c.is_ascii() => escaped.push(c),
            c => escaped.push_str(&format!("\\[u{:04X}]", u32::from(c))),
        }
    }
    escaped
}
