//! Where the queue is: from the servers of the queue's URL and a key to a connection to the one that
//! has that key. Every connection begins anew with the servers of the URL, whose names are looked up
//! anew: where one was led to before says nothing, for there may be nobody any more. Of a Cluster no
//! more need be known than what its nodes say of a key that is not theirs (`MOVED`), since all keys
//! of a queue share one slot.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use redis::{RedisError, Value};

use super::errors::{is_answer, is_elsewhere, wire_text};
use super::sentinel;
use super::server::{Open, PATIENCE, Server};
use super::stream::Connection;
use crate::config::queue_url::{Node, QueueUrl, Sentinels};
use crate::queue::Error;

/// So often a connection is led on to another node, at most: nodes that have not yet heard of a failover
/// may send us round in circles.
const MOST_MOVES: usize = 5;
/// The servers share the time that one may take; each has at least this.
const SHORTEST_SHARE: Duration = Duration::from_secs(1);

/// A connection to the server that has the key, which is not read.
pub(super) fn locate(server: &Server, key: &str) -> Result<Open, Error> {
    let url = server.read_url()?;
    let share = (PATIENCE / u32::try_from(url.nodes.len()).unwrap_or(u32::MAX)).max(SHORTEST_SHARE);
    let search = Search { server, url: &url, key, share, deadline: Instant::now() + PATIENCE * 2 };
    if let Some(sentinels) = &url.sentinels {
        return search.by(sentinels);
    }
    let mut answers = Vec::new();
    for node in &url.nodes {
        match search.from(node.clone(), Way::default()) {
            Err(error) if !error.is_lasting() => answers.push(error.to_string()),
            answer => return answer,
        }
        if search.is_over() {
            break;
        }
    }
    match &answers[..] {
        [why] if url.nodes.len() == 1 => Err(Error::Unavailable(why.clone())),
        _ => Err(Error::Unavailable(format!("no server of {} leads to the queue: {}", url.name(), answers.join("; ")))),
    }
}

/// The same for who sends commands of their own.
///
/// # Errors
///
/// Which servers were asked, and what each said.
pub fn connect(server: &Server, key: &str) -> Result<Connection, Error> {
    locate(server, key).map(|open| open.connection)
}

struct Search<'a> {
    server: &'a Server,
    url: &'a QueueUrl,
    key: &'a str,
    /// For each step.
    share: Duration,
    deadline: Instant,
}

impl Search<'_> {
    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Begins with what Sentinels name, and there only: what else one of them says is older.
    fn by(&self, sentinels: &Sentinels) -> Result<Open, Error> {
        let told = sentinel::ask_all(self.server, self.url, sentinels, self.share)?;
        let mut answers = Vec::new();
        for (newest, said) in told.masters() {
            match self.from(newest.master.clone(), Way { addresses: told.addresses(), said }) {
                Ok(open) => {
                    self.server.entry.led(newest.epoch);
                    return Ok(Open { epoch: newest.epoch, ..open });
                }
                Err(error) if !error.is_lasting() => answers.push(error.to_string()),
                lasting => return lasting,
            }
            if self.is_over() {
                break;
            }
        }
        Err(Error::Unavailable(answers.join("; ")))
    }

    /// Begins with one server, and goes where it says.
    fn from(&self, mut node: Node, mut way: Way) -> Result<Open, Error> {
        for _ in 0..=MOST_MOVES {
            let opened = self.server.open(&self.url.access, &node, self.share);
            let mut open = opened.map_err(|error| way.told(error))?;
            let moved = match whose(&mut open.connection, self.key) {
                Ok(()) => {
                    self.check_role(&mut open).map_err(|error| way.told(error))?;
                    open.addresses.append(&mut way.addresses);
                    return Ok(open);
                }
                Err(error) if is_answer(&error) && is_elsewhere(&wire_text(&error)) => wire_text(&error),
                Err(error) => return Err(way.told(self.server.explain(&open.name, error))),
            };
            let Some(next) = moved_to(&moved, &open.node) else {
                let why = format!(
                    "{} does not say where the queue is ({moved}); set 'cluster-announce-hostname' or \
                     'cluster-announce-ip' there",
                    open.name
                );
                return Err(way.told(Error::Unavailable(why)));
            };
            way.leads(&mut open, &format!("says that the queue is at {next}"));
            node = next;
            if self.is_over() {
                break;
            }
        }
        Err(way.told(Error::Unavailable("and so on: this leads nowhere".to_string())))
    }

    /// Where there are several servers, a replica is not the one. A node of a Cluster has said so already.
    fn check_role(&self, open: &mut Open) -> Result<(), Error> {
        if self.url.nodes.len() == 1 && self.url.sentinels.is_none() {
            return Ok(());
        }
        match open.connection.ask(&redis::cmd("ROLE").get_packed_command()) {
            Ok(Value::Array(answer)) if matches!(answer.first(), Some(Value::BulkString(role)) if role != b"master") => {
                Err(Error::Unavailable(format!("{} is no master", open.name)))
            }
            // The account may not ask so: then what it may not write it will be told.
            Err(error) if !is_answer(&error) => Err(self.server.explain(&open.name, error)),
            _ => Ok(()),
        }
    }
}

