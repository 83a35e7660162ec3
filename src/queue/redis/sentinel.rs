//! What Sentinels say of who is master. They know it first, and a master that is cut off from them
//! and from its replicas does not: so they are asked again while a connection to a master is in use.

use std::time::{Duration, Instant};

use redis::Value;

use super::server::{Open, PATIENCE, Server, is_answer};
use crate::config::queue_url::{Node, QueueUrl, Sentinels};
use crate::queue::Error;

/// Sentinels are asked so often whether the master is still the same; seldom if none of them answered, for it
/// takes its time.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_SELDOM: Duration = Duration::from_secs(5);
/// So long each step of such a look may take: the connection to the master waits for it.
const LOOK_PATIENCE: Duration = Duration::from_millis(250);

/// Who is master, by one of them.
pub(super) fn ask(server: &Server, sentinels: &Sentinels, open: &mut Open) -> Result<Node, Error> {
    let service = &sentinels.service;
    let question = redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg(service).get_packed_command();
    let answer = open.connection.ask(&question).map_err(|error| match is_answer(&error) {
        true => Error::Unavailable(format!("{} is no Sentinel that may be asked: {error}", open.name)),
        false => server.explain(&open.name, error),
    })?;
    match answer {
        Value::Nil => Err(Error::Unavailable(format!("{} knows no master of the name '{service}'", open.name))),
        answer => match redis::from_redis_value::<(String, u16)>(answer) {
            Ok((host, port)) => Ok(Node::Tcp(host, port)),
            Err(_) => Err(Error::Unavailable(format!("{} does not answer as a Sentinel does", open.name))),
        },
    }
}

/// What each of them says, and its name; nothing if there are none.
pub(crate) fn ask_each(server: &Server) -> Vec<(String, Result<String, Error>)> {
    let Ok(QueueUrl { nodes, sentinels: Some(sentinels), .. }) = server.read_url() else { return Vec::new() };
    let ask_one = |node: &Node| ask(server, &sentinels, &mut server.open(&sentinels.access, node, PATIENCE)?);
    let name = |node: &Node| sentinels.access.name_of(node);
    nodes.iter().map(|node| (name(node), ask_one(node).map(|master| master.to_string()))).collect()
}

/// Looks, now and then, whether the master of a connection is still the one.
pub(super) struct Watch {
    /// When it is asked again.
    next: Instant,
    /// The one that answered last.
    open: Option<Open>,
    /// How many have failed to: the next one is asked then.
    failed: usize,
}

impl Watch {
    pub(super) fn new() -> Watch {
        Watch { next: Instant::now() + LOOK_EVERY, open: None, failed: 0 }
    }

    /// The master that there is now, if it is time to ask, a Sentinel answers, and it is another.
    pub(super) fn has_other(&mut self, server: &Server, master: &Node) -> Option<Node> {
        if Instant::now() < self.next {
            return None;
        }
        let answer = self.look(server);
        let pause = if answer.is_ok() { LOOK_EVERY } else { LOOK_SELDOM };
        self.next = Instant::now() + pause;
        if answer.is_err() {
            self.open = None;
            self.failed += 1;
        }
        answer.ok().filter(|now| now != master)
    }

    fn look(&mut self, server: &Server) -> Result<Node, Error> {
        let url = server.read_url()?;
        let Some(sentinels) = &url.sentinels else { return Err(Error::Unavailable("no Sentinels".to_string())) };
        if self.open.is_none() {
            let node = &url.nodes[self.failed % url.nodes.len()];
            self.open = Some(server.open(&sentinels.access, node, LOOK_PATIENCE)?);
        }
        ask(server, sentinels, self.open.as_mut().expect("just opened"))
    }
}
