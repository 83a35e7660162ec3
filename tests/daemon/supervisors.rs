//! The agent under the supervisors it is meant for, with the files of `scripts/`: the real runit
//! and supervisord, as installed by scripts/test. Only names are replaced in those files: the
//! user, the path of the binary, the place of the log.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Agent, Answer, Redis, SOON, Sink, TempDir, eventually, ms, wire};

/// The least privileged user of every Debian; the files' own user is not on a test machine.
const USER: &str = "nobody";
const GROUP: &str = "nogroup";
const NOBODY: u32 = 65534;

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
}

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Replaces what must be there to be replaced.
#[track_caller]
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from:?} in:\n{text}");
    text.replace(from, to)
}

/// A copy of the binary where the unprivileged user may run it.
fn binary(dir: &Path) -> PathBuf {
    let copy = dir.join("bin/acapy-deliver");
    fs::create_dir(dir.join("bin")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_acapy-deliver"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

/// Runs a supervisor's own tool; whether it was content, and what it said.
fn tell(program: &str, args: &[&str], environment: (&str, &Path)) -> (bool, String) {
    let output = Command::new(program).args(args).env(environment.0, environment.1).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program} ({error}): run scripts/test"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn is_alive(pid: u32) -> bool {
    // A process that has ended and was not waited for has no command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -s {name} {pid}")]).status().unwrap();
    assert!(status.success(), "cannot send {name} to {pid}");
}

/// What the two have in common, so that both are put to the same test.
trait Supervisor {
    /// The agent's process, if it runs.
    fn pid(&self) -> Option<u32>;
    fn restart(&self);
    fn stop(&self);
    fn start(&self);
    /// What the supervisor says of it.
    fn status(&self) -> String;
    fn log(&self) -> String;
}

fn wait_for_another(supervisor: &impl Supervisor, old: Option<u32>, what: &str) -> u32 {
    eventually(what, SOON, || supervisor.pid().is_some_and(|pid| Some(pid) != old && is_alive(pid)));
    supervisor.pid().unwrap()
}

/// Started, looked at, restarted under load, crashed, stopped while an endpoint hangs.
fn lives_a_life(supervisor: &impl Supervisor, redis: &Redis, running: &str, patience: Duration) {
    let sink = Sink::new(|_| Answer::ok().after(ms(4)));
    let first = wait_for_another(supervisor, None, "the agent runs");
    eventually("the agent is registered", SOON, || redis.agents().len() == 1);
    eventually("the supervisor says so", SOON, || supervisor.status().contains(running));
    if is_root() {
        let status = fs::read_to_string(format!("/proc/{first}/status")).unwrap();
        let uid = format!("Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}");
        assert!(status.contains(&uid), "not unprivileged: {status}");
    }
    let line = fs::read(format!("/proc/{first}/cmdline")).unwrap();
    assert!(!String::from_utf8_lossy(&line).contains("redis"), "the URL is in the process list");

    // Restarted twice under load: nothing is lost.
    const N: usize = 4000;
    redis.push_all(wire::numbered(&sink.url(), N));
    for n in 1..=2 {
        eventually("deliveries go on", SOON, || sink.n_delivered() > n * N / 10);
        let (old, begun) = (supervisor.pid(), Instant::now());
        supervisor.restart();
        assert!(begun.elapsed() < patience, "restart took {:?}", begun.elapsed());
        wait_for_another(supervisor, old, "the agent is restarted");
    }
    eventually("all messages arrive", SOON * 2, || sink.copies().len() == N);
    redis.wait_empty(SOON);

    // Crashed under load: started again by itself, and nothing is lost either.
    redis.push_all(wire::numbered(&sink.url(), N).iter().map(|bytes| [bytes.as_slice()].concat()));
    let n_before = sink.n_delivered();
    eventually("deliveries go on", SOON, || sink.n_delivered() > n_before + N / 10);
    let old = wait_for_another(supervisor, None, "the agent runs");
    signal(old, "KILL");
    wait_for_another(supervisor, Some(old), "the agent is started again after a crash");
    eventually("all messages arrive once more", SOON * 2, || sink.copies().values().all(|copies| *copies >= 2));
    redis.wait_empty(SOON);

    // Stopped while an endpoint hangs: within the supervisor's patience, and nothing is lost.
    sink.behave(|_| Answer::Hang);
    redis.push(&wire::envelope(&sink.url(), b"held up"));
    let n_requests = sink.n_requests();
    eventually("the attempt hangs", SOON, || sink.n_requests() > n_requests || redis.counts().inflight == 1);
    let (pid, begun) = (supervisor.pid().unwrap(), Instant::now());
    supervisor.stop();
    assert!(begun.elapsed() < patience, "stop took {:?}", begun.elapsed());
    assert!(!is_alive(pid) && supervisor.pid().is_none(), "{}", supervisor.status());
    let counts = redis.counts();
    assert_eq!((counts.inflight, counts.messages), (0, 1), "{counts:?}");
    assert_eq!(redis.agents().len(), 0);
    sink.behave(|_| Answer::ok());
    supervisor.start();
    redis.wait_empty(SOON);
    assert!(supervisor.log().contains("stopped after"), "{}", supervisor.log());
}

/// A service under a runsv of its own.
struct Runit {
    dir: TempDir,
    runsv: Child,
}

impl Runit {
    /// With these files in ./env.
    fn start(environment: &[(&str, &str)]) -> Runit {
        let dir = TempDir::new("runit");
        let binary = binary(dir.path());
        let service = dir.path().join("acapy-deliver");
        let logs = dir.path().join("logs");
        fs::create_dir_all(service.join("log")).unwrap();
        fs::create_dir_all(service.join("env")).unwrap();
        fs::create_dir_all(&logs).unwrap();
        if is_root() {
            chown(&logs, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let user = |text: &str| {
            let to = if is_root() { format!("-u {USER}:{GROUP}") } else { "-b acapy-deliver".to_string() };
            replaced(text, "-u acapy-deliver:acapy-deliver", &to)
        };
        let run = shipped("runit/acapy-deliver/run");
        let run = replaced(&user(&run), "/usr/local/bin/acapy-deliver run", &format!("{} run", binary.display()));
        let log = user(&shipped("runit/acapy-deliver/log/run"));
        let log = replaced(&log, "svlogd -tt /var/log/acapy-deliver", &format!("svlogd -tt {}", logs.display()));
        for (name, text) in [("run", run), ("finish", shipped("runit/acapy-deliver/finish")), ("log/run", log)] {
            fs::write(service.join(name), text).unwrap();
            fs::set_permissions(service.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (name, value) in environment {
            let file = service.join("env").join(name);
            fs::write(&file, value).unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let runsv = Command::new("runsv").arg(&service).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let runsv = runsv.unwrap_or_else(|error| panic!("cannot start runsv ({error}): run scripts/test"));
        let runit = Runit { dir, runsv };
        eventually("runsv is at work", SOON, || runit.sv("status").0);
        runit
    }

    fn sv(&self, command: &str) -> (bool, String) {
        tell("sv", &[command, "acapy-deliver"], ("SVDIR", self.dir.path()))
    }

    #[track_caller]
    fn must(&self, command: &str) {
        let (content, said) = self.sv(command);
        assert!(content, "sv {command}: {said}");
    }
}

impl Supervisor for Runit {
    fn pid(&self) -> Option<u32> {
        let pid = self.dir.path().join("acapy-deliver/supervise/pid");
        // Until chpst has become the agent this is the shell's: the same process.
        let pid: u32 = fs::read_to_string(pid).ok()?.trim().parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "acapy-deliver").then_some(pid)
    }

    fn restart(&self) {
        self.must("restart");
    }

    fn stop(&self) {
        self.must("stop");
    }

    fn start(&self) {
        self.must("start");
    }

    fn status(&self) -> String {
        self.sv("status").1
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("logs/current")).unwrap_or_default()
    }
}

impl Drop for Runit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- runit: {}\n{}", self.status(), self.log());
        }
        // It stops the service and its log, and ends.
        signal(self.runsv.id(), "TERM");
        let deadline = Instant::now() + Duration::from_secs(15);
        while self.runsv.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(ms(20));
        }
        let _ = self.runsv.kill();
        let _ = self.runsv.wait();
    }
}

