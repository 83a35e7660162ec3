//! The bytes between ureq and a socket: plain, through TLS, or through a proxy; and the same for who
//! does not speak HTTP.
//!
//! It promises that every read and write ends by its deadline (within a
//! sixteenth of the smaller timeout), that an answer's headers and all other
//! bytes received for one request are bounded, that the headers of a request and
//! a small body leave in one write, that an answer is read even if the recipient
//! sent it without reading the request, that a connection goes back to the pool
//! only if ureq has finished with it cleanly, and that it serves another request
//! only if nothing at all is left of the last one: in the socket, in TLS or in a
//! buffer. It leaves HTTP to ureq.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use socket2::SockRef;
use ureq::unversioned::transport::{Buffers, NextTimeout, Transport};
use ureq::{Error, Timeout};

use super::exchange::{Exchange, status_of};
use super::pool::{Key, Pool};
use super::tls::spell_tls_error;
use super::trouble::Trouble;
use crate::policy::Failure;

/// What timeouts shorter than a tick are rounded up to a multiple of: a tick may be
/// of seconds, and a body is waited for a quarter of one.
const SHORT: Duration = Duration::from_millis(50);

/// How long the other side may take nothing before it is looked for an answer: it
/// may have said what it thinks of the request after the first of it (413), and
/// neither read on nor close.
const STALL: Duration = Duration::from_millis(250);

/// How soon after a request's end a connection that had been idle must have closed
/// for both to have crossed on the way. Longer than the way to nearly all there is.
const RACE: Duration = Duration::from_millis(100);

/// A connection as ureq sees it for one request. It is dropped when ureq is done
/// with it, and only then goes back to the pool, if it may.
pub(super) struct Pooled {
    wire: Option<Wire>,
    home: Option<(Arc<Pool<Wire>>, Key)>,
    /// What comes before the path, for a proxy that is to read the whole URL.
    absolute: Option<Box<str>>,
    reused: bool,
    /// When the request was written whole; noted on reused connections alone.
    sent: Option<Instant>,
    answered: bool,
    finished: bool,
    /// What came of the request here, for who only learns ureq's error.
    stage: Stage,
}

/// How far a request came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// There was no connection to its recipient.
    Unconnected,
    /// Nothing of it was written.
    Unsent,
    /// Some of it, or all. The status is known if its line came whole and what
    /// followed could not be read.
    Sent(Option<u16>),
}

thread_local! {
    /// Of the last request of this thread. ureq drops a connection before it
    /// returns an error, and errors of its own can carry nothing of ours.
    static STAGE: Cell<Stage> = const { Cell::new(Stage::Unconnected) };
}

impl Stage {
    /// Of the request that this thread has just seen fail.
    pub(super) fn reached() -> Stage {
        STAGE.get()
    }

    /// To be called before each request.
    pub(super) fn forget() {
        STAGE.set(Stage::Unconnected);
    }
}

impl Pooled {
    pub(super) fn new(wire: Wire, home: (Arc<Pool<Wire>>, Key), reused: bool, absolute: Option<Box<str>>) -> Pooled {
        Pooled {
            wire: Some(wire),
            home: Some(home),
            absolute,
            reused,
            sent: None,
            answered: false,
            finished: false,
            stage: Stage::Unsent,
        }
    }

    fn wire(&mut self) -> &mut Wire {
        self.wire.as_mut().expect("taken only when dropped")
    }

    /// Whether this is the end of a connection that was closed for having been idle,
    /// as far as that can be told: see the head of the poster.
    fn is_stale(&mut self, result: &Result<bool, Error>) -> bool {
        let is_end = match result {
            Ok(progress) => !progress,
            Err(error) => is_break(error),
        };
        is_end
            && self.reused
            && !self.answered
            && self.wire().exchange().input().is_empty()
            && (self.wire().is_cut() || self.sent.is_none_or(|sent| sent.elapsed() <= RACE))
    }
}

