//! One synchronous connection to Redis: opened when it is needed, given up at the
//! first sign of trouble, opened again at the next use. It runs the moves
//! (EVALSHA, EVAL where the server does not know the script), and turns what
//! Redis answers into the two kinds of [`Error`] that the threads tell apart.
//! It leaves waiting and repeating to its callers.

use std::fmt::Display;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use redis::{Client, Cmd, Connection, ConnectionInfo, ConnectionLike, IntoConnectionInfo, Value};

use super::Error;
use crate::config::RedisAddress;

/// How long a connection may take to open, and an answer to come beyond the time a wait was asked for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where Redis is, and who we are to it.
#[derive(Clone, Default)]
pub struct Server {
    /// `redis://`, `rediss://` or `unix://`, with user, password and database.
    pub url: String,
    /// Read anew at every connection, so that a rotated password needs no restart.
    pub password_file: Option<PathBuf>,
    /// PEM certificates that `rediss://` trusts instead of the bundled roots.
    pub ca_file: Option<PathBuf>,
}

impl From<&RedisAddress> for Server {
    fn from(address: &RedisAddress) -> Server {
        Server {
            url: address.url.clone(),
            password_file: address.password_file.clone(),
            ca_file: address.ca_file.clone(),
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
        // Commands are single writes, and an answer awaited must not wait for an acknowledgement.
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let mut redis = info.redis_settings().clone().set_skip_set_lib_name();
        if let Some(path) = &self.password_file {
            let password = fs::read_to_string(path).map_err(|error| {
                Error::Fatal(format!("option '--redis-password-file': cannot read {}: {error}", path.display()))
            })?;
            redis = redis.set_password(password.trim_end_matches(['\r', '\n']));
        }
        Ok(info.set_tcp_settings(tcp).set_redis_settings(redis))
    }

    /// Opens a connection and makes sure that it answers.
    pub fn connect(&self) -> Result<Connection, Error> {
        let info = self.info()?;
        let client = match &self.ca_file {
            None => Client::open(info),
            Some(path) => {
                let pem = fs::read(path).map_err(|error| {
                    Error::Fatal(format!("option '--redis-ca-file': cannot read {}: {error}", path.display()))
                })?;
                Client::build_with_tls(info, redis::TlsCertificates { client_tls: None, root_cert: Some(pem) })
            }
        }
        .map_err(|error| Error::Fatal(format!("option '--outbound-queue': {}: {error}", self.name())))?;
        let connection = client.get_connection_with_timeout(PATIENCE).map_err(|error| self.explain(error))?;
        let patience = |error| self.explain(error);
        connection.set_read_timeout(Some(PATIENCE)).map_err(patience)?;
        connection.set_write_timeout(Some(PATIENCE)).map_err(patience)?;
        Ok(connection)
    }

    /// An error of the client or the server in our own words, and whether waiting may mend it.
    pub fn explain(&self, error: redis::RedisError) -> Error {
        let text = wire_text(&error);
        let name = self.name();
        // Inside a script, servers before 7 wrap the error code in a sentence: so the text is searched.
        let says = |code: &str| text.contains(code);
        if says("WRONGPASS") || says("invalid username-password") || says("invalid password") {
            return Error::Fatal(format!(
                "{name} refused the user name or password: check the queue URL or '--redis-password-file'"
            ));
        }
        if says("NOAUTH") {
            return Error::Fatal(format!(
                "{name} wants a password: put it into the queue URL or give '--redis-password-file'"
            ));
        }
        if error.kind() == redis::ErrorKind::AuthenticationFailed {
            return Error::Fatal(format!("{name} refused to log us in: {text}"));
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
}

impl Link {
    /// Nothing is opened yet.
    pub fn new(server: Server) -> Link {
        Link { server, open: None }
    }

    /// Runs a command. After any failure but an answer of the server the connection
    /// is given up: what comes next on it could be the answer to something older.
    pub fn query(&mut self, command: &redis::Cmd) -> Result<Value, Error> {
        self.query_raw(command).map_err(|error| match error {
            Failure::Redis(error) => self.server.explain(error),
            Failure::Ours(error) => error,
        })
    }

    /// Runs a command that may block for `at_most` on purpose.
    pub fn query_blocking(&mut self, command: &redis::Cmd, at_most: Duration) -> Result<Value, Failure> {
        let connection = self.connection().map_err(Failure::Ours)?;
        connection.set_read_timeout(Some(at_most + PATIENCE)).map_err(Failure::Redis)?;
        let answer = self.query_raw(command);
        if let Some(connection) = &self.open {
            connection.set_read_timeout(Some(PATIENCE)).map_err(Failure::Redis)?;
        }
        answer
    }

    /// Runs a command that may block for `at_most` on purpose and whose answer is not
    /// wanted: it is not even sent (`CLIENT REPLY SKIP`). The answer is that of `then`.
    /// A server that sends the first one's all the same, or anything else that is not a
    /// number, costs the connection: more may come on it.
    pub fn query_unheard(&mut self, command: &Cmd, then: &Cmd, at_most: Duration) -> Result<Value, Failure> {
        let mut packed = redis::cmd("CLIENT").arg("REPLY").arg("SKIP").get_packed_command();
        command.write_packed_command(&mut packed);
        then.write_packed_command(&mut packed);
        let connection = self.connection().map_err(Failure::Ours)?;
        connection.set_read_timeout(Some(at_most + PATIENCE)).map_err(Failure::Redis)?;
        let answer = connection.req_packed_command(&packed).and_then(Value::extract_error);
        match answer {
            Ok(number @ Value::Int(_)) => {
                connection.set_read_timeout(Some(PATIENCE)).map_err(Failure::Redis)?;
                Ok(number)
            }
            other => {
                self.open = None;
                other.map_err(Failure::Redis)
            }
        }
    }

    /// Runs a move on all keys of the queue.
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
            Err(Failure::Redis(error)) => Err(self.server.explain(error)),
            Err(Failure::Ours(error)) => Err(error),
            Ok(value) => Ok(value),
        }
    }

    fn query_raw(&mut self, command: &redis::Cmd) -> Result<Value, Failure> {
        let answer = command.query::<Value>(self.connection().map_err(Failure::Ours)?);
        match answer {
            Ok(value) => Ok(value),
            Err(error) => {
                let answered = matches!(error.kind(), redis::ErrorKind::Server(_) | redis::ErrorKind::Extension);
                // After a failover the name may lead elsewhere: so a server that may not be written to is left.
                let elsewhere = ["READONLY", "LOADING", "MASTERDOWN"].iter().any(|code| error.code() == Some(code));
                if !answered || elsewhere {
                    self.open = None;
                }
                Err(Failure::Redis(error))
            }
        }
    }

    fn connection(&mut self) -> Result<&mut Connection, Error> {
        if self.open.is_none() {
            self.open = Some(self.server.connect()?);
        }
        Ok(self.open.as_mut().expect("just opened"))
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
