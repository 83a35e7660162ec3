//! A small bounded HTTP/1.1 server, for the status pages and for `listen`: takes connections, gives each a
//! thread of its own while it lasts, reads heads of requests, and leaves to its user what follows them and
//! what is answered.
//!
//! It promises to harm nobody, by [`Limits`] that each user sets: so many connections at once, of which
//! one that is idle may have to make room; so many a second; so many bytes and headers before a body; so long
//! for a request, for an answer, and for a connection in all. Memory is bounded by these: a thread's stack
//! and a buffer of a head's size for each connection. A server of our own, since what is bounded here (time
//! above all) cannot be bounded in the ready-made ones.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use httparse::Status;
use log::warn;

/// A connection has at least so long to ask, however many wait for its seat.
const TO_ASK: Duration = Duration::from_millis(50);
/// Whoever waits for a seat looks again this often, should nobody say that one is free.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Read at once.
const CHUNK: usize = 16 << 10;

/// What a server's connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once. Further ones wait in the system's own queue.
    pub connections: usize,
    /// Whether, when all seats are taken, the oldest connection that has been answered makes room, and if there
    /// is none the oldest that has not asked anything for a moment: so neither half-open ones nor those
    /// that do not close keep anybody out.
    pub idle_make_room: bool,
    /// Connections a second, beyond the first `connections` of a burst; `None`: as many as come.
    pub per_second: Option<u32>,
    /// A request's line and headers may have so many bytes, and so many headers.
    pub head: usize,
    /// See `head`.
    pub headers: usize,
    /// Without a byte for so long a connection is closed.
    pub idle: Duration,
    /// A request may take so long to arrive, from when it is waited for.
    pub request: Duration,
    /// What is written may take so long to be taken.
    pub answer: Duration,
    /// A connection may take so long in all.
    pub connection: Option<Duration>,
    /// A connection that has its last answer is heard to its end for so long: a close with unread bytes would
    /// reset it, and the answer might be lost with that.
    pub linger: Duration,
    /// And for so many bytes.
    pub linger_bytes: usize,
    /// Stack of a connection's thread.
    pub stack: usize,
}

/// A server at work. Dropped, it stops.
pub struct Server {
    room: Arc<Room>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers connections with `serve`, each on a thread of its own. `name` is that of its thread, at most
    /// eight bytes.
    ///
    /// # Errors
    ///
    /// If its thread cannot be started.
    pub fn start(
        listener: TcpListener,
        name: &'static str,
        limits: Limits,
        serve: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Server> {
        let address = listener.local_addr()?;
        let room = Arc::new(Room {
            name,
            limits,
            stopping: AtomicBool::new(false),
            seats: Mutex::default(),
            freed: Condvar::new(),
        });
        let (its_room, serve) = (room.clone(), Arc::new(serve));
        let thread = Builder::new()
            .name(name.to_owned())
            .stack_size(limits.stack)
            .spawn(move || accept(&listener, &its_room, &serve))?;
        Ok(Server { room, address, thread: Some(thread) })
    }

    /// Where it listens; the port is the real one, also if 0 was asked for.
    #[cfg(test)]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.room.stopping.store(true, Ordering::SeqCst);
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        // It waits for a connection: so it gets one.
        let woken = TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        for seat in &self.room.seats().taken {
            let _ = seat.stream.shutdown(Shutdown::Both);
        }
        if woken && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept<S>(listener: &TcpListener, room: &Arc<Room>, serve: &Arc<S>)
where
    S: Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    let mut pace = Pace::new(room.limits.connections, Instant::now());
    loop {
        let accepted = listener.accept();
        if room.stopping.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, peer)) => {
                let mut connection = Connection::new(stream, peer, room);
                let (serve, name) = (serve.clone(), room.name);
                // The connection's errors are the asker's to see; here it just ends.
                let body = move || drop(serve(&mut connection));
                let thread = Builder::new().name(format!("{name}-answer")).stack_size(room.limits.stack);
                if let Err(error) = thread.spawn(body) {
                    warn!("the server '{name}' cannot start a thread for a connection: {error}");
                }
            }
            Err(error) => {
                warn!("the server '{}' cannot accept a connection: {error}", room.name);
                thread::sleep(Duration::from_secs(1)); // most likely no file descriptors: let some be closed
            }
        }
        if let Some(per_second) = room.limits.per_second {
            thread::sleep(pace.pause(per_second, Instant::now()));
        }
    }
}