impl Transport for Pooled {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.wire().exchange()
    }

    fn transmit_output(&mut self, mut amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stage = Stage::Sent(None);
        if let Some(absolute) = self.absolute.take() {
            amount = self.wire().exchange().make_absolute(amount, absolute.as_bytes());
        }
        let result = self.wire().transmit_output(amount, timeout).map(|()| true);
        if self.is_stale(&result) {
            return Err(Trouble::Stale.into());
        }
        result.map(|_| ())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let mut result = Ok(true);
        if self.reused && self.sent.is_none() {
            result = self.wire().flush(timeout).map(|()| true);
            if result.is_ok() {
                self.sent = Some(Instant::now());
            }
        }
        let result = result.and_then(|_| self.wire().await_input(timeout));
        if self.is_stale(&result) {
            return Err(Trouble::Stale.into());
        }
        self.answered |= matches!(result, Ok(true));
        result
    }

    /// ureq asks this when it has read an answer to its end and means to keep
    /// the connection. Answering no makes it drop the connection at once,
    /// without the lock of its own pool, and into ours.
    fn is_open(&mut self) -> bool {
        self.finished = true;
        false
    }

    fn is_tls(&self) -> bool {
        matches!(self.wire, Some(Wire::Tls(_)))
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let (Some(mut wire), Some((pool, key))) = (self.wire.take(), self.home.take()) {
            if self.finished {
                wire.rest();
                pool.put(key, wire, Instant::now());
                return;
            }
            if self.stage != Stage::Unsent {
                self.stage = Stage::Sent(status_of(wire.exchange().input()));
            }
            // Not there any more while a thread ends.
            let _ = STAGE.try_with(|stage| stage.set(self.stage));
            wire.rest();
        }
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("reused", &self.reused).finish_non_exhaustive()
    }
}

fn is_break(error: &Error) -> bool {
    matches!(error, Error::Io(error) if matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::WriteZero
    ))
}

/// A connection, in use or idle.
pub(super) enum Wire {
    Plain(Plain),
    Tls(Box<Tls>),
}

impl Wire {
    pub(super) fn plain(socket: Socket) -> Wire {
        Wire::Plain(Plain { socket, buffers: Exchange::default() })
    }

    pub(super) fn tls(stream: Secure) -> Wire {
        Wire::Tls(Box::new(Tls { stream, buffers: Exchange::default() }))
    }

    fn exchange(&mut self) -> &mut Exchange {
        match self {
            Wire::Plain(plain) => &mut plain.buffers,
            Wire::Tls(tls) => &mut tls.buffers,
        }
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        match self {
            Wire::Plain(plain) => {
                if plain.buffers.hold(amount) {
                    plain.flush(timeout)?;
                }
                Ok(())
            }
            Wire::Tls(tls) => {
                if tls.buffers.hold(amount) {
                    tls.flush(timeout)?;
                }
                Ok(())
            }
        }
    }

    /// Writes what is held back.
    fn flush(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        match self {
            Wire::Plain(plain) => plain.flush(timeout),
            Wire::Tls(tls) => tls.flush(timeout),
        }
    }

    /// Whether the other side took no more while there was more to write.
    fn is_cut(&self) -> bool {
        match self {
            Wire::Plain(plain) => plain.socket.deaf,
            Wire::Tls(tls) => tls.stream.sock.is_cut(),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        match self {
            Wire::Plain(plain) => {
                plain.flush(timeout)?;
                if plain.buffers.can_use_input() {
                    return Ok(true);
                }
                let amount = plain
                    .socket
                    .receive(plain.buffers.room()?, remaining(timeout)?)
                    .map_err(|error| name_timeout(error, timeout))?;
                plain.buffers.input_appended(amount);
                Ok(amount > 0)
            }
            Wire::Tls(tls) => {
                tls.flush(timeout)?;
                if tls.buffers.can_use_input() {
                    return Ok(true);
                }
                let amount = tls.stream.read(tls.buffers.room()?)?;
                tls.buffers.input_appended(amount);
                Ok(amount > 0)
            }
        }
    }

    /// Whether nothing has come since the last answer, neither bytes nor an end.
    /// What comes unasked (an answer 408 to nothing, as some send before they
    /// close) must not be taken for the answer to the next request.
    pub(super) fn is_quiet(&mut self) -> bool {
        match self {
            Wire::Plain(plain) => plain.socket.is_quiet(),
            Wire::Tls(tls) => is_quiet(&mut tls.stream),
        }
    }

    /// Gives up what only a connection in use needs.
    fn rest(&mut self) {
        match self {
            Wire::Plain(plain) => plain.buffers.rest(),
            Wire::Tls(tls) => tls.buffers.rest(),
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wire::Plain(_) => "Plain",
            Wire::Tls(_) => "Tls",
        })
    }
}

