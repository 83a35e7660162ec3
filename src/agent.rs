//! The whole: builds the channels, starts the threads, stops and joins them. Every thread's end is learned through
//! one channel, so that one that ends early stops the agent and does not leave it half alive. How a process goes on
//! until there is a reason to stop is `daemon`'s to know; what each part is told of the configuration, `options`'.

mod daemon;
mod options;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use log::{error, info, warn};

pub use self::daemon::run;
pub(crate) use self::options::{guard, longest_delay, poster_options};
use self::options::{limits, retry, settler_options};
use crate::config::Config;
use crate::delivery::proxy::Proxies;
use crate::delivery::{self, Poster};
use crate::dispatch::{Dispatch, Report};
use crate::guard::Guard;
use crate::queue::redis::list::RedisList;
use crate::queue::redis::names::Names;
use crate::queue::redis::server::Server;
use crate::queue::{self, LaneChange, Place, Queue, Settlement};
use crate::status::figures::Watcher;
use crate::text::{panic_message, spell};
use crate::{reader, serve, settler, status, worker};

/// Stack of a worker: an attempt needs a few dozen KiB, a TLS handshake some more.
const WORKER_STACK: usize = 512 << 10;
/// After the drain, giving back what is left may take so long: Redis answers in milliseconds or is away.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(1500);

/// An agent at work, in this process. It owns its threads: if it is dropped, all of them stop and what it holds is
/// given back, as with [`Agent::stop`] without any time for attempts to end; the thread of an attempt that is cut
/// off ends with it, after `--timeout` at the latest.
pub struct Agent {
    dispatch: Arc<Dispatch>,
    poster: Arc<Poster>,
    ends: Receiver<End>,
    /// Nothing but an agent whose start failed, or that has stopped, lacks a thread.
    reader: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
    settler: Option<JoinHandle<()>>,
    retry_first: Duration,
    ordered: bool,
    /// Answers until everything else has stopped.
    status: Vec<serve::Server>,
    /// Looks up the name of Redis.
    names: Names,
}

/// A thread that has ended, and how.
struct End {
    name: String,
    result: Result<(), queue::Error>,
}

impl Agent {
    /// Starts an agent on the Redis LIST that the configuration names.
    ///
    /// # Errors
    ///
    /// If an option cannot be used, or a thread cannot be started.
    pub fn start(config: &Config) -> Result<Agent, String> {
        let guard = guard(config);
        for line in guard.advice() {
            warn!("{line}");
        }
        // Nothing is looked up here: each connection says where it led, before anything is claimed on it.
        let server = Server::from(&config.redis).telling(guard.own().clone());
        let names = server.names.clone();
        let queue = RedisList::new(server, &config.redis.key(), config.pop, config.ordered);
        let (other, odd) = (queue.another(), queue.odd());
        // First, since a port that is taken is a reason not to start.
        let bound = status::listen(config)?;
        for status in &bound {
            guard.own().add(status.address(), "status server");
        }
        let mut agent = Agent::start_with(config, guard, odd, Box::new(queue), Box::new(other))?;
        agent.names = names;
        for status in bound {
            let watcher = match status.needs_figures() {
                true => {
                    let dispatch = agent.dispatch.clone();
                    Watcher::start(Server::from(&config.redis), &config.redis.key(), dispatch).map(Some)
                }
                false => Ok(None),
            };
            let watcher = watcher?;
            let status = status.serve(agent.dispatch.clone(), watcher, config)?;
            agent.status.push(status);
        }
        Ok(agent)
    }

    /// Starts an agent on any queue: one end of it for the reader, one for the settler.
    ///
    /// # Errors
    ///
    /// If an option cannot be used, or a thread cannot be started.
    pub fn start_on(
        config: &Config,
        reader_queue: Box<dyn Queue>,
        settler_queue: Box<dyn Queue>,
    ) -> Result<Agent, String> {
        let guard = guard(config);
        Agent::start_with(config, guard, Arc::default(), reader_queue, settler_queue)
    }

