//! A recipient for trying things out: answers every request with one status and shows it as
//! it arrives. One thread a connection, at most `CONNECTIONS` of them; a body is counted,
//! not kept, but for its first bytes. It speaks enough HTTP/1.1 to be fast and strict:
//! keep-alive, lengths, chunks, `Expect: 100-continue`; whatever is framed in two ways or
//! none is refused. WebSocket is in a file of its own. It ends after `--count` requests, or by a signal.

mod websocket;

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};
use httparse::Status;

use super::{Error, Exit};
use crate::config::Listen;
use crate::text::{utc, visible};

/// Connections at once; further ones wait in the system's backlog.
const CONNECTIONS: usize = 512;
/// A connection's thread keeps nothing large on its stack.
const STACK: usize = 256 << 10;
/// A request's line and headers, a chunk's line, and trailers may have so many bytes each.
const HEAD: usize = 64 << 10;
const HEADERS: usize = 100;
/// A body may have so many bytes; no message in Redis has more than half.
const BODY: u64 = 1 << 30;
/// First bytes of a body that are kept to be shown.
const PREVIEW: usize = 240;
/// Without a byte for this long a connection is closed.
const IDLE: Duration = Duration::from_secs(60);
/// One request may take so long to arrive.
const REQUEST: Duration = Duration::from_secs(300);

/// Answers and shows requests until `--count` is reached; without it, for ever.
///
/// # Errors
///
/// `Failed` if the address cannot be listened on.
pub fn run(options: &Listen) -> Result<Exit, Error> {
    let cannot = |error| Error::Failed(format!("cannot listen on '{}': {error}", options.address));
    let listener = TcpListener::bind(&options.address).map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    super::print(&format!("listening on http://{address}\n"))?;

    // One: the first end is the end.
    let (end, ended) = bounded(1);
    let recipient =
        Arc::new(Recipient { options: options.clone(), taken: AtomicU64::new(0), answered: AtomicU64::new(0), end });
    thread::Builder::new()
        .name("accept".to_owned())
        .spawn(move || accept(&listener, &recipient))
        .map_err(|error| Error::Failed(format!("cannot start a thread: {error}")))?;
    ended.recv().expect("the accepting thread never ends, and holds the sending end")
}

/// What all connections share.
struct Recipient {
    options: Listen,
    /// Requests that have arrived whole.
    taken: AtomicU64,
    /// Of these, those that have been shown and answered.
    answered: AtomicU64,
    end: Sender<Result<Exit, Error>>,
}

fn accept(listener: &TcpListener, recipient: &Arc<Recipient>) {
    // A token for each connection that there is.
    let (seats, taken_seats) = bounded(CONNECTIONS);
    loop {
        seats.send(()).expect("this thread holds the receiving end");
        match listener.accept() {
            Ok((stream, peer)) => seat(stream, peer, recipient.clone(), taken_seats.clone()),
            Err(error) => {
                let _ = taken_seats.try_recv();
                log::warn!("cannot accept a connection: {error}");
                thread::sleep(Duration::from_millis(100)); // most likely no file descriptors: let some be closed
            }
        }
    }
}

fn seat(stream: TcpStream, peer: SocketAddr, recipient: Arc<Recipient>, seats: Receiver<()>) {
    let leave = seats.clone();
    let serve = move || {
        // The connection's errors are the sender's to see; here it just ends.
        let _ = serve(stream, peer, &recipient);
        let _ = seats.try_recv();
    };
    if let Err(error) = thread::Builder::new().name("connection".to_owned()).stack_size(STACK).spawn(serve) {
        let _ = leave.try_recv();
        log::warn!("cannot start a thread for a connection: {error}");
    }
}

