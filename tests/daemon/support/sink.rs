//! The recipients: an HTTP server in the test's own process that records every request before it
//! answers, and behaves as the test says. One thread for each connection, keep-alive, bodies by
//! length or in chunks. It understands no more of HTTP than an agent's POST needs, and everything
//! it reads and waits for is bounded. Who asks for a WebSocket gets one, and its message is a request of
//! the method `WEBSOCKET`, whose answer is a close frame (`websocket.rs`).

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{own_address, websocket};

/// A recipient with one origin or several; all share the record and the behaviour.
pub struct Sink {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    listeners: Vec<JoinHandle<()>>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// In the order and spelling of the request.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// When it had been read.
    pub at: Instant,
    /// Which connection of this sink brought it, counted from 1.
    pub connection: usize,
    /// Where it arrived.
    pub origin: SocketAddr,
    /// The status it is answered with; `None` if it gets no answer.
    pub status: Option<u16>,
}

impl Request {
    /// The value of a header, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        header.map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// How a request is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    Reply(Reply),
    /// Not at all, until the sink stops.
    Hang,
    /// The connection is closed after the request was read.
    Cut,
    /// The connection is closed after half of the status line and headers.
    BreakOff,
}

/// An answer in full.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    delay: Duration,
}

impl Answer {
    pub fn ok() -> Answer {
        Answer::status(200)
    }

    pub fn status(status: u16) -> Answer {
        Answer::Reply(Reply { status, headers: Vec::new(), body: Vec::new(), delay: Duration::ZERO })
    }

    pub fn header(self, name: &str, value: &str) -> Answer {
        self.change(|reply| reply.headers.push((name.into(), value.into())))
    }

    pub fn body(self, body: impl Into<Vec<u8>>) -> Answer {
        self.change(|reply| reply.body = body.into())
    }

    /// Only after this long.
    pub fn after(self, delay: Duration) -> Answer {
        self.change(|reply| reply.delay = delay)
    }

    fn change(mut self, change: impl FnOnce(&mut Reply)) -> Answer {
        match &mut self {
            Answer::Reply(reply) => change(reply),
            other => panic!("{other:?} has neither headers nor body nor delay"),
        }
        self
    }
}

type Behaviour = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

struct Shared {
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<Arc<Request>>>,
    streams: Mutex<HashMap<usize, TcpStream>>,
    n_connections: AtomicUsize,
    cut_on_accept: AtomicBool,
    /// While it listens; dropping it ends every pause.
    running: Mutex<Option<Sender<()>>>,
}

