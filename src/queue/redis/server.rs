//! Where Redis is, and who we are to it: opens a connection to one server of the queue's URL, with
//! name look-up, TLS, user and password, and says what goes wrong as the kinds of [`Error`] that the threads tell
//! apart, by whether it has let us in before. Which server it must be is `locate`'s to know.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use log::{info, warn};
use redis::Cmd;
use rustls::{ClientConfig, RootCertStore};

use super::errors::{in_words_of_tls, is_answer, is_elsewhere, may_log_in_later, not_now, wire_text};
use super::names::Names;
use super::stream::Connection;
use crate::config::RedisAddress;
use crate::config::queue_url::{Access, Node, QueueUrl};
use crate::guard::{Own, is_of_this_machine};
use crate::queue::{Denied, Error};
use crate::roots::{Kept, add_file, read_identity, unfit};

/// Where certificate and key are given.
const IDENTITY: [&str; 2] = ["--redis-cert-file", "--redis-key-file"];

/// How long a name may take to look up, a connection to open, and an answer to come beyond the
/// time a wait was asked for.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Where Redis is, and who we are to it.
#[derive(Clone)]
pub struct Server {
    /// The password and the certificates are read anew at every connection, so that new ones need no restart.
    address: RedisAddress,
    /// Shared by its clones: what it trusts otherwise.
    roots: Kept,
    /// Told where each connection leads.
    pub(super) own: Option<Own>,
    /// Shared by its clones: looks up its name.
    pub names: Names,
    /// Shared by its clones: whether it lets us in.
    pub(super) entry: Arc<Entry>,
}

/// Whether a server lets us in.
#[derive(Default)]
pub(super) struct Entry {
    /// It has done what it was asked at least once.
    has_served: AtomicBool,
    /// It has been said that it does not let us in any more.
    has_said: AtomicBool,
    /// It has been said that it knows no users.
    has_said_users: AtomicBool,
    /// The epoch of the Sentinels' configuration by which a connection was led last.
    epoch: AtomicU64,
}

impl Entry {
    /// It has done what it was asked.
    pub(super) fn served(&self) {
        self.has_served.store(true, Ordering::Relaxed);
        if self.has_said.load(Ordering::Relaxed) {
            self.has_said.store(false, Ordering::Relaxed);
        }
    }

    /// A connection was led by a configuration of Sentinels.
    pub(super) fn led(&self, epoch: Option<u64>) {
        self.epoch.store(epoch.unwrap_or_default(), Ordering::Relaxed);
    }

    /// Whether another connection was led by a newer one since.
    pub(super) fn knows_newer(&self, epoch: Option<u64>) -> bool {
        epoch.is_some_and(|epoch| epoch < self.epoch.load(Ordering::Relaxed))
    }
}

/// A connection to one server, logged in.
pub(super) struct Open {
    pub(super) connection: Connection,
    /// The server's name, for messages.
    pub(super) name: String,
    pub(super) node: Node,
    /// Where it leads, and what led to it.
    pub(super) addresses: Vec<SocketAddr>,
    /// With which it is logged in.
    pub(super) password: Option<String>,
    /// It has been told the highest number that this agent has seen, or is the first of its kind.
    pub(super) knows_seen: bool,
    /// Of the Sentinels' configuration that led to it.
    pub(super) epoch: Option<u64>,
}

impl From<&RedisAddress> for Server {
    fn from(address: &RedisAddress) -> Server {
        Server {
            address: address.clone(),
            roots: Kept::new(address.roots),
            own: None,
            names: Names::default(),
            entry: Arc::default(),
        }
    }
}

impl Server {
    /// The same one; where each connection leads is told to `own`.
    #[must_use]
    pub fn telling(self, own: Own) -> Server {
        Server { own: Some(own), ..self }
    }

    /// The same one, for what is not the queue's Redis: that it does not let us in is for the caller to judge.
    pub(super) fn apart(&self) -> Server {
        Server { entry: Arc::default(), ..self.clone() }
    }

    /// The address without user and password, for messages and logs.
    pub fn name(&self) -> String {
        self.address.url.name()
    }

    /// Whether Sentinels say where it is.
    pub(super) fn has_sentinels(&self) -> bool {
        self.address.url.sentinels.is_some()
    }

    /// Whether its password stands in a file, and so may change.
    pub(super) fn has_password_file(&self) -> bool {
        self.address.password_file.is_some()
    }

    /// What the URL says, with the password as the file has it now.
    pub(super) fn read_url(&self) -> Result<QueueUrl, Error> {
        let mut url = self.address.url.clone();
        if let Some(password) = self.password().map_err(|why| self.unless_served(why))? {
            url.access.login = url.access.login.set_password(password);
        }
        Ok(url)
    }

    /// The password as its file has it now, if there is one.
    ///
    /// # Errors
    ///
    /// Why it cannot be read.
    pub(super) fn password(&self) -> Result<Option<String>, String> {
        self.address.password().map_err(|why| why.to_string())
    }

    /// What ends an agent that never got into Redis is waited out by one that did: passwords are
    /// changed here and there one after the other. It is said once, for the outage will have been
    /// spoken of already, by the end of a connection.
    pub(super) fn unless_served(&self, why: String) -> Error {
        if !self.entry.has_served.load(Ordering::Relaxed) {
            return Error::Fatal(why);
        }
        if !self.entry.has_said.swap(true, Ordering::Relaxed) {
            warn!("{why}; it was right before, so this is waited out");
        }
        Error::Unavailable(why)
    }