fn serve(stream: TcpStream, peer: SocketAddr, recipient: &Recipient) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let mut connection = Connection { stream, buffer: Vec::with_capacity(4096), used: 0, deadline: Instant::now() };
    loop {
        match connection.request() {
            Ok(Some(request)) if websocket::key(&request).is_some() && recipient.opens_websockets() => {
                match websocket::serve(&mut connection, request, peer, recipient) {
                    Ok(()) => return Ok(()),
                    Err(Unreadable::Gone(error)) => return Err(error),
                    Err(Unreadable::Refused(code, why)) => {
                        recipient.refuse(code, peer, why);
                        return Ok(());
                    }
                }
            }
            Ok(Some(request)) => {
                let keep_alive = request.keep_alive;
                if !recipient.take(&request, peer, &mut connection)? || !keep_alive {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(Unreadable::Gone(error)) => return Err(error),
            Err(Unreadable::Refused(status, why)) => {
                recipient.refuse(status, peer, why);
                return connection.refuse(status);
            }
        }
    }
}

impl Recipient {
    /// Shows and answers; false if it was one more than `--count`.
    fn take(&self, request: &Request, peer: SocketAddr, connection: &mut Connection) -> io::Result<bool> {
        let Some(number) = self.number() else { return Ok(false) };
        self.show(&self.text_of(number, request, peer, &format!("answered {}", self.options.status)));
        if !self.options.delay.is_zero() {
            thread::sleep(self.options.delay);
        }
        let written = connection.stream.write_all(answer(self.options.status, request.keep_alive).as_bytes());
        self.done();
        written.map(|()| true)
    }

    /// Of one that has arrived; `None` if it is one more than `--count`.
    fn number(&self) -> Option<u64> {
        let number = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        self.options.count.is_none_or(|count| number <= count).then_some(number)
    }

    /// One has been answered.
    fn done(&self) {
        if Some(self.answered.fetch_add(1, Ordering::Relaxed) + 1) == self.options.count {
            let _ = self.end.try_send(Ok(Exit::Done));
        }
    }

    fn opens_websockets(&self) -> bool {
        (200..=299).contains(&self.options.status)
    }

    fn refuse(&self, status: u16, peer: SocketAddr, why: &str) {
        self.show(&format!("{} refused with {status} from {peer}: {why}\n", utc(SystemTime::now())));
    }

    fn text_of(&self, number: u64, request: &Request, peer: SocketAddr, answer: &str) -> String {
        let mut text = format!(
            "{} #{number} {} {} {} bytes from {peer}, {answer}\n",
            utc(SystemTime::now()),
            request.method,
            visible(&request.path),
            request.body.total,
        );
        if self.options.quiet {
            return text;
        }
        for (name, value) in &request.headers {
            let _ = writeln!(text, "  {name}: {}", visible(value));
        }
        if let Some(body) = request.body.shown() {
            let _ = writeln!(text, "  {body}");
        }
        text
    }

    /// In one write, so that the lines of two requests never mix.
    fn show(&self, text: &str) {
        if let Err(error) = super::print(text) {
            let _ = self.end.try_send(Err(error));
        }
    }
}

/// A request, its body read to the end.
struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Body,
    keep_alive: bool,
}

/// How large a body was, and how it began.
#[derive(Default)]
struct Body {
    total: u64,
    preview: Vec<u8>,
}

impl Body {
    fn add(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = PREVIEW - self.preview.len();
        self.preview.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Its first bytes if they are text; `None` if there is no body.
    fn shown(&self) -> Option<String> {
        let cut = self.total > self.preview.len() as u64;
        let text = match std::str::from_utf8(&self.preview) {
            Ok(text) => text,
            // The cut may have gone through a character.
            Err(error) if cut && error.error_len().is_none() => {
                std::str::from_utf8(&self.preview[..error.valid_up_to()]).unwrap_or_default()
            }
            Err(_) => return Some("(not text)".to_owned()),
        };
        match (self.total, cut) {
            (0, _) => None,
            (_, true) => Some(format!("{}…", visible(text))),
            (_, false) => Some(visible(text)),
        }
    }
}

/// Why no request came.
enum Unreadable {
    /// The connection ended in the middle of one, or was idle for too long.
    Gone(io::Error),
    /// What came is to be answered with this status, for this reason, and the connection closed.
    Refused(u16, &'static str),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Unreadable {
        Unreadable::Gone(error)
    }
}

/// How a body is delimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Framing {
    Length(u64),
    Chunks,
}

