//! One synchronous connection to Redis: opened when it is needed, given up at the
//! first sign of trouble, opened again at the next use. It runs the moves
//! (EVALSHA, EVAL where the server does not know the script), and turns what
//! Redis answers into the two kinds of [`Error`] that the threads tell apart.
//! It tells the address policy where Redis is. It leaves waiting and repeating to
//! its callers, but for one thing: a connection that broke while nobody used it
//! says nothing about Redis, and is replaced before anybody hears of it.

use std::fmt::Display;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::warn;
use redis::{Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Value};
use rustls::{ClientConfig, RootCertStore};

use super::Error;
use super::locate::Names;
use super::stream::Connection;
use crate::config::RedisAddress;
use crate::guard::{Own, is_of_this_machine};
use crate::roots::{Kept, add_file};

/// How long a name may take to look up, a connection to open, and an answer to come beyond the
/// time a wait was asked for.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that was not used for this long may have been closed by Redis (`timeout`) or by
/// what stands before it.
const IDLE: Duration = Duration::from_secs(1);

/// Where Redis is, and who we are to it.
#[derive(Clone, Default)]
pub struct Server {
    /// `redis://`, `rediss://` or `unix://`, with user, password and database.
    pub url: String,
    /// Read anew at every connection, so that a rotated password needs no restart.
    pub password_file: Option<PathBuf>,
    /// PEM certificates that `rediss://` trusts instead of all others: whoever has an authority of
    /// their own for it means that nobody else can vouch for their Redis.
    pub ca_file: Option<PathBuf>,
    /// Shared by its clones: what it trusts otherwise.
    pub roots: Kept,
    /// Told where each connection leads.
    pub own: Option<Own>,
    /// Shared by its clones: looks up its name.
    pub names: Names,
    /// Shared by its clones: whether it lets us in.
    pub entry: Arc<Entry>,
}

/// Whether a server lets us in.
#[derive(Default)]
pub struct Entry {
    /// It has done what it was asked at least once.
    has_served: AtomicBool,
    /// It has been said that it does not let us in any more.
    has_said: AtomicBool,
}

impl From<&RedisAddress> for Server {
    fn from(address: &RedisAddress) -> Server {
        Server {
            url: address.url.clone(),
            password_file: address.password_file.clone(),
            ca_file: address.ca_file.clone(),
            roots: Kept::new(address.roots),
            ..Server::default()
        }
    }
}

impl Server {
    /// The address without user and password, for messages and logs.
    pub fn name(&self) -> String {
        match url::Url::parse(&self.url) {
            Ok(url) if url.scheme().contains("unix") => format!("unix://{}", url.path()),
            Ok(url) => {
                let host = url.host_str().unwrap_or("localhost");
                format!("{}://{}:{}", url.scheme(), host, url.port().unwrap_or(6379))
            }
            Err(_) => "the queue URL".to_string(),
        }
    }

    fn info(&self) -> Result<ConnectionInfo, Error> {
        let unusable = |why: &str| Error::Fatal(format!("option '--outbound-queue': {}: {why}", self.name()));
        let info = self.url.as_str().into_connection_info().map_err(|error| unusable(&error.to_string()))?;
        let mut redis = info.redis_settings().clone();
        if let Some(path) = &self.password_file {
            let unusable = |why: String| self.unless_served(format!("option '--redis-password-file': {why}"));
            let text = fs::read_to_string(path)
                .map_err(|error| unusable(format!("cannot read {}: {error}", path.display())))?;
            let password = text.trim_end_matches(['\r', '\n']);
            if password.is_empty() {
                return Err(unusable(format!("{} is empty", path.display())));
            }
            redis = redis.set_password(password);
        }
        Ok(info.set_redis_settings(redis))
    }

