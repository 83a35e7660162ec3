//! What Sentinels say of who is master. All of them are asked at once, each with its configuration
//! epoch, and the highest is believed, as they do among themselves: one that is cut off from the others
//! names the old master, which may be cut off with it and take itself for the master still. So they are
//! asked again, in turn, while a connection to a master is in use.

use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use redis::Value;

use super::errors::is_answer;
use super::server::{Open, PATIENCE, Server};
use crate::config::queue_url::{Node, QueueUrl, Sentinels};
use crate::queue::Error;

/// Once one has answered, so long the others are waited for, unless most of them agree.
const OTHERS_PATIENCE: Duration = Duration::from_millis(500);
/// So often one of them is asked whether the master is still the same.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// One that did not answer then is left alone for so long: the connection to the master waits for it.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// So long each step of such a look may take.
const LOOK_PATIENCE: Duration = Duration::from_millis(250);

/// What one of them says.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    /// Its name, for messages.
    pub(crate) by: String,
    /// Where the master is.
    pub(crate) master: Node,
    /// Of its configuration, if it may be asked; the higher is the newer.
    pub(crate) epoch: Option<u64>,
    addresses: Vec<SocketAddr>,
}

/// What all that answered in time say.
#[derive(Default)]
pub(super) struct Told {
    said: Vec<Said>,
    failed: Vec<Error>,
}

impl Told {
    /// Each that by the newest configuration may be master, the one that most name first, with what is said
    /// of it. There are several only while the Sentinels learn of a failover.
    pub(super) fn masters(&self) -> Vec<(&Said, String)> {
        let newest = self.said.iter().map(|said| said.epoch).max().flatten();
        let mut masters: Vec<(&Said, Vec<&str>)> = Vec::new();
        for said in self.said.iter().filter(|said| said.epoch == newest) {
            match masters.iter_mut().find(|(first, _)| first.master == said.master) {
                Some((_, by)) => by.push(&said.by),
                None => masters.push((said, vec![&said.by])),
            }
        }
        masters.sort_by_key(|(_, by)| std::cmp::Reverse(by.len()));
        let in_words = |said: &Said, by: &[&str]| {
            let says = if by.len() == 1 { "says" } else { "say" };
            format!("{} {says} that the master is at {}; ", by.join(", "), said.master)
        };
        masters.into_iter().map(|(said, by)| (said, in_words(said, &by))).collect()
    }

    /// Of all that have answered.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.said.iter().flat_map(|said| said.addresses.iter().copied()).collect()
    }

    /// Whether more than half of so many name the same.
    fn most_agree(&self, named: usize) -> bool {
        let n_naming = |master: &Node| self.said.iter().filter(|said| said.master == *master).count();
        self.said.iter().any(|said| n_naming(&said.master) * 2 > named)
    }
}

/// Asks all of them at once. Those that are silent hold up nothing but an answer that nobody gives.
///
/// # Errors
///
/// If none of them answers as a Sentinel that knows the master: what each said.
pub(super) fn ask_all(
    server: &Server,
    url: &QueueUrl,
    sentinels: &Sentinels,
    patience: Duration,
) -> Result<Told, Error> {
    let (tell, hear) = channel();
    for node in &url.nodes {
        begin(server, node, sentinels, patience, &tell);
    }
    drop(tell);
    let mut told = Told::default();
    // A look-up, a connection, a handshake and log-in, and two answers.
    let mut deadline = Instant::now() + patience * 4;
    while let Ok(answer) = hear.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        match answer {
            Ok(said) => {
                deadline = deadline.min(Instant::now() + OTHERS_PATIENCE);
                told.said.push(said);
            }
            Err(error) => told.failed.push(error),
        }
        if told.most_agree(url.nodes.len()) {
            break;
        }
    }
    if told.said.is_empty() { Err(none_answered(server, url, told.failed)) } else { Ok(told) }
}

/// On a thread of its own, which is left behind if it takes too long, and ends by itself.
fn begin(server: &Server, node: &Node, sentinels: &Sentinels, patience: Duration, tell: &Sender<Result<Said, Error>>) {
    let (server, node, sentinels, told) = (server.apart(), node.clone(), sentinels.clone(), tell.clone());
    let ask = move || {
        // Nobody listens any more if enough have answered.
        let _ = told.send(ask_one(&server, &sentinels, &node, patience));
    };
    // TLS keeps its buffers on the heap, and the system's resolver is on a thread of its own.
    if let Err(error) = Builder::new().name("ask-sentinel".to_string()).stack_size(256 << 10).spawn(ask) {
        let _ = tell.send(Err(Error::Unavailable(format!("no thread to ask a Sentinel: {error}"))));
    }
}

fn none_answered(server: &Server, url: &QueueUrl, failed: Vec<Error>) -> Error {
    let is_shut = failed.iter().any(|error| error.is_lasting());
    let mut why: Vec<String> = failed.iter().map(ToString::to_string).collect();
    let silent = url.nodes.len().saturating_sub(why.len());
    if silent > 0 {
        why.push(format!("{silent} did not answer"));
    }
    let why = match &why[..] {
        [why] if url.nodes.len() == 1 => why.clone(),
        _ => format!("no Sentinel of {} leads to the queue: {}", url.name(), why.join("; ")),
    };
    if is_shut { server.unless_served(why) } else { Error::Unavailable(why) }
}

fn ask_one(server: &Server, sentinels: &Sentinels, node: &Node, patience: Duration) -> Result<Said, Error> {
    let mut open = server.open(&sentinels.access, node, patience)?;
    // The epoch first, so that it is never newer than what it is said of.
    let epoch = ask_epoch(server, sentinels, &mut open)?;
    let master = ask_master(server, sentinels, &mut open)?;
    Ok(Said { by: open.name, master, epoch, addresses: open.addresses })
}

