//! Where the queue is: from the servers of the queue's URL and a key to a connection to the one that
//! has that key. Every connection begins anew with the servers of the URL, whose names are looked up
//! anew: where one was led to before says nothing, for there may be nobody any more. Of a Cluster no
//! more need be known than what its nodes say of a key that is not theirs (`MOVED`), since all keys
//! of a queue share one slot.

use std::time::{Duration, Instant};

use redis::RedisError;

use super::Error;
use super::server::{Open, PATIENCE, Server, is_answer, is_elsewhere, wire_text};
use super::stream::Connection;
use crate::config::queue_url::{Node, QueueUrl};

/// So often a connection is led on to another node, at most: nodes that have not yet heard of a failover
/// may send us round in circles.
const MOST_MOVES: usize = 5;
/// The servers share the time that one may take; each has at least this.
const SHORTEST_SHARE: Duration = Duration::from_secs(1);

/// A connection to the server that has the key, which is not read.
pub(super) fn locate(server: &Server, key: &str) -> Result<Open, Error> {
    let url = server.read_url()?;
    let share = (PATIENCE / u32::try_from(url.nodes.len()).unwrap_or(u32::MAX)).max(SHORTEST_SHARE);
    let deadline = Instant::now() + PATIENCE * 2;
    let mut answers = Vec::new();
    for node in &url.nodes {
        match led_from(server, &url, node, key, share, deadline) {
            Err(Error::Unavailable(why)) => answers.push(why),
            answer => return answer,
        }
        if Instant::now() >= deadline {
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

/// Begins with one server, and goes where it says.
fn led_from(
    server: &Server,
    url: &QueueUrl,
    node: &Node,
    key: &str,
    share: Duration,
    deadline: Instant,
) -> Result<Open, Error> {
    let (mut node, mut addresses, mut way) = (node.clone(), Vec::new(), String::new());
    let on_the_way = |way: &str, error: Error| match error {
        Error::Unavailable(why) => Error::Unavailable(format!("{way}{why}")),
        Error::Fatal(why) => Error::Fatal(format!("{way}{why}")),
    };
    for _ in 0..=MOST_MOVES {
        let mut open = server.open(url, &node, share).map_err(|error| on_the_way(&way, error))?;
        addresses.append(&mut open.addresses);
        match whose(&mut open.connection, key) {
            Ok(()) => {
                open.addresses = addresses;
                return Ok(open);
            }
            Err(error) if is_answer(&error) && is_elsewhere(&wire_text(&error)) => {
                let text = wire_text(&error);
                let Some(next) = moved_to(&text, &open.node) else {
                    let why = format!(
                        "{} does not say where the queue is ({text}); set 'cluster-announce-hostname' or 'cluster-announce-ip' there",
                        open.name
                    );
                    return Err(on_the_way(&way, Error::Unavailable(why)));
                };
                way = format!("{way}{} says that the queue is at {next}; ", open.name);
                node = next;
            }
            Err(error) => return Err(on_the_way(&way, server.explain(&open.name, error))),
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Err(Error::Unavailable(format!("{way}this leads nowhere")))
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