    /// Opens a connection to one server, and logs in. `patience` is for each of its steps.
    pub(super) fn open(&self, access: &Access, node: &Node, patience: Duration) -> Result<Open, Error> {
        let name = access.name_of(node);
        let explain = |error: std::io::Error| self.explain(&name, error.into());
        let (connection, addresses) = match node {
            Node::Tcp(host, port) => {
                let config = access.has_tls.then(|| self.tls_config()).transpose()?;
                let found = self.names.addresses(host, patience);
                let found = found.map_err(|why| Error::Unavailable(format!("{name}: {why}")))?;
                let opened = match config {
                    Some(config) => {
                        let name = self.address.server_name.as_deref().unwrap_or(host);
                        Connection::tls(name, &found, *port, config, patience)
                    }
                    None => Connection::tcp(&found, *port, patience),
                };
                let (connection, peer) = opened.map_err(explain)?;
                (connection, with_peer(&found, *port, peer))
            }
            Node::Unix(path) => (Connection::unix(path, patience).map_err(explain)?, Vec::new()),
        };
        let password = access.login.password().map(str::to_string);
        let mut open =
            Open { connection, name, node: node.clone(), addresses, password, knows_seen: false, epoch: None };
        let logged_in = open.connection.set_up(&access.login);
        logged_in.map_err(|error| self.explain_log_in(&open.name, error))?;
        if open.connection.has_no_users && !self.entry.has_said_users.swap(true, Ordering::Relaxed) {
            info!("{} knows no users (6.0): the password was given to it without the one of the queue URL", open.name);
        }
        Ok(open)
    }

    /// Adds to the addresses of a connection, if there is an address policy to tell, every port that the
    /// server says it listens on; and this machine's own, if it is here.
    pub(super) fn add_ports(&self, open: &mut Open) -> Result<(), Error> {
        if self.own.is_none() {
            return Ok(());
        }
        let is_here =
            matches!(open.node, Node::Unix(_)) || open.addresses.iter().any(|address| is_of_this_machine(address.ip()));
        let mut places: Vec<IpAddr> = open.addresses.iter().map(SocketAddr::ip).collect();
        if is_here {
            places.push(Ipv4Addr::LOCALHOST.into());
        }
        let ports = ports(&mut open.connection).map_err(|error| self.explain(&open.name, error))?;
        for port in ports {
            open.addresses.extend(places.iter().map(|ip| SocketAddr::new(*ip, port)));
        }
        Ok(())
    }

    fn tls_config(&self) -> Result<Arc<ClientConfig>, Error> {
        let roots = match &self.address.ca_file {
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
            .with_root_certificates(roots);
        let config = match &self.address.client_certificate {
            None => config.with_no_client_auth(),
            Some(files) => {
                let (chain, key) = read_identity(files, IDENTITY).map_err(|why| self.unless_served(why))?;
                let config = config.with_client_auth_cert(chain, key);
                config.map_err(|error| self.unless_served(unfit(IDENTITY, &error)))?
            }
        };
        Ok(Arc::new(config))
    }

    /// An error of the client or the server of this name in our own words, and whether waiting may mend it.
    pub fn explain(&self, name: &str, error: redis::RedisError) -> Error {
        let text = wire_text(&error);
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
            // "… can't run this command …", "… no permissions to run the 'x' command", "… to access one of the keys …"
            let denied = if says("key") && !says("the '") { Denied::Key } else { Denied::Command };
            let why = format!("{name} does not permit what the agent needs: {text}; see 'acapy-deliver check'");
            return Error::NotPermitted(denied, why);
        }
        if says("WRONGTYPE") {
            return Error::WrongType(format!("{name} holds a value of the wrong type at a key of the queue: {text}"));
        }
        if says("CROSSSLOT") {
            return Error::Fatal(format!(
                "{name} is a Cluster, and the queue's keys do not share a slot in it ({text}): choose a queue whose \
                 name has no braces"
            ));
        }
        if error.kind() == redis::ErrorKind::InvalidClientConfig {
            return Error::Fatal(format!("option '--outbound-queue': {name}: {text}"));
        }
        if says("unknown command") || says("Unknown Redis command") {
            return Error::NoCommand(format!("{name}: {text}"));
        }
        if is_elsewhere(&text) {
            return Error::Elsewhere(format!(
                "{name}: the nodes of its Cluster do not agree on where the queue is ({text})"
            ));
        }
        let why = not_now(&text).unwrap_or_else(|| {
            if error.is_timeout() {
                let has_tls = self.address.url.access.has_tls && !self.entry.has_served.load(Ordering::Relaxed);
                let tls = if has_tls { "; does it speak TLS on this port? (None before 6.0 does.)" } else { "" };
                format!("no answer within {} s{tls}", PATIENCE.as_secs())
            } else {
                in_words_of_tls(&text).unwrap_or(text)
            }
        });
        Error::Unavailable(format!("{name}: {why}"))
    }

    /// The same for an answer to AUTH or SELECT: what waiting is not known to mend ends the agent.
    fn explain_log_in(&self, name: &str, error: redis::RedisError) -> Error {
        let answered = is_answer(&error);
        let text = wire_text(&error);
        match self.explain(name, error) {
            Error::Unavailable(_) | Error::NoCommand(_) if answered && !may_log_in_later(&text) => {
                // Before 6.0, and since.
                let has_none = text.contains("no password is set") || text.contains("without any password configured");
                let remedy = if has_none { "; it has no password: leave it out of the queue URL" } else { "" };
                self.unless_served(format!("{name} refused to log us in: {text}{remedy}"))
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
