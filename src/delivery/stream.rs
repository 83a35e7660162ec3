//! Bytes either way by one deadline, plain or inside TLS, for who does not speak HTTP.
//!
//! It promises that every read and write ends by the deadline, and that what comes is handed on while
//! the other side takes nothing of what is sent. It leaves to its user what the bytes mean, and how many of
//! them are too many.

use std::io::{self, Read, Write};
use std::time::Duration;

use ureq::{Error, Timeout};

use super::carrier::{Carrier, Come, Secure, Slice};

/// A connection for who knows by himself what its bytes mean.
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