/// HTTP straight on a socket.
pub(super) struct Plain {
    socket: Socket,
    buffers: Exchange,
}

impl Plain {
    fn flush(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        let pending = self.buffers.take_pending();
        if pending == 0 {
            return Ok(());
        }
        let mut left = remaining(timeout)?;
        let deadline = Instant::now() + left;
        let mut sent = 0;
        loop {
            match self.socket.send_some(self.buffers.held(sent..pending), left) {
                Ok(amount) => sent += amount,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(name_timeout(error, timeout)),
            }
            if sent == pending {
                return Ok(());
            }
            self.look();
            left = deadline.saturating_duration_since(Instant::now());
        }
    }

    /// Looks for an answer while the recipient takes no more: if it refuses, it has
    /// all that it wanted. What goes wrong here is seen again when the answer is waited for.
    fn look(&mut self) {
        if self.socket.has_input()
            && let Ok(room) = self.buffers.room()
            && let Ok(amount) = self.socket.receive(room, SHORT)
        {
            self.buffers.came_early(amount);
            self.socket.deaf |= self.buffers.is_refusal();
        }
    }
}

/// Agrees on TLS with whom the carrier leads to.
pub(super) fn handshake(
    carrier: Carrier,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    within: Duration,
    place: &str,
) -> Result<Secure, Error> {
    let failed = |words: String| {
        let words = format!("TLS: {words} ({place})");
        Trouble::failed(Failure::Tls, words)
    };
    let mut carrier = carrier;
    carrier.set_deadline(within, Timeout::Connect);
    let conn = ClientConnection::new(config, name).map_err(|e| failed(spell_tls_error(&e)))?;
    let mut stream = StreamOwned::new(conn, carrier);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).map_err(|error| match Error::from(error) {
            Error::Timeout(_) => failed("no agreement in time".to_string()).into(),
            Error::Io(error) => match tls_error(&error) {
                Some(error) => failed(spell_tls_error(error)).into(),
                None if is_break(&Error::Io(io::Error::from(error.kind()))) => {
                    failed("connection closed before agreement".to_string()).into()
                }
                None => Error::Io(error),
            },
            other => other,
        })?;
    }
    Ok(stream)
}

/// TLS on whatever carries it.
pub(super) type Secure = StreamOwned<ClientConnection, Carrier>;

/// HTTP inside TLS.
pub(super) struct Tls {
    stream: Secure,
    buffers: Exchange,
}

