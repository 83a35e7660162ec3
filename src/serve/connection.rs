//! One connection of the server, which reads and writes within its limits for as long as it has its seat.
//!
//! It promises that no read or write outlasts what is set for it, nor the connection its whole time, and that
//! the last answer is not lost with the close that follows it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::head::{Head, Unreadable, read_head};
use super::seats::{Room, State};

/// Read at once.
const CHUNK: usize = 16 << 10;

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
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, room: &Arc<Room>) -> Connection {
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
