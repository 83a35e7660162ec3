//! The bytes between ureq and a socket: plain, through TLS, or through a proxy.
//!
//! It promises that every read and write ends by its deadline (within a
//! sixteenth of the smaller timeout), that an answer's headers and all other
//! bytes received for one request are bounded, that the headers of a request and
//! a small body leave in one write, that an answer is read even if the recipient
//! sent it without reading the request, that a connection goes back to the pool
//! only if ureq has finished with it cleanly, and that it serves another request
//! only if nothing at all is left of the last one: in the socket, in TLS or in a
//! buffer. It leaves HTTP to ureq.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read, Write};
use std::mem::{self, MaybeUninit};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use socket2::SockRef;
use ureq::unversioned::transport::time::Duration as UreqDuration;
use ureq::unversioned::transport::{Buffers, NextTimeout, Transport, TransportAdapter};
use ureq::{Error, Timeout};

use super::RACE;
use super::pool::{Key, Pool};
use super::tls::spell_tls_error;
use super::trouble::Trouble;
use crate::policy::Failure;

/// The most that the status line and headers of an answer may take.
pub(super) const MAX_HEADERS: usize = 64 * 1024;

/// The input buffer's first size, enough for nearly every answer, and its last:
/// a little over what headers may take, so that ureq sees them exceed it.
const INPUT: usize = 8 * 1024;
const MAX_INPUT: usize = MAX_HEADERS + 8 * 1024;

/// All that may be received for one request: headers, body (of which 64 kB are
/// read) and what chunks and interim answers add. A flood ends here.
const MAX_RECEIVED: usize = 512 * 1024;

/// How much output is held back for what follows it: headers wait for the body,
/// so that both leave in one write and one packet.
const HOLD: usize = 8 * 1024;

/// What timeouts shorter than a tick are rounded up to a multiple of: a tick may be
/// of seconds, and a body is waited for a quarter of one.
const SHORT: Duration = Duration::from_millis(50);

/// What ureq is offered to write into; also the longest header line that can be sent.
pub(super) const OUTPUT_WINDOW: usize = 32 * 1024;

/// A connection as ureq sees it for one request. It is dropped when ureq is done
/// with it, and only then goes back to the pool, if it may.
pub(super) struct Pooled {
    wire: Option<Wire>,
    /// Where it goes; `None` for the connection to a proxy, which becomes part of another.
    home: Option<(Arc<Pool<Wire>>, Key)>,
    reused: bool,
    /// When the request was written whole; noted on reused connections alone.
    sent: Option<Instant>,
    answered: bool,
    finished: bool,
}

impl Pooled {
    pub(super) fn new(wire: Wire, home: Option<(Arc<Pool<Wire>>, Key)>, reused: bool) -> Pooled {
        Pooled { wire: Some(wire), home, reused, sent: None, answered: false, finished: false }
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
            && (self.wire().is_cut() || self.sent.is_none_or(|sent| sent.elapsed() <= RACE))
    }
}