/// Holds a flood back to so many a second; what is beyond waits in the system's own queue.
struct Pace {
    /// How many may come at once now, and ever.
    budget: f64,
    most: f64,
    at: Instant,
}

impl Pace {
    fn new(burst: usize, now: Instant) -> Pace {
        Pace { budget: burst as f64, most: burst as f64, at: now }
    }

    /// One has come: how long to wait before the next.
    fn pause(&mut self, per_second: u32, now: Instant) -> Duration {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(per_second);
        self.budget = (self.budget + earned).min(self.most) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.budget).max(0.0) / f64::from(per_second))
    }
}

/// What all connections share.
struct Room {
    name: &'static str,
    limits: Limits,
    stopping: AtomicBool,
    seats: Mutex<Seats>,
    /// A seat became free, or may be taken.
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

impl Room {
    /// Waits for a seat; where it may, the oldest connection that can make room does.
    fn take_seat(&self, stream: &Arc<TcpStream>) -> u64 {
        let mut seats = self.seats();
        while seats.taken.len() >= self.limits.connections {
            let mut patience = LOOK_AGAIN;
            if self.limits.idle_make_room {
                if let Some(seat) = seats.idle(Instant::now()).and_then(|at| seats.taken.remove(at)) {
                    // Its thread waits for a word of it, and ends with this.
                    let _ = seat.stream.shutdown(Shutdown::Both);
                    continue;
                }
                if seats.first(State::Silent).is_some() {
                    patience = TO_ASK;
                }
            }
            let waited = self.freed.wait_timeout(seats, patience);
            seats = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
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
}

impl Seats {
    fn first(&self, state: State) -> Option<usize> {
        self.taken.iter().position(|seat| seat.state == state)
    }

    /// Who can make room.
    fn idle(&self, now: Instant) -> Option<usize> {
        let has_had_time = |at: &usize| now.saturating_duration_since(self.taken[*at].taken) >= TO_ASK;
        self.first(State::Answered).or(self.first(State::Silent).filter(has_had_time))
    }
}

/// Why no request came.
#[derive(Debug)]
pub enum Unreadable {
    /// The connection ended in the middle of one, or took too long.
    Gone(io::Error),
    /// What came is to be answered with this status, for this reason, and the connection closed.
    Refused(u16, String),
}

impl Unreadable {
    /// `Refused`, for any kind of text.
    pub fn refused(status: u16, why: impl Into<String>) -> Unreadable {
        Unreadable::Refused(status, why.into())
    }
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Unreadable {
        Unreadable::Gone(error)
    }
}

/// A request's line and headers.
#[derive(Debug, Default)]
pub struct Head {
    /// As it was sent.
    pub method: String,
    /// With its query.
    pub path: String,
    /// Whether it is HTTP/1.1, and not 1.0.
    pub is_1_1: bool,
    /// Names as they were sent.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Head {
    /// The values of all headers of this name.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice())
    }
}

/// A connection and its seat, which it leaves when it is dropped.
pub struct Connection {
    stream: Arc<TcpStream>,
    peer: SocketAddr,
    room: Arc<Room>,
    seat: u64,
    /// What was read and, from `used` on, not yet used.
    buffer: Vec<u8>,
    used: usize,
    /// When the request that is arriving must be there.
    deadline: Instant,
    /// When the connection ends in any case.
    end: Option<Instant>,
    /// The timeout of reads that the stream has now.
    timeout: Duration,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.room.leave_seat(self.seat);
    }
}

impl Connection {
    /// Waits for a seat.
    fn new(stream: TcpStream, peer: SocketAddr, room: &Arc<Room>) -> Connection {
        let stream = Arc::new(stream);
        let seat = room.take_seat(&stream);
        let now = Instant::now();
        Connection {
            stream,
            peer,
            room: room.clone(),
            seat,
            buffer: Vec::new(),
            used: 0,
            deadline: now,
            end: room.limits.connection.map(|whole| now + whole),
            timeout: Duration::ZERO,
        }
    }

