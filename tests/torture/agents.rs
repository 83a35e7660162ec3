//! The agents of a round, one in each slot: started with a log of its own at `debug`, behind a
//! network of its own, where wished on a clock that can be stepped; signalled, frozen, starved of
//! descriptors; and watched, for none may end by itself.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::ledger::ID_HEADER;
use super::proxy::Proxy;
use crate::support::Agent;

/// Between a SIGTERM and the end: the drain (1 s), giving back (1.5 s), and a busy machine.
const END_WITHIN: Duration = Duration::from_secs(10);

/// What a slot's agent is expected to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    /// To run.
    Running,
    /// To be gone: it was killed.
    Gone,
    /// To end: it was told to at this time.
    Ending(Instant),
}

pub struct Slot {
    pub n: usize,
    pub lease: Duration,
    pub proxy: Proxy,
    /// Some fault of the process itself is not over.
    pub troubled: bool,
    /// Some fault of its network is not over.
    pub cut_off: bool,
    /// Where the difference of its clock is written, if it can be stepped.
    pub clock: Option<PathBuf>,
    pub log: PathBuf,
    pub n_starts: usize,
    /// When its agent was last started.
    pub started: Option<Instant>,
    /// Largest resident size and number of descriptors seen, and the last size.
    pub peak_kib: u64,
    pub peak_files: usize,
    pub last_kib: u64,
    child: Option<Child>,
    expected: Expected,
    /// How long its log was when it was started.
    log_began: u64,
    options: Vec<String>,
}

impl Slot {
    pub fn new(
        (n, lease): (usize, Duration),
        redis: std::net::SocketAddr,
        dir: &Path,
        options: &[String],
        steps: bool,
    ) -> Slot {
        let proxy = Proxy::to(redis);
        let clock = (steps && faketime().is_some()).then(|| dir.join(format!("clock-{n}")));
        let slot = Slot {
            n,
            lease,
            proxy,
            troubled: false,
            cut_off: false,
            clock,
            log: dir.join(format!("agent-{n}.log")),
            n_starts: 0,
            started: None,
            peak_kib: 0,
            peak_files: 0,
            last_kib: 0,
            child: None,
            expected: Expected::Running,
            log_began: 0,
            options: options.to_vec(),
        };
        slot.step_clock(0);
        slot
    }

