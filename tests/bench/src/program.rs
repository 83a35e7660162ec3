//! The processes that are measured: the agent, and the references. What a process has used is
//! read from /proc.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::ground::TempDir;

/// A running program; killed when it is dropped.
pub struct Program {
    child: Child,
    pub started: Instant,
    log: PathBuf,
    _dir: TempDir,
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// Seconds of CPU, user and system.
    pub cpu: f64,
    /// Resident memory now and at most, in MiB.
    pub rss: f64,
    pub peak_rss: f64,
    pub threads: usize,
}

/// The agent's binary: `AGENT`, or the release build beside this one.
pub fn agent_binary() -> PathBuf {
    match std::env::var_os("AGENT") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/release/acapy-deliver"),
    }
}

/// The references' binary, beside the running one.
pub fn reference_binary() -> PathBuf {
    std::env::current_exe().expect("this program has a path").with_file_name("reference")
}

impl Program {
    /// Starts the agent on this Redis.
    pub fn agent<S: AsRef<str>>(url: &str, options: &[S]) -> Program {
        let mut command = Command::new(agent_binary());
        command.args(["run", "-oq", url]).args(options.iter().map(AsRef::as_ref));
        Program::start(command)
    }

    /// Starts a program whose environment sets no option of the agent.
    pub fn start(mut command: Command) -> Program {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("ACAPY_") || text == "RUST_LOG" || text.to_ascii_lowercase().ends_with("_proxy") {
                command.env_remove(&name);
            }
        }
        let dir = TempDir::new("program");
        let log = dir.path().join("log");
        let file = fs::File::create(&log).expect("the directory can be written to");
        let out = file.try_clone().expect("a file can be shared");
        command.stdin(Stdio::null()).stdout(out).stderr(file);
        let started = Instant::now();
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Program { child, started, log, _dir: dir }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn used(&self) -> Used {
        used(self.pid())
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, at most this long; what it printed.
    pub fn finish(&mut self, within: Duration) -> String {
        while self.is_running() {
            assert!(self.started.elapsed() < within, "a program takes too long; it said:\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
        self.log()
    }

    /// Asks it to stop, and waits for its end.
    pub fn stop(&mut self) {
        let _ = Command::new("kill").arg("-TERM").arg(self.pid().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.is_running() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What this process, or another, has used so far; nothing if it is gone.
pub fn used(pid: u32) -> Used {
    let mut used = Used::default();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name in brackets, which may hold anything: state is the first, utime and stime the 12th and 13th.
    if let Some((_, rest)) = stat.rsplit_once(')') {
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        // Linux tells user space of 100 ticks a second on every platform we run on.
        used.cpu = (ticks(11) + ticks(12)) / 100.0;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    for line in status.lines() {
        let number = || line.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        match line.split(':').next() {
            Some("VmRSS") => used.rss = number() / 1024.0,
            Some("VmHWM") => used.peak_rss = number() / 1024.0,
            Some("Threads") => used.threads = number() as usize,
            _ => {}
        }
    }
    used
}
