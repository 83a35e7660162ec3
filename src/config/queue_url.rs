//! Reads the URL of the queue's Redis: by which servers to begin, and who we are to them. Each of
//! several servers is read as the client library reads a URL of that one alone.

use std::path::PathBuf;

use redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use url::Url;

const WANTED: &str = "is not the URL of a Redis, as in redis://host:6379, redis://host-1:6379,host-2:6379 (a Cluster), \
                      rediss://host:6379 (TLS) or unix:///run/redis.sock";

/// What such a URL says.
#[derive(Clone, Debug)]
pub struct QueueUrl {
    /// The servers to begin with, one or more.
    pub nodes: Vec<Node>,
    /// Whether they speak TLS.
    pub has_tls: bool,
    /// User, password and database.
    pub login: RedisConnectionInfo,
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
        if !["redis", "rediss", "unix", "redis+unix"].contains(&scheme.as_str()) {
            return Err(WANTED.to_owned());
        }
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, hosts) = match authority.rfind('@') {
            Some(at) => authority.split_at(at + 1),
            None => ("", authority),
        };
        let (mut nodes, mut login) = (Vec::new(), RedisConnectionInfo::default());
        for host in hosts.split(',') {
            let (node, settings) = read_one(&format!("{scheme}://{user}{host}{tail}"))?;
            nodes.push(node);
            login = settings;
        }
        if nodes.len() > 1 && login.db() != 0 {
            return Err("names several servers and a database: a Cluster has only database 0".to_owned());
        }
        Ok(QueueUrl { nodes, has_tls: scheme == "rediss", login })
    }

    /// Without user and password.
    pub fn name(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(Node::to_string).collect();
        self.named(&nodes.join(","))
    }

    /// The same for one server of them.
    pub fn name_of(&self, node: &Node) -> String {
        self.named(&node.to_string())
    }

    fn named(&self, place: &str) -> String {
        let scheme = match (&self.nodes[0], self.has_tls) {
            (Node::Unix(_), _) => "unix",
            (_, true) => "rediss",
            (_, false) => "redis",
        };
        format!("{scheme}://{place}")
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

fn read_one(text: &str) -> Result<(Node, RedisConnectionInfo), String> {
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
    let info = url.into_connection_info().map_err(|error| wanted(&error))?;
    let node = match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Node::Tcp(host.clone(), *port),
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
            let login = (url.login.username().unwrap_or("").to_owned(), url.login.password().unwrap_or("").to_owned());
            (url.name(), login)
        };
        for (text, name, user, password) in [
            ("redis://h", "redis://h:6379", "", ""),
            ("redis://[::1]:1", "redis://[::1]:1", "", ""),
            ("rediss://u:p%40@h:7/3", "rediss://h:7", "u", "p@"),
            ("redis://a:1,b,[::1]:2", "redis://a:1,b:6379,[::1]:2", "", ""),
            ("rediss://u:p@a:1,b:2/0", "rediss://a:1,b:2", "u", "p"),
            ("unix:///run/r.sock?user=u&pass=p", "unix:///run/r.sock", "u", "p"),
        ] {
            assert_eq!(nodes(text), (name.to_owned(), (user.to_owned(), password.to_owned())), "{text}");
        }
    }

    #[test]
    fn what_names_no_server_is_refused() {
        for (text, says) in [
            ("redis://", "is not the URL"),
            ("redis://a,,b", "is not the URL"),
            ("redis://a,b:x", "is not the URL"),
            ("http://a", "is not the URL"),
            ("redis://a,b/2", "only database 0"),
            ("unix://run/r.sock", "three slashes"),
            ("rediss://a,b#insecure", "--redis-ca-file"),
        ] {
            let why = QueueUrl::parse(text).unwrap_err();
            assert!(why.contains(says), "{text}: {why}");
        }
    }
}
