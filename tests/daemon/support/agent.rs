//! The real binary as a child process: started on a Redis, signalled, frozen, killed, waited for.
//! Its standard error is read by a thread as it comes, and printed when the test fails.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Redis, SOON, eventually};

/// A running agent; killed on drop.
pub struct Agent {
    child: Child,
    status: Option<ExitStatus>,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Agent {
    /// On this Redis, with further options; waits until it has registered there.
    pub fn start(redis: &Redis, options: &[&str]) -> Agent {
        let mut command = Agent::command();
        command.arg("run").args(["-oq", &redis.url()]).args(options);
        Agent::start_as(redis, command)
    }

    /// As this command says, which leads to this Redis.
    pub fn start_as(redis: &Redis, command: Command) -> Agent {
        let n_before = redis.agents().len();
        let mut agent = Agent::spawn(command);
        // An agent that left at the same moment would make this one miss; none of the tests do that.
        eventually("the agent registers in Redis", SOON, || {
            if let Some(status) = agent.exited() {
                panic!("the agent ended at once: {status}");
            }
            redis.agents().len() > n_before
        });
        agent
    }

    /// On whatever is at this URL; waits for nothing.
    pub fn start_at(url: &str, options: &[&str]) -> Agent {
        let mut command = Agent::command();
        command.arg("run").args(["-oq", url]).args(options);
        Agent::spawn(command)
    }

    /// The binary in an environment that sets no option. `AGENT_LOG=debug cargo test …` has the
    /// agents of failed tests say more; some tests count lines and fail then.
    pub fn command() -> Command {
        let mut command = Command::new(binary());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let proxy = text.to_ascii_lowercase().ends_with("_proxy");
            let of_the_deliverer =
                ["REDIS_SERVER_URL", "TOPIC_PREFIX"].contains(&&*text) || text.starts_with("STATUS_ENDPOINT_");
            let of_systemd = text == "NOTIFY_SOCKET" || text.starts_with("WATCHDOG_");
            if text.starts_with("ACAPY_") || text == "RUST_LOG" || proxy || of_the_deliverer || of_systemd {
                command.env_remove(&name);
            }
        }
        if let Some(level) = std::env::var_os("AGENT_LOG") {
            command.env("RUST_LOG", level);
        }
        command
    }

    pub fn spawn(mut command: Command) -> Agent {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the agent's binary can be started");
        let stderr = BufReader::new(child.stderr.take().expect("standard error is a pipe"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = log.clone();
        let reader = thread::spawn(move || {
            for line in stderr.split(b'\n').map_while(Result::ok) {
                lines.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Agent { child, status: None, log, reader: Some(reader) }
    }

    /// Its process.
    #[allow(dead_code)] // The tests of packages look for it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM: end in good order.
    pub fn term(&self) {
        self.signal("TERM");
    }

    /// SIGINT, as Ctrl-C gives it.
    pub fn interrupt(&self) {
        self.signal("INT");
    }

    /// SIGHUP: what was read at the start is read again.
    pub fn hang_up(&self) {
        self.signal("HUP");
    }

    /// SIGSTOP: the process does not run until `thaw`.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Ends it without a word.
    pub fn kill9(&mut self) {
        assert!(self.exited().is_none(), "the agent had ended before it was killed");
        self.child.kill().unwrap();
        self.wait_exit(SOON);
    }

    fn signal(&self, name: &str) {
        // The shell's own `kill`, since the tests hold no unsafe code.
        let kill = format!("kill -s {name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "cannot send {name}: the agent has ended");
    }

    /// Its status, once it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("the agent can be waited for");
        }
        self.status
    }

    /// Waits for its end; the exit code, `None` if a signal ended it.
    #[track_caller]
    pub fn wait_exit(&mut self, timeout: Duration) -> Option<i32> {
        eventually("the agent ends", timeout, || self.exited().is_some());
        // The log is whole once the pipe has closed.
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the log's reader does not panic");
        }
        self.exited().and_then(|status| status.code())
    }

    pub fn is_running(&mut self) -> bool {
        self.exited().is_none()
    }

    /// The largest resident size that it has had, in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.size("VmHWM:")
    }

    /// Its resident size now, in KiB.
    #[allow(dead_code)] // The torture looks at it, which shares these fixtures.
    pub fn resident_kib(&self) -> u64 {
        self.size("VmRSS:")
    }

    fn size(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let size = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
        size.expect("the agent runs, and Linux tells its size")
    }

    /// How many files it has open.
    #[allow(dead_code)] // As above.
    pub fn n_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }

    /// All it has said so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// What it said as a warning or an error; not what it says at every start on loopback alone.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        let severe = |line: &&String| {
            (line.contains("WARN") || line.contains("ERROR")) && !line.contains("endpoints come from strangers")
        };
        log.iter().filter(severe).cloned().collect()
    }

    /// Waits for a line that contains this, in whatever case.
    #[track_caller]
    pub fn wait_log(&self, text: &str) {
        let wanted = text.to_lowercase();
        eventually(&format!("the log says {text:?}"), SOON, || self.log().to_lowercase().contains(&wanted));
    }
}

/// What is tested: the binary of this build, or what a variable names, such as one for another machine that
/// `scripts/try-arm` has emulated.
fn binary() -> PathBuf {
    let named = std::env::var_os("ACAPY_DELIVER_TEST_BINARY");
    named.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_acapy-deliver")), PathBuf::from)
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.exited().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if thread::panicking() {
            let ended = self.status.map_or("running until now".into(), |status| status.to_string());
            eprintln!("--- agent {} ({ended}) said:\n{}", self.child.id(), self.log());
        }
    }
}

/// Runs a command of the binary (not the agent) to its end, which must come soon.
#[track_caller]
pub fn run_to_end(args: &[&str]) -> Output {
    let mut command = Agent::command();
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary can be started");
    let out = drain(child.stdout.take().expect("standard output is a pipe"));
    let err = drain(child.stderr.take().expect("standard error is a pipe"));
    let deadline = Instant::now() + SOON;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("not within {SOON:?}: the end of acapy-deliver {}", args.join(" "));
        }
        thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}