impl Sink {
    /// One origin.
    pub fn new(behaviour: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Sink {
        Sink::origins(1, behaviour)
    }

    /// Several origins, each an address of its own.
    pub fn origins(n: usize, behaviour: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Sink {
        Sink::on((0..n).map(|_| SocketAddr::from((own_address(), 0))).collect(), behaviour)
    }

    /// One origin at a given address and port.
    pub fn at(address: Ipv4Addr, port: u16, behaviour: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Sink {
        Sink::on(vec![SocketAddr::from((address, port))], behaviour)
    }

    fn on(addresses: Vec<SocketAddr>, behaviour: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Sink {
        let shared = Shared {
            behaviour: Mutex::new(Arc::new(behaviour)),
            requests: Mutex::default(),
            streams: Mutex::default(),
            n_connections: AtomicUsize::new(0),
            cut_on_accept: AtomicBool::new(false),
            running: Mutex::default(),
        };
        let mut sink = Sink { shared: Arc::new(shared), addresses, listeners: Vec::new() };
        sink.start();
        sink
    }

    /// Another behaviour from the next request on.
    pub fn behave(&self, behaviour: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        *self.shared.behaviour.lock().unwrap() = Arc::new(behaviour);
    }

    /// Closes each connection as it arrives, nothing read.
    pub fn cut_on_accept(&self, cut: bool) {
        self.shared.cut_on_accept.store(cut, Ordering::SeqCst);
    }

    /// Refuses connections and cuts those there are, until `start`.
    pub fn stop(&mut self) {
        drop(self.shared.running.lock().unwrap().take());
        for address in &self.addresses {
            // Wakes the listener, which sees that it is to end.
            let _ = TcpStream::connect(address);
        }
        for listener in self.listeners.drain(..) {
            listener.join().expect("a listener does not panic");
        }
        for stream in self.shared.streams.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Listens again, where it did before.
    pub fn start(&mut self) {
        assert!(self.listeners.is_empty(), "this sink listens already");
        let (running, stopped) = bounded(0);
        *self.shared.running.lock().unwrap() = Some(running);
        for address in &mut self.addresses {
            let listener =
                TcpListener::bind(*address).unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"));
            *address = listener.local_addr().unwrap();
            let (shared, stopped) = (self.shared.clone(), stopped.clone());
            self.listeners.push(spawn(move || listen(&listener, &shared, &stopped)));
        }
    }

    /// Of the first origin.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The same by WebSocket.
    pub fn ws_url(&self) -> String {
        format!("ws://{}", self.address())
    }

    /// `http://127.x.y.z:port` of the first origin, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn urls(&self) -> Vec<String> {
        self.addresses.iter().map(|address| format!("http://{address}")).collect()
    }

    /// All that has arrived, in order.
    pub fn requests(&self) -> Vec<Arc<Request>> {
        self.shared.requests.lock().unwrap().clone()
    }

    pub fn n_requests(&self) -> usize {
        self.shared.requests.lock().unwrap().len()
    }

    /// How many were, or are being, answered with a 2xx.
    pub fn n_delivered(&self) -> usize {
        self.delivered().len()
    }

    /// How often each body was, or is being, answered with a 2xx.
    pub fn copies(&self) -> BTreeMap<String, usize> {
        let mut copies = BTreeMap::new();
        for body in self.delivered() {
            *copies.entry(body).or_default() += 1;
        }
        copies
    }

    /// The bodies of what was, or is being, answered with a 2xx.
    pub fn delivered(&self) -> Vec<String> {
        let requests = self.shared.requests.lock().unwrap();
        let delivered = requests.iter().filter(|r| r.status.is_some_and(|s| (200..300).contains(&s)));
        delivered.map(|request| request.text()).collect()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if thread::panicking() {
            let requests = self.requests();
            eprintln!("--- sink {}: {} requests, the last of them:", self.url(), requests.len());
            for request in requests.iter().rev().take(10).rev() {
                let Request { method, target, status, body, connection, .. } = &**request;
                let (n, ago) = (body.len(), request.at.elapsed());
                eprintln!("  {ago:.1?} ago on {connection}: {method} {target}, {n} bytes: {status:?}");
            }
        }
        if !self.listeners.is_empty() {
            self.stop();
        }
    }
}

/// More connections than this are closed as they come; no test needs so many.
const MAX_CONNECTIONS: usize = 2000;
const MAX_BODY: u64 = 64 << 20;
const MAX_LINE: u64 = 64 << 10;
const MAX_HEADERS: usize = 1000;
/// No thread of a sink waits longer than this.
const PATIENCE: Duration = Duration::from_secs(120);

fn listen(listener: &TcpListener, shared: &Arc<Shared>, stopped: &Receiver<()>) {
    let origin = listener.local_addr().unwrap();
    for stream in listener.incoming() {
        if shared.running.lock().unwrap().is_none() {
            // A program that another test starts at this moment holds the socket until its exec: closed
            // here alone, it would go on taking connections.
            let _ = socket2::SockRef::from(listener).shutdown(Shutdown::Both);
            return;
        }
        let Ok(stream) = stream else { continue };
        let n_open = shared.streams.lock().unwrap().len();
        if n_open >= MAX_CONNECTIONS || shared.cut_on_accept.load(Ordering::SeqCst) {
            continue;
        }
        let connection = shared.n_connections.fetch_add(1, Ordering::SeqCst) + 1;
        let Ok(for_stop) = stream.try_clone() else {
            continue;
        };
        shared.streams.lock().unwrap().insert(connection, for_stop);
        let (shared, stopped) = (shared.clone(), stopped.clone());
        spawn(move || {
            // A connection that breaks is the agent's right; what arrived is on record.
            let _ = serve(&stream, origin, connection, &shared, &stopped);
            shared.streams.lock().unwrap().remove(&connection);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

fn serve(
    stream: &TcpStream,
    origin: SocketAddr,
    connection: usize,
    shared: &Shared,
    stopped: &Receiver<()>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some((mut request, keep)) = read_request(&mut reader, origin, connection)? {
        let is_websocket = websocket::is_asked_for(&request);
        if is_websocket {
            websocket::open(&mut reader, stream, &mut request)?;
        }
        let behaviour = shared.behaviour.lock().unwrap().clone();
        let answer = behaviour(&request);
        if let Answer::Reply(reply) = &answer {
            request.status = Some(reply.status);
        }
        shared.requests.lock().unwrap().push(Arc::new(request));
        match answer {
            Answer::Hang => {
                let _ = stopped.recv_timeout(PATIENCE);
                return Ok(());
            }
            Answer::Cut => return Ok(()),
            Answer::BreakOff if is_websocket => return websocket::break_off(stream),
            Answer::BreakOff => {
                return (&mut &*stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Le");
            }
            Answer::Reply(reply) => {
                // An answer that is due when the sink stops is not given.
                if !reply.delay.is_zero() && stopped.recv_timeout(reply.delay) == Err(GONE) {
                    return Ok(());
                }
                if is_websocket {
                    return websocket::close(&mut reader, stream, reply.status);
                }
                write_reply(stream, &reply, keep)?;
            }
        }
        if !keep {
            return Ok(());
        }
    }
    Ok(())
}

const GONE: crossbeam_channel::RecvTimeoutError = crossbeam_channel::RecvTimeoutError::Disconnected;

/// The next request of a connection, and whether another may follow; `None` at its end.
fn read_request(
    reader: &mut impl BufRead,
    origin: SocketAddr,
    connection: usize,
) -> io::Result<Option<(Request, bool)>> {
    let Some(first) = read_line(reader)? else {
        return Ok(None);
    };
    let mut words = first.split(' ');
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Err(io::Error::other(format!("not a request line: {first:?}")));
    };
    let (method, target, version) = (method.to_string(), target.to_string(), version.to_string());
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other("a header without colon"))?;
        headers.push((name.to_string(), value.trim().to_string()));
        if headers.len() > MAX_HEADERS {
            return Err(io::Error::other("too many headers"));
        }
    }
    let at = Instant::now();
    let mut request = Request { method, target, headers, body: Vec::new(), at, connection, origin, status: None };
    request.body = read_body(reader, &request)?;
    request.at = Instant::now();
    let close = request.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
    Ok(Some((request, version == "HTTP/1.1" && !close)))
}

fn read_body(reader: &mut impl BufRead, request: &Request) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if request.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        loop {
            let line = read_line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(io::Error::other)?;
            read_exactly(reader, size, &mut body)?;
            let end = read_line(reader)?;
            if end.as_deref() != Some("") {
                return Err(io::Error::other("a chunk longer than it says, or trailers"));
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }
    if let Some(length) = request.header("content-length") {
        read_exactly(reader, length.parse().map_err(io::Error::other)?, &mut body)?;
    }
    Ok(body)
}

pub(super) fn read_exactly(reader: &mut impl BufRead, size: u64, body: &mut Vec<u8>) -> io::Result<()> {
    if body.len() as u64 + size > MAX_BODY {
        return Err(io::Error::other("a body too large for these tests"));
    }
    match reader.take(size).read_to_end(body)? as u64 {
        n if n == size => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Without its line end; `None` if the connection ended before it.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let Some(line) = line.strip_suffix(b"\r\n") else {
        return Err(io::Error::other("a line without CRLF"));
    };
    Ok(Some(String::from_utf8_lossy(line).into_owned()))
}

fn write_reply(mut stream: &TcpStream, reply: &Reply, keep: bool) -> io::Result<()> {
    let mut bytes = format!("HTTP/1.1 {} Whatever\r\n", reply.status);
    for (name, value) in &reply.headers {
        bytes += &format!("{name}: {value}\r\n");
    }
    if !keep {
        bytes += "Connection: close\r\n";
    }
    bytes += &format!("Content-Length: {}\r\n\r\n", reply.body.len());
    stream.write_all(&[bytes.as_bytes(), &reply.body].concat())
}

fn spawn(run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let builder = thread::Builder::new().name("sink".into()).stack_size(256 << 10);
    builder.spawn(run).expect("a thread can be started")
}
