//! One option, one row: its name, its variable, its default, what it is for, and how its text is read. Help,
//! man page, completion and the reading itself are made from the same row, so that none of them can be forgotten.

/// One option. `T` is the final type of its value.
pub struct Row<T> {
    name: &'static str,
    short: Option<&'static str>,
    value: &'static str,
    variable: Variable,
    default: Option<&'static str>,
    unset: Option<&'static str>,
    help: &'static str,
    /// What is wrong is the end of a sentence that begins with the option and the text.
    pub(super) parse: fn(&str) -> Result<T, String>,
}

/// The environment variable that gives an option's value where the command line does not.
#[derive(Clone, Copy)]
enum Variable {
    None,
    /// Made of the option's name: `ACAPY_DELIVER_…`.
    Ours,
    /// One that ACA-Py has.
    Named(&'static str),
}

impl<T> Row<T> {
    /// An option with a value, which help calls `value`; of the command line alone, with no default.
    pub(super) const fn new(name: &'static str, value: &'static str, parse: fn(&str) -> Result<T, String>) -> Row<T> {
        Row { name, short: None, value, variable: Variable::None, default: None, unset: None, help: "", parse }
    }

    pub(super) const fn help(mut self, help: &'static str) -> Row<T> {
        self.help = help;
        self
    }

    pub(super) const fn short(mut self, short: &'static str) -> Row<T> {
        self.short = Some(short);
        self
    }

    pub(super) const fn variable(mut self) -> Row<T> {
        self.variable = Variable::Ours;
        self
    }

    pub(super) const fn variable_named(mut self, name: &'static str) -> Row<T> {
        self.variable = Variable::Named(name);
        self
    }

    /// What counts where nothing is given, as it would be typed.
    pub(super) const fn default(mut self, default: &'static str) -> Row<T> {
        self.default = Some(default);
        self
    }

    /// What it means, for people, that nothing is given and there is no default.
    pub(super) const fn unset(mut self, unset: &'static str) -> Row<T> {
        self.unset = Some(unset);
        self
    }

    /// The default's value.
    ///
    /// # Panics
    ///
    /// If the row has none, or one that it does not take itself; a test reads every default.
    pub(super) fn default_value(&self) -> T {
        let default = self.default.unwrap_or_else(|| panic!("{} has no default", self.name));
        (self.parse)(default).unwrap_or_else(|why| panic!("{}: its default '{default}' {why}", self.name))
    }
}

/// A flag: an option without a value, no unless given.
pub(super) const fn flag(name: &'static str, help: &'static str) -> Row<bool> {
    Row::new(name, "", boolean).unset("no").help(help)
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("is neither 1, true, yes, on nor 0, false, no, off".to_owned()),
    }
}

/// What is known of an option whatever its type.
pub trait AnyRow: Sync {
    /// `--workers`.
    fn name(&self) -> &'static str;
    /// `-oq`.
    fn short(&self) -> Option<&'static str>;
    /// What its value is called, as in `N` or `peek|blpop`; nothing for a flag.
    fn value(&self) -> &'static str;
    /// The variable's name.
    fn variable(&self) -> Option<String>;
    /// What counts where nothing is given, for people.
    fn default(&self) -> Option<&'static str>;
    /// What it is for, in one line however long.
    fn help(&self) -> &'static str;
    /// Whether its default, if it has one, is one of its values.
    #[cfg(test)]
    fn check_default(&self) -> Result<(), String>;
}

impl<T> AnyRow for Row<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn short(&self) -> Option<&'static str> {
        self.short
    }

    fn value(&self) -> &'static str {
        self.value
    }

    fn variable(&self) -> Option<String> {
        match self.variable {
            Variable::None => None,
            Variable::Named(name) => Some(name.to_owned()),
            Variable::Ours => {
                let name = self.name.trim_start_matches('-').replace('-', "_").to_ascii_uppercase();
                Some(format!("{OURS}{name}"))
            }
        }
    }

    fn default(&self) -> Option<&'static str> {
        self.default.or(self.unset)
    }

    fn help(&self) -> &'static str {
        self.help
    }

    #[cfg(test)]
    fn check_default(&self) -> Result<(), String> {
        self.default.map_or(Ok(()), |default| (self.parse)(default).map(drop))
    }
}

/// What the names of our variables begin with.
pub(super) const OURS: &str = "ACAPY_DELIVER_";

/// Some options of a command, under one heading.
#[derive(Clone, Copy)]
pub struct Section {
    /// A line, or a paragraph; may be empty.
    pub heading: &'static str,
    /// In the order of the help.
    pub rows: &'static [&'static dyn AnyRow],
}

/// A command: what its help, the man page and completion say, and what it is read by.
pub struct CommandRow {
    /// As typed.
    pub name: &'static str,
    /// What it does, for the list of all commands.
    pub summary: &'static str,
    /// How it is called, a line each.
    pub usage: &'static str,
    /// What it does, in paragraphs of lines.
    pub about: &'static str,
    /// Its options.
    pub sections: &'static [Section],
    /// What is said after its options.
    pub after: &'static str,
    /// The words of which one must follow its name, if there are any, each with the options that it takes
    /// beside those of the queue.
    pub actions: &'static [Action],
}

/// What a command with several can be told to do.
pub struct Action {
    /// As typed.
    pub name: &'static str,
    /// What it does, for completion.
    pub summary: &'static str,
    /// Its options.
    pub rows: &'static [&'static dyn AnyRow],
}

impl CommandRow {
    /// All options, each once.
    pub fn rows(&self) -> impl Iterator<Item = &'static dyn AnyRow> {
        self.sections.iter().flat_map(|section| section.rows.iter().copied())
    }

    /// Those of an action: its own and, if the command has them, those of the queue.
    pub fn rows_of(&self, action: &Action) -> Vec<&'static dyn AnyRow> {
        let queue = super::queue::SECTION.rows.iter().filter(|row| self.rows().any(|own| own.name() == row.name()));
        action.rows.iter().chain(queue).copied().collect()
    }
}
