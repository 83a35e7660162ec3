//! A connection that HTTP is spoken on, plain or inside TLS, in use or idle.
//!
//! It promises that an answer's headers and all other bytes received for one request are bounded, that the
//! headers of a request and a small body leave in one write, that an answer is read even if the recipient
//! sent it without reading the request, and that an idle connection counts as quiet only if nothing at all
//! has come since its last answer, nor is left of that. It leaves to the socket that reads and writes end
//! in time, to the transport when a connection becomes idle, and HTTP to ureq.

use std::fmt;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::{Buffers, NextTimeout};

use super::carrier::{self, Come, Secure, Slice};
use super::exchange::Exchange;
use super::socket::{SHORT, Socket};

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

    pub(super) fn exchange(&mut self) -> &mut Exchange {
        match self {
            Wire::Plain(plain) => &mut plain.buffers,
            Wire::Tls(tls) => &mut tls.buffers,
        }
    }

    pub(super) fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
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
    pub(super) fn flush(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        match self {
            Wire::Plain(plain) => plain.flush(timeout),
            Wire::Tls(tls) => tls.flush(timeout),
        }
    }

    /// Whether the other side took no more while there was more to write.
    pub(super) fn is_cut(&self) -> bool {
        match self {
            Wire::Plain(plain) => plain.socket.deaf,
            Wire::Tls(tls) => tls.stream.sock.is_cut(),
        }
    }

    pub(super) fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
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
            Wire::Tls(tls) => carrier::is_quiet(&mut tls.stream),
        }
    }

    /// Gives up what only a connection in use needs.
    pub(super) fn rest(&mut self) {
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

fn name_timeout(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
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
