//! A TCP connection that minds the time.
//!
//! It promises that every read and write ends by its deadline (late by a tick at most, which is a sixteenth of
//! the smaller timeout), that whoever sends can look for an answer when the other side has taken nothing for a
//! moment, and that to send what the other side takes no more is no error, so that its answer is read
//! still. It leaves TLS and HTTP to those above it.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// What timeouts shorter than a tick are rounded up to a multiple of: a tick may be
/// of seconds, and a body is waited for a quarter of one.
pub(super) const SHORT: Duration = Duration::from_millis(50);

/// How long the other side may take nothing before it is looked for an answer: it
/// may have said what it thinks of the request after the first of it (413), and
/// neither read on nor close.
const STALL: Duration = Duration::from_millis(250);

/// A TCP connection that minds the time.
pub(super) struct Socket {
    stream: TcpStream,
    /// Timeouts are rounded up to a multiple of this, or of `SHORT` if they are less. With exact ones, each
    /// request would cost two system calls to set them.
    tick: Duration,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    /// The recipient takes no more, or has refused before it took all. Sending then
    /// does nothing: its answer (413 to what is too large) says more than a broken pipe.
    pub(super) deaf: bool,
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
    pub(super) fn receive(&mut self, buf: &mut [u8], within: Duration) -> io::Result<usize> {
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

    pub(super) fn send(&mut self, mut buf: &[u8], within: Duration) -> io::Result<()> {
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
    pub(super) fn send_some(&mut self, buf: &[u8], within: Duration) -> io::Result<usize> {
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

    pub(super) fn has_input(&self) -> bool {
        matches!(self.peek(), Ok(1..))
    }

    fn peek(&self) -> io::Result<usize> {
        let mut byte = [MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        SockRef::from(&self.stream).recv_with_flags(&mut byte, flags)
    }

    pub(super) fn is_quiet(&self) -> bool {
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
}