struct Connection {
    stream: TcpStream,
    /// What was read and, from `used` on, not yet used.
    buffer: Vec<u8>,
    used: usize,
    /// When the request that is arriving must be there.
    deadline: Instant,
}

impl Connection {
    /// The next request; `None` if the connection ended before one began.
    fn request(&mut self) -> Result<Option<Request>, Unreadable> {
        self.begin();
        if self.unused().is_empty() && !self.read_more()? {
            return Ok(None);
        }
        let (mut request, framing, waits_for_continue) = self.head()?;
        if waits_for_continue && self.unused().is_empty() && framing != Framing::Length(0) {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        match framing {
            Framing::Length(length) => self.take(length, &mut request.body)?,
            Framing::Chunks => self.chunks(&mut request.body)?,
        }
        Ok(Some(request))
    }

    /// The time of something that is to arrive begins.
    fn begin(&mut self) {
        self.deadline = Instant::now() + IDLE + REQUEST;
    }

    fn head(&mut self) -> Result<(Request, Framing, bool), Unreadable> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS];
            let mut parsed = httparse::Request::new(&mut headers);
            match parsed.parse(self.unused()) {
                Ok(Status::Complete(length)) => {
                    let read = request_of(&parsed);
                    self.used += length;
                    return read;
                }
                Ok(Status::Partial) => {}
                Err(httparse::Error::TooManyHeaders) => {
                    return Err(Unreadable::Refused(431, "over 100 headers"));
                }
                Err(_) => return Err(Unreadable::Refused(400, "not an HTTP request")),
            }
            if self.unused().len() >= HEAD {
                return Err(Unreadable::Refused(431, "its headers are over 64 KiB"));
            }
            self.must_read_more()?;
        }
    }

    /// Counts so many bytes of a body.
    fn take(&mut self, length: u64, body: &mut Body) -> Result<(), Unreadable> {
        if body.total.saturating_add(length) > BODY {
            return Err(Unreadable::Refused(413, "its body is over 1 GiB"));
        }
        let mut left = length;
        while left > 0 {
            if self.unused().is_empty() {
                self.must_read_more()?;
            }
            let n = left.min(self.unused().len() as u64) as usize;
            body.add(&self.buffer[self.used..self.used + n]);
            self.used += n;
            left -= n as u64;
        }
        Ok(())
    }

    fn chunks(&mut self, body: &mut Body) -> Result<(), Unreadable> {
        const BAD: Unreadable = Unreadable::Refused(400, "its chunks are malformed");
        loop {
            let size = loop {
                match httparse::parse_chunk_size(self.unused()) {
                    Ok(Status::Complete((length, size))) => {
                        self.used += length;
                        break size;
                    }
                    Ok(Status::Partial) if self.unused().len() < HEAD => self.must_read_more()?,
                    _ => return Err(BAD),
                }
            };
            if size == 0 {
                return self.trailers();
            }
            self.take(size, body)?;
            let mut end = Body::default();
            self.take(2, &mut end)?;
            if end.preview != b"\r\n" {
                return Err(BAD);
            }
        }
    }

    /// Skips what may follow the last chunk, up to its empty line.
    fn trailers(&mut self) -> Result<(), Unreadable> {
        loop {
            let unused = self.unused();
            let end = if unused.starts_with(b"\r\n") { Some(2) } else { find(unused, b"\r\n\r\n").map(|at| at + 4) };
            match end {
                Some(length) => {
                    self.used += length;
                    return Ok(());
                }
                None if unused.len() < HEAD => self.must_read_more()?,
                None => return Err(Unreadable::Refused(431, "its trailers are over 64 KiB")),
            }
        }
    }

    fn unused(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    fn must_read_more(&mut self) -> Result<(), Unreadable> {
        if self.read_more()? { Ok(()) } else { Err(Unreadable::Gone(io::ErrorKind::UnexpectedEof.into())) }
    }

    /// Reads what there is, at least a byte; false at the end of the connection.
    fn read_more(&mut self) -> io::Result<bool> {
        if Instant::now() > self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.buffer.drain(..self.used);
        self.used = 0;
        let before = self.buffer.len();
        self.buffer.resize(before + (16 << 10), 0);
        let read = loop {
            match self.stream.read(&mut self.buffer[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
        Ok(read? > 0)
    }

    /// Answers and closes, and reads on for a moment: a close with unread bytes would reset the
    /// connection, and the answer might be lost with it.
    fn refuse(&mut self, status: u16) -> io::Result<()> {
        self.stream.write_all(answer(status, false).as_bytes())?;
        self.stream.shutdown(Shutdown::Write)?;
        self.stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        io::copy(&mut self.stream.try_clone()?.take(1 << 20), &mut io::sink())?;
        Ok(())
    }
}

fn request_of(parsed: &httparse::Request) -> Result<(Request, Framing, bool), Unreadable> {
    let method = parsed.method.unwrap_or_default().to_owned();
    let path = parsed.path.unwrap_or_default().to_owned();
    let is_1_1 = parsed.version == Some(1);
    let headers: Vec<(String, String)> = parsed
        .headers
        .iter()
        .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()))
        .collect();
    let values = |name: &str| {
        headers
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect::<Vec<_>>()
    };
    let has_word = |name: &str, word: &str| {
        values(name).iter().flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    let framing = framing_of(&values("Content-Length"), &values("Transfer-Encoding"))?;
    let keep_alive = is_1_1 && !has_word("Connection", "close");
    let waits_for_continue = is_1_1 && has_word("Expect", "100-continue");
    Ok((Request { method, path, headers, body: Body::default(), keep_alive }, framing, waits_for_continue))
}

fn framing_of(lengths: &[&str], encodings: &[&str]) -> Result<Framing, Unreadable> {
    match (lengths, encodings) {
        ([], []) => Ok(Framing::Length(0)),
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse().map(Framing::Length).map_err(|_| Unreadable::Refused(413, "its body is over 1 GiB"))
        }
        ([], [encoding]) if encoding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunks),
        _ => Err(Unreadable::Refused(400, "its body is not framed in one clear way")),
    }
}