/// `None` if it may not be asked.
fn ask_epoch(server: &Server, sentinels: &Sentinels, open: &mut Open) -> Result<Option<u64>, Error> {
    let question = redis::cmd("SENTINEL").arg("master").arg(&sentinels.service).get_packed_command();
    match open.connection.ask(&question) {
        Ok(answer) => {
            let fields: Vec<String> = redis::from_redis_value(answer).unwrap_or_default();
            let epoch = fields.chunks(2).find(|pair| pair[0] == "config-epoch");
            Ok(epoch.and_then(|pair| pair.get(1)?.parse().ok()))
        }
        Err(error) if is_answer(&error) => Ok(None),
        Err(error) => Err(server.explain(&open.name, error)),
    }
}

fn ask_master(server: &Server, sentinels: &Sentinels, open: &mut Open) -> Result<Node, Error> {
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

/// What each of them says, however long it takes; nothing if there are none.
pub(crate) fn ask_each(server: &Server) -> Vec<Result<Said, Error>> {
    let Ok(QueueUrl { nodes, sentinels: Some(sentinels), .. }) = server.read_url() else { return Vec::new() };
    nodes.iter().map(|node| ask_one(server, &sentinels, node, PATIENCE)).collect()
}

/// Looks, now and then, whether the master of a connection is still the one.
pub(super) struct Watch {
    /// When the next is asked, and which.
    next: Instant,
    turn: usize,
    /// In the order of the URL.
    asked: Vec<Asked>,
}

#[derive(Default)]
struct Asked {
    open: Option<Open>,
    left_alone_until: Option<Instant>,
}

impl Watch {
    pub(super) fn new() -> Watch {
        Watch { next: Instant::now() + LOOK_EVERY, turn: 0, asked: Vec::new() }
    }

    /// The master that there is now, if it is time to ask, one of them names another than that of this
    /// connection, and so do, when all are asked, those with the newest configuration.
    pub(super) fn has_other(&mut self, server: &Server, master: &Open) -> Option<Node> {
        if Instant::now() < self.next {
            return None;
        }
        let url = server.read_url().ok()?;
        let sentinels = url.sentinels.as_ref()?;
        let named = self.look(&server.apart(), &url, sentinels);
        self.next = Instant::now() + LOOK_EVERY;
        if named.is_none_or(|named| named == master.node) {
            return None;
        }
        let told = ask_all(server, &url, sentinels, LOOK_PATIENCE).ok()?;
        let (newest, _) = told.masters().into_iter().next()?;
        // What only a few say who knew less than those who named this one is no news.
        let is_news = newest.epoch >= master.epoch || told.said.len() * 2 > url.nodes.len();
        (newest.master != master.node && is_news).then(|| newest.master.clone())
    }

    /// What the next one names that is not left alone.
    fn look(&mut self, server: &Server, url: &QueueUrl, sentinels: &Sentinels) -> Option<Node> {
        self.asked.resize_with(url.nodes.len(), Asked::default);
        let (now, n) = (Instant::now(), self.asked.len());
        let is_due = |at: &usize| self.asked[*at].left_alone_until.is_none_or(|until| until <= now);
        let at = (0..n).map(|further| (self.turn + further) % n).find(is_due)?;
        self.turn = at + 1;
        let asked = &mut self.asked[at];
        let mut ask = || {
            if asked.open.is_none() {
                asked.open = Some(server.open(&sentinels.access, &url.nodes[at], LOOK_PATIENCE)?);
            }
            ask_master(server, sentinels, asked.open.as_mut().expect("just opened"))
        };
        let answer = ask();
        asked.left_alone_until = answer.is_err().then(|| Instant::now() + LOOK_AGAIN);
        if answer.is_err() {
            asked.open = None;
        }
        answer.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_configuration_is_believed_and_then_the_most() {
        for (said, masters) in [
            (&[("a", Some(1)), ("b", Some(2)), ("a", Some(1))][..], &["b:1"][..]),
            (&[("a", Some(2)), ("b", Some(2)), ("b", Some(2))], &["b:1", "a:1"]),
            (&[("a", None), ("b", Some(0)), ("a", None)], &["b:1"]),
            (&[("a", None), ("b", None), ("b", None)], &["b:1", "a:1"]),
        ] {
            let one = |(host, epoch): &(&str, Option<u64>)| Said {
                by: "redis://s:1".to_string(),
                master: Node::Tcp((*host).to_string(), 1),
                epoch: *epoch,
                addresses: Vec::new(),
            };
            let told = Told { said: said.iter().map(one).collect(), failed: Vec::new() };
            let found: Vec<String> = told.masters().iter().map(|(said, _)| said.master.to_string()).collect();
            assert_eq!(found, masters, "{said:?}");
            assert!(told.masters()[0].1.contains("that the master is at b:1; "));
        }
    }

    #[test]
    fn more_than_half_of_all_that_are_named_need_not_wait_for_the_rest() {
        let said = |host: &str| Said {
            by: String::new(),
            master: Node::Tcp(host.to_string(), 1),
            epoch: None,
            addresses: Vec::new(),
        };
        for (hosts, named, agree) in [("a", 1, true), ("a", 2, false), ("ab", 3, false), ("aba", 3, true)] {
            let said = hosts.chars().map(|host| said(&host.to_string())).collect();
            assert_eq!(Told { said, failed: Vec::new() }.most_agree(named), agree, "{hosts} of {named}");
        }
    }
}
