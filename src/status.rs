//! Lets people and Prometheus see what the agent does: `GET /`, a page for people, and `/metrics`, `/healthz`,
//! `/readyz`. In the place
//! of the plugin's deliverer it also serves that one's pages, `/status/live` and `/status/ready`, to who
//! has the key, and on an address that only they are asked for on, nothing else.
//!
//! It harms nobody: what its connections may take stands in [`LIMITS`], and [`serve`](crate::serve) keeps to it.
//! What only Redis knows is left to [`figures`]; all else is read from memory, so that it answers
//! while Redis is away.

pub mod figures;
mod minutes;
mod page;
mod prometheus;
mod view;

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use log::info;

use self::figures::Watcher;
use self::view::About;
use crate::config::{Config, StatusEndpoint};
use crate::dispatch::Dispatch;
use crate::health;
use crate::serve::{Connection, Head, Limits, Server, Unreadable, status_line};

/// One request a connection, all within five seconds; some per cent of a core at most.
const LIMITS: Limits = Limits {
    connections: 16,
    idle_make_room: true,
    per_second: Some(200),
    head: 8 << 10,
    headers: 64,
    idle: DEADLINE,
    request: DEADLINE,
    answer: DEADLINE,
    connection: Some(DEADLINE),
    linger: Duration::from_millis(250),
    linger_bytes: 64 << 10,
    stack: 128 << 10,
};
const DEADLINE: Duration = Duration::from_secs(5);

/// A status server that listens, and does not answer yet.
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    pages: Pages,
}

/// Which pages an address serves.
#[derive(Clone, Default)]
struct Pages {
    /// Those of `--status-addr`.
    ours: bool,
    /// Those of the plugin's deliverer, to who has this key.
    key: Option<String>,
}

/// Listens where the configuration asks for pages: at one address or two.
///
/// # Errors
///
/// If it cannot; the sentence names the option.
pub fn listen(config: &Config) -> Result<Vec<Bound>, String> {
    let mut bound = Vec::new();
    let theirs = config.status_endpoint.as_ref();
    if let Some(ours) = &config.status_addr {
        let key = theirs.filter(|theirs| is_same(ours, &theirs.address)).map(|theirs| theirs.key.clone());
        bound.push(bind("option '--status-addr'", ours, Pages { ours: true, key })?);
    }
    if let Some(StatusEndpoint { address, key }) = theirs
        && bound.iter().all(|bound| bound.pages.key.is_none())
    {
        let pages = Pages { ours: false, key: Some(key.clone()) };
        bound.push(bind("variables STATUS_ENDPOINT_HOST and STATUS_ENDPOINT_PORT", address, pages)?);
    }
    Ok(bound)
}

/// Whether two `HOST:PORT` are one, however they are written.
fn is_same(one: &str, other: &str) -> bool {
    let first = |text: &str| text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    one == other || first(one).is_some_and(|address| address.port() != 0 && first(other) == Some(address))
}

fn bind(asked_by: &str, address: &str, pages: Pages) -> Result<Bound, String> {
    let cannot = |error| format!("{asked_by}: cannot listen on {address}: {error}; choose another address or port");
    let listener = TcpListener::bind(address).map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    Ok(Bound { listener, address, pages })
}

/// What the pages tell of.
struct Status {
    dispatch: Arc<Dispatch>,
    pages: Pages,
    /// For `/metrics` and `/`.
    watcher: Option<Watcher>,
    lease: Duration,
    about: About,
    started: SystemTime,
}

impl Bound {
    /// Where it listens; the port is the real one, also if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it serves pages that tell what is in Redis.
    pub fn needs_figures(&self) -> bool {
        self.pages.ours
    }

    /// Begins to answer, for an agent of this configuration.
    ///
    /// # Errors
    ///
    /// If its thread cannot be started.
    pub fn serve(self, dispatch: Arc<Dispatch>, watcher: Option<Watcher>, config: &Config) -> Result<Server, String> {
        let Bound { listener, address, pages } = self;
        let (ours, theirs) = (pages.ours, pages.key.is_some());
        let (lease, about, started) = (config.lease, About::new(config), SystemTime::now());
        let status = Status { dispatch, pages, watcher, lease, about, started };
        let server = Server::start(listener, "status", LIMITS, move |connection| status.serve(connection))
            .map_err(|error| format!("cannot start the thread 'status' ({error})"))?;
        if ours {
            info!("status is served at http://{address}/metrics");
        }
        if theirs {
            info!("as by the plugin's deliverer, status is served at http://{address}/status/ready");
        }
        Ok(server)
    }
}

/// What a connection asks.
#[derive(PartialEq, Eq, Debug)]
enum Asked {
    /// For this path, without its query, and with this `access_token`.
    For { path: String, token: Vec<u8> },
    /// For nothing that can be answered: this status.
    Refused(u16),
}

struct Answer {
    status: u16,
    kind: &'static str,
    /// Further headers, each with its end of line.
    headers: &'static str,
    body: String,
}