#[test]
fn runit_keeps_it_running_and_loses_nothing() {
    let redis = Redis::with(&["requirepass secret"]);
    let runit = Runit::start(&[
        ("ACAPY_OUTBOUND_TRANSPORT_QUEUE", &redis.url()),
        ("ACAPY_DELIVER_LEASE", "3s"),
        ("ACAPY_DELIVER_RETRY_FIRST", "1s"),
    ]);
    // The patience of `sv` unless told otherwise.
    lives_a_life(&runit, &redis, "run: acapy-deliver:", Duration::from_secs(7));
    let log = runit.log();
    assert!(log.contains("acapy-deliver was ended by signal 9; starting it again"), "{log}");
    assert!(!log.contains("secret"), "{log}");
    let said = log.lines().find(|line| line.contains("delivers the queue")).expect("the agent said hello");
    // svlogd's time, and no other.
    let (time, rest) = said.split_once(' ').unwrap();
    assert!(time.len() == 25 && time.starts_with("20") && time.as_bytes()[10] == b'_', "{said}");
    assert!(rest.starts_with("INFO "), "{said}");
}

#[test]
fn runit_leaves_it_down_after_wrong_options_and_tries_again_after_others() {
    let redis = Redis::with(&["requirepass secret"]);
    let wrong = Runit::start(&[("ACAPY_OUTBOUND_TRANSPORT_QUEUE", &redis.url()), ("ACAPY_DELIVER_WORKERS", "many")]);
    eventually("it stays down", SOON, || wrong.status().starts_with("down: "));
    // svlogd writes what it was given a little later.
    eventually("it says that it stays down", SOON, || wrong.log().contains("stays down"));
    let log = wrong.log();
    assert_eq!(log.matches("ACAPY_DELIVER_WORKERS").count(), 1, "{log}");

    let url = redis.url_with_password("wrong");
    let locked_out = Runit::start(&[("ACAPY_OUTBOUND_TRANSPORT_QUEUE", &url)]);
    eventually("it is tried again", SOON, || locked_out.log().matches("starting it again in 5 s").count() == 2);
    let file = locked_out.dir.path().join("acapy-deliver/env/ACAPY_OUTBOUND_TRANSPORT_QUEUE");
    fs::write(file, redis.url()).unwrap();
    eventually("it works once it is mended", SOON, || redis.agents().len() == 1);
}

