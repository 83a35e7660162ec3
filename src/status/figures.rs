//! What only Redis knows of the queue, for the status server: asked on a connection of its own,
//! by a thread of its own, at most once in `FRESH`, and only when somebody wants to see it. So a
//! Redis that hangs holds up this thread and nobody else, and an unwatched agent asks nothing.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use log::debug;
use redis::Value;

use crate::queue::Error;
use crate::queue::redis::connection::{Arguments, Link, Move};
use crate::queue::redis::list::Keys;
use crate::queue::redis::server::Server;

/// Figures as young as this are not asked for again.
const FRESH: Duration = Duration::from_secs(2);
/// Who wants figures waits so long for them; Redis needs a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);
/// Lanes and retries among which the oldest message is looked for: well under a millisecond of Redis.
const LANES_LOOKED_AT: usize = 200;
const RETRIES_LOOKED_AT: usize = 500;

/// How many messages are where, and what else only Redis knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// In the LIST that ACA-Py pushes to.
    pub queue: u64,
    /// Claimed by some agent.
    pub in_flight: u64,
    /// Waiting for their lane.
    pub waiting: u64,
    /// On the retry schedule.
    pub retry: u64,
    /// Dead letters.
    pub dead: u64,
    /// Lanes that have messages waiting.
    pub waiting_lanes: u64,
    /// Agents whose lease has not run out.
    pub agents: u64,
    /// Since the oldest message that is in flight, waiting or on the retry schedule was first
    /// claimed; `None` if there is none. What is still in the LIST carries no time.
    pub oldest: Option<Duration>,
}

/// Asks for figures when they are wanted. Dropped, its thread ends.
pub struct Watcher {
    shared: Arc<Shared>,
    /// `None` once dropped: the thread ends when it cannot be woken any more.
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    look: Mutex<Look>,
    changed: Condvar,
}

#[derive(Default)]
struct Look {
    /// When the last answer or failure came.
    at: Option<Instant>,
    /// What it was.
    figures: Option<Figures>,
}

impl Watcher {
    /// Nothing is asked before somebody wants it.
    ///
    /// # Errors
    ///
    /// If its thread cannot be started.
    pub fn start(server: Server, queue: &str) -> Result<Watcher, String> {
        let shared = Arc::new(Shared { look: Mutex::new(Look::default()), changed: Condvar::new() });
        // One: whoever comes while a look is asked for waits for that look.
        let (wake, woken) = bounded(1);
        let (keys, asked) = (Keys::new(queue), shared.clone());
        let thread = Builder::new()
            .name("status-redis".to_owned())
            .stack_size(512 << 10) // as a worker's: a TLS handshake is what needs most
            .spawn(move || look_when_woken(Link::new(server, keys.queue()), &keys, &woken, &asked))
            .map_err(|error| format!("cannot start the thread 'status-redis' ({error})"))?;
        Ok(Watcher { shared, wake: Some(wake), thread: Some(thread) })
    }

    /// Figures at most `FRESH` old; `None` if Redis does not give any within `PATIENCE`.
    pub fn figures(&self) -> Option<Figures> {
        let begun = Instant::now();
        let mut look = self.shared.lock();
        loop {
            if look.at.is_some_and(|at| at.elapsed() < FRESH) {
                return look.figures.clone();
            }
            let left = PATIENCE.checked_sub(begun.elapsed())?;
            // Full means that it is asked for already.
            let _ = self.wake.as_ref()?.try_send(());
            let waited = self.shared.changed.wait_timeout(look, left);
            look = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.wake = None;
        // In the midst of a look it ends when Redis answers or its timeout comes: not waited for.
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Look> {
        self.look.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn look_when_woken(mut link: Link, keys: &Keys, woken: &Receiver<()>, shared: &Shared) {
    let script = Move::new(include_str!("../queue/redis/scripts/head.lua"), include_str!("figures.lua"));
    for () in woken {
        if shared.lock().at.is_some_and(|at| at.elapsed() < FRESH) {
            continue;
        }
        let figures = ask(&mut link, &script, keys);
        if let Err(error) = &figures {
            debug!("asking Redis for figures: {error}");
        }
        *shared.lock() = Look { at: Some(Instant::now()), figures: figures.ok() };
        shared.changed.notify_all();
    }
}

fn ask(link: &mut Link, script: &Move, keys: &Keys) -> Result<Figures, Error> {
    let mut arguments = Arguments::default();
    arguments.text(LANES_LOOKED_AT).text(RETRIES_LOOKED_AT);
    let answer = link.run(script, keys.all(), &arguments)?;
    let numbers: Vec<i64> = match answer {
        Value::Array(values) => values
            .into_iter()
            .filter_map(|value| match value {
                Value::Int(number) => Some(number),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    let [queue, in_flight, waiting, retry, dead, waiting_lanes, agents, oldest] = numbers[..] else {
        return Err(Error::Unavailable("an answer of Redis is not what the figures are".to_string()));
    };
    let count = |number: i64| number.max(0) as u64;
    Ok(Figures {
        queue: count(queue),
        in_flight: count(in_flight),
        waiting: count(waiting),
        retry: count(retry),
        dead: count(dead),
        waiting_lanes: count(waiting_lanes),
        agents: count(agents),
        oldest: u64::try_from(oldest).ok().map(Duration::from_millis),
    })
}
