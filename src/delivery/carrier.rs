//! What TLS runs on, a socket or the TLS of a proxy, and TLS on that. Each may hold the other, so they share a
//! file.
//!
//! It promises that every read and write ends by the deadline, whose reason the error names; that what has
//! come can be looked at while the other side takes nothing; and that a connection counts as quiet only if
//! nothing is left of what came: in the socket, in TLS, or as the beginning of a record. It leaves to `tls`
//! whom to trust, and to the connector what is said to a proxy.

mod records;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use ureq::{Error, Timeout};

use super::socket::{SHORT, Socket};
use super::tls::{spell_tls_error, tls_error};
use super::trouble::{Trouble, is_break};
use crate::policy::Failure;
use records::Records;

/// TLS on whatever carries it.
pub(super) type Secure = StreamOwned<ClientConnection, Carrier>;

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

    pub(super) fn is_cut(&self) -> bool {
        match &self.way {
            Way::Socket { socket, .. } => socket.deaf,
            Way::Inside(stream) => stream.sock.is_cut(),
        }
    }

    /// Nothing more is sent.
    pub(super) fn deafen(&mut self) {
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
pub(super) struct Slice<'a>(pub(super) &'a mut Carrier);

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
pub(super) struct Come<'a>(pub(super) &'a mut Carrier);

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

/// What rustls has decrypted already, or has a part of, is not in the socket any more.
pub(super) fn is_quiet(stream: &mut Secure) -> bool {
    stream.sock.is_quiet()
        && matches!(
            stream.conn.process_new_packets(),
            Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed()
        )
}

fn wrap_timeout(error: io::Error, reason: Timeout) -> io::Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Error::Timeout(reason).into_io(),
        _ => error,
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