/// A supervisord of its own.
struct Supervisord {
    dir: TempDir,
    process: Child,
}

impl Supervisord {
    /// With these variables in place of the one in the file.
    fn start(environment: &[(&str, &str)]) -> Supervisord {
        let dir = TempDir::new("supervisord");
        let binary = binary(dir.path());
        let place = dir.path().display();
        let program = shipped("supervisord/acapy-deliver.conf");
        let program =
            replaced(&program, "command=/usr/local/bin/acapy-deliver", &format!("command={}", binary.display()));
        let variables: Vec<String> = environment.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let shipped_url = "REDIS_SERVER_URL=\"redis://user:password@host:6379\"";
        let program = replaced(&program, shipped_url, &variables.join(","));
        let user = if is_root() { format!("user={USER}") } else { String::new() };
        let program = replaced(&program, "user=acapy-deliver", &user);
        let program = replaced(&program, "/var/log/acapy-deliver.log", &format!("{place}/acapy-deliver.log"));
        fs::write(dir.path().join("program.conf"), program).unwrap();
        let user = if is_root() { "user=root\n" } else { "" };
        let configuration = format!(
            "[supervisord]\nnodaemon=true\n{user}logfile={place}/supervisord.log\npidfile={place}/pid\nchildlogdir={place}\n\
             [unix_http_server]\nfile={place}/socket\n\
             [rpcinterface:supervisor]\nsupervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
             [supervisorctl]\nserverurl=unix://{place}/socket\n\
             [include]\nfiles=program.conf\n"
        );
        fs::write(dir.path().join("supervisord.conf"), configuration).unwrap();
        let process = Command::new("supervisord")
            .arg("-c")
            .arg(dir.path().join("supervisord.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start supervisord ({error}): run scripts/test"));
        let supervisord = Supervisord { dir, process };
        eventually("supervisord is at work", SOON, || supervisord.ctl("pid").0);
        supervisord
    }

    fn ctl(&self, command: &str) -> (bool, String) {
        let file = self.dir.path().join("supervisord.conf").display().to_string();
        let mut args = vec!["-c", &file, command];
        if command != "pid" {
            args.push("acapy-deliver");
        }
        tell("supervisorctl", &args, ("HOME", self.dir.path()))
    }

    #[track_caller]
    fn must(&self, command: &str) {
        let (content, said) = self.ctl(command);
        assert!(content && !said.contains("ERROR"), "supervisorctl {command}: {said}");
    }
}