    /// Who is at its other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What is written goes out at once, and is not held back for more.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn send_at_once(&self) -> io::Result<()> {
        self.stream.set_nodelay(true)
    }

    /// The head of the next request; `None` if the connection ended before one began.
    ///
    /// # Errors
    ///
    /// If none came that can be served.
    pub fn head(&mut self) -> Result<Option<Head>, Unreadable> {
        self.begin();
        if self.unused().is_empty() && !self.read_more()? {
            return Ok(None);
        }
        let limits = self.room.limits;
        loop {
            if let Some((head, length)) = read_head(self.unused(), &limits)? {
                self.used += length;
                self.room.turn(self.seat, State::Asked);
                return Ok(Some(head));
            }
            self.must_read_more()?;
        }
    }

    /// The time of something that is to arrive begins.
    pub fn begin(&mut self) {
        self.deadline = self.by(self.room.limits.request);
    }

    /// What has arrived and is not used.
    pub fn unused(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    /// The same, to be changed in its place.
    pub fn unused_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.used..]
    }

    /// So many bytes of it are used.
    pub fn consume(&mut self, length: usize) {
        self.used += length;
    }

    /// Reads what there is, at least a byte.
    ///
    /// # Errors
    ///
    /// If the connection has ended, or time is up.
    pub fn must_read_more(&mut self) -> io::Result<()> {
        if self.read_more()? { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Reads what there is; false at the end of the connection.
    fn read_more(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let before = self.buffer.len();
        self.buffer.resize(before + CHUNK, 0);
        let timeout = left(self.deadline).map(|left| left.min(self.room.limits.idle));
        let read = timeout.and_then(|timeout| {
            // As a rule it is the same as before: then it is set already.
            if timeout != self.timeout {
                self.stream.set_read_timeout(Some(timeout))?;
                self.timeout = timeout;
            }
            read(&self.stream, &mut self.buffer[before..])
        });
        self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
        Ok(read? > 0)
    }

    /// Writes all of it.
    ///
    /// # Errors
    ///
    /// If the connection has ended, or the other end does not take it in time.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let until = self.by(self.room.limits.answer);
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(left(until)?))?;
            match (&*self.stream).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The last answer is written: closes, and hears what still comes for a moment.
    ///
    /// # Errors
    ///
    /// If the connection has ended in another way.
    pub fn close(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        self.room.turn(self.seat, State::Answered);
        let until = self.by(self.room.limits.linger);
        let (mut rest, mut wanted) = ([0; 4096], self.room.limits.linger_bytes);
        while wanted > 0 {
            self.stream.set_read_timeout(Some(left(until)?))?;
            match read(&self.stream, &mut rest)? {
                0 => break,
                n => wanted = wanted.saturating_sub(n),
            }
        }
        Ok(())
    }

    /// When something that may take so long must be over.
    fn by(&self, at_most: Duration) -> Instant {
        let by = Instant::now() + at_most;
        self.end.map_or(by, |end| end.min(by))
    }
}

/// A status line.
pub fn status_line(status: u16) -> String {
    let known = ureq::http::StatusCode::from_u16(status).ok();
    format!("HTTP/1.1 {status} {}\r\n", known.and_then(|status| status.canonical_reason()).unwrap_or(""))
}