impl Transport for Pooled {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.wire().buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
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
        if self.home.is_some() {
            self.finished = true;
            return false;
        }
        self.wire().is_quiet()
    }

    fn is_tls(&self) -> bool {
        matches!(self.wire, Some(Wire::Tls(_)))
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let (Some(mut wire), Some((pool, key))) = (self.wire.take(), self.home.take()) {
            wire.rest();
            if self.finished {
                pool.put(key, wire, Instant::now());
            }
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
    /// A tunnel through a proxy that needs no TLS inside.
    Tunnel(Box<dyn Transport>),
    Tls(Box<Tls>),
}

impl Wire {
    pub(super) fn plain(socket: Socket) -> Wire {
        Wire::Plain(Plain { socket, buffers: Exchange::default() })
    }

    /// Agrees on TLS with whom the carrier leads to.
    pub(super) fn tls(
        carrier: Carrier,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        within: Duration,
        place: &str,
    ) -> Result<Wire, Error> {
        let failed = |words: String| {
            let words = format!("TLS: {words} ({place})");
            Trouble::failed(Failure::Tls, words)
        };
        let mut carrier = carrier;
        carrier.set_timeout(NextTimeout {
            after: UreqDuration::Exact(within),
            reason: Timeout::Connect,
            ..NextTimeout::default()
        });
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
        Ok(Wire::Tls(Box::new(Tls { stream, buffers: Exchange::default() })))
    }

    fn buffers(&mut self) -> &mut dyn Buffers {
        match self {
            Wire::Plain(plain) => &mut plain.buffers,
            Wire::Tunnel(transport) => transport.buffers(),
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
            Wire::Tunnel(transport) => transport.transmit_output(amount, timeout),
            Wire::Tls(tls) => {
                if tls.buffers.hold(amount) {
                    tls.flush(timeout)?;
                }
                Ok(())
            }
        }
    }

    /// Writes what is held back. A tunnel does so by itself, when its answer is waited for.
    fn flush(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        match self {
            Wire::Plain(plain) => plain.flush(timeout),
            Wire::Tunnel(_) => Ok(()),
            Wire::Tls(tls) => tls.flush(timeout),
        }
    }

    /// Whether the other side took no more while there was more to write.
    fn is_cut(&self) -> bool {
        match self {
            Wire::Plain(plain) => plain.socket.deaf,
            Wire::Tunnel(_) => false,
            Wire::Tls(tls) => tls.stream.sock.is_cut(),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        match self {
            Wire::Plain(plain) => {
                plain.flush(timeout)?;
                let amount = plain
                    .socket
                    .receive(plain.buffers.room()?, remaining(timeout)?)
                    .map_err(|error| name_timeout(error, timeout))?;
                plain.buffers.input_appended(amount);
                Ok(amount > 0)
            }
            Wire::Tunnel(transport) => transport.await_input(timeout),
            Wire::Tls(tls) => {
                tls.flush(timeout)?;
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
            Wire::Tunnel(transport) => is_quiet_tunnel(&mut **transport),
            Wire::Tls(tls) => tls.is_quiet(),
        }
    }

    /// Gives up what only a connection in use needs.
    fn rest(&mut self) {
        match self {
            Wire::Plain(plain) => plain.buffers.rest(),
            Wire::Tunnel(_) => {}
            Wire::Tls(tls) => tls.buffers.rest(),
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wire::Plain(_) => "Plain",
            Wire::Tunnel(_) => "Tunnel",
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
        let pending = mem::take(&mut self.buffers.pending);
        if pending == 0 {
            return Ok(());
        }
        let output = &self.buffers.output[..pending];
        self.socket.send(output, remaining(timeout)?).map_err(|error| name_timeout(error, timeout))
    }
}

/// HTTP inside TLS.
pub(super) struct Tls {
    stream: StreamOwned<ClientConnection, Carrier>,
    buffers: Exchange,
}

impl Tls {
    /// What rustls has decrypted already, or has a part of, is not in the socket any more.
    fn is_quiet(&mut self) -> bool {
        self.stream.sock.is_quiet()
            && matches!(
                self.stream.conn.process_new_packets(),
                Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed()
            )
    }

    fn flush(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        let pending = mem::take(&mut self.buffers.pending);
        if pending > 0 {
            self.stream.write_all(&self.buffers.output[..pending])?;
            self.stream.flush()?;
        }
        Ok(())
    }
}

fn is_quiet_tunnel(tunnel: &mut dyn Transport) -> bool {
    tunnel.buffers().input().is_empty() && tunnel.is_open()
}

/// What TLS runs on.
pub(super) struct Carrier {
    way: Way,
    received: Records,
}

enum Way {
    Socket { socket: Socket, deadline: Instant, reason: Timeout },
    Tunnel(TransportAdapter),
}

impl Carrier {
    pub(super) fn socket(socket: Socket) -> Carrier {
        let way = Way::Socket { socket, deadline: Instant::now(), reason: Timeout::Global };
        Carrier { way, received: Records::default() }
    }

    pub(super) fn tunnel(adapter: TransportAdapter) -> Carrier {
        Carrier { way: Way::Tunnel(adapter), received: Records::default() }
    }

    fn set_timeout(&mut self, timeout: NextTimeout) {
        match &mut self.way {
            Way::Socket { deadline, reason, .. } => {
                *deadline = Instant::now() + span(timeout);
                *reason = timeout.reason;
            }
            Way::Tunnel(adapter) => adapter.set_timeout(timeout),
        }
    }

    fn is_cut(&self) -> bool {
        matches!(&self.way, Way::Socket { socket, .. } if socket.deaf)
    }

    fn is_quiet(&mut self) -> bool {
        self.received.is_between()
            && match &mut self.way {
                Way::Socket { socket, .. } => socket.is_quiet(),
                Way::Tunnel(adapter) => is_quiet_tunnel(adapter.get_mut()),
            }
    }
}

impl Read for Carrier {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let amount = match &mut self.way {
            Way::Socket { socket, deadline, reason } => socket
                .receive(buf, deadline.saturating_duration_since(Instant::now()))
                .map_err(|error| wrap_timeout(error, *reason)),
            Way::Tunnel(adapter) => adapter.read(buf),
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
            Way::Tunnel(adapter) => adapter.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
    /// The recipient takes no more. Sending then does nothing: its answer may be
    /// here already (413 to what is too large), and says more than a broken pipe.
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
        if self.deaf {
            return Ok(());
        }
        let deadline = Instant::now() + within;
        let mut left = within;
        while !buf.is_empty() {
            let timeout = Some(round_up(left, self.tick)?);
            if self.write_timeout != timeout {
                self.stream.set_write_timeout(timeout)?;
                self.write_timeout = timeout;
            }
            match self.stream.write(buf) {
                Ok(amount) => buf = &buf[amount..],
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                        self.deaf = true;
                        return Ok(());
                    }
                    _ => return Err(time_out(error)),
                },
            }
            if !buf.is_empty() {
                // A recipient that takes a little at a time is not given the whole time anew.
                left = deadline.saturating_duration_since(Instant::now());
            }
        }
        Ok(())
    }

    fn is_quiet(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        !self.deaf
            && matches!(
                SockRef::from(&self.stream).recv_with_flags(&mut byte, flags),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock
            )
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

/// The buffers of one exchange. They are made when first needed and handed on
/// from one connection to the next of the same worker: an idle connection has none.
#[derive(Default)]
struct Exchange {
    input: Vec<u8>,
    consumed: usize,
    filled: usize,
    output: Vec<u8>,
    /// Output not yet sent, from the front of `output`.
    pending: usize,
    progress: bool,
    received: usize,
}

thread_local! {
    static SPARE: RefCell<Option<(Vec<u8>, Vec<u8>)>> = const { RefCell::new(None) };
}

impl Exchange {
    fn prepare(&mut self) {
        if self.output.is_empty() {
            (self.input, self.output) = SPARE.take().unwrap_or_else(|| (vec![0; INPUT], vec![0; HOLD + OUTPUT_WINDOW]));
        }
    }

    fn rest(&mut self) {
        let exchange = mem::take(self);
        if exchange.input.len() == INPUT {
            // Not there any more while a thread ends.
            let _ = SPARE.try_with(|spare| {
                spare.replace(Some((exchange.input, exchange.output)));
            });
        }
    }

    /// Takes note of output that was written; whether it is now too much to hold back.
    fn hold(&mut self, amount: usize) -> bool {
        self.pending += amount;
        // What is received from here on answers this. A tunnel is never given
        // back to the pool between requests, so it is here that they begin.
        self.received = 0;
        self.pending > HOLD
    }

    /// Where to receive to; an error if the recipient has sent too much already.
    fn room(&mut self) -> Result<&mut [u8], Error> {
        if self.received >= MAX_RECEIVED {
            let words = format!("answer has no end within {} kB", MAX_RECEIVED / 1024);
            return Err(Trouble::failed(Failure::Broken, words).into());
        }
        let room = self.input_append_buf();
        if room.is_empty() {
            let words = format!("a line of the answer is over {} kB", MAX_HEADERS / 1024);
            return Err(Trouble::failed(Failure::Broken, words).into());
        }
        Ok(room)
    }
}

impl Buffers for Exchange {
    fn output(&mut self) -> &mut [u8] {
        self.prepare();
        &mut self.output[self.pending..][..OUTPUT_WINDOW]
    }

    fn input(&self) -> &[u8] {
        &self.input[self.consumed..self.filled]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.prepare();
        if self.consumed > 0 {
            self.input.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
        }
        if self.filled == self.input.len() {
            self.input.resize((2 * self.filled).min(MAX_INPUT), 0);
        }
        &mut self.input[self.filled..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.filled += amount;
        self.received += amount;
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        self.consumed += amount;
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.prepare();
        (&mut self.input[self.filled..], &mut self.output[self.pending..][..OUTPUT_WINDOW])
    }

    fn can_use_input(&self) -> bool {
        self.filled > self.consumed && self.progress
    }
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

    #[test]
    fn buffers_keep_what_is_not_consumed_and_stop_growing() {
        let mut exchange = Exchange::default();
        let mut written = 0_usize;
        loop {
            let Ok(room) = exchange.room() else { break };
            let amount = room.len();
            for (n, byte) in room.iter_mut().enumerate() {
                *byte = ((written + n) % 251) as u8;
            }
            exchange.input_appended(amount);
            written += amount;
        }
        assert_eq!(written, MAX_INPUT);
        exchange.input_consume(1000);
        assert!(exchange.can_use_input());
        let room = exchange.room().unwrap().len();
        assert_eq!(room, 1000);
        let expected = (1000..written).map(|n| (n % 251) as u8);
        assert!(exchange.input().iter().copied().eq(expected));
        exchange.input_consume(0);
        assert!(!exchange.can_use_input());
    }

    #[test]
    fn all_that_is_received_for_one_request_is_bounded() {
        let mut exchange = Exchange::default();
        let mut received = 0;
        while let Ok(room) = exchange.room() {
            let amount = room.len();
            exchange.input_appended(amount);
            exchange.input_consume(amount);
            received += amount;
            assert!(received < MAX_RECEIVED + MAX_INPUT);
        }
        assert!(received >= MAX_RECEIVED);
    }

    #[test]
    fn the_window_offered_for_output_is_the_same_with_and_without_output_held_back() {
        let mut exchange = Exchange::default();
        for pending in [0, 1, HOLD] {
            exchange.pending = pending;
            assert_eq!(exchange.output().len(), OUTPUT_WINDOW);
            assert_eq!(exchange.tmp_and_output().1.len(), OUTPUT_WINDOW);
        }
    }
}
