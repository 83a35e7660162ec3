//! Tells the service manager that started the agent how it is, by systemd's protocol (`sd_notify(3)`): ready,
//! stopping, a line of status, and while the agent is alive a sign of life for the watchdog. One thread, where
//! NOTIFY_SOCKET names a socket; it looks every second, and ends when it is dropped.
//!
//! Nothing here depends on Redis: ready means registered, but not later than [`READY_WITHIN`] after the start, and alive is
//! what `/healthz` calls so. Otherwise a Redis that is away would fail the start, or hold up all that waits for
//! it, and have the agent restarted for what no restart mends; the line of status says what it waits for.

use std::ffi::OsStr;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use log::warn;
use sd_notify::NotifyState;

use crate::config::Config;
use crate::dispatch::Dispatch;
use crate::health;
use crate::metrics::read;
use crate::text::{n_of, spell};

/// An agent that starts is ready when it is registered, or when it has not been able to for so long.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// The line of status changes at most this often, unless the agent is in another state than it says.
const STATUS_EVERY: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A manager that does not listen is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a stop may take beside `--drain-timeout`: giving back what is left, and some.
const BEYOND_DRAIN: Duration = Duration::from_secs(3);

/// The thread `notify`, while it lives.
pub struct Notifier {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    socket: UnixDatagram,
    dispatch: Arc<Dispatch>,
    lease: Duration,
    drain_timeout: Duration,
    started: Instant,
    is_ready: AtomicBool,
    is_over: AtomicBool,
}

/// Starts it; `None` where nobody listens.
pub fn start(dispatch: Arc<Dispatch>, config: &Config) -> Option<Notifier> {
    let name = std::env::var_os("NOTIFY_SOCKET")?;
    let socket = connect(&name)
        .inspect_err(|error| warn!("NOTIFY_SOCKET {name:?}: {error}; whoever started this agent is told nothing"))
        .ok()?;
    let shared = Arc::new(Shared {
        socket,
        dispatch,
        lease: config.lease,
        drain_timeout: config.drain_timeout,
        started: Instant::now(),
        is_ready: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
    });
    let telling = shared.clone();
    let thread = Builder::new()
        .name("notify".to_owned())
        .stack_size(128 << 10) // it keeps nothing large there
        .spawn(move || telling.run(sd_notify::watchdog_enabled()))
        .inspect_err(|error| warn!("cannot start the thread 'notify': {error}"))
        .ok()?;
    Some(Notifier { shared, thread: Some(thread) })
}

