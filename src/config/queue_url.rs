//! Reads the URL of the queue's Redis: by which servers to begin, and who we are to them. Each of
//! several servers is read as the client library reads a URL of that one alone.

use std::path::PathBuf;

use redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use url::Url;

use crate::text::redacted;

const WANTED: &str = "is not the URL of a Redis, as in redis://host:6379, redis://host-1:6379,host-2:6379 (a Cluster), \
                      redis+sentinel://host-1:26379,host-2:26379/NAME (Sentinels), rediss://host:6379 (TLS) or \
                      unix:///run/redis.sock";

/// What such a URL says. Its `Debug` shows no password.
#[derive(Clone)]
pub struct QueueUrl {
    /// As it was given.
    text: String,
    /// The servers to begin with, one or more.
    pub nodes: Vec<Node>,
    /// How to get into Redis.
    pub access: Access,
    /// If they are Sentinels.
    pub sentinels: Option<Sentinels>,
}

/// How to get into a server.
#[derive(Clone, Debug)]
pub struct Access {
    /// Whether it speaks TLS.
    pub has_tls: bool,
    /// User, password and database.
    pub login: RedisConnectionInfo,
}

/// What Sentinels are asked, and how.
#[derive(Clone, Debug)]
pub struct Sentinels {
    /// The name under which they know the master.
    pub service: String,
    /// How to get into a Sentinel.
    pub access: Access,
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node {
    /// A name or an address, without brackets, and a port.
    Tcp(String, u16),
    /// The path of a socket.
    Unix(PathBuf),
}

impl QueueUrl {
    /// # Errors
    ///
    /// What is wrong with it, as the end of a sentence that begins with the URL.
    pub fn parse(text: &str) -> Result<QueueUrl, String> {
        let (scheme, rest) = text.split_once("://").ok_or(WANTED)?;
        let scheme = scheme.trim().to_ascii_lowercase();
        if !["redis", "rediss", "redis+sentinel", "rediss+sentinel", "unix", "redis+unix"].contains(&scheme.as_str()) {
            return Err(WANTED.to_owned());
        }
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, hosts) = match authority.rfind('@') {
            Some(at) => authority.split_at(at + 1),
            None => ("", authority),
        };
        let (scheme, tail, sentinels) = match scheme.strip_suffix("+sentinel") {
            None => (scheme.as_str(), tail.to_owned(), None),
            Some(scheme) => {
                let (database, sentinels) = read_sentinels(scheme, tail)?;
                (scheme, database, Some(sentinels))
            }
        };
        let default_port = if sentinels.is_some() { 26379 } else { 6379 };
        let (mut nodes, mut login) = (Vec::new(), RedisConnectionInfo::default());
        for host in hosts.split(',') {
            let (node, settings) = read_one(&format!("{scheme}://{user}{host}{tail}"), default_port)?;
            nodes.push(node);
            login = settings;
        }
        if nodes.len() > 1 && login.db() != 0 && sentinels.is_none() {
            return Err("names several servers and a database: a Cluster has only database 0".to_owned());
        }
        Ok(QueueUrl { text: text.to_owned(), nodes, access: Access { has_tls: scheme == "rediss", login }, sentinels })
    }

    /// As it was given, without its password.
    pub fn shown(&self) -> String {
        redacted(&self.text)
    }

    /// Whether Redis or its Sentinels are spoken to by TLS.
    pub fn has_tls_anywhere(&self) -> bool {
        self.access.has_tls || self.sentinels.as_ref().is_some_and(|sentinels| sentinels.access.has_tls)
    }

    /// Whether it holds a password, be it one that nobody looks at where it stands. A user's name alone goes with a
    /// password from a file.
    pub fn has_password(&self) -> bool {
        self.access.login.password().is_some() || self.text.contains("pass=")
    }

    /// Without user and password.
    pub fn name(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(Node::to_string).collect();
        let (scheme, nodes) = (self.access.scheme_of(&self.nodes[0]), nodes.join(","));
        match &self.sentinels {
            Some(Sentinels { service, .. }) => format!("{scheme}+sentinel://{nodes}/{service}"),
            None => format!("{scheme}://{nodes}"),
        }
    }
}

impl PartialEq for QueueUrl {
    fn eq(&self, other: &QueueUrl) -> bool {
        self.text == other.text
    }
}

impl Eq for QueueUrl {}

impl std::fmt::Debug for QueueUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.shown())
    }
}

impl Access {
    /// A server's name, for messages.
    pub fn name_of(&self, node: &Node) -> String {
        format!("{}://{node}", self.scheme_of(node))
    }

    fn scheme_of(&self, node: &Node) -> &'static str {
        match (node, self.has_tls) {
            (Node::Unix(_), _) => "unix",
            (_, true) => "rediss",
            (_, false) => "redis",
        }
    }
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Node::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Node::Tcp(host, port) => write!(f, "{host}:{port}"),
            Node::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// From what follows the servers: `/NAME[/DATABASE][?sentinel-user=…&sentinel-password=…&sentinel-tls=yes|no]`. The
