//! A recipient with manners that a measurement sets: delays, statuses, silence. One listening
//! socket is every origin there is; which of them a request was meant for is told by the address
//! that it came to. It notes every arrival. A thread for each connection: exact, and fast enough
//! for some ten thousand requests a second, beyond which nginx is the recipient.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use crate::load::{message, origin, origin_number};

/// A request that has been read to its end.
pub struct Request<'a> {
    /// Which origin it came to.
    pub origin: usize,
    /// Which message it is.
    pub number: u64,
    stream: &'a TcpStream,
    /// Lines of the answer's head.
    headers: Cell<&'static str>,
}

impl Request<'_> {
    /// Says nothing until the other side has had enough.
    pub fn hang(&self) -> u16 {
        let _ = self.stream.set_read_timeout(None);
        let mut byte = [0];
        let _ = (&mut &*self.stream).read(&mut byte);
        0
    }

    /// Answers with these lines of head too, each with its line end.
    pub fn with(&self, headers: &'static str, status: u16) -> u16 {
        self.headers.set(headers);
        status
    }
}

/// One request as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub origin: usize,
    pub number: u64,
    /// When it was pushed and when it arrived, since the clock's start.
    pub pushed: Duration,
    pub arrived: Duration,
    /// How long its answer took, which on a busy machine is more than its manners say.
    pub took: Duration,
    /// What it was answered; 0: nothing, or not yet.
    pub status: u16,
}

impl Arrival {
    pub fn latency(&self) -> Duration {
        self.arrived.saturating_sub(self.pushed)
    }
}

/// Takes a request and says what to answer with (0: nothing, hang up), after whatever time it took.
pub type Manners = dyn Fn(&Request) -> u16 + Send + Sync;

struct Inner {
    clock: Instant,
    manners: Box<Manners>,
    /// Before they are answered, and with their answers.
    arrivals: Mutex<Vec<Arrival>>,
    answered: Mutex<Vec<Arrival>>,
    /// Good ones among them.
    n_good: AtomicUsize,
    closing: AtomicBool,
}

/// A recipient at work.
pub struct Recipient {
    inner: Arc<Inner>,
    port: u16,
}

impl Recipient {
    pub fn start(manners: impl Fn(&Request) -> u16 + Send + Sync + 'static) -> Recipient {
        let listener = listener(4096);
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let inner = Arc::new(Inner {
            clock: Instant::now(),
            manners: Box::new(manners),
            arrivals: Mutex::default(),
            answered: Mutex::default(),
            n_good: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
        });
        let shared = inner.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.closing.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = shared.clone();
                let talk = move || {
                    let _ = serve(stream, &shared);
                };
                Builder::new().stack_size(128 << 10).spawn(talk).expect("a thread can be started");
            }
        });
        Recipient { inner, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The time by the clock that arrivals are noted with.
    pub fn now(&self) -> Duration {
        self.inner.clock.elapsed()
    }

    /// A queue entry for the `n`th origin, which carries its number and the time of its making.
    pub fn entry(&self, origin_number: usize, number: u64, bytes: usize) -> Vec<u8> {
        self.entry_at(origin(origin_number), self.port, number, bytes)
    }

    /// The same for a path of it, which begins with a slash.
    pub fn entry_to(&self, origin_number: usize, path: &str, number: u64, bytes: usize) -> Vec<u8> {
        self.write(&format!("http://{}:{}{path}", origin(origin_number), self.port), number, bytes)
    }

    /// The same for another listener.
    pub fn entry_at(&self, address: Ipv4Addr, port: u16, number: u64, bytes: usize) -> Vec<u8> {
        self.write(&format!("http://{address}:{port}/"), number, bytes)
    }

    fn write(&self, endpoint: &str, number: u64, bytes: usize) -> Vec<u8> {
        let mut payload = format!("{number:010} {:020} ", self.now().as_nanos()).into_bytes();
        payload.resize(bytes.max(payload.len()), b'x');
        message(endpoint, &payload)
    }

    /// How many were answered with 2xx so far.
    pub fn n_good(&self) -> usize {
        self.inner.n_good.load(Ordering::Relaxed)
    }

    /// All arrivals so far, in their order.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.inner.arrivals.lock().expect("nothing panics with the arrivals").clone()
    }

    /// Those that have been answered, in the order of that.
    pub fn answered(&self) -> Vec<Arrival> {
        self.inner.answered.lock().expect("nothing panics with the answers").clone()
    }

    /// Forgets the arrivals so far.
    pub fn forget(&self) {
        self.inner.arrivals.lock().expect("nothing panics with the arrivals").clear();
        self.inner.answered.lock().expect("nothing panics with the answers").clear();
        self.inner.n_good.store(0, Ordering::Relaxed);
    }
}

