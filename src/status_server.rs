//! Lets people and Prometheus see what the agent does: `GET /metrics`, `/healthz`, `/readyz`. In the place
//! of the plugin's deliverer it also serves that one's pages, `/status/live` and `/status/ready`, to who
//! has the key, and on an address that only they are asked for on, nothing else.
//!
//! It promises to harm nobody: so many connections at once and so many a second, a deadline for
//! each, requests of a few KiB, one request a connection, one small thread each while it lasts.
//! When all seats are taken, the oldest connection that has been answered makes room, and if there is
//! none the oldest that has not asked anything for a moment, so that neither half-open ones nor those
//! that do not close keep anybody out. A small server of our own, since what is bounded here
//! (time above all) cannot be bounded in the ready-made one; `listen` reads bodies, keeps
//! connections and is patient, and so has little in common with it.
//!
//! What only Redis knows is left to [`figures`]; all else is read from memory, so that it answers
//! while Redis is away.

pub mod figures;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{info, warn};

use self::figures::{Figures, Watcher};
use crate::config::{Config, StatusEndpoint};
use crate::dispatch::Dispatch;
use crate::lease::Thread;
use crate::metrics::{Metrics, read};

/// Connections at once.
const SEATS: usize = 16;
/// Connections a second, beyond the first `SEATS` of a burst: some per cent of a core at most.
const PER_SECOND: u32 = 200;
/// A connection may take so long in all.
const DEADLINE: Duration = Duration::from_secs(5);
/// A connection that has its answer is heard to its end for so long: a close with unread bytes would
/// reset it, and the answer might be lost with that.
const LINGER: Duration = Duration::from_millis(250);
/// A connection has at least so long to ask, however many wait for its seat.
const TO_ASK: Duration = Duration::from_millis(50);
/// A request's line and headers may have so many bytes, and so many headers.
const HEAD: usize = 8 << 10;
const HEADERS: usize = 64;
/// A connection's thread keeps nothing large on its stack.
const STACK: usize = 128 << 10;
/// Alive means that reader and settler have turned within this time, beyond what they wait on purpose.
const ALIVE_WITHIN: Duration = Duration::from_secs(10);
/// While Redis is away they wait for it: for its name, to connect, for an answer (5 s each), and up to 6 s until the next try.
const REDIS_AWAY: Duration = Duration::from_secs(21);

/// A status server that listens, and does not answer yet.
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    pages: Pages,
}

/// Which pages an address serves.
#[derive(Clone, Default)]
struct Pages {
    /// Those of `--status-addr`.
    ours: bool,
    /// Those of the plugin's deliverer, to who has this key.
    key: Option<String>,
}

/// Listens where the configuration asks for pages: at one address or two.
///
/// # Errors
///
/// If it cannot; the sentence names the option.
pub fn listen(config: &Config) -> Result<Vec<Bound>, String> {
    let mut bound = Vec::new();
    let theirs = config.status_endpoint.as_ref();
    if let Some(ours) = &config.status_addr {
        let key = theirs.filter(|theirs| is_same(ours, &theirs.address)).map(|theirs| theirs.key.clone());
        bound.push(bind("option '--status-addr'", ours, Pages { ours: true, key })?);
    }
    if let Some(StatusEndpoint { address, key }) = theirs
        && bound.iter().all(|bound| bound.pages.key.is_none())
    {
        let pages = Pages { ours: false, key: Some(key.clone()) };
        bound.push(bind("variables STATUS_ENDPOINT_HOST and STATUS_ENDPOINT_PORT", address, pages)?);
    }
    Ok(bound)
}

/// Whether two `HOST:PORT` are one, however they are written.
fn is_same(one: &str, other: &str) -> bool {
    let first = |text: &str| text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    one == other || first(one).is_some_and(|address| address.port() != 0 && first(other) == Some(address))
}

fn bind(asked_by: &str, address: &str, pages: Pages) -> Result<Bound, String> {
    let cannot = |error| format!("{asked_by}: cannot listen on {address}: {error}; choose another address or port");
    let listener = TcpListener::bind(address).map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    Ok(Bound { listener, address, pages })
}