    fn start_with(
        config: &Config,
        guard: Guard,
        odd: Arc<AtomicU64>,
        mut reader_queue: Box<dyn Queue>,
        mut settler_queue: Box<dyn Queue>,
    ) -> Result<Agent, String> {
        delivery::raise_descriptor_limit();
        let options = poster_options(config, guard, Proxies::from_environment()?);
        if let Some(advice) = options.proxies.advice() {
            warn!("{advice}");
        }
        let poster = Arc::new(Poster::new(options)?);
        let seed = seed();
        let (mut dispatch, ready, reports) = Dispatch::new(limits(config), config.lease, seed);
        dispatch.metrics.repeated = poster.repeated();
        if let Some(trouble) = poster.roots().1 {
            warn!("{trouble}");
        }
        dispatch.metrics.odd = odd;
        let dispatch = Arc::new(dispatch);
        let retry = Arc::new(retry(config));
        // One message per thread.
        let (end_sender, ends) = bounded(config.workers + 2);

        // From here on an error drops it, and so stops what has been started.
        let mut agent = Agent {
            dispatch: dispatch.clone(),
            poster: poster.clone(),
            ends,
            reader: None,
            workers: Vec::with_capacity(config.workers),
            settler: None,
            retry_first: config.retry_first,
            ordered: config.ordered,
            status: Vec::new(),
            names: Names::default(),
        };
        agent.settler = {
            let (dispatch, options) = (dispatch.clone(), settler_options(config));
            Some(spawn("settler".to_string(), None, end_sender.clone(), move || {
                settler::run(&mut *settler_queue, &dispatch, &reports, &options)
            })?)
        };
        for n in 0..config.workers {
            let (worker_shared, ready, retry, poster) =
                (dispatch.clone(), ready.clone(), retry.clone(), poster.clone());
            let named = config.id_header.is_some();
            let worker = spawn(format!("worker-{}", n + 1), Some(WORKER_STACK), end_sender.clone(), move || {
                worker::run(
                    n,
                    &ready,
                    |claim, enter| worker::post(&poster, claim, named, enter),
                    &retry,
                    &worker_shared,
                );
                Ok(())
            })?;
            agent.workers.push(worker);
        }
        agent.reader = {
            let retry_first = config.retry_first;
            Some(spawn("reader".to_string(), None, end_sender, move || {
                reader::run(&mut *reader_queue, &dispatch, retry_first)
            })?)
        };
        Ok(agent)
    }

    /// Whom TLS trusts is read again, and who we are.
    fn renew_trust(&self) {
        match self.poster.renew_trust() {
            Ok(Some(roots)) => info!("whom TLS trusts has changed: {roots}"),
            Ok(None) => {}
            Err(why) => warn!("{why}; TLS goes on with what was read before"),
        }
    }

    /// Stops: claims no more, lets what is being attempted end within `drain` (a
    /// value on `hurry` cuts that short), gives back the rest.
    pub fn stop<T>(mut self, drain: Duration, hurry: &Receiver<T>) {
        self.stop_within(drain, hurry);
    }

    fn stop_within<T>(&mut self, drain: Duration, hurry: &Receiver<T>) {
        let Some(settler) = self.settler.take() else { return };
        let begun = Instant::now();
        let deadline = begun + drain;
        self.dispatch.stop();
        self.names.hurry();
        let unattempted = self.dispatch.close();
        let at_work = || self.reader.iter().chain(&self.workers).any(|thread| !thread.is_finished());
        let mut hurry = hurry.clone();
        while at_work() && Instant::now() < deadline {
            select! {
                recv(self.ends) -> end => self.note_end(end.ok()),
                recv(hurry) -> signal => if signal.is_ok() {
                    info!("stopping at once");
                    break;
                } else {
                    hurry = never();
                },
                default(Duration::from_millis(20)) => {}
            }
        }
        let cut_off = self.dispatch.attempts_under_way();
        for attempting in &cut_off {
            self.give_back(attempting.clone());
        }
        self.dispatch.report(Report::Leave);
        let leave_by = Instant::now() + LEAVE_TIMEOUT;
        while !settler.is_finished() && Instant::now() < leave_by {
            if let Ok(end) = self.ends.recv_timeout(Duration::from_millis(20)) {
                self.note_end(Some(end));
            }
        }
        if !settler.is_finished() {
            warn!("Redis does not answer: what is in flight is taken back when the lease has run out");
        }
        // Attempts that were cut off end by their own deadline; what idles within another program is closed now.
        self.poster.close_idle();
        for worker in self.workers.drain(..) {
            if worker.is_finished() {
                let _ = worker.join();
            }
        }
        info!(
            "stopped after {}; {} attempts were cut off, {unattempted} claims never attempted",
            spell(begun.elapsed()),
            cut_off.len()
        );
    }

    fn note_end(&self, end: Option<End>) {
        match end {
            Some(End { name, result: Err(why) }) if name == "settler" => {
                warn!("could not give back what is in flight ({why}): it is taken back when the lease has run out");
            }
            Some(End { name, result: Err(why) }) => error!("the {name} could not go on: {why}"),
            _ => {}
        }
    }