/// What has led to a server.
#[derive(Default)]
struct Way {
    addresses: Vec<SocketAddr>,
    said: String,
}

impl Way {
    fn leads(&mut self, open: &mut Open, says: &str) {
        self.addresses.append(&mut open.addresses);
        self.said += &format!("{} {says}; ", open.name);
    }

    /// An error on the way.
    fn told(&self, error: Error) -> Error {
        let hint = |why: &str| match why.contains("is for another name") && !self.said.is_empty() {
            true => {
                "; for a Cluster to say names in place of addresses, set 'cluster-announce-hostname' on each node and \
                 'cluster-preferred-endpoint-type hostname'"
            }
            false => "",
        };
        let is_lasting = error.is_lasting();
        error.said(|why| format!("{}{why}{}", self.said, if is_lasting { "" } else { hint(&why) }))
    }
}

/// Whether the server has the key: it says so of any command, so of one that changes nothing.
fn whose(connection: &mut Connection, key: &str) -> Result<(), RedisError> {
    match connection.ask(&redis::cmd("TYPE").arg(key).get_packed_command()) {
        Ok(_) => Ok(()),
        Err(error) => {
            // The account may not ask so; or the slot is about to move, and its owner answers still.
            let text = wire_text(&error);
            let answers = ["NOPERM", "ASK ", "TRYAGAIN"].iter().any(|code| text.contains(code));
            if is_answer(&error) && answers { Ok(()) } else { Err(error) }
        }
    }
}

/// `… MOVED SLOT HOST:PORT`; without a host it is the same as before. `?` is a host that the node does not know.
fn moved_to(text: &str, from: &Node) -> Option<Node> {
    let place = text.split("MOVED ").nth(1)?.split_whitespace().nth(1)?;
    let (host, port) = place.rsplit_once(':')?;
    let port = port.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
    match (host.trim_matches(['[', ']']), from) {
        ("?", _) | ("", Node::Unix(_)) => None,
        ("", Node::Tcp(host, _)) => Some(Node::Tcp(host.clone(), port)),
        (host, _) => Some(Node::Tcp(host.to_string(), port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_node_says_that_a_key_is() {
        let from = Node::Tcp("seed".to_string(), 6379);
        for (text, to) in [
            ("MOVED 3999 127.0.0.1:6381", Some("127.0.0.1:6381")),
            ("MOVED 3999 :6381", Some("seed:6381")),
            ("MOVED 3999 redis-2.test:6381", Some("redis-2.test:6381")),
            ("MOVED 3999 2001:db8::7:6381", Some("[2001:db8::7]:6381")),
            ("MOVED 3999 [2001:db8::7]:6381", Some("[2001:db8::7]:6381")),
            ("MOVED 3999 ?:6381", None),
            ("MOVED", None),
            (
                "ERR Error running script (call to f_0): @user_script:5: MOVED 3999 127.0.0.1:6381",
                Some("127.0.0.1:6381"),
            ),
            ("MOVED 3999 127.0.0.1:6381 script: f_0, on @user_script:5.", Some("127.0.0.1:6381")),
        ] {
            let found = moved_to(text, &from).map(|node| node.to_string());
            assert_eq!(found.as_deref(), to, "{text}");
        }
        assert_eq!(moved_to("MOVED 1 :7", &Node::Unix("/run/r.sock".into())), None);
    }
}