/// A status server at work. Dropped, it stops.
pub struct StatusServer {
    server: Arc<Server>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

/// What all connections share.
struct Server {
    dispatch: Arc<Dispatch>,
    pages: Pages,
    /// For `/metrics`.
    watcher: Option<Watcher>,
    lease: Duration,
    workers: usize,
    started: SystemTime,
    stopping: AtomicBool,
    seats: Mutex<Seats>,
    /// A seat became free.
    freed: Condvar,
}

#[derive(Default)]
struct Seats {
    next: u64,
    /// In the order of arrival.
    taken: VecDeque<Seat>,
}

struct Seat {
    number: u64,
    stream: Arc<TcpStream>,
    taken: Instant,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It has not asked yet.
    Silent,
    /// It is being answered.
    Asked,
    /// It has its answer, and has not closed.
    Answered,
}

impl Bound {
    /// Where it listens; the port is the real one, also if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it serves pages that tell what is in Redis.
    pub fn needs_figures(&self) -> bool {
        self.pages.ours
    }

    /// Begins to answer. `lease` and `workers` as the agent has them.
    ///
    /// # Errors
    ///
    /// If its thread cannot be started.
    pub fn serve(
        self,
        dispatch: Arc<Dispatch>,
        watcher: Option<Watcher>,
        lease: Duration,
        workers: usize,
    ) -> Result<StatusServer, String> {
        let server = Arc::new(Server {
            dispatch,
            pages: self.pages,
            watcher,
            lease,
            workers,
            started: SystemTime::now(),
            stopping: AtomicBool::new(false),
            seats: Mutex::new(Seats::default()),
            freed: Condvar::new(),
        });
        let (listener, served) = (self.listener, server.clone());
        let thread = Builder::new()
            .name("status".to_owned())
            .stack_size(STACK)
            .spawn(move || accept(&listener, &served))
            .map_err(|error| format!("cannot start the thread 'status' ({error})"))?;
        if server.pages.ours {
            info!("status is served at http://{}/metrics", self.address);
        }
        if server.pages.key.is_some() {
            info!("as by the plugin's deliverer, status is served at http://{}/status/ready", self.address);
        }
        Ok(StatusServer { server, address: self.address, thread: Some(thread) })
    }
}

impl StatusServer {
    /// Where it listens; the port is the real one, also if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        self.server.stopping.store(true, Ordering::SeqCst);
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        // It waits for a connection: so it gets one.
        let woken = TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        for seat in &self.server.seats().taken {
            let _ = seat.stream.shutdown(Shutdown::Both);
        }
        if woken && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, server: &Arc<Server>) {
    let mut pace = Pace::new(Instant::now());
    loop {
        let accepted = listener.accept();
        if server.stopping.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, _)) => seat(stream, server),
            Err(error) => {
                warn!("the status server cannot accept a connection: {error}");
                thread::sleep(Duration::from_secs(1)); // most likely no file descriptors: let some be closed
            }
        }
        thread::sleep(pace.pause(Instant::now()));
    }
}

/// Holds a flood back to `PER_SECOND`; what is beyond waits in the system's own queue.
struct Pace {
    /// How many may come at once now.
    budget: f64,
    at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace { budget: SEATS as f64, at: now }
    }

    /// One has come: how long to wait before the next.
    fn pause(&mut self, now: Instant) -> Duration {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(PER_SECOND);
        self.budget = (self.budget + earned).min(SEATS as f64) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.budget).max(0.0) / f64::from(PER_SECOND))
    }
}

fn seat(stream: TcpStream, server: &Arc<Server>) {
    let stream = Arc::new(stream);
    let number = server.take_seat(&stream);
    let served = server.clone();
    let serve = move || {
        // The connection's errors are the asker's to see; here it just ends.
        let _ = serve(&stream, number, &served);
        served.leave_seat(number);
    };
    if let Err(error) = Builder::new().name("status-answer".to_owned()).stack_size(STACK).spawn(serve) {
        server.leave_seat(number);
        warn!("the status server cannot start a thread: {error}");
    }
}