/// The head that these bytes begin with, and its length; `None` while it is not whole yet.
fn read_head(bytes: &[u8], limits: &Limits) -> Result<Option<(Head, usize)>, Unreadable> {
    let mut headers = vec![httparse::EMPTY_HEADER; limits.headers];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(bytes) {
        Ok(Status::Complete(length)) => {
            let head = Head {
                method: parsed.method.unwrap_or_default().to_owned(),
                path: parsed.path.unwrap_or_default().to_owned(),
                is_1_1: parsed.version == Some(1),
                headers: parsed.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect(),
            };
            Ok(Some((head, length)))
        }
        Ok(Status::Partial) if bytes.len() < limits.head => Ok(None),
        Ok(Status::Partial) => Err(Unreadable::refused(431, format!("its headers are over {} KiB", limits.head >> 10))),
        Err(httparse::Error::TooManyHeaders) => {
            Err(Unreadable::refused(431, format!("over {} headers", limits.headers)))
        }
        Err(_) => Err(Unreadable::refused(400, "not an HTTP request")),
    }
}

fn read(mut stream: &TcpStream, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Never zero, which would mean without end.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
    left.ok_or_else(|| io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        connections: 16,
        idle_make_room: true,
        per_second: Some(200),
        head: 8 << 10,
        headers: 64,
        idle: Duration::from_secs(5),
        request: Duration::from_secs(5),
        answer: Duration::from_secs(5),
        connection: Some(Duration::from_secs(5)),
        linger: Duration::from_millis(250),
        linger_bytes: 64 << 10,
        stack: 128 << 10,
    };

    #[test]
    fn a_head_is_read_refused_or_waited_for() {
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(LIMITS.head));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(LIMITS.headers + 1));
        let table: [(&str, Result<Option<&str>, u16>); 8] = [
            ("", Ok(None)),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n", Ok(None)),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Some("/metrics"))),
            ("GET /metrics?name[]=x HTTP/1.0\r\n\r\nmore", Ok(Some("/metrics?name[]=x"))),
            ("\r\nGET / HTTP/1.1\r\n\r\n", Ok(Some("/"))),
            (&long, Err(431)),
            (&many, Err(431)),
            ("\u{1}\u{2}\r\n\r\n", Err(400)),
        ];
        for (bytes, expected) in table {
            let read = match read_head(bytes.as_bytes(), &LIMITS) {
                Ok(read) => Ok(read.map(|(head, _)| head.path)),
                Err(Unreadable::Refused(status, _)) => Err(status),
                Err(Unreadable::Gone(error)) => panic!("{error}"),
            };
            assert_eq!(read, expected.map(|path| path.map(str::to_owned)), "{:?}", &bytes[..bytes.len().min(60)]);
        }
    }

    #[test]
    fn a_flood_is_held_to_its_pace_and_a_burst_is_not() {
        let start = Instant::now();
        let mut pace = Pace::new(16, start);
        for n in 0..16 {
            assert_eq!(pace.pause(200, start), Duration::ZERO, "{n}");
        }
        let mut now = start;
        for _ in 0..200 {
            now += pace.pause(200, now);
        }
        let took = (now - start).as_secs_f64();
        assert!((0.99..=1.01).contains(&took), "{took}");
    }

    #[test]
    fn a_seat_is_left_by_a_thread_that_panics_and_a_dropped_server_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let limits = Limits { connections: 1, idle_make_room: false, per_second: None, ..LIMITS };
        let server = Server::start(listener, "test", limits, |connection| {
            let Ok(Some(head)) = connection.head() else { return Ok(()) };
            assert_ne!(head.path, "/panic");
            connection.write(status_line(204).as_bytes())?;
            connection.close()
        })
        .unwrap();
        let ask = |path: &str| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        assert_eq!(ask("/panic").unwrap_or_default(), "");
        assert_eq!(ask("/").unwrap(), "HTTP/1.1 204 No Content\r\n");
        let address = server.address();
        drop(server);
        assert!(TcpStream::connect(address).is_err());
    }
}