    pub fn start(&mut self) {
        assert!(self.child.is_none(), "this slot has an agent");
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("the log can be written");
        let mut command = Agent::command();
        command.args(["run", "-oq", &format!("redis://{}", self.proxy.address())]);
        command.args(["--id-header", &format!("{ID_HEADER}{}", self.n)]);
        command.args(["--lease", &format!("{}s", self.lease.as_secs())]);
        // Every second one as a collector of logs wants it; each of its lines is read.
        if self.n % 2 == 1 {
            command.args(["--log-format", "json"]);
        }
        command.args(&self.options).env("RUST_LOG", "debug");
        if let (Some(clock), Some(library)) = (&self.clock, faketime()) {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", clock);
            // The monotonic clock stays: it is what a step of the wall clock leaves alone.
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            command.env("DONT_FAKE_MONOTONIC", "1");
        }
        self.log_began = log.metadata().map_or(0, |log| log.len());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("the agent's binary can be started"));
        self.expected = Expected::Running;
        self.n_starts += 1;
        self.started = Some(Instant::now());
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some() && self.expected == Expected::Running
    }

    pub fn has_ended(&self) -> bool {
        self.child.is_none()
    }

    pub fn kill9(&mut self) {
        if let Some(child) = &mut self.child {
            self.expected = Expected::Gone;
            let _ = child.kill();
        }
    }

    pub fn term(&mut self) {
        self.signal("TERM");
        if self.expected == Expected::Running {
            self.expected = Expected::Ending(Instant::now());
        }
    }

    pub fn freeze(&mut self) {
        self.signal("STOP");
    }

    pub fn thaw(&mut self) {
        self.signal("CONT");
        if let Expected::Ending(since) = &mut self.expected {
            *since = Instant::now();
        }
    }

    fn signal(&self, name: &str) {
        if let Some(child) = &self.child {
            let kill = format!("kill -s {name} {}", child.id());
            let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
        }
    }

    /// Sets its wall clock this many seconds before or after the true time.
    pub fn step_clock(&self, seconds: i64) {
        if let Some(clock) = &self.clock {
            let new = clock.with_extension("new");
            fs::write(&new, format!("{seconds:+}\n")).unwrap();
            fs::rename(&new, clock).unwrap();
        }
    }

    /// Lets it open no more than a few files beyond those it has; or, with `None`, as many as before.
    pub fn starve(&self, spare: Option<usize>) {
        let Some(child) = &self.child else { return };
        let limit = match spare {
            Some(spare) => (n_files(child.id()) + spare).to_string(),
            None => hard_limit(child.id()).unwrap_or("1024".into()),
        };
        let limit = format!("--nofile={limit}:");
        let pid = child.id().to_string();
        let _ = Command::new("prlimit").args(["--pid", &pid, &limit]).stderr(Stdio::null()).status();
    }

    /// Looks after it: takes note of its end and its size; what should not be, if anything.
    pub fn watch(&mut self) -> Option<String> {
        let child = self.child.as_mut()?;
        let pid = child.id();
        if let Some(status) = child.try_wait().expect("the agent can be waited for") {
            self.child = None;
            remove_faketime_files(pid);
            return self.judge_end(status);
        }
        if let Expected::Ending(since) = self.expected
            && since.elapsed() > END_WITHIN
            && !self.troubled
        {
            self.kill9();
            return Some(format!("agent {} did not end within {END_WITHIN:?} of SIGTERM", self.n));
        }
        None
    }

    pub fn measure(&mut self) {
        if let Some(child) = &self.child {
            self.last_kib = resident_kib(child.id()).unwrap_or(self.last_kib);
            self.peak_kib = self.peak_kib.max(self.last_kib);
            self.peak_files = self.peak_files.max(n_files(child.id()));
        }
    }

    fn judge_end(&self, status: ExitStatus) -> Option<String> {
        match self.expected {
            Expected::Gone => None,
            Expected::Ending(_) if status.success() => None,
            // SIGTERM ends a process that has not come to handling it: it had not begun anything.
            Expected::Ending(_) if status.signal() == Some(15) && self.has_said_nothing() => None,
            Expected::Ending(_) => Some(format!("agent {} ended with {status} after SIGTERM", self.n)),
            Expected::Running => {
                let signal = status.signal().map(|signal| format!(" (signal {signal})")).unwrap_or_default();
                Some(format!("agent {} ended by itself: {status}{signal}", self.n))
            }
        }
    }

    fn has_said_nothing(&self) -> bool {
        fs::metadata(&self.log).is_ok_and(|log| log.len() == self.log_began)
    }

    /// The number under which the agent that runs now is registered; none of those that it, or one
    /// before it in this slot, had earlier.
    pub fn number(&self) -> Option<u64> {
        let log = fs::read(&self.log).ok()?;
        let text = String::from_utf8_lossy(log.get(self.log_began as usize..)?).into_owned();
        let said = text.lines().rev().find_map(|line| line.split_once("registered as agent "))?;
        let number = said.1.split(|c: char| !c.is_ascii_digit()).next()?;
        number.parse().ok()
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
            remove_faketime_files(child.id());
        }
    }
}

/// The library that gives a process another wall clock (Debian's `libfaketime`).
pub fn faketime() -> Option<PathBuf> {
    let dirs = fs::read_dir("/usr/lib").ok()?;
    let libraries = dirs.flatten().map(|dir| dir.path().join("faketime/libfaketimeMT.so.1"));
    libraries.chain([PathBuf::from("/usr/lib/faketime/libfaketimeMT.so.1")]).find(|path| path.exists())
}

/// A killed process leaves behind what the library shares with its children.
fn remove_faketime_files(pid: u32) {
    for name in [format!("faketime_shm_{pid}"), format!("sem.faketime_sem_{pid}")] {
        let _ = fs::remove_file(Path::new("/dev/shm").join(name));
    }
}

fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// How many files the process may let itself open.
fn hard_limit(pid: u32) -> Option<String> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(1).map(str::to_string)
}

fn n_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// What a line begins with here that was to be a JSON object with its members and was not.
pub const NOT_JSON: &str = "ERROR not as JSON: ";

/// The lines of a log that people see at `info`, their times removed.
pub fn lines_for_people(log: &Path) -> Vec<String> {
    let is_json = log.file_stem().is_some_and(|name| name.to_string_lossy().ends_with(['1', '3', '5', '7', '9']));
    let text = File::open(log).map(std::io::BufReader::new).map(std::io::BufRead::lines);
    let lines = text.into_iter().flatten().map_while(Result::ok);
    let lines = lines.filter_map(|line| {
        let rest = match is_json {
            true => line_of_json(&line).unwrap_or_else(|| format!("{NOT_JSON}{line}")),
            false => line.split_once(' ')?.1.to_string(),
        };
        ["INFO", "WARN", "ERROR"].iter().any(|level| rest.starts_with(level)).then_some(rest)
    });
    lines.collect()
}

/// Level and message.
fn line_of_json(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    humantime::parse_rfc3339(line["time"].as_str()?).ok()?;
    Some(format!("{:<5} {}", line["level"].as_str()?.to_ascii_uppercase(), line["message"].as_str()?))
}