impl Tls {
    fn flush(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_deadline(span(timeout), timeout.reason);
        let pending = self.buffers.take_pending();
        let mut taken = 0;
        while taken < pending {
            taken += self.stream.conn.writer().write(self.buffers.held(taken..pending))?;
            while self.stream.conn.wants_write() {
                match self.stream.conn.write_tls(&mut Slice(&mut self.stream.sock)) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.look(),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        loop {
            match Slice(&mut self.stream.sock).flush() {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.look(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// As that of a plain connection; but what comes may be TLS's own.
    fn look(&mut self) {
        let Tls { stream, buffers } = self;
        if stream.conn.read_tls(&mut Come(&mut stream.sock)).is_err() {
            return;
        }
        if matches!(stream.conn.process_new_packets(), Ok(state) if state.plaintext_bytes_to_read() > 0)
            && let Ok(room) = buffers.room()
            && let Ok(amount) = stream.conn.reader().read(room)
        {
            buffers.came_early(amount);
            if buffers.is_refusal() {
                stream.sock.deafen();
            }
        }
    }
}

/// Bytes either way by one deadline, for who knows by himself what they mean.
pub(super) enum Stream {
    Plain(Carrier),
    Tls(Box<Secure>),
}

impl Stream {
    pub(super) fn tls(stream: Secure) -> Stream {
        Stream::Tls(Box::new(stream))
    }

    fn carrier(&mut self) -> &mut Carrier {
        match self {
            Stream::Plain(carrier) => carrier,
            Stream::Tls(stream) => &mut stream.sock,
        }
    }

    pub(super) fn set_deadline(&mut self, within: Duration, why: Timeout) {
        self.carrier().set_deadline(within, why);
    }

    /// Whether the other side took no more while there was more to write.
    pub(super) fn is_cut(&mut self) -> bool {
        self.carrier().is_cut()
    }

    /// What comes next; nothing is the end.
    pub(super) fn receive(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        Ok(match self {
            Stream::Plain(carrier) => carrier.read(buf)?,
            Stream::Tls(stream) => stream.read(buf)?,
        })
    }

    /// What has come already, if there is anything. What goes wrong here is seen again when it is waited for.
    pub(super) fn look(&mut self, buf: &mut [u8]) -> usize {
        match self {
            Stream::Plain(carrier) => Come(carrier).read(buf).unwrap_or(0),
            Stream::Tls(stream) => match stream.conn.read_tls(&mut Come(&mut stream.sock)) {
                Ok(_) if stream.conn.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() > 0) => {
                    stream.conn.reader().read(buf).unwrap_or(0)
                }
                _ => 0,
            },
        }
    }

    /// Sends all of it, and hands on what comes while the other side takes nothing; if it is told that this
    /// was enough, it stops. Whether it did.
    pub(super) fn send(&mut self, mut bytes: &[u8], hear: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Error> {
        loop {
            match self.send_some(&mut bytes) {
                Ok(()) if bytes.is_empty() => return Ok(false),
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut heard = [0; 1024];
                    let amount = self.look(&mut heard);
                    if amount > 0 && hear(&heard[..amount]) {
                        return Ok(true);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send_some(&mut self, bytes: &mut &[u8]) -> io::Result<()> {
        match self {
            Stream::Plain(carrier) => {
                let amount = Slice(carrier).write(bytes)?;
                *bytes = &bytes[amount..];
                Slice(carrier).flush()
            }
            Stream::Tls(stream) => {
                let amount = stream.conn.writer().write(bytes)?;
                *bytes = &bytes[amount..];
                while stream.conn.wants_write() {
                    stream.conn.write_tls(&mut Slice(&mut stream.sock))?;
                }
                Slice(&mut stream.sock).flush()
            }
        }
    }
}

/// What rustls has decrypted already, or has a part of, is not in the socket any more.
fn is_quiet(stream: &mut Secure) -> bool {
    stream.sock.is_quiet()
        && matches!(
            stream.conn.process_new_packets(),
            Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed()
        )
}

/// What TLS runs on.
pub(super) struct Carrier {
    way: Way,
    received: Records,
}

enum Way {
    Socket {
        socket: Socket,
        deadline: Instant,
        reason: Timeout,
    },
    /// A tunnel through a proxy that itself speaks TLS.
    Inside(Box<Secure>),
}

impl Carrier {
    pub(super) fn socket(socket: Socket) -> Carrier {
        let way = Way::Socket { socket, deadline: Instant::now(), reason: Timeout::Global };
        Carrier { way, received: Records::default() }
    }

    pub(super) fn inside(stream: Secure) -> Carrier {
        Carrier { way: Way::Inside(Box::new(stream)), received: Records::default() }
    }

    /// The same, as if nothing had come yet: what came was a proxy's and no TLS.
    pub(super) fn begun_anew(self) -> Carrier {
        Carrier { received: Records::default(), ..self }
    }

    pub(super) fn set_deadline(&mut self, within: Duration, why: Timeout) {
        match &mut self.way {
            Way::Socket { deadline, reason, .. } => {
                *deadline = Instant::now() + within;
                *reason = why;
            }
            Way::Inside(stream) => stream.sock.set_deadline(within, why),
        }
    }

    fn is_cut(&self) -> bool {
        match &self.way {
            Way::Socket { socket, .. } => socket.deaf,
            Way::Inside(stream) => stream.sock.is_cut(),
        }
    }

    /// Nothing more is sent.
    fn deafen(&mut self) {
        match &mut self.way {
            Way::Socket { socket, .. } => socket.deaf = true,
            Way::Inside(stream) => stream.sock.deafen(),
        }
    }

    fn is_quiet(&mut self) -> bool {
        self.received.is_between()
            && match &mut self.way {
                Way::Socket { socket, .. } => socket.is_quiet(),
                Way::Inside(stream) => is_quiet(stream),
            }
    }
}

impl Read for Carrier {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let amount = match &mut self.way {
            Way::Socket { socket, deadline, reason } => socket
                .receive(buf, deadline.saturating_duration_since(Instant::now()))
                .map_err(|error| wrap_timeout(error, *reason)),
            Way::Inside(stream) => stream.read(buf),
        }?;
        self.received.pass(&buf[..amount]);
        Ok(amount)
    }
}

impl Write for Carrier {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.way {
            Way::Socket { socket, deadline, reason } => socket
                .send(buf, deadline.saturating_duration_since(Instant::now()))
                .map_err(|error| wrap_timeout(error, *reason))
                .map(|()| buf.len()),
            // rustls says how much it took, and sends what it can of it at once.
            Way::Inside(stream) => stream.write(buf).and_then(|amount| stream.flush().map(|()| amount)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A carrier that gives up after a slice of time in which the other side took
/// nothing, with `WouldBlock`, so that it can be looked what came meanwhile.
struct Slice<'a>(&'a mut Carrier);

impl Write for Slice<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        // What TLS holds back goes first: it would take whatever it is given.
        self.flush()?;
        match &mut self.0.way {
            Way::Socket { socket, deadline, reason } => socket
                .send_some(buf, deadline.saturating_duration_since(Instant::now()))
                .map_err(|error| wrap_timeout(error, *reason)),
            Way::Inside(stream) => stream.conn.writer().write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let Way::Inside(stream) = &mut self.0.way else { return Ok(()) };
        while stream.conn.wants_write() {
            stream.conn.write_tls(&mut Slice(&mut stream.sock))?;
        }
        Slice(&mut stream.sock).flush()
    }
}

/// What has come to a carrier already; `WouldBlock` if nothing has.
struct Come<'a>(&'a mut Carrier);

impl Read for Come<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let amount = match &mut self.0.way {
            Way::Socket { socket, .. } if socket.has_input() => socket.receive(buf, SHORT),
            Way::Socket { .. } => Err(io::ErrorKind::WouldBlock.into()),
            Way::Inside(stream) => match stream.conn.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.conn.read_tls(&mut Come(&mut stream.sock))?;
                    stream.conn.process_new_packets().map_err(io::Error::other)?;
                    stream.conn.reader().read(buf)
                }
                result => result,
            },
        }?;
        self.0.received.pass(&buf[..amount]);
        Ok(amount)
    }
}

/// Where among the TLS records a stream is: rustls does not tell whether it holds
/// the beginning of one, and such a record was begun before the next request was sent.
#[derive(Default)]
struct Records {
    /// Bytes seen of the header that is being read: kind, version (2), length (2).
    n_header: usize,
    length: usize,
    /// Bytes still to come of the record's content.
    left: usize,
}

impl Records {
    fn pass(&mut self, mut bytes: &[u8]) {
        while let [first, rest @ ..] = bytes {
            if self.left > 0 {
                let amount = self.left.min(bytes.len());
                self.left -= amount;
                bytes = &bytes[amount..];
                continue;
            }
            self.n_header += 1;
            match self.n_header {
                4 => self.length = usize::from(*first) << 8,
                5 => {
                    self.left = self.length | usize::from(*first);
                    self.n_header = 0;
                }
                _ => {}
            }
            bytes = rest;
        }
    }

    fn is_between(&self) -> bool {
        self.n_header == 0 && self.left == 0
    }
}

/// A TCP connection that minds the time.
pub(super) struct Socket {
    stream: TcpStream,
    /// Timeouts are rounded up to a multiple of this, or of `SHORT` if they are less. With exact ones, each request would cost two system calls to set them.
    tick: Duration,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    /// The recipient takes no more, or has refused before it took all. Sending then
    /// does nothing: its answer (413 to what is too large) says more than a broken pipe.
    deaf: bool,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, tick: Duration) -> Socket {
        Socket {
            stream,
            tick: tick.max(Duration::from_millis(1)),
            read_timeout: None,
            write_timeout: None,
            deaf: false,
        }
    }

    /// `Ok(0)` is the end; too late is an error of the kind `TimedOut`.
    fn receive(&mut self, buf: &mut [u8], within: Duration) -> io::Result<usize> {
        let timeout = Some(round_up(within, self.tick)?);
        if self.read_timeout != timeout {
            self.stream.set_read_timeout(timeout)?;
            self.read_timeout = timeout;
        }
        loop {
            match self.stream.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map_err(time_out),
            }
        }
    }

    fn send(&mut self, mut buf: &[u8], within: Duration) -> io::Result<()> {
        let deadline = Instant::now() + within;
        let mut left = within;
        while !buf.is_empty() {
            match self.send_some(buf, left) {
                Ok(amount) => buf = &buf[amount..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            // A recipient that takes a little at a time is not given the whole time anew.
            left = deadline.saturating_duration_since(Instant::now());
        }
        Ok(())
    }

    /// Writes what the other side takes within a slice of the time that is left.
    /// `WouldBlock` means that it took nothing; too late is `TimedOut`, as ever.
    fn send_some(&mut self, buf: &[u8], within: Duration) -> io::Result<usize> {
        if self.deaf {
            return Ok(buf.len());
        }
        let timeout = Some(round_up(within, self.tick)?.min(STALL));
        if self.write_timeout != timeout {
            self.stream.set_write_timeout(timeout)?;
            self.write_timeout = timeout;
        }
        loop {
            match self.stream.write(buf) {
                Ok(amount) => return Ok(amount),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                        self.deaf = true;
                        return Ok(buf.len());
                    }
                    // Some systems say the one and some the other when a socket's timeout has passed.
                    io::ErrorKind::TimedOut => return Err(io::ErrorKind::WouldBlock.into()),
                    _ => return Err(error),
                },
            }
        }
    }

    fn has_input(&self) -> bool {
        matches!(self.peek(), Ok(1..))
    }

    fn peek(&self) -> io::Result<usize> {
        let mut byte = [MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        SockRef::from(&self.stream).recv_with_flags(&mut byte, flags)
    }

    fn is_quiet(&self) -> bool {
        !self.deaf && matches!(self.peek(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

fn round_up(within: Duration, tick: Duration) -> io::Result<Duration> {
    if within.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let tick = if within < tick { tick.min(SHORT) } else { tick };
    let ticks = within.as_nanos().div_ceil(tick.as_nanos());
    Ok(tick.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX)))
}

/// Linux says `WouldBlock` when a socket's timeout has passed.
fn time_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

fn name_timeout(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

fn wrap_timeout(error: io::Error, reason: Timeout) -> io::Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Error::Timeout(reason).into_io(),
        _ => error,
    }
}

fn remaining(timeout: NextTimeout) -> Result<Duration, Error> {
    match span(timeout) {
        Duration::ZERO => Err(Error::Timeout(timeout.reason)),
        span => Ok(span),
    }
}

fn span(timeout: NextTimeout) -> Duration {
    // Without a deadline (there always is one here) a day: any instant plus it exists.
    (*timeout.after).min(Duration::from_secs(24 * 3600))
}

/// The TLS error inside an I/O error, where rustls puts it.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_rounded_up_to_a_tick_and_no_time_is_too_late() {
        let millis = Duration::from_millis;
        for (within, tick, expected) in [
            (1, 25, 25),
            (25, 25, 25),
            (26, 25, 50),
            (1, 250, 50),
            (60, 250, 100),
            (249, 2000, 250),
            (250, 250, 250),
            (251, 250, 500),
            (3999, 250, 4000),
        ] {
            let rounded = round_up(millis(within), millis(tick)).unwrap();
            assert_eq!(rounded, millis(expected), "{within} in ticks of {tick}");
        }
        let error = round_up(Duration::ZERO, millis(250)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_recipient_that_takes_a_little_at_a_time_is_not_given_the_whole_time_anew() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut recipient = listener.accept().unwrap().0;
        let reader = std::thread::spawn(move || {
            let mut few = vec![0; 64 * 1024];
            while matches!(recipient.read(&mut few), Ok(amount) if amount > 0) {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let mut socket = Socket::new(stream, Duration::from_millis(10));
        let payload = vec![b'x'; 64 << 20];
        let started = Instant::now();
        let error = socket.send(&payload, Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // It would take the whole in five seconds. The kernel counts in ticks and
        // is late with so much in one write; ours are of 40 KiB.
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        drop(socket);
        reader.join().unwrap();
    }

    #[test]
    fn ends_of_records_are_found_however_they_come() {
        let stream = [&[23, 3, 3, 0, 3, 1, 2, 3][..], &[22, 3, 3, 0, 0], &[23, 3, 3, 1, 2], &[9; 258]].concat();
        let ends = [0, 8, 13, stream.len()];
        for step in [1, 2, 3, 7, 300] {
            let mut records = Records::default();
            let mut at = 0;
            for part in stream.chunks(step) {
                assert_eq!(records.is_between(), ends.contains(&at), "at {at} in steps of {step}");
                records.pass(part);
                at += part.len();
            }
            assert!(records.is_between());
        }
    }
}