impl Server {
    /// Waits for a seat; the oldest connection that can make room does.
    fn take_seat(&self, stream: &Arc<TcpStream>) -> u64 {
        let mut seats = self.seats();
        while seats.taken.len() >= SEATS {
            let now = Instant::now();
            let has_had_time = |seat: &Seat| now.saturating_duration_since(seat.taken) >= TO_ASK;
            let answered = seats.taken.iter().position(|seat| seat.state == State::Answered);
            let silent = seats.taken.iter().position(|seat| seat.state == State::Silent);
            let idle = answered.or(silent.filter(|at| has_had_time(&seats.taken[*at])));
            if let Some(seat) = idle.and_then(|at| seats.taken.remove(at)) {
                // Its thread waits for a word of it, and ends with this.
                let _ = seat.stream.shutdown(Shutdown::Both);
                continue;
            }
            let patience = if silent.is_some() { TO_ASK } else { DEADLINE };
            let (waited, timeout) =
                self.freed.wait_timeout(seats, patience).unwrap_or_else(|poisoned| poisoned.into_inner());
            seats = waited;
            // Not for ever: should a thread have died, its deadline has long passed.
            if timeout.timed_out() && patience == DEADLINE {
                seats.taken.pop_front();
            }
        }
        seats.next += 1;
        let number = seats.next;
        seats.taken.push_back(Seat { number, stream: stream.clone(), taken: Instant::now(), state: State::Silent });
        number
    }

    /// How far a connection is; whoever waits for a seat may have that of one answered.
    fn turn(&self, number: u64, state: State) {
        if let Some(seat) = self.seats().taken.iter_mut().find(|seat| seat.number == number) {
            seat.state = state;
        }
        if state == State::Answered {
            self.freed.notify_all();
        }
    }

    fn leave_seat(&self, number: u64) {
        self.seats().taken.retain(|seat| seat.number != number);
        self.freed.notify_all();
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let plain = |status, body: String| Answer { status, kind: "text/plain; charset=utf-8", body };
        let (path, token) = match asked {
            Asked::Refused(status) => return plain(*status, String::new()),
            Asked::For { path, token } => (path.as_str(), token),
        };
        let well = |why: Option<String>| match why {
            None => plain(200, "ok\n".to_owned()),
            Some(why) => plain(503, format!("{why}\n")),
        };
        match (path, &self.pages.key) {
            ("/status/live" | "/status/ready", Some(key)) => self.answer_as_the_deliverer(path, token, key),
            ("/metrics", _) if self.pages.ours => Answer {
                status: 200,
                kind: "text/plain; version=0.0.4; charset=utf-8",
                body: self.metrics(self.watcher.as_ref().and_then(Watcher::figures).as_ref()),
            },
            ("/healthz", _) if self.pages.ours => well(self.unwell()),
            ("/readyz", _) if self.pages.ours => well(self.unready()),
            _ if self.pages.ours => plain(404, "there are /metrics, /healthz and /readyz\n".to_owned()),
            _ => plain(404, "there are /status/live and /status/ready\n".to_owned()),
        }
    }