/// database as it stands in other URLs.
fn read_sentinels(scheme: &str, tail: &str) -> Result<(String, Sentinels), String> {
    let url = Url::parse(&format!("{scheme}://h{tail}")).map_err(|error| format!("{WANTED} ({error})"))?;
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let mut path = url.path().trim_start_matches('/').splitn(2, '/');
    let service = decoded(path.next().unwrap_or_default());
    if service.is_empty() {
        return Err("does not say which master the Sentinels are asked about, as in \
                    redis+sentinel://host-1:26379,host-2:26379/NAME"
            .to_owned());
    }
    let database = path.next().map_or(String::new(), |database| format!("/{database}"));
    let (mut has_tls, mut login) = (scheme == "rediss", RedisConnectionInfo::default());
    for (name, value) in url.query_pairs() {
        match (&*name, &*value) {
            ("sentinel-user", user) => login = login.set_username(user),
            ("sentinel-password", password) => login = login.set_password(password),
            ("sentinel-tls", "yes") => has_tls = true,
            ("sentinel-tls", "no") => has_tls = false,
            _ => {
                return Err(format!(
                    "says '{name}' of the Sentinels; it may say sentinel-user=…, sentinel-password=… and sentinel-tls=yes or no"
                ));
            }
        }
    }
    Ok((database, Sentinels { service, access: Access { has_tls, login } }))
}

fn read_one(text: &str, default_port: u16) -> Result<(Node, RedisConnectionInfo), String> {
    let wanted = |error: &dyn std::fmt::Display| format!("{WANTED} ({error})");
    let url = Url::parse(text).map_err(|error| wanted(&error))?;
    if url.scheme().ends_with("unix") && (url.has_host() || url.path().len() < 2) {
        return Err("names no socket: three slashes come before its path, as in unix:///run/redis.sock".to_owned());
    }
    if url.fragment() == Some("insecure") {
        return Err(
            "asks for TLS without a check, which is not supported; give the server's CA with '--redis-ca-file'"
                .to_owned(),
        );
    }
    let port = url.port().unwrap_or(default_port);
    let info = url.into_connection_info().map_err(|error| wanted(&error))?;
    let node = match info.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => Node::Tcp(host.clone(), port),
        ConnectionAddr::Unix(path) => Node::Unix(path.clone()),
        _ => return Err(WANTED.to_owned()),
    };
    Ok((node, info.redis_settings().clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_or_several_with_one_user() {
        let nodes = |text: &str| {
            let url = QueueUrl::parse(text).unwrap();
            let login = &url.access.login;
            let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
            (url.name(), (text(login.username()), text(login.password())))
        };
        for (text, name, user, password) in [
            ("redis://h", "redis://h:6379", "", ""),
            ("redis://[::1]:1", "redis://[::1]:1", "", ""),
            ("rediss://u:p%40@h:7/3", "rediss://h:7", "u", "p@"),
            ("redis://a:1,b,[::1]:2", "redis://a:1,b:6379,[::1]:2", "", ""),
            ("rediss://u:p@a:1,b:2/0", "rediss://a:1,b:2", "u", "p"),
            ("unix:///run/r.sock?user=u&pass=p", "unix:///run/r.sock", "u", "p"),
            ("redis+sentinel://u:p@a,b:2/m/3?sentinel-tls=yes", "redis+sentinel://a:26379,b:2/m", "u", "p"),
            ("rediss+sentinel://a/m%20n", "rediss+sentinel://a:26379/m n", "", ""),
        ] {
            assert_eq!(nodes(text), (name.to_owned(), (user.to_owned(), password.to_owned())), "{text}");
        }
    }

    #[test]
    fn sentinels_have_an_access_of_their_own() {
        let parsed = |text: &str| QueueUrl::parse(text).unwrap();
        let url = parsed("rediss+sentinel://u:p@a,b/m/3?sentinel-user=su&sentinel-password=s%26p&sentinel-tls=no");
        let sentinels = url.sentinels.unwrap();
        assert_eq!((url.access.has_tls, url.access.login.db(), &*sentinels.service), (true, 3, "m"));
        let login = sentinels.access.login;
        assert_eq!((login.username(), login.password(), login.db()), (Some("su"), Some("s&p"), 0));
        assert!(!sentinels.access.has_tls);
        let url = parsed("rediss+sentinel://u:p@a/m");
        let sentinels = url.sentinels.unwrap();
        assert!(sentinels.access.has_tls && sentinels.access.login.password().is_none());
    }

    #[test]
    fn what_names_no_server_is_refused() {
        for (text, says) in [
            ("redis://", "is not the URL"),
            ("redis://a,,b", "is not the URL"),
            ("redis://a,b:x", "is not the URL"),
            ("http://a", "is not the URL"),
            ("redis://a,b/2", "only database 0"),
            ("redis+sentinel://a,b", "which master"),
            ("redis+sentinel://a,b/?sentinel-tls=no", "which master"),
            ("redis+sentinel://a/m?sentinel-pass=p", "says 'sentinel-pass'"),
            ("redis+sentinel://a/m/x", "is not the URL"),
            ("unix+sentinel://a/m", "is not the URL"),
            ("unix://run/r.sock", "three slashes"),
            ("rediss://a,b#insecure", "--redis-ca-file"),
        ] {
            let why = QueueUrl::parse(text).unwrap_err();
            assert!(why.contains(says), "{text}: {why}");
        }
    }
}