impl Notifier {
    /// What was read at the start is read again, for as long as `reload` takes.
    pub fn while_reloading(&self, reload: impl FnOnce()) {
        // Before that it would be taken for the end of the start.
        let is_ready = self.shared.is_ready.load(Ordering::SeqCst);
        if is_ready && let Ok(now) = NotifyState::monotonic_usec_now() {
            self.shared.tell(&format!("RELOADING=1\n{now}"));
        }
        reload();
        if is_ready {
            self.shared.tell("READY=1");
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // It wakes the thread; the agent has stopped already.
        self.shared.dispatch.lease.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A name that begins with `@` is in the abstract namespace, any other a path.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match name.as_encoded_bytes().strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(abstract_name) => {
            use std::os::linux::net::SocketAddrExt;
            socket.connect_addr(&SocketAddr::from_abstract_name(abstract_name)?)?;
        }
        _ => socket.connect_addr(&SocketAddr::from_pathname(name)?)?,
    }
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

impl Shared {
    fn run(&self, watchdog: Option<Duration>) {
        // Twice in the time that it may be silent for.
        let alive_every = watchdog.map(|watchdog| watchdog / 2);
        let look_every = alive_every.unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
        let (mut said, mut alive_at) = (Said::default(), None::<Instant>);
        let mut is_stopping = false;
        loop {
            let now = Instant::now();
            if self.dispatch.lease.is_stopping() && !is_stopping {
                is_stopping = true;
                let within = (self.drain_timeout + BEYOND_DRAIN).as_micros();
                self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={within}"));
            }
            if self.is_over.load(Ordering::SeqCst) {
                return;
            }
            let may_be_ready = self.dispatch.lease.number().is_some() || self.started.elapsed() >= READY_WITHIN;
            if !is_stopping && may_be_ready && !self.is_ready.swap(true, Ordering::SeqCst) {
                self.tell("READY=1");
            }
            let is_alive = is_stopping || health::unwell(&self.dispatch, self.lease).is_none();
            if let Some(every) = alive_every
                && is_alive
                && alive_at.is_none_or(|at| at + every <= now + look_every)
            {
                self.tell("WATCHDOG=1");
                alive_at = Some(now);
            }
            if let Some(status) = said.anew(self.state(), now, || self.counts()) {
                self.tell(&format!("STATUS={status}"));
            }
            self.dispatch.lease.wait_for_change(look_every);
        }
    }

    /// One sentence that stays while the agent is in the same state.
    fn state(&self) -> String {
        match health::unready(&self.dispatch, self.lease) {
            None => "delivering".to_owned(),
            Some(why) => why,
        }
    }

    fn counts(&self) -> String {
        let metrics = &self.dispatch.metrics;
        let down = self.dispatch.lane_counts().down as u64;
        let (delivered, later, dead) = (read(&metrics.delivered), read(&metrics.later), read(&metrics.dead));
        let away = self.dispatch.journal.redis_away_for().map(|away| format!("for {}; ", spell(away)));
        format!(
            "{}{} under way, {} down; since the start {delivered} delivered, {later} put off, {dead} dead",
            away.unwrap_or_default(),
            n_of(self.dispatch.attempts_under_way().len() as u64, "attempt"),
            n_of(down, "endpoint"),
        )
    }

    fn tell(&self, what: &str) {
        // Who does not listen does not want to know.
        let _ = self.socket.send(what.as_bytes());
    }
}

/// The line of status that was said last.
#[derive(Default)]
struct Said {
    state: String,
    counts: String,
    at: Option<Instant>,
}

impl Said {
    /// What is to be said now, if anything is.
    fn anew(&mut self, state: String, now: Instant, counts: impl FnOnce() -> String) -> Option<String> {
        let is_time = self.at.is_none_or(|at| now.saturating_duration_since(at) >= STATUS_EVERY);
        if state == self.state && !is_time {
            return None;
        }
        let counts = counts();
        if (&state, &counts) == (&self.state, &self.counts) {
            return None;
        }
        *self = Said { state, counts, at: Some(now) };
        Some(format!("{}: {}", self.state, self.counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_said_when_the_state_changes_and_else_now_and_then() {
        let begun = Instant::now();
        let mut said = Said::default();
        let mut check = |after: u64, state: &str, counts: &str, expected: Option<&str>| {
            let now = begun + Duration::from_millis(after);
            let status = said.anew(state.to_owned(), now, || counts.to_owned());
            assert_eq!(status.as_deref(), expected, "{after} ms");
        };
        check(0, "starting", "0", Some("starting: 0"));
        check(1000, "starting", "1", None);
        check(1500, "delivering", "1", Some("delivering: 1"));
        check(5000, "delivering", "2", None);
        check(6500, "delivering", "1", None);
        check(6600, "delivering", "3", Some("delivering: 3"));
    }

    #[test]
    fn an_agent_that_hangs_gives_no_sign_of_life_and_one_that_stops_does() {
        let check = |hangs: bool, stops: bool, expected: bool| {
            let (mut dispatch, _ready, _reports) = Dispatch::for_tests(Duration::from_secs(15));
            if hangs {
                dispatch.lease.grow_older(Duration::from_secs(60));
            }
            let (socket, manager) = UnixDatagram::pair().unwrap();
            let shared = Arc::new(Shared {
                socket,
                dispatch: Arc::new(dispatch),
                lease: Duration::from_secs(15),
                drain_timeout: Duration::from_secs(5),
                started: Instant::now(),
                is_ready: AtomicBool::new(false),
                is_over: AtomicBool::new(false),
            });
            if stops {
                shared.dispatch.lease.stop();
            }
            let telling = shared.clone();
            let thread = std::thread::spawn(move || telling.run(Some(Duration::from_millis(20))));
            manager.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let mut said = Vec::new();
            let mut message = [0; 4096];
            while said.len() < 20
                && let Ok(n) = manager.recv(&mut message)
            {
                said.push(String::from_utf8_lossy(&message[..n]).into_owned());
            }
            drop(Notifier { shared, thread: Some(thread) });
            let is_alive = said.iter().any(|said| said == "WATCHDOG=1");
            assert_eq!(is_alive, expected, "{hangs} {stops}: {said:?}");
            assert!(!said.iter().any(|said| said.contains("READY=1")), "not registered: {said:?}");
        };
        check(false, false, true);
        check(true, false, false);
        check(true, true, true);
    }

    #[test]
    fn sockets_are_found_by_path_and_by_abstract_name() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("acapy-deliver-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let by_path = UnixDatagram::bind(&path).unwrap();
        let hidden = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, called) in [(by_path, path.clone().into_os_string()), (hidden, format!("@{name}").into())] {
            connect(&called).unwrap().send(b"READY=1").unwrap();
            let mut message = [0; 16];
            let n = socket.recv(&mut message).unwrap();
            assert_eq!(&message[..n], b"READY=1");
        }
        std::fs::remove_file(path).unwrap();
        assert!(connect(OsStr::new("@nobody-listens-there")).is_err());
    }
}