impl Supervisor for Supervisord {
    fn pid(&self) -> Option<u32> {
        let status = self.status();
        let pid = status.split("RUNNING   pid ").nth(1)?.split(',').next()?;
        pid.parse().ok()
    }

    fn restart(&self) {
        self.must("restart");
    }

    fn stop(&self) {
        self.must("stop");
    }

    fn start(&self) {
        self.must("start");
    }

    fn status(&self) -> String {
        self.ctl("status").1
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("acapy-deliver.log")).unwrap_or_default()
    }
}

impl Drop for Supervisord {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let own = fs::read_to_string(self.dir.path().join("supervisord.log")).unwrap_or_default();
            eprintln!("--- supervisord: {}\n{own}\n{}", self.status(), self.log());
        }
        // It stops what it started, and ends.
        signal(self.process.id(), "TERM");
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.process.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(ms(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn supervisord_keeps_it_running_and_loses_nothing() {
    let redis = Redis::with(&["requirepass secret"]);
    let supervisord = Supervisord::start(&[
        ("ACAPY_OUTBOUND_TRANSPORT_QUEUE", &redis.url()),
        ("ACAPY_DELIVER_LEASE", "3s"),
        ("ACAPY_DELIVER_RETRY_FIRST", "1s"),
    ]);
    // Its own patience, and the second for which a start must last.
    lives_a_life(&supervisord, &redis, "RUNNING", Duration::from_secs(11));
    let log = supervisord.log();
    assert!(!log.contains("secret"), "{log}");
    let said = log.lines().find(|line| line.contains("delivers the queue")).expect("the agent said hello");
    assert!(said.starts_with("20") && said.contains("Z INFO "), "no time of its own: {said}");
}

/// The service manager's end of the notify socket, which hears what is said.
struct Manager {
    socket: UnixDatagram,
    name: String,
    said: Vec<(Instant, String)>,
    _dir: TempDir,
}

impl Manager {
    fn new(is_abstract: bool) -> Manager {
        let dir = TempDir::new("notify");
        let path = dir.path().join("notify").display().to_string();
        let (socket, name) = match is_abstract {
            true => {
                let address = SocketAddr::from_abstract_name(&path).unwrap();
                (UnixDatagram::bind_addr(&address).unwrap(), format!("@{path}"))
            }
            false => (UnixDatagram::bind(&path).unwrap(), path),
        };
        socket.set_nonblocking(true).unwrap();
        Manager { socket, name, said: Vec::new(), _dir: dir }
    }

    fn start(&self, url: &str, environment: &[(&str, &str)]) -> Agent {
        let mut command = Agent::command();
        command.args(["run", "-oq", url, "--drain-timeout", "9s"]).env("NOTIFY_SOCKET", &self.name);
        Agent::spawn({
            command.envs(environment.iter().copied());
            command
        })
    }

    /// When a message with such a line was heard first, and how many there have been.
    fn heard(&mut self, line: &str) -> (Option<Instant>, usize) {
        let mut message = [0; 4096];
        while let Ok(n) = self.socket.recv(&mut message) {
            self.said.push((Instant::now(), String::from_utf8(message[..n].to_vec()).unwrap()));
        }
        let mut with = self.said.iter().filter(|(_, said)| said.lines().any(|other| other.starts_with(line)));
        let first = with.next().map(|(at, _)| *at);
        (first, first.map_or(0, |_| 1 + with.count()))
    }

    #[track_caller]
    fn wait_for(&mut self, line: &str, n: usize) {
        eventually(&format!("{n} times {line:?}"), SOON, || self.heard(line).1 >= n);
    }
}

#[test]
fn a_service_manager_is_told_when_it_is_ready_alive_reloading_and_stopping() {
    let redis = Redis::start();
    for is_abstract in [false, true] {
        let mut manager = Manager::new(is_abstract);
        let mut agent = manager.start(&redis.url(), &[("WATCHDOG_USEC", "400000")]);
        manager.wait_for("READY=1", 1);
        assert_eq!(redis.agents().len(), 1, "ready before it was registered");
        manager.wait_for("WATCHDOG=1", 5);
        manager.wait_for("STATUS=delivering: 0 attempts under way, 0 endpoints down; since the start 0 delivered", 1);
        let before = manager.heard("READY=1").1;
        agent.hang_up();
        manager.wait_for("RELOADING=1", 1);
        manager.wait_for("READY=1", before + 1);
        let reload = manager.said.iter().find(|(_, said)| said.starts_with("RELOADING=1")).unwrap();
        let monotonic = reload.1.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
        let monotonic: f64 = monotonic.parse().unwrap();
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        // That one counts the time the machine slept, too.
        assert!(monotonic > 0.0 && monotonic <= (uptime + 1.0) * 1e6, "{monotonic} {uptime}");
        agent.term();
        assert_eq!(agent.wait_exit(SOON), Some(0));
        manager.wait_for("STOPPING=1", 1);
        assert_eq!(manager.heard("EXTEND_TIMEOUT_USEC=12000000").1, 1);
        assert_eq!(manager.heard("STOPPING=1").1, 1);
    }
}

#[test]
fn a_redis_that_is_away_fails_no_start_and_costs_no_sign_of_life() {
    let mut redis = Redis::start();
    let url = redis.url();
    redis.kill9();
    let mut manager = Manager::new(false);
    let begun = Instant::now();
    let mut agent = manager.start(&url, &[("WATCHDOG_USEC", "1000000")]);
    manager.wait_for("STATUS=Redis cannot be used: for ", 1);
    assert_eq!(manager.heard("READY=1").1, 0);
    manager.wait_for("READY=1", 1);
    let took = manager.heard("READY=1").0.unwrap() - begun;
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(15), "{took:?}");
    assert!(manager.heard("WATCHDOG=1").1 >= 9, "{:?}", manager.said);
    redis.restart();
    manager.wait_for("STATUS=delivering", 1);
    assert_eq!(manager.heard("READY=1").1, 1);
    // Between two lines of status there are some seconds, unless the state has changed.
    let n = manager.heard("STATUS=").1;
    assert!(n <= 7, "{:?}", manager.said);
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
}

#[test]
fn who_cannot_get_in_is_never_ready_and_the_watchdog_of_another_is_left_alone() {
    let redis = Redis::with(&["requirepass secret"]);
    let mut manager = Manager::new(false);
    let mut agent = manager.start(&redis.url_with_password("wrong"), &[]);
    assert_eq!(agent.wait_exit(SOON), Some(1));
    assert_eq!(manager.heard("READY=1").1, 0, "{:?}", manager.said);

    let mut manager = Manager::new(false);
    let mut agent = manager.start(&redis.url(), &[("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "1")]);
    manager.wait_for("READY=1", 1);
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
    assert_eq!(manager.heard("WATCHDOG=1").1, 0);

    // Nobody there: it works all the same, and says so.
    let mut command = Agent::command();
    command.args(["run", "-oq", &redis.url()]).env("NOTIFY_SOCKET", "@nobody-listens-there");
    let agent = Agent::start_as(&redis, command);
    agent.wait_log("NOTIFY_SOCKET");
}

#[test]
fn the_unit_for_several_queues_is_the_one_for_one_queue_but_for_its_names() {
    let directives = |name: &str| -> Vec<String> {
        let text = shipped(name);
        text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_string).collect()
    };
    let (one, several) = (directives("systemd/acapy-deliver.service"), directives("systemd/acapy-deliver@.service"));
    let one: Vec<String> = one
        .iter()
        .map(|line| match line.as_str() {
            "Description=Delivery agent for ACA-Py's outbound queue" => format!("{line} %i"),
            "EnvironmentFile=/etc/acapy-deliver/environment" => "EnvironmentFile=/etc/acapy-deliver/%i".to_string(),
            line => line.to_string(),
        })
        .collect();
    assert_eq!(several, one);
}

#[test]
fn systemd_finds_no_fault_with_the_unit() {
    // Elsewhere there is nothing that could verify it.
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("not tested: systemd-analyze is not installed");
        return;
    }
    let dir = TempDir::new("systemd");
    let binary = binary(dir.path());
    for (shipped_as, called) in
        [("acapy-deliver.service", "acapy-deliver.service"), ("acapy-deliver@.service", "acapy-deliver@one.service")]
    {
        let unit = shipped(&format!("systemd/{shipped_as}"));
        let exec = format!("ExecStart={}", binary.display());
        let unit = replaced(&unit, "ExecStart=acapy-deliver", &exec);
        let file = dir.path().join(called);
        fs::write(&file, unit).unwrap();
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Of other units it may find what it likes.
        let faults: Vec<&str> = said.lines().filter(|line| line.contains("acapy-deliver")).collect();
        assert!(output.status.success() && faults.is_empty(), "{called}: {said}");
    }
}