    /// With its words, and its status for what is not well: those who ask know no others.
    fn answer_as_the_deliverer(&self, path: &str, token: &[u8], key: &str) -> Answer {
        let json = |status, body: String| Answer { status, kind: "application/json", body };
        if !is_key(token, key.as_bytes()) {
            return json(403, r#"{"detail":"Could not validate key"}"#.to_owned());
        }
        match path {
            "/status/live" => {
                let alive = self.dispatch.journal.redis_is_up() && self.unwell().is_none();
                json(200, format!(r#"{{"alive":{alive}}}"#))
            }
            _ => json(200, format!(r#"{{"ready":{}}}"#, self.unready().is_none())),
        }
    }

    fn unwell(&self) -> Option<String> {
        let since_turn = [Thread::Reader, Thread::Settler].map(|thread| self.dispatch.lease.since_turn(thread));
        unwell(since_turn, self.lease, self.dispatch.journal.redis_is_up())
    }

    /// Why the agent cannot deliver now.
    fn unready(&self) -> Option<String> {
        let dispatch = &self.dispatch;
        let lacks = [
            (dispatch.lease.is_stopping(), "stopping"),
            (!dispatch.journal.redis_is_up(), "Redis cannot be used"),
            (dispatch.lease.number().is_none(), "not yet registered in Redis"),
            (!dispatch.lease.is_beat_fresh(), "Redis has not confirmed a beat for most of the lease"),
        ];
        unready(lacks, self.unwell())
    }

    fn metrics(&self, figures: Option<&Figures>) -> String {
        let (dispatch, metrics) = (&self.dispatch, &self.dispatch.metrics);
        let mut page = Page::default();
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.name("build_info", "gauge", "Always 1; the version is its label.").value(&version, 1);
        let redis_up = figures.is_some() && dispatch.journal.redis_is_up();
        page.name("redis_up", "gauge", "Whether Redis answers this agent.").value(&[], u8::from(redis_up));
        page.name("ready", "gauge", "Whether the agent is registered in Redis and delivers.")
            .value(&[], u8::from(self.unready().is_none()));

        count_events(&mut page, metrics);
        durations(&mut page, metrics);

        page.name("workers", "gauge", "Attempts that may be made at the same time.").value(&[], self.workers);
        page.name("attempts_in_progress", "gauge", "Attempts being made now.")
            .value(&[], dispatch.attempts_under_way().len());
        let lanes = dispatch.lane_counts();
        page.name("held_messages", "gauge", "Messages that this agent holds in memory.").value(&[], lanes.held);
        page.name("held_bytes", "gauge", "Bytes of the messages held and not yet attempted to an end.")
            .value(&[], lanes.bytes);
        page.name("lanes", "gauge", "Endpoints (scheme, host, port) that this agent knows: untried (no delivery yet), up, down (failed since the last delivery).")
            .value(&[("state", "untried")], lanes.untried)
            .value(&[("state", "up")], lanes.up)
            .value(&[("state", "down")], lanes.down);
        if let Some(figures) = figures {
            of_the_queue(&mut page, figures);
        }
        of_the_process(&mut page, self.started);
        page.text
    }
}

/// In a time that tells nothing of how much of it was right.
fn is_key(given: &[u8], key: &[u8]) -> bool {
    let mut differences = given.len() ^ key.len();
    for (n, byte) in key.iter().enumerate() {
        // The optimiser is not to see that one difference is enough.
        differences |= std::hint::black_box(usize::from(byte ^ given.get(n).unwrap_or(&0)));
    }
    differences == 0
}

/// What is lacking first; an agent that is not alive delivers nothing either.
fn unready(lacks: [(bool, &str); 4], unwell: Option<String>) -> Option<String> {
    lacks.into_iter().find_map(|(lacks, what)| lacks.then(|| what.to_owned())).or(unwell)
}

/// Why the agent is not alive, from how long ago reader and settler turned last.
fn unwell(since_turn: [Duration; 2], lease: Duration, redis_is_up: bool) -> Option<String> {
    let away = if redis_is_up { Duration::ZERO } else { REDIS_AWAY };
    // The settler waits for reports until its next beat.
    let threads = [("reader", Duration::ZERO), ("settler", lease / 3)];
    threads.iter().zip(since_turn).find_map(|((name, on_purpose), since)| {
        (since > ALIVE_WITHIN + *on_purpose + away)
            .then(|| format!("the {name} has not turned for {} s", since.as_secs()))
    })
}

fn count_events(page: &mut Page, metrics: &Metrics) {
    page.name("outcomes_total", "counter", "What became of messages: delivered, later (to be attempted again), dead.")
        .value(&[("outcome", "delivered")], read(&metrics.delivered))
        .value(&[("outcome", "later")], read(&metrics.later))
        .value(&[("outcome", "dead")], read(&metrics.dead));
    let counters = [
        ("claimed_messages_total", "Messages claimed, those that came back included.", &metrics.claimed),
        ("undecodable_messages_total", "Of the dead, those that could not be decoded.", &metrics.undecodable),
        ("taken_over_messages_total", "Messages given up because another agent has them.", &metrics.taken_over),
        ("recovered_messages_total", "Messages taken back from agents that died.", &metrics.recovered),
        ("repeated_total", "Requests sent once more, as an idle connection closed under them.", &metrics.repeated),
        ("odd_entries_total", "Times that an entry of Redis which no agent writes was met and left out.", &metrics.odd),
        ("claims_total", "Calls of claim.", &metrics.claims),
        ("settles_total", "Calls of settle.", &metrics.settles),
    ];
    for (name, help, counter) in counters {
        page.name(name, "counter", help).value(&[], read(counter));
    }
}

fn durations(page: &mut Page, metrics: &Metrics) {
    const NAME: &str = "attempt_duration_seconds";
    page.name(NAME, "histogram", "How long attempts took, whatever came of them.");
    let mut n = 0;
    let bounds = crate::metrics::DURATION_BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
    for (bound, count) in bounds.zip(&metrics.durations) {
        n += read(count);
        page.part(NAME, "_bucket", &[("le", &bound)], n);
    }
    page.part(NAME, "_sum", &[], read(&metrics.duration_sum) as f64 / 1e6);
    page.part(NAME, "_count", &[], n);
}

fn of_the_queue(page: &mut Page, figures: &Figures) {
    page.name("queue_messages", "gauge", "Messages in Redis, of all agents: queue (not yet claimed), in_flight, waiting (for their endpoint), retry, dead. Absent while Redis is away.")
        .value(&[("place", "queue")], figures.queue)
        .value(&[("place", "in_flight")], figures.in_flight)
        .value(&[("place", "waiting")], figures.waiting)
        .value(&[("place", "retry")], figures.retry)
        .value(&[("place", "dead")], figures.dead);
    page.name("queue_waiting_lanes", "gauge", "Endpoints that messages in Redis wait for.")
        .value(&[], figures.waiting_lanes);
    page.name("queue_agents", "gauge", "Agents alive on this queue.").value(&[], figures.agents);
    page.name("queue_oldest_age_seconds", "gauge", "Since the oldest message in flight, waiting or to be retried was first claimed; 0 if there is none. What was never claimed carries no time.")
        .value(&[], figures.oldest.unwrap_or_default().as_secs_f64());
}

/// The names that Prometheus's own clients use. What the system does not tell is left out.
fn of_the_process(page: &mut Page, started: SystemTime) {
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    page.plain("process_start_time_seconds", "gauge", "When the process started, since 1970.", started.as_secs_f64());
    // The file gives kB in whole; only pages would be wrong on some machines.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    if let Some(kib) = field("VmRSS") {
        page.plain("process_resident_memory_bytes", "gauge", "Resident memory.", kib * 1024);
    }
    if let Some(threads) = field("Threads") {
        page.plain("process_threads", "gauge", "Threads.", threads);
    }
    // Fields 14 and 15 of the whole, in hundredths of a second (USER_HZ) on every Linux; the name
    // in parentheses may hold spaces.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat.rsplit_once(')').and_then(|(_, rest)| {
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    });
    if let Some(ticks) = ticks {
        page.plain("process_cpu_seconds_total", "counter", "Time of processors used.", ticks as f64 / 100.0);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is this look itself.
        page.plain("process_open_fds", "gauge", "Open files and sockets.", open.count().saturating_sub(1));
    }
    if let Ok((limit, _)) = rlimit::Resource::NOFILE.get() {
        page.plain("process_max_fds", "gauge", "How many of them there may be.", limit);
    }
}

/// A page of metrics in Prometheus's text format. Labels are fixed words of ours: nothing to escape.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// Begins a metric of ours.
    fn name<'a>(&'a mut self, name: &'a str, kind: &str, help: &str) -> Values<'a> {
        let _ = writeln!(self.text, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
        Values { page: self, name }
    }

    fn part(&mut self, name: &str, part: &str, labels: &[(&str, &str)], value: impl ToString) {
        let _ = write!(self.text, "{PREFIX}{name}{part}");
        for (n, (label, word)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"{word}\"", if n == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {}", value.to_string());
    }

    /// A metric with a common name and one value.
    fn plain(&mut self, name: &str, kind: &str, help: &str, value: impl ToString) {
        let value = value.to_string();
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
}

const PREFIX: &str = "acapy_deliver_";

struct Values<'a> {
    page: &'a mut Page,
    name: &'a str,
}

impl Values<'_> {
    fn value(self, labels: &[(&str, &str)], value: impl ToString) -> Self {
        self.page.part(self.name, "", labels, value);
        self
    }
}

/// What a connection asks.
#[derive(PartialEq, Eq, Debug)]
enum Asked {
    /// For this path, without its query, and with this `access_token`.
    For { path: String, token: Vec<u8> },
    /// For nothing that can be answered: this status.
    Refused(u16),
}

struct Answer {
    status: u16,
    kind: &'static str,
    body: String,
}

fn serve(stream: &TcpStream, number: u64, server: &Server) -> io::Result<()> {
    let until = Instant::now() + DEADLINE;
    let Some((asked, with_body)) = request(stream, until)? else { return Ok(()) };
    server.turn(number, State::Asked);
    let Answer { status, kind, body } = server.answer(&asked);
    let reason =
        ureq::http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("");
    let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    let mut answer = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if with_body {
        answer.push_str(&body);
    }
    write_until(stream, answer.as_bytes(), until)?;
    stream.shutdown(Shutdown::Write)?;
    server.turn(number, State::Answered);
    let until = until.min(Instant::now() + LINGER);
    let (mut rest, mut left) = ([0; 4096], 64_usize << 10);
    while left > 0 {
        match read_until(stream, &mut rest, until)? {
            0 => break,
            n => left = left.saturating_sub(n),
        }
    }
    Ok(())
}

/// What is asked, and whether with a body in the answer; `None` if the connection ended before.
fn request(stream: &TcpStream, until: Instant) -> io::Result<Option<(Asked, bool)>> {
    let mut head = Vec::with_capacity(1024);
    let mut chunk = [0; 2048];
    loop {
        let n = read_until(stream, &mut chunk, until)?;
        if n == 0 {
            return Ok(None);
        }
        head.extend_from_slice(&chunk[..n]);
        if let Some(asked) = understand(&head) {
            return Ok(Some(asked));
        }
    }
}

/// `None` while the head is not whole yet.
fn understand(head: &[u8]) -> Option<(Asked, bool)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let refused = |status| Some((Asked::Refused(status), true));
    match parsed.parse(head) {
        Ok(httparse::Status::Partial) if head.len() < HEAD => None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => refused(431),
        Err(_) => refused(400),
        Ok(httparse::Status::Complete(_)) => {
            let path = parsed.path.unwrap_or_default().split('?').next().unwrap_or_default();
            let tokens = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("access_token"));
            let token = tokens.map(|header| header.value.to_vec()).next().unwrap_or_default();
            let asked = Asked::For { path: path.to_owned(), token };
            match parsed.method {
                Some("GET") => Some((asked, true)),
                Some("HEAD") => Some((asked, false)),
                _ => refused(405),
            }
        }
    }
}