fn answer(status: u16, keep_alive: bool) -> String {
    let reason =
        ureq::http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("");
    // These two never have a body, nor a length.
    let length = if matches!(status, 204 | 304) { "" } else { "Content-Length: 0\r\n" };
    let close = if keep_alive { "" } else { "Connection: close\r\n" };
    format!("HTTP/1.1 {status} {reason}\r\n{length}{close}\r\n")
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_framed_in_one_clear_way_or_refused() {
        let table: [(&[&str], &[&str], Option<Framing>); 9] = [
            (&[], &[], Some(Framing::Length(0))),
            (&["12"], &[], Some(Framing::Length(12))),
            (&[], &["chunked"], Some(Framing::Chunks)),
            (&["12", "12"], &[], None),
            (&["12"], &["chunked"], None),
            (&["+1"], &[], None),
            (&[""], &[], None),
            (&["99999999999999999999999"], &[], None),
            (&[], &["gzip, chunked"], None),
        ];
        for (lengths, encodings, framing) in table {
            assert_eq!(framing_of(lengths, encodings).ok(), framing, "{lengths:?} {encodings:?}");
        }
    }

    #[test]
    fn the_first_bytes_of_text_are_shown_in_one_line() {
        let check = |bytes: &[u8], shown: Option<&str>| {
            let mut body = Body::default();
            body.add(bytes);
            assert_eq!(body.shown().as_deref(), shown);
        };
        check(b"", None);
        check("a\nb\u{1b}[2J é".as_bytes(), Some("a\\nb\\u{1b}[2J é"));
        check(&[0xff, 0x00], Some("(not text)"));
        check(&[b'x'; PREVIEW], Some(&"x".repeat(PREVIEW)));
        // 239 bytes, then a character that the cut goes through.
        check(format!("{}é", "x".repeat(PREVIEW - 1)).as_bytes(), Some(&format!("{}…", "x".repeat(PREVIEW - 1))));
    }

    #[test]
    fn an_answer_without_a_body_by_its_status_has_no_length() {
        assert_eq!(answer(200, true), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(answer(204, false), "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        assert_eq!(answer(599, true), "HTTP/1.1 599 \r\nContent-Length: 0\r\n\r\n");
    }
}