impl Status {
    fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        let (asked, with_body) = match connection.head() {
            Ok(Some(head)) => understand(&head),
            Ok(None) => return Ok(()),
            Err(Unreadable::Refused(status, _)) => (Asked::Refused(status), true),
            Err(Unreadable::Gone(error)) => return Err(error),
        };
        let Answer { status, kind, headers, body } = self.answer(&asked);
        let mut answer = format!(
            "{}Content-Type: {kind}\r\nContent-Length: {}\r\n{headers}Cache-Control: no-store\r\nConnection: close\r\n\r\n",
            status_line(status),
            body.len()
        );
        if with_body {
            answer.push_str(&body);
        }
        connection.write(answer.as_bytes())?;
        connection.close()
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let plain = |status, body: String| Answer { status, kind: "text/plain; charset=utf-8", headers: "", body };
        let (path, token) = match asked {
            Asked::Refused(405) => return Answer { headers: "Allow: GET, HEAD\r\n", ..plain(405, String::new()) },
            Asked::Refused(status) => return plain(*status, String::new()),
            Asked::For { path, token } => (path.as_str(), token),
        };
        let well = |why: Option<String>| match why {
            None => plain(200, "ok\n".to_owned()),
            Some(why) => plain(503, format!("{why}\n")),
        };
        match (path, &self.pages.key) {
            ("/status/live" | "/status/ready", Some(key)) => self.answer_as_the_deliverer(path, token, key),
            ("/", _) if self.pages.ours => Answer {
                kind: "text/html; charset=utf-8",
                headers: page::headers(),
                ..plain(200, page::render(&self.view()))
            },
            ("/metrics", _) if self.pages.ours => {
                Answer { kind: "text/plain; version=0.0.4; charset=utf-8", ..plain(200, self.metrics()) }
            }
            ("/healthz", _) if self.pages.ours => well(self.unwell()),
            ("/readyz", _) if self.pages.ours => well(self.unready()),
            _ if self.pages.ours => plain(404, "there are /, /metrics, /healthz and /readyz\n".to_owned()),
            _ => plain(404, "there are /status/live and /status/ready\n".to_owned()),
        }
    }

    fn metrics(&self) -> String {
        let figures = self.watcher.as_ref().and_then(Watcher::figures);
        prometheus::page(&self.dispatch, figures.as_ref(), self.unready().is_none(), self.about.workers, self.started)
    }

    /// With its words, and its status for what is not well: those who ask know no others.
    fn answer_as_the_deliverer(&self, path: &str, token: &[u8], key: &str) -> Answer {
        let json = |status, body: String| Answer { status, kind: "application/json", headers: "", body };
        if !is_key(token, key.as_bytes()) {
            return json(403, r#"{"detail":"Could not validate key"}"#.to_owned());
        }
        match path {
            "/status/live" => {
                let alive = self.dispatch.journal.redis_is_up() && self.unwell().is_none();
                json(200, format!(r#"{{"alive":{alive}}}"#))
            }
            _ => json(200, format!(r#"{{"ready":{}}}"#, self.unready().is_none())),
        }
    }

    fn unwell(&self) -> Option<String> {
        health::unwell(&self.dispatch, self.lease)
    }

    fn unready(&self) -> Option<String> {
        health::unready(&self.dispatch, self.lease)
    }
}

/// What is asked, and whether with a body in the answer.
fn understand(head: &Head) -> (Asked, bool) {
    let path = head.path.split('?').next().unwrap_or_default().to_owned();
    let token = head.values("access_token").next().unwrap_or_default().to_vec();
    match head.method.as_str() {
        "GET" => (Asked::For { path, token }, true),
        "HEAD" => (Asked::For { path, token }, false),
        _ => (Asked::Refused(405), true),
    }
}

/// In a time that tells nothing of how much of it was right.
fn is_key(given: &[u8], key: &[u8]) -> bool {
    let mut differences = given.len() ^ key.len();
    for (n, byte) in key.iter().enumerate() {
        // The optimiser is not to see that one difference is enough.
        differences |= std::hint::black_box(usize::from(byte ^ given.get(n).unwrap_or(&0)));
    }
    differences == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_understood_or_refused() {
        let check = |method: &str, path: &str, headers: &[(&str, &[u8])], expected: (Asked, bool)| {
            let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
            let head = Head { method: method.to_owned(), path: path.to_owned(), is_1_1: true, headers };
            assert_eq!(understand(&head), expected, "{method} {path}");
        };
        let with = |path: &str, token: &[u8]| Asked::For { path: path.to_owned(), token: token.to_vec() };
        let key = "k\u{e9}y".as_bytes();
        check("GET", "/", &[("Host", b"a"), ("Access_Token", key)], (with("/", key), true));
        check("GET", "/metrics?name[]=x", &[], (with("/metrics", b""), true));
        check("HEAD", "/healthz", &[], (with("/healthz", b""), false));
        check("POST", "/metrics", &[("Content-Length", b"9")], (Asked::Refused(405), true));
    }

    #[test]
    fn a_key_is_the_key_and_nothing_else() {
        for (given, right) in
            [("key", true), ("kex", false), ("", false), ("ke", false), ("key\0", false), ("key1", false)]
        {
            assert_eq!(is_key(given.as_bytes(), b"key"), right, "{given:?}");
        }
    }

    #[test]
    fn one_address_is_one_however_it_is_written() {
        for (one, other, same) in [
            ("127.0.0.1:9100", "127.0.0.1:9100", true),
            ("[::1]:9100", "[0:0:0:0:0:0:0:1]:9100", true),
            ("127.0.0.1:9100", "127.0.0.1:9101", false),
            ("127.0.0.1:9100", "127.0.0.2:9100", false),
            ("127.0.0.1:9100", "0.0.0.0:9100", false),
        ] {
            assert_eq!(is_same(one, other), same, "{one} {other}");
        }
    }
}