fn read_until(mut stream: &TcpStream, bytes: &mut [u8], until: Instant) -> io::Result<usize> {
    loop {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn write_until(mut stream: &TcpStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(until)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Never zero, which would mean without end.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
    left.ok_or_else(|| io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_understood_refused_or_waited_for() {
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(HEAD));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS + 1));
        let with = |path: &str, token: &[u8]| Asked::For { path: path.to_owned(), token: token.to_vec() };
        let wanted = |path: &str, with_body| Some((with(path, b""), with_body));
        let refused = |status| Some((Asked::Refused(status), true));
        let table: [(&str, Option<(Asked, bool)>); 10] = [
            ("", None),
            ("GET / HTTP/1.1\r\nAccess_Token:  k\u{e9}y \r\n\r\n", Some((with("/", "k\u{e9}y".as_bytes()), true))),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n", None),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", wanted("/metrics", true)),
            ("GET /metrics?name[]=x HTTP/1.0\r\n\r\n", wanted("/metrics", true)),
            ("HEAD /healthz HTTP/1.1\r\n\r\n", wanted("/healthz", false)),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n", refused(405)),
            (&long, refused(431)),
            (&many, refused(431)),
            ("\u{1}\u{2}\r\n\r\n", refused(400)),
        ];
        for (head, expected) in table {
            assert_eq!(understand(head.as_bytes()), expected, "{:?}", &head[..head.len().min(60)]);
        }
    }

    #[test]
    fn a_key_is_the_key_and_nothing_else() {
        for (given, right) in
            [("key", true), ("kex", false), ("", false), ("ke", false), ("key\0", false), ("key1", false)]
        {
            assert_eq!(is_key(given.as_bytes(), b"key"), right, "{given:?}");
        }
    }

    #[test]
    fn one_address_is_one_however_it_is_written() {
        for (one, other, same) in [
            ("127.0.0.1:9100", "127.0.0.1:9100", true),
            ("[::1]:9100", "[0:0:0:0:0:0:0:1]:9100", true),
            ("127.0.0.1:9100", "127.0.0.1:9101", false),
            ("127.0.0.1:9100", "127.0.0.2:9100", false),
            ("127.0.0.1:9100", "0.0.0.0:9100", false),
        ] {
            assert_eq!(is_same(one, other), same, "{one} {other}");
        }
    }

    #[test]
    fn alive_is_who_turns_in_time() {
        let check = |reader, settler, redis_is_up, expected: Option<&str>| {
            let since_turn = [Duration::from_secs(reader), Duration::from_secs(settler)];
            let said = unwell(since_turn, Duration::from_secs(15), redis_is_up);
            assert_eq!(said.as_deref(), expected, "{reader} {settler} {redis_is_up}");
        };
        check(0, 5, true, None);
        check(10, 15, true, None);
        check(11, 0, true, Some("the reader has not turned for 11 s"));
        check(0, 16, true, Some("the settler has not turned for 16 s"));
        check(31, 36, false, None);
        check(32, 0, false, Some("the reader has not turned for 32 s"));
        check(0, 37, false, Some("the settler has not turned for 37 s"));
    }

    #[test]
    fn who_is_not_alive_is_not_ready() {
        let all_is_well = [(false, "stopping"), (false, "Redis"), (false, "registered"), (false, "beat")];
        assert_eq!(unready(all_is_well, None), None);
        let hangs = Some("the reader has not turned for 11 s".to_owned());
        assert_eq!(unready(all_is_well, hangs.clone()), hangs);
        let mut one_lacks = all_is_well;
        one_lacks[2].0 = true;
        assert_eq!(unready(one_lacks, hangs).as_deref(), Some("registered"));
    }

    #[test]
    fn a_flood_is_held_to_its_pace_and_a_burst_is_not() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for n in 0..SEATS {
            assert_eq!(pace.pause(start), Duration::ZERO, "{n}");
        }
        let mut now = start;
        for _ in 0..PER_SECOND {
            now += pace.pause(now);
        }
        let took = (now - start).as_secs_f64();
        assert!((0.99..=1.01).contains(&took), "{took}");
    }

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let metrics = Metrics::default();
        let later = crate::policy::Outcome::Delivered;
        for millis in [1, 2, 40_000] {
            metrics.attempted(&later, Duration::from_millis(millis));
        }
        let mut page = Page::default();
        durations(&mut page, &metrics);
        let lines: Vec<&str> = page.text.lines().skip(2).collect();
        assert_eq!(lines[0], "acapy_deliver_attempt_duration_seconds_bucket{le=\"0.001\"} 1");
        assert_eq!(lines[1], "acapy_deliver_attempt_duration_seconds_bucket{le=\"0.0025\"} 2");
        assert_eq!(lines[11], "acapy_deliver_attempt_duration_seconds_bucket{le=\"30\"} 2");
        assert_eq!(lines[12], "acapy_deliver_attempt_duration_seconds_bucket{le=\"+Inf\"} 3");
        assert_eq!(lines[13], "acapy_deliver_attempt_duration_seconds_sum 40.003");
        assert_eq!(lines[14], "acapy_deliver_attempt_duration_seconds_count 3");
    }
}
