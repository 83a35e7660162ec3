//! A recipient for trying things out: answers every request with one status and shows it as
//! it arrives. A body is counted, not kept, but for its first bytes. It speaks enough HTTP/1.1 to be fast
//! and strict: keep-alive, lengths, chunks, `Expect: 100-continue`; whatever is framed in two ways or
//! none is refused. Bodies and WebSocket are in files of their own; [`serve`](crate::serve) takes the
//! connections and reads the heads. It ends after `--count` requests, or by a signal.

mod body;
mod websocket;

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Sender, bounded};

use self::body::Body;
use super::{Error, Exit};
use crate::config::Listen;
use crate::serve::{Connection, Head, Limits, Server, Unreadable, status_line};
use crate::text::{utc, visible};

/// Patient, and for many connections at once, but not without end.
const LIMITS: Limits = Limits {
    connections: 512,
    idle_make_room: false,
    per_second: None,
    head: HEAD,
    headers: 100,
    idle: Duration::from_secs(60),
    request: Duration::from_secs(360),
    answer: Duration::from_secs(60),
    connection: None,
    linger: Duration::from_secs(1),
    linger_bytes: 1 << 20,
    stack: 256 << 10,
};
/// A request's line and headers, a chunk's line, and trailers may have so many bytes each.
const HEAD: usize = 64 << 10;

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
    let serving = recipient.clone();
    let _server = Server::start(listener, "listen", LIMITS, move |connection| serve(connection, &serving))
        .map_err(|error| Error::Failed(format!("cannot start a thread: {error}")))?;
    ended.recv().expect("this function holds a sending end, in the recipient")
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

fn serve(connection: &mut Connection, recipient: &Recipient) -> io::Result<()> {
    connection.send_at_once()?;
    let peer = connection.peer();
    loop {
        match Request::read(connection) {
            Ok(Some(request)) if websocket::key(&request).is_some() && recipient.opens_websockets() => {
                match websocket::serve(connection, request, peer, recipient) {
                    Ok(()) => return Ok(()),
                    Err(Unreadable::Gone(error)) => return Err(error),
                    Err(Unreadable::Refused(code, why)) => {
                        recipient.refuse(code, peer, &why);
                        return Ok(());
                    }
                }
            }
            Ok(Some(request)) => {
                let keep_alive = request.keep_alive;
                if !recipient.take(&request, peer, connection)? || !keep_alive {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(Unreadable::Gone(error)) => return Err(error),
            Err(Unreadable::Refused(status, why)) => {
                recipient.refuse(status, peer, &why);
                connection.write(answer(status, false).as_bytes())?;
                return connection.close();
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
        let written = connection.write(answer(self.options.status, request.keep_alive).as_bytes());
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

impl Request {
    /// The next one; `None` if the connection ended before one began.
    fn read(connection: &mut Connection) -> Result<Option<Request>, Unreadable> {
        let Some(head) = connection.head()? else { return Ok(None) };
        let Head { method, path, is_1_1, headers } = head;
        let text = |(name, value): (String, Vec<u8>)| (name, String::from_utf8_lossy(&value).into_owned());
        let headers = headers.into_iter().map(text).collect();
        let mut request = Request { method, path, headers, body: Body::default(), keep_alive: false };
        request.keep_alive = is_1_1 && !request.has_word("Connection", "close");
        let waits_for_continue = is_1_1 && request.has_word("Expect", "100-continue");
        let framing = body::framing_of(&request.values("Content-Length"), &request.values("Transfer-Encoding"))?;
        request.body = framing.read(connection, waits_for_continue)?;
        Ok(Some(request))
    }

    fn values(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.trim()).collect()
    }

    fn has_word(&self, name: &str, word: &str) -> bool {
        let values = self.values(name);
        values.iter().flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    }
}

fn answer(status: u16, keep_alive: bool) -> String {
    // These two never have a body, nor a length.
    let length = if matches!(status, 204 | 304) { "" } else { "Content-Length: 0\r\n" };
    let close = if keep_alive { "" } else { "Connection: close\r\n" };
    format!("{}{length}{close}\r\n", status_line(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_body_by_its_status_has_no_length() {
        assert_eq!(answer(200, true), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(answer(204, false), "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        assert_eq!(answer(599, true), "HTTP/1.1 599 \r\nContent-Length: 0\r\n\r\n");
    }
}
