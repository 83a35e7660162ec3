//! Figures with their spread, the table that is made of them, and what they say in JSON.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

/// What one round gave, by name.
pub type Sample = BTreeMap<&'static str, f64>;

/// Several rounds of the same.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
    pub rounds: usize,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        assert!(!values.is_empty(), "a figure needs a round");
        values.sort_by(f64::total_cmp);
        let n = values.len();
        Spread { median: (values[(n - 1) / 2] + values[n / 2]) / 2.0, low: values[0], high: values[n - 1], rounds: n }
    }

    fn text(&self, unit: Unit) -> String {
        let (median, low, high) = (unit.number(self.median), unit.number(self.low), unit.number(self.high));
        let unit = unit.name();
        if self.rounds == 1 || low == high {
            format!("{median}{unit}")
        } else {
            format!("{median}{unit} ({low}–{high})")
        }
    }

    fn json(&self) -> Value {
        json!({"median": self.median, "low": self.low, "high": self.high, "rounds": self.rounds})
    }
}

/// One name of the rounds of one contestant.
pub fn spread(samples: &[Sample], name: &str) -> Spread {
    Spread::of(samples.iter().map(|sample| sample[name]))
}

/// What a figure counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    PerSecond,
    Millis,
    Micros,
    Mebibytes,
    Number,
    Percent,
    Seconds,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::PerSecond => "/s",
            Unit::Millis => " ms",
            Unit::Micros => " µs",
            Unit::Mebibytes => " MiB",
            Unit::Number => "",
            Unit::Percent => " %",
            Unit::Seconds => " s",
        }
    }

    /// The value with as many digits as say something, in groups of three.
    pub fn number(self, value: f64) -> String {
        if !value.is_finite() {
            return "never".to_string();
        }
        let digits = match value.abs() {
            v if v >= 100.0 || v == v.trunc() && v >= 1.0 => 0,
            v if v >= 10.0 => 1,
            v if v >= 0.095 || v == 0.0 => 2,
            _ => 4,
        };
        let text = format!("{value:.digits$}");
        let (whole, rest) = text.split_once('.').map_or((text.as_str(), String::new()), |(w, r)| (w, format!(".{r}")));
        let mut grouped = String::new();
        for (n, digit) in whole.bytes().enumerate() {
            if n > 0 && (whole.len() - n) % 3 == 0 && !grouped.ends_with('-') {
                grouped.push(',');
            }
            grouped.push(char::from(digit));
        }
        grouped + &rest
    }
}

/// What is wanted of a figure.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// Nothing: it is shown.
    Shown,
    /// At least so many times the reference.
    TimesReference(f64),
    /// At most the reference and so much more.
    OverReference(f64),
    /// At most so many times the reference, and so much more.
    TimesReferencePlus(f64, f64),
    AtMost(f64),
    AtLeast(f64),
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pub group: &'static str,
    pub what: String,
    pub unit: Unit,
    pub seen: Spread,
    /// What it is held against, from the same run.
    pub reference: Option<(String, Spread)>,
    pub wanted: Wanted,
}

impl Row {
    pub fn ratio(&self) -> Option<f64> {
        self.reference.as_ref().map(|(_, theirs)| self.seen.median / theirs.median)
    }

    /// Whether what is wanted was seen; `None` if nothing is wanted, or if the reference, which has
    /// nothing bad in it, does not keep within the bound either: then the machine was too busy to tell.
    pub fn is_reached(&self) -> Option<bool> {
        let theirs = self.reference.as_ref().map_or(0.0, |(_, theirs)| theirs.median);
        let seen = self.seen.median;
        Some(match self.wanted {
            Wanted::Shown => return None,
            Wanted::TimesReference(times) => seen >= times * theirs,
            Wanted::OverReference(over) => seen <= theirs + over,
            Wanted::TimesReferencePlus(times, over) => seen <= theirs * times + over,
            Wanted::AtMost(_) | Wanted::AtLeast(_) if self.is_too_busy() => return None,
            Wanted::AtMost(most) => seen <= most,
            Wanted::AtLeast(least) => seen >= least,
        })
    }

    fn is_too_busy(&self) -> bool {
        let Some((_, theirs)) = &self.reference else { return false };
        if !matches!(self.unit, Unit::Millis | Unit::Seconds | Unit::Percent) {
            return false;
        }
        match self.wanted {
            Wanted::AtMost(most) => self.seen.median > most && theirs.median > most,
            Wanted::AtLeast(least) => self.seen.median < least && theirs.median < least,
            _ => false,
        }
    }

