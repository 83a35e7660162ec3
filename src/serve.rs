//! A small bounded HTTP/1.1 server, for the status pages and for `listen`: takes connections, gives each a
//! thread of its own while it lasts, reads heads of requests, and leaves to its user what follows them and
//! what is answered.
//!
//! It promises to harm nobody, by [`Limits`] that each user sets: so many connections at once, of which
//! one that is idle may have to make room; so many a second; so many bytes and headers before a body; so long
//! for a request, for an answer, and for a connection in all. Memory is bounded by these: a thread's stack
//! and a buffer of a head's size for each connection. A server of our own, since what is bounded here (time
//! above all) cannot be bounded in the ready-made ones.

mod connection;
mod head;
mod limits;
mod seats;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use log::warn;

use seats::Room;

pub use connection::Connection;
pub use head::{Head, Unreadable, status_line};
pub use limits::Limits;

/// A server at work. Dropped, it stops.
pub struct Server {
    room: Arc<Room>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers connections with `serve`, each on a thread of its own. `name` is that of its thread, at most
    /// eight bytes.
    ///
    /// # Errors
    ///
    /// If its thread cannot be started.
    pub fn start(
        listener: TcpListener,
        name: &'static str,
        limits: Limits,
        serve: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Server> {
        let address = listener.local_addr()?;
        let room = Arc::new(Room::new(name, limits));
        let (its_room, serve) = (room.clone(), Arc::new(serve));
        let thread = Builder::new()
            .name(name.to_owned())
            .stack_size(limits.stack)
            .spawn(move || accept(&listener, &its_room, &serve))?;
        Ok(Server { room, address, thread: Some(thread) })
    }

    /// Where it listens; the port is the real one, also if 0 was asked for.
    #[cfg(test)]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.room.stopping.store(true, Ordering::SeqCst);
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        // It waits for a connection: so it gets one.
        let woken = TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        self.room.clear();
        if woken && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept<S>(listener: &TcpListener, room: &Arc<Room>, serve: &Arc<S>)
where
    S: Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    let mut pace = Pace::new(room.limits.connections, Instant::now());
    loop {
        let accepted = listener.accept();
        if room.stopping.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, peer)) => {
                let mut connection = Connection::new(stream, peer, room);
                let (serve, name) = (serve.clone(), room.name);
                // The connection's errors are the asker's to see; here it just ends.
                let body = move || drop(serve(&mut connection));
                let thread = Builder::new().name(format!("{name}-answer")).stack_size(room.limits.stack);
                if let Err(error) = thread.spawn(body) {
                    warn!("the server '{name}' cannot start a thread for a connection: {error}");
                }
            }
            Err(error) => {
                warn!("the server '{}' cannot accept a connection: {error}", room.name);
                thread::sleep(Duration::from_secs(1)); // most likely no file descriptors: let some be closed
            }
        }
        if let Some(per_second) = room.limits.per_second {
            thread::sleep(pace.pause(per_second, Instant::now()));
        }
    }
}

/// Holds a flood back to so many a second; what is beyond waits in the system's own queue.
struct Pace {
    /// How many may come at once now, and ever.
    budget: f64,
    most: f64,
    at: Instant,
}

impl Pace {
    fn new(burst: usize, now: Instant) -> Pace {
        Pace { budget: burst as f64, most: burst as f64, at: now }
    }

    /// One has come: how long to wait before the next.
    fn pause(&mut self, per_second: u32, now: Instant) -> Duration {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(per_second);
        self.budget = (self.budget + earned).min(self.most) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.budget).max(0.0) / f64::from(per_second))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::limits::LIMITS;
    use super::*;

    #[test]
    fn a_flood_is_held_to_its_pace_and_a_burst_is_not() {
        let start = Instant::now();
        let mut pace = Pace::new(16, start);
        for n in 0..16 {
            assert_eq!(pace.pause(200, start), Duration::ZERO, "{n}");
        }
        let mut now = start;
        for _ in 0..200 {
            now += pace.pause(200, now);
        }
        let took = (now - start).as_secs_f64();
        assert!((0.99..=1.01).contains(&took), "{took}");
    }

    #[test]
    fn a_seat_is_left_by_a_thread_that_panics_and_a_dropped_server_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let limits = Limits { connections: 1, idle_make_room: false, per_second: None, ..LIMITS };
        let server = Server::start(listener, "test", limits, |connection| {
            let Ok(Some(head)) = connection.head() else { return Ok(()) };
            assert_ne!(head.path, "/panic");
            connection.write(status_line(204).as_bytes())?;
            connection.close()
        })
        .unwrap();
        let ask = |path: &str| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        assert_eq!(ask("/panic").unwrap_or_default(), "");
        assert_eq!(ask("/").unwrap(), "HTTP/1.1 204 No Content\r\n");
        let address = server.address();
        drop(server);
        assert!(TcpStream::connect(address).is_err());
    }
}