    /// What ends an agent that never got into Redis is waited out by one that did: passwords are
    /// changed here and there one after the other. It is said once, for the outage will have been
    /// spoken of already, by the end of a connection.
    fn unless_served(&self, why: String) -> Error {
        if !self.entry.has_served.load(Ordering::Relaxed) {
            return Error::Fatal(why);
        }
        if !self.entry.has_said.swap(true, Ordering::Relaxed) {
            warn!("{why}; it was right before, so this is waited out");
        }
        Error::Unavailable(why)
    }

    /// Opens a connection and makes sure that it answers.
    pub fn connect(&self) -> Result<Connection, Error> {
        self.open().map(|(connection, _)| connection)
    }

    /// The same, and the addresses at which no message may reach this Redis: those of its name and
    /// of the connection, with every port that it says it listens on; of this machine, if it is here.
    fn open(&self) -> Result<(Connection, Vec<SocketAddr>), Error> {
        let info = self.info()?;
        let explain = |error: std::io::Error| self.explain(error.into());
        let (mut connection, mut addresses) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => {
                let found = self.addresses(host)?;
                let (connection, peer) = Connection::tcp(&found, *port, PATIENCE).map_err(explain)?;
                (connection, with_peer(&found, *port, peer))
            }
            ConnectionAddr::TcpTls { host, port, .. } => {
                let config = self.tls_config()?;
                let found = self.addresses(host)?;
                let (connection, peer) = Connection::tls(host, &found, *port, config, PATIENCE).map_err(explain)?;
                (connection, with_peer(&found, *port, peer))
            }
            ConnectionAddr::Unix(path) => (Connection::unix(path, PATIENCE).map_err(explain)?, Vec::new()),
            _ => {
                let name = self.name();
                return Err(Error::Fatal(format!("option '--outbound-queue': {name}: this kind is not supported")));
            }
        };
        connection.set_up(info.redis_settings()).map_err(|error| self.explain_log_in(error))?;
        if self.own.is_some() {
            let is_here = matches!(info.addr(), ConnectionAddr::Unix(_))
                || addresses.iter().any(|address| is_of_this_machine(address.ip()));
            let mut places: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
            if is_here {
                places.push(Ipv4Addr::LOCALHOST.into());
            }
            for port in ports(&mut connection).map_err(|error| self.explain(error))? {
                addresses.extend(places.iter().map(|ip| SocketAddr::new(*ip, port)));
            }
        }
        Ok((connection, addresses))
    }

    fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Error> {
        let found = self.names.addresses(host, PATIENCE);
        found.map_err(|why| Error::Unavailable(format!("{}: {why}", self.name())))
    }

    fn tls_config(&self) -> Result<Arc<ClientConfig>, Error> {
        let roots = match &self.ca_file {
            None => self.roots.store().map_err(|why| self.unless_served(why))?,
            Some(path) => {
                let mut roots = RootCertStore::empty();
                add_file(&mut roots, path).map_err(|why| {
                    self.unless_served(format!("option '--redis-ca-file': cannot read {}: {why}", path.display()))
                })?;
                Arc::new(roots)
            }
        };
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Fatal(format!("TLS cannot be used: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }

    /// An error of the client or the server in our own words, and whether waiting may mend it.
    pub fn explain(&self, error: redis::RedisError) -> Error {
        let text = wire_text(&error);
        let name = self.name();
        // Inside a script, servers before 7 wrap the error code in a sentence: so the text is searched.
        let says = |code: &str| text.contains(code);
        if says("WRONGPASS") || says("invalid username-password") || says("invalid password") {
            return self.unless_served(format!(
                "{name} refused the user name or password: check the queue URL or '--redis-password-file'"
            ));
        }
        if says("NOAUTH") {
            return self.unless_served(format!(
                "{name} wants a password: put it into the queue URL or give '--redis-password-file'"
            ));
        }
        if says("NOPERM") {
            return Error::Fatal(format!(
                "{name} does not permit what the agent needs: {text}; see 'acapy-deliver check'"
            ));
        }
        if says("WRONGTYPE") {
            return Error::Fatal(format!("{name} holds a value of the wrong type at a key of the queue: {text}"));
        }
        if error.kind() == redis::ErrorKind::InvalidClientConfig {
            return Error::Fatal(format!("option '--outbound-queue': {name}: {text}"));
        }
        let why = if says("LOADING") {
            "it is still loading its data".to_string()
        } else if says("OOM ") {
            "it is full (maxmemory reached)".to_string()
        } else if says("READONLY") {
            "it is a read-only replica".to_string()
        } else if says("MISCONF") {
            "it cannot save to disk and refuses writes (MISCONF)".to_string()
        } else if says("MOVED") {
            format!("it is a Cluster node that does not hold the queue's keys ({text}); name the node that does")
        } else if error.is_timeout() {
            let tls = if self.url.starts_with("rediss") { "; does it speak TLS on this port?" } else { "" };
            format!("no answer within {} s{tls}", PATIENCE.as_secs())
        } else {
            in_words_of_tls(&text).unwrap_or(text)
        };
        Error::Unavailable(format!("{name}: {why}"))
    }

    /// The same for an answer to AUTH or SELECT: what waiting is not known to mend ends the agent.
    fn explain_log_in(&self, error: redis::RedisError) -> Error {
        let answered = is_answer(&error);
        let text = wire_text(&error);
        let waits = ["LOADING", "MASTERDOWN", "READONLY", "BUSY", "OOM ", "max number of clients"];
        match self.explain(error) {
            Error::Unavailable(_) if answered && !waits.iter().any(|code| text.contains(code)) => {
                self.unless_served(format!("{} refused to log us in: {text}", self.name()))
            }
            error => error,
        }
    }
}

fn with_peer(found: &[IpAddr], port: u16, peer: SocketAddr) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = found.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
    if !addresses.contains(&peer) {
        addresses.push(peer);
    }
    addresses
}

/// The TCP ports that a server says it listens on, as far as the account may ask.
fn ports(connection: &mut Connection) -> redis::RedisResult<Vec<u16>> {
    let mut ports = Vec::new();
    let mut add = |text: &str| {
        if let Ok(port @ 1..) = text.trim().parse()
            && !ports.contains(&port)
        {
            ports.push(port);
        }
    };
    let mut ask = |command: &Cmd| match connection.ask(&command.get_packed_command()) {
        // Not permitted, or not known: then the other may be.
        Err(error) if is_answer(&error) => Ok(None),
        answer => answer.map(Some),
    };
    if let Some(info) = ask(redis::cmd("INFO").arg("server"))? {
        let info: String = redis::from_redis_value(info).unwrap_or_default();
        info.lines().filter_map(|line| line.strip_prefix("tcp_port:")).for_each(&mut add);
    }
    if let Some(settings) = ask(redis::cmd("CONFIG").arg("GET").arg("*port"))? {
        let settings: Vec<String> = redis::from_redis_value(settings).unwrap_or_default();
        for pair in settings.chunks(2) {
            if let [name, port] = pair
                && ["port", "tls-port"].contains(&name.as_str())
            {
                add(port);
            }
        }
    }
    Ok(ports)
}

/// Whether the server said so, rather than the connection or the client.
pub(super) fn is_answer(error: &redis::RedisError) -> bool {
    matches!(error.kind(), redis::ErrorKind::Server(_) | redis::ErrorKind::Extension)
}

/// What a failed handshake means and what to do; `None` if it was no handshake. All of it is
/// waited out: a certificate can be renewed while the agent runs.
fn in_words_of_tls(text: &str) -> Option<String> {
    let means = if text.contains("UnknownIssuer") {
        "its certificate is of an authority that is not trusted: give the authority's with '--redis-ca-file'"
    } else if text.contains("not valid for name") || text.contains("NotValidForName") {
        "its certificate is for another name: use a name that stands in it"
    } else if text.contains("Expired") || text.contains("certificate expired") {
        "its certificate has expired"
    } else if text.contains("NotValidYet") || text.contains("not valid yet") {
        "its certificate is not valid yet: is this machine's clock right?"
    } else if text.contains("CertificateRequired") {
        "it asks for a client certificate, which is not supported: set 'tls-auth-clients no' or 'optional' there"
    } else if text.contains("InvalidContentType") {
        "it does not speak TLS on this port: write redis:// or name its TLS port"
    } else if text.contains("peer certificate") || text.contains("fatal alert") || text.contains("peer is incompatible")
    {
        "no agreement on TLS"
    } else {
        return None;
    };
    Some(format!("{means} ({text})"))
}

/// An error as the server wrote it, code first; the client's own words for errors of its own.
pub fn wire_text(error: &redis::RedisError) -> String {
    match error.code() {
        Some(code) => format!("{code} {}", error.detail().unwrap_or_default()),
        None => error.to_string(),
    }
}

/// A move: its text and the SHA-1 under which a server may know it already.
#[derive(Debug)]
pub struct Move {
    text: String,
    sha: String,
}

impl Move {
    /// `head` comes before every move.
    pub fn new(head: &str, body: &str) -> Move {
        let text = format!("{head}{body}");
        let sha = redis::Script::new(&text).get_hash().to_string();
        Move { text, sha }
    }
}

/// A connection that is opened when it is used.
pub struct Link {
    /// Where to.
    pub server: Server,
    open: Option<Connection>,
    /// Tells it from others where the address policy is told.
    number: u64,
    /// When an answer came last.
    used: Instant,
}

impl Link {
    /// Nothing is opened yet.
    pub fn new(server: Server) -> Link {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Link { server, open: None, number, used: Instant::now() }
    }

    /// Runs a command. After any failure but an answer of the server the connection
    /// is given up: what comes next on it could be the answer to something older.
    /// The command may be sent twice, see [`Link::run`].
    pub fn query(&mut self, command: &redis::Cmd) -> Result<Value, Error> {
        self.query_raw(command).map_err(|failure| self.explain(failure))
    }

    /// Runs a command that may block for `at_most` on purpose. It is sent once.
    pub fn query_blocking(&mut self, command: &redis::Cmd, at_most: Duration) -> Result<Value, Failure> {
        self.exchange(&command.get_packed_command(), at_most + PATIENCE)
    }

    /// Runs a command that may block for `at_most` on purpose and whose answer is not
    /// wanted: it is not even sent (`CLIENT REPLY SKIP`). The answer is that of `then`.
    /// A server that sends the first one's all the same, or anything else that is not a
    /// number, costs the connection: more may come on it.
    pub fn query_unheard(&mut self, command: &Cmd, then: &Cmd, at_most: Duration) -> Result<Value, Failure> {
        let mut packed = redis::cmd("CLIENT").arg("REPLY").arg("SKIP").get_packed_command();
        command.write_packed_command(&mut packed);
        then.write_packed_command(&mut packed);
        let answer = self.exchange(&packed, at_most + PATIENCE);
        if !matches!(answer, Ok(Value::Int(_))) {
            self.give_up();
        }
        answer
    }

    /// Runs a move on all keys of the queue. If the connection breaks that nobody had used for a
    /// while, the move is sent again on a fresh one. None is harmed by being made twice: claims
    /// and settlements are numbered, a message that has been moved is not found in its old place
    /// again, and an agent that registers twice leaves a number that has nothing in flight.
    pub fn run(&mut self, script: &Move, keys: &[String], arguments: &Arguments) -> Result<Value, Error> {
        let call = |name: &str, script: &str| {
            let mut command = redis::cmd(name);
            command.arg(script).arg(keys.len()).arg(keys);
            for argument in arguments.iter() {
                command.arg(argument);
            }
            command
        };
        match self.query_raw(&call("EVALSHA", &script.sha)) {
            Err(Failure::Redis(error)) if wire_text(&error).contains("NOSCRIPT") => {
                self.query(&call("EVAL", &script.text))
            }
            answer => answer.map_err(|failure| self.explain(failure)),
        }
    }

    fn explain(&self, failure: Failure) -> Error {
        match failure {
            Failure::Redis(error) => self.server.explain(error),
            Failure::Ours(error) => error,
        }
    }

    fn query_raw(&mut self, command: &redis::Cmd) -> Result<Value, Failure> {
        let packed = command.get_packed_command();
        let was_idle = self.open.is_some() && self.used.elapsed() >= IDLE;
        match self.exchange(&packed, PATIENCE) {
            Err(Failure::Redis(error)) if was_idle && error.is_io_error() && !error.is_timeout() => {
                self.exchange(&packed, PATIENCE)
            }
            answer => answer,
        }
    }

    /// Sends once, and hears one answer.
    fn exchange(&mut self, packed: &[u8], patience: Duration) -> Result<Value, Failure> {
        let connection = self.connection().map_err(Failure::Ours)?;
        let answer = connection
            .set_read_timeout(patience)
            .map_err(redis::RedisError::from)
            .and_then(|()| connection.ask(packed));
        self.used = Instant::now();
        let keeps = match &answer {
            Ok(_) => {
                self.server.entry.has_served.store(true, Ordering::Relaxed);
                if self.server.entry.has_said.load(Ordering::Relaxed) {
                    self.server.entry.has_said.store(false, Ordering::Relaxed);
                }
                true
            }
            // After a failover the name may lead elsewhere: so a server that may not be written to is
            // left. Inside a script, servers before 7 wrap the code in a sentence.
            Err(error) => {
                let text = wire_text(error);
                let elsewhere = ["READONLY", "LOADING", "MASTERDOWN", "UNBLOCKED"];
                is_answer(error) && !elsewhere.iter().any(|code| text.contains(code))
            }
        };
        if !keeps {
            self.give_up();
        }
        answer.map_err(Failure::Redis)
    }

    fn give_up(&mut self) {
        self.open = None;
        if let Some(own) = &self.server.own {
            own.lost(self.number);
        }
    }

    fn connection(&mut self) -> Result<&mut Connection, Error> {
        if self.open.is_none() {
            let (connection, addresses) = self.server.open()?;
            if let Some(own) = &self.server.own {
                own.connected(self.number, addresses);
            }
            self.open = Some(connection);
        }
        Ok(self.open.as_mut().expect("just opened"))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Why a command failed, before it is put into words.
pub enum Failure {
    /// The client or the server said so.
    Redis(redis::RedisError),
    /// The connection could not be opened.
    Ours(Error),
}

/// The arguments of a move, in the order in which it reads them; one buffer for all.
#[derive(Default)]
pub struct Arguments {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Arguments {
    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Arguments {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self
    }

    /// Appends anything that can be written as text.
    pub fn text(&mut self, text: impl Display) -> &mut Arguments {
        use std::io::Write;
        write!(self.bytes, "{text}").expect("a vector takes all");
        self.ends.push(self.bytes.len());
        self
    }

    /// Appends a number as 16 digits: an id or an agent's number, of which there are many.
    pub fn sixteen(&mut self, number: u64) -> &mut Arguments {
        let mut digits = [b'0'; 16];
        let mut left = number;
        for digit in digits.iter_mut().rev() {
            *digit += (left % 10) as u8;
            left /= 10;
        }
        self.bytes(&digits)
    }

    /// Appends a flag as `1` or `0`.
    pub fn flag(&mut self, flag: bool) -> &mut Arguments {
        self.text(u8::from(flag))
    }

    /// Appends a duration in whole milliseconds.
    pub fn millis(&mut self, duration: Duration) -> &mut Arguments {
        self.text(duration.as_millis().min(u128::from(u32::MAX) * 1000))
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, end)| &self.bytes[begin..*end])
    }
}