    fn wanted_text(&self) -> String {
        let number = |value: f64| format!("{}{}", self.unit.number(value), self.unit.name());
        match self.wanted {
            Wanted::Shown => String::new(),
            Wanted::TimesReference(times) => format!("≥ {times} ×"),
            Wanted::OverReference(over) => format!("≤ reference + {}", number(over)),
            Wanted::TimesReferencePlus(times, over) => format!("≤ {times} × + {}", number(over)),
            Wanted::AtMost(most) => format!("≤ {}", number(most)),
            Wanted::AtLeast(least) => format!("≥ {}", number(least)),
        }
    }

    fn cells(&self) -> [String; 6] {
        let (name, theirs) = match &self.reference {
            Some((name, theirs)) => (name.as_str(), theirs.text(self.unit)),
            None => ("", String::new()),
        };
        let ratio = self.ratio().map_or(String::new(), |ratio| match ratio {
            r if r >= 10.0 => format!("{r:.0}"),
            r => format!("{r:.2}"),
        });
        let verdict = match self.is_reached() {
            None if self.is_too_busy() => "(machine too busy)",
            None => "",
            Some(true) => "yes",
            Some(false) => "**no**",
        };
        let wanted = [self.wanted_text(), verdict.to_string()].join(" ").trim().to_string();
        [self.what.clone(), self.seen.text(self.unit), theirs, name.to_string(), ratio, wanted]
    }

    fn json(&self) -> Value {
        json!({
            "group": self.group,
            "what": self.what,
            "unit": self.unit.name().trim(),
            "seen": self.seen.json(),
            "reference": self.reference.as_ref().map(|(name, theirs)| json!({"name": name, "seen": theirs.json()})),
            "ratio": self.ratio(),
            "wanted": self.wanted_text(),
            "reached": self.is_reached(),
        })
    }
}

/// The rows as Markdown, a table for each group.
pub fn table(rows: &[Row]) -> String {
    let head = ["", "seen", "reference", "which", "ratio", "wanted, reached"].map(str::to_string);
    let mut text = String::new();
    let mut group = "";
    for (n, row) in rows.iter().enumerate() {
        let line = |cells: [String; 6]| format!("| {} |\n", cells.join(" | "));
        if row.group != group || n == 0 {
            group = row.group;
            let mut cells = head.clone();
            cells[0] = group.to_string();
            text += &format!("{}{}|---|---|---|---|---|---|\n", if n == 0 { "" } else { "\n" }, line(cells));
        }
        text += &line(row.cells());
    }
    text
}

/// All there is to say of a run.
pub fn document(machine: &Machine, rows: &[Row]) -> Value {
    json!({"machine": machine.json(), "rows": rows.iter().map(Row::json).collect::<Vec<_>>()})
}

/// Where and with what it was measured.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub lines: Vec<(&'static str, String)>,
}

impl Machine {
    pub fn look(redis: String) -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
            line.map(|(_, value)| value.trim().to_string()).unwrap_or_default()
        };
        let said = |program: &str, argument: &str| {
            let output = Command::new(program).arg(argument).output();
            output
                .map(|o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).trim().to_string())
                .unwrap_or_default()
        };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let memory = field(&read("/proc/meminfo"), "MemTotal").replace(" kB", "").parse::<f64>().unwrap_or(0.0);
        let system = read("/etc/os-release");
        let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("").replace('"', "");
        let nginx = said("/usr/sbin/nginx", "-v").replace("nginx version: nginx/", "");
        Machine {
            lines: vec![
                ("processor", format!("{}, {cores} cores", field(&read("/proc/cpuinfo"), "model name"))),
                ("memory", format!("{:.0} GiB", memory / 1024.0 / 1024.0)),
                ("system", format!("{system}, Linux {}", read("/proc/sys/kernel/osrelease").trim())),
                ("Redis", redis),
                ("nginx", nginx),
                ("agent", said(&crate::program::agent_binary().display().to_string(), "--version")),
                ("compiler", said("rustc", "--version")),
                ("load at the start", read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" ")),
            ],
        }
    }

    pub fn text(&self) -> String {
        self.lines.iter().map(|(name, value)| format!("- {name}: {value}\n")).collect()
    }

    fn json(&self) -> Value {
        self.lines
            .iter()
            .map(|(name, value)| (name.to_string(), json!(value)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

/// The value that a share of all is not above: 0.5, 0.99, 0.999. In milliseconds.
pub fn quantile(latencies: &[Duration], share: f64) -> f64 {
    let mut sorted = latencies.to_vec();
    sorted.sort();
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1000.0)
}