impl Drop for Recipient {
    fn drop(&mut self) {
        self.inner.closing.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        // The threads of its connections end with those, which is when the agent has ended.
    }
}

fn serve(stream: TcpStream, inner: &Inner) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let SocketAddr::V4(local) = stream.local_addr()? else { return Ok(()) };
    let origin = origin_number(*local.ip()).unwrap_or(usize::MAX);
    let mut buffer = Vec::with_capacity(4096);
    let mut chunk = vec![0; 16 << 10];
    loop {
        let head = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            match (&stream).read(&mut chunk)? {
                0 => return Ok(()),
                n => buffer.extend_from_slice(&chunk[..n]),
            }
        };
        let length = content_length(&buffer[..head]);
        while buffer.len() < head + length {
            match (&stream).read(&mut chunk)? {
                0 => return Ok(()),
                n => buffer.extend_from_slice(&chunk[..n]),
            }
        }
        let arrived = inner.clock.elapsed();
        let mut words = buffer[head..head + length].split(|byte| *byte == b' ');
        let mut number =
            || words.next().and_then(|word| std::str::from_utf8(word).ok()?.parse::<u64>().ok()).unwrap_or(0);
        let (number, pushed) = (number(), Duration::from_nanos(number()));
        let arrival = Arrival { origin, number, pushed, arrived, took: Duration::ZERO, status: 0 };
        inner.arrivals.lock().expect("nothing panics with the arrivals").push(arrival);
        let request = Request { origin, number, stream: &stream, headers: Cell::new("") };
        let status = (inner.manners)(&request);
        let took = inner.clock.elapsed() - arrived;
        let answered = Arrival { status, took, ..arrival };
        inner.answered.lock().expect("nothing panics with the answers").push(answered);
        if (200..300).contains(&status) {
            inner.n_good.fetch_add(1, Ordering::Relaxed);
        }
        if status == 0 {
            return Ok(());
        }
        let headers = request.headers.get();
        (&stream).write_all(format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: 0\r\n\r\n").as_bytes())?;
        buffer.drain(..head + length);
    }
}

fn content_length(head: &[u8]) -> usize {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let _ = request.parse(head);
    let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok()).unwrap_or(0)
}

fn listener(backlog: i32) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option of a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()).expect("a free port");
    socket.listen(backlog).expect("a port can be listened on");
    socket.into()
}

/// Listens at every address of this machine and never accepts: its backlog is full, so that
/// connecting there takes for ever.
pub struct Deaf {
    _listener: TcpListener,
    _backlog: Vec<socket2::Socket>,
    pub port: u16,
}

impl Deaf {
    pub fn start() -> Deaf {
        let listener = listener(1);
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let mut backlog = Vec::new();
        for _ in 0..16 {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
            socket.set_nonblocking(true).expect("an option of a socket");
            let _ = socket.connect(&SocketAddr::from((IpAddr::V4(Ipv4Addr::LOCALHOST), port)).into());
            backlog.push(socket);
        }
        thread::sleep(Duration::from_millis(100));
        let late = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), Duration::from_millis(300));
        assert!(late.is_err(), "a listener with a full backlog still accepts");
        Deaf { _listener: listener, _backlog: backlog, port }
    }
}