    /// What is cut off in mid-attempt may have arrived: twice is better than never,
    /// but not within a second (two copies so close broke a real handshake).
    fn give_back(&self, attempting: crate::dispatch::Attempting) {
        let crate::dispatch::Attempting { id, origin, mut history } = attempting;
        history.failed("cut off by a stop");
        let delay = self.retry_first;
        let place = if self.ordered { Place::Waiting(Some(delay)) } else { Place::Retry(delay) };
        let why = history.last_error.clone();
        let settlement = Settlement { id, origin: origin.clone(), place, history, kept: None };
        self.dispatch.report(Report::Settle(settlement));
        if self.ordered {
            self.dispatch.report(Report::Lane(LaneChange::Down {
                origin,
                after: delay,
                failures: 1,
                slowly: false,
                why,
            }));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop_within(Duration::ZERO, &never::<()>());
    }
}

fn spawn(
    name: String,
    stack: Option<usize>,
    ends: Sender<End>,
    body: impl FnOnce() -> Result<(), queue::Error> + Send + 'static,
) -> Result<JoinHandle<()>, String> {
    let mut builder = Builder::new().name(name.clone());
    if let Some(stack) = stack {
        builder = builder.stack_size(stack);
    }
    let thread = name.clone();
    builder
        .spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or_else(|panic| {
                Err(queue::Error::Fatal(format!("internal error: {}", panic_message(&*panic))))
            });
            let _ = ends.send(End { name, result });
        })
        .map_err(|error| {
            format!(
                "cannot start the thread '{thread}' ({error}): lower '--workers', or raise the limit of processes \
                 or of memory (ulimit -u, ulimit -v)"
            )
        })
}

/// Different for agents started in the same moment.
fn seed() -> u64 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    time.as_nanos() as u64 ^ (u64::from(std::process::id()) << 32)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::config::RedisAddress;
    use crate::memory::Memory;

    const SOON: Duration = Duration::from_secs(30);

    /// Answers as many requests with 200 as there are connections, each after `takes`.
    fn recipient(takes: Duration) -> (String, Receiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (arrived, arrivals) = crossbeam_channel::unbounded();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, arrived) = (stream.unwrap(), arrived.clone());
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).is_ok_and(|n| n > 0) {
                        let _ = arrived.send(());
                        thread::sleep(takes);
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                    }
                });
            }
        });
        (url, arrivals)
    }

    fn agent_on(queue: &Memory) -> Agent {
        let timeout = Duration::from_secs(3);
        let config =
            Config { workers: 2, timeout, ..Config::with_defaults(RedisAddress::new("redis://127.0.0.1:1").unwrap()) };
        Agent::start_on(&config, Box::new(queue.clone()), Box::new(queue.clone())).unwrap()
    }

    fn message(url: &str) -> Vec<u8> {
        format!(r#"{{"service": {{"url": "{url}"}}, "payload": "eA=="}}"#).into_bytes()
    }

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + SOON;
        while !holds() {
            assert!(Instant::now() < until, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_agent_delivers_from_any_queue_and_leaves_nothing_behind() {
        let queue = Memory::new();
        let (url, arrivals) = recipient(Duration::ZERO);
        queue.push((0..20).map(|_| message(&url)));
        queue.push(["neither JSON nor MessagePack"]);
        let agent = agent_on(&queue);
        for _ in 0..20 {
            arrivals.recv_timeout(SOON).unwrap();
        }
        eventually("all but the unreadable one are gone", || queue.state().messages.len() == 1);
        agent.stop(SOON, &never::<()>());
        let state = queue.state();
        assert_eq!((state.dead.len(), state.agents.len(), state.inflight.len()), (1, 0, 0));
    }

    #[test]
    fn an_agent_that_is_dropped_stops_its_threads_and_gives_back_what_it_holds() {
        let queue = Memory::new();
        let (url, arrivals) = recipient(SOON * 10);
        queue.push((0..5).map(|_| message(&url)));
        let agent = agent_on(&queue);
        arrivals.recv_timeout(SOON).unwrap();
        eventually("it has claimed all", || queue.state().inflight.len() == 5);
        let dispatch = Arc::downgrade(&agent.dispatch);
        drop(agent);
        let state = queue.state();
        assert_eq!((state.retry.len(), state.agents.len(), state.inflight.len()), (5, 0, 0));
        eventually("the last thread has let go of what they share", || dispatch.strong_count() == 0);
    }
}
