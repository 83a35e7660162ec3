//! Names and the addresses that they were found to have, remembered for a while.
//!
//! It promises one look-up per name at a time, a bounded number of them and of threads, of which names with
//! silent name servers cannot take all; that no one waits longer than the time allowed, nor twice for the
//! same silence; that an old answer serves while a new one cannot be had; and bounded memory. It leaves to
//! the resolver whether the addresses may be delivered to.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::delivery::trouble::{Trouble, what_we_lack};
use crate::policy::Failure;

/// How many of an answer's addresses are kept, and judged: it is a stranger's,
/// and may hold thousands.
const KEPT_ADDRESSES: usize = 64;

/// Names remembered at most. With all their addresses, and the longest names,
/// that comes to 6 MB.
const MAX_NAMES: usize = 4096;

/// Look-ups under way at most. The system's resolver gives silent name servers
/// up to minutes, longer than any attempt waits, so that threads may pile up; a
/// thread that waits costs some 10 kB.
const MAX_LOOKUPS: usize = 512;

/// How many of them are for names that had an address before.
const RESERVED_LOOKUPS: usize = 128;

/// How many of the others are for names of which it is known that the name servers
/// say anything about them. When no look-up is free for a name, they are asked
/// whether they do, which takes no thread.
const LOOKUPS_OF_ANSWERED: usize = 128;

/// The look-ups of one domain leave this many times as many free for the others.
/// So a domain whose name servers are silent takes a ninth, however many names it
/// has; ten such domains leave a third; and one that has no look-up under way
/// gets its first while there is any.
const LEAVES_FREE: usize = 8;

/// How long a look-up may be under way before an earlier good answer serves in its place.
const PATIENCE: Duration = Duration::from_secs(1);

/// A look-up that failed for want of an answer is not repeated for as long as it
/// took, up to this: a silent name server has a name's look-up at most half of the time.
const MAX_REST: Duration = Duration::from_secs(60);

/// How long answers are used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ages {
    /// A good answer, without asking again.
    good: Duration,
    /// A failure, without asking again.
    bad: Duration,
    /// A good answer while asking again fails.
    stale: Duration,
}

pub(super) const AGES: Ages =
    Ages { good: Duration::from_secs(30), bad: Duration::from_secs(1), stale: Duration::from_secs(300) };

pub(super) type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;
/// Whether a name server says anything about the name within a time.
pub(super) type Probe = dyn Fn(&str, Duration) -> io::Result<bool> + Send + Sync;

/// What all workers know of names, and whom they ask.
pub(super) struct Shared {
    names: Mutex<Names>,
    /// A look-up has ended.
    ended: Condvar,
    lookup: Box<Lookup>,
    probe: Box<Probe>,
    ages: Ages,
}

#[derive(Default)]
struct Names {
    by_name: HashMap<Box<str>, Name>,
    n_lookups: usize,
    /// How many of them are for names of a domain.
    by_domain: HashMap<Box<str>, usize>,
}

#[derive(Default)]
struct Name {
    looking_since: Option<Instant>,
    good: Option<(Arc<[IpAddr]>, Instant)>,
    bad: Option<Bad>,
}

struct Bad {
    trouble: Trouble,
    at: Instant,
    /// Until then it is not asked for again.
    until: Instant,
}

impl Shared {
    /// Asks `lookup` for names, and `probe` whether their name servers say anything.
    pub(super) fn new(ages: Ages, lookup: Box<Lookup>, probe: Box<Probe>) -> Shared {
        Shared { names: Mutex::default(), ended: Condvar::new(), lookup, probe, ages }
    }

    /// Forgets what is too old to serve, so that names met once do not stay in memory.
    pub(super) fn tidy(&self) {
        self.lock().tidy(self.ages.stale);
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().expect("no code panics while it holds the names")
    }
}

/// From memory, or from a look-up of ours or of another worker's.
pub(super) fn find(shared: &Arc<Shared>, host: &str, within: Duration) -> Result<Arc<[IpAddr]>, Trouble> {
    let ages = shared.ages;
    let mut names = shared.lock();
    if let Some((ips, at)) = names.by_name.get(host).and_then(|name| name.good.as_ref())
        && at.elapsed() < ages.good
    {
        return Ok(ips.clone());
    }

    let started = Instant::now();
    // What the name servers were asked without a look-up: whether they say anything about it.
    let mut probed = None;
    loop {
        let now = Instant::now();
        let waited = now - started;
        let known = names.by_name.get(host);
        let fresh = |at: Instant, age: Duration| now.saturating_duration_since(at) < age;
        let mut stale = None;
        let mut patience = within.saturating_sub(waited);
        let mut looking = false;
        if let Some(name) = known {
            looking = name.looking_since.is_some();
            if let Some((ips, at)) = &name.good {
                if *at >= started || fresh(*at, ages.good) {
                    return Ok(ips.clone());
                }
                stale = fresh(*at, ages.stale).then(|| ips.clone());
            }
            if let (Some(bad), false) = (&name.bad, looking)
                && (bad.at >= started || now < bad.until)
            {
                return stale.ok_or_else(|| bad.trouble.clone());
            }
            if let Some(since) = name.looking_since {
                // What has not been answered for that long is hardly answered now: no worker waits for it twice.
                let allowed = if stale.is_some() { PATIENCE.min(within) } else { within };
                patience = patience.min(allowed.saturating_sub(now.saturating_duration_since(since)));
            }
        }
        if patience.is_zero() {
            return stale.ok_or_else(|| match looking {
                true => no_answer(host),
                false => {
                    let words = "could not be looked up in time: too many names wait for an answer";
                    Trouble::failed(Failure::Resolve, format!("host {host} {words}"))
                }
            });
        }
        if !looking && names.may_look_up(host, probed == Some(true)) {
            match begin(shared, &mut names, host) {
                Ok(()) => continue,
                Err(trouble) => return stale.ok_or(trouble),
            }
        }
        if let (Some(stale), false) = (&stale, looking) {
            return Ok(stale.clone());
        }
        if !looking && probed.is_none() {
            drop(names);
            let answered = (shared.probe)(host, patience);
            names = shared.lock();
            if let Ok(false) = answered {
                let (trouble, now) = (no_answer(host), Instant::now());
                let rest = now.saturating_duration_since(started).clamp(ages.bad, MAX_REST);
                let bad = Bad { trouble: trouble.clone(), at: now, until: now + rest };
                names.make_room(ages);
                names.by_name.entry(host.into()).or_default().bad = Some(bad);
                return Err(trouble);
            }
            probed = Some(answered.is_ok());
            continue;
        }
        names = shared.ended.wait_timeout(names, patience).expect("no code panics while it holds the names").0;
    }
}

fn begin(shared: &Arc<Shared>, names: &mut Names, host: &str) -> Result<(), Trouble> {
    names.make_room(shared.ages);
    let for_thread = shared.clone();
    let name: Box<str> = host.into();
    std::thread::Builder::new()
        .name("look-up".to_string())
        // The system's resolver keeps its packets and host files on the stack.
        .stack_size(256 * 1024)
        .spawn(move || look_up(&for_thread, name))
        .map_err(|error| Trouble::lacking(format!("no thread to look up {host}: {error}")))?;
    names.n_lookups += 1;
    *names.by_domain.entry(domain(host).into()).or_default() += 1;
    names.by_name.entry(host.into()).or_default().looking_since = Some(Instant::now());
    Ok(())
}

fn look_up(shared: &Shared, host: Box<str>) {
    // A panic must not leave the name looked up for ever.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (shared.lookup)(&host)))
        .unwrap_or_else(|_| Err(io::Error::other("the look-up panicked")));
    let mut names = shared.lock();
    names.end_lookup(domain(&host));
    let name = names.by_name.entry(host.clone()).or_default();
    let now = Instant::now();
    let took = name.looking_since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
    let trouble = match result {
        Ok(ips) if !ips.is_empty() => {
            name.good = Some((ips.into(), now));
            name.bad = None;
            None
        }
        Ok(_) => Some(no_address(&host, "")),
        Err(error) => Some(spell_error(&host, &error)),
    };
    if let Some(trouble) = trouble {
        let rest = if took < PATIENCE { Duration::ZERO } else { took.min(MAX_REST) };
        name.bad = Some(Bad { trouble, at: now, until: now + rest.max(shared.ages.bad) });
    }
    drop(names);
    shared.ended.notify_all();
}

fn spell_error(host: &str, error: &io::Error) -> Trouble {
    match what_we_lack(error) {
        Some(lack) => Trouble::lacking(lack),
        None => no_address(host, &error.to_string()),
    }
}

fn no_answer(host: &str) -> Trouble {
    Trouble::failed(Failure::Resolve, format!("no answer about host {host} from the name server in time"))
}

fn no_address(host: &str, detail: &str) -> Trouble {
    let detail = detail.strip_prefix("failed to lookup address information: ").unwrap_or(detail);
    let words = if detail.is_empty() {
        format!("host {host} has no address")
    } else {
        format!("host {host} has no address: {detail}")
    };
    Trouble::failed(Failure::Resolve, words)
}

pub(super) fn ask_system(host: &str) -> io::Result<Vec<IpAddr>> {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Ok((host, 0).to_socket_addrs()?.map(|addr| addr.ip()).take(KEPT_ADDRESSES).collect())
}

/// The part of a name that one owner has, most likely: the last two labels, three
/// under a country's own order (`example.co.uk`).
fn domain(host: &str) -> &str {
    let mut dots = host.trim_end_matches('.').rmatch_indices('.').map(|(at, _)| at);
    let (last, second, third) = (dots.next(), dots.next(), dots.next());
    let (Some(last), Some(second)) = (last, second) else { return host };
    let is_order = host.trim_end_matches('.').len() - last == 3 && last - second <= 4;
    let start = if is_order { third.map_or(0, |at| at + 1) } else { second + 1 };
    &host[start..]
}

impl Names {
    /// Whether a look-up of this name may begin now: what is silent leaves room for the others.
    fn may_look_up(&self, host: &str, is_answered: bool) -> bool {
        let resolved_before = self.by_name.get(host).is_some_and(|name| name.good.is_some());
        let most = match (resolved_before, is_answered) {
            (true, _) => MAX_LOOKUPS,
            (false, true) => MAX_LOOKUPS - RESERVED_LOOKUPS,
            (false, false) => MAX_LOOKUPS - RESERVED_LOOKUPS - LOOKUPS_OF_ANSWERED,
        };
        let n_of_domain = self.by_domain.get(domain(host)).copied().unwrap_or(0);
        n_of_domain * LEAVES_FREE < most.saturating_sub(self.n_lookups)
    }

    fn end_lookup(&mut self, domain: &str) {
        self.n_lookups -= 1;
        let n_left = self.by_domain.get_mut(domain).map(|n| {
            *n -= 1;
            *n
        });
        if n_left == Some(0) {
            self.by_domain.remove(domain);
        }
    }

    /// Forgets good answers older than `age`, and failures that are over.
    fn tidy(&mut self, age: Duration) {
        let now = Instant::now();
        self.by_name.retain(|_, name| {
            name.looking_since.is_some()
                || name.good.as_ref().is_some_and(|(_, at)| now.saturating_duration_since(*at) < age)
                || name.bad.as_ref().is_some_and(|bad| now < bad.until)
        });
        if self.by_name.capacity() > 4 * self.by_name.len() {
            self.by_name.shrink_to(2 * self.by_name.len());
        }
    }

    fn make_room(&mut self, ages: Ages) {
        if self.by_name.len() < MAX_NAMES {
            return;
        }
        self.tidy(ages.stale);
        // Those that came to nothing go first, then what would be asked for again anyway.
        if self.by_name.len() >= MAX_NAMES {
            self.by_name.retain(|_, name| name.looking_since.is_some() || name.good.is_some());
        }
        if self.by_name.len() >= MAX_NAMES {
            self.tidy(ages.good);
        }
        // Thousands of names in half a minute: any may go, and some at once, for each look costs.
        if self.by_name.len() >= MAX_NAMES {
            let mut n_over = MAX_NAMES / 8;
            self.by_name.retain(|_, name| {
                let goes = n_over > 0 && name.looking_since.is_none();
                n_over -= usize::from(goes);
                !goes
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Attempt;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(20);

    /// Whose probes cannot be made.
    fn with(ages: Ages, lookup: Box<Lookup>) -> Arc<Shared> {
        Arc::new(Shared::new(ages, lookup, Box::new(|_, _| Err(io::ErrorKind::NetworkUnreachable.into()))))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn failure_of(trouble: Trouble) -> (Failure, String) {
        match trouble {
            Trouble::Attempt(Attempt::Failed { failure, error }) => (failure, error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_good_answer_is_remembered() {
        let n = Arc::new(AtomicUsize::new(0));
        let counter = n.clone();
        let lookup = move |_: &str| {
            counter.fetch_add(1, SeqCst);
            Ok(vec![ip("192.0.2.1")])
        };
        let shared = with(AGES, Box::new(lookup));
        for _ in 0..10 {
            find(&shared, "a.example", LONG).unwrap();
        }
        assert_eq!(n.load(SeqCst), 1);
    }

    #[test]
    fn many_who_miss_together_cost_one_lookup() {
        let n = Arc::new(AtomicUsize::new(0));
        let (go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let counter = n.clone();
        let lookup = move |_: &str| {
            counter.fetch_add(1, SeqCst);
            let _ = wait.lock().unwrap().recv();
            Ok(vec![ip("192.0.2.1")])
        };
        let shared = with(AGES, Box::new(lookup));
        std::thread::scope(|scope| {
            let askers: Vec<_> = (0..16).map(|_| scope.spawn(|| find(&shared, "a.example", LONG))).collect();
            drop(go);
            for asker in askers {
                assert!(asker.join().unwrap().is_ok());
            }
        });
        assert_eq!(n.load(SeqCst), 1);
    }

    #[test]
    fn a_lookup_that_hangs_costs_the_time_allowed_and_no_second_thread() {
        let n = Arc::new(AtomicUsize::new(0));
        let (hold, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let counter = n.clone();
        let lookup = move |_: &str| {
            counter.fetch_add(1, SeqCst);
            let _ = wait.lock().unwrap().recv();
            Ok(vec![ip("192.0.2.1")])
        };
        let shared = with(AGES, Box::new(lookup));
        for _ in 0..3 {
            let started = Instant::now();
            let trouble = find(&shared, "slow.example", Duration::from_millis(30)).unwrap_err();
            let (failure, error) = failure_of(trouble);
            assert_eq!(failure, Failure::Resolve);
            assert!(error.contains("slow.example"), "{error}");
            assert!(started.elapsed() < Duration::from_secs(5));
        }
        drop(hold);
        assert!(find(&shared, "slow.example", LONG).is_ok());
        assert_eq!(n.load(SeqCst), 1);
    }

    #[test]
    fn a_failure_is_remembered_for_a_moment_and_an_old_answer_serves_meanwhile() {
        let n = Arc::new(AtomicUsize::new(0));
        let counter = n.clone();
        let lookup = move |host: &str| match (host, counter.fetch_add(1, SeqCst)) {
            ("a.example", 0) => Ok(vec![ip("192.0.2.1")]),
            _ => Err(io::Error::other("failed to lookup address information: Name or service not known")),
        };
        let ages = Ages { good: Duration::ZERO, bad: LONG, stale: LONG };
        let shared = with(ages, Box::new(lookup));
        // With an age of nothing the first answer is stale at once, and the second look-up fails.
        let first = find(&shared, "a.example", LONG).unwrap();
        assert_eq!(&*first, [ip("192.0.2.1")]);
        assert_eq!(find(&shared, "a.example", LONG).unwrap(), first);
        assert_eq!(n.load(SeqCst), 2);
        for _ in 0..3 {
            let (failure, error) = failure_of(find(&shared, "b.example", LONG).unwrap_err());
            assert_eq!(failure, Failure::Resolve);
            assert_eq!(error, "host b.example has no address: Name or service not known");
        }
        assert_eq!(n.load(SeqCst), 3);
    }

    #[test]
    fn what_the_machine_lacks_is_not_the_hosts_fault() {
        let lookup = |_: &str| Err(io::Error::from_raw_os_error(libc::EMFILE));
        let shared = with(AGES, Box::new(lookup));
        let result = find(&shared, "a.example", LONG);
        assert!(matches!(result, Err(Trouble::Attempt(Attempt::Lacking { .. }))), "{result:?}");
    }

    #[test]
    fn memory_for_names_is_bounded() {
        let shared = with(AGES, Box::new(|_| Ok(vec![ip("192.0.2.1")])));
        for n in 0..MAX_NAMES + 50 {
            find(&shared, &format!("{n}.example"), LONG).unwrap();
        }
        let names = shared.lock();
        assert!(names.by_name.len() <= MAX_NAMES, "{}", names.by_name.len());
        assert_eq!(names.n_lookups, 0);
    }

    #[test]
    fn a_domain_is_what_one_owner_has() {
        for (host, expected) in [
            ("localhost", "localhost"),
            ("example.com", "example.com"),
            ("a.b.example.com", "example.com"),
            ("a.b.example.com.", "example.com."),
            ("a.example.co.uk", "example.co.uk"),
            ("example.co.uk", "example.co.uk"),
            ("co.uk", "co.uk"),
            ("a.example.de", "example.de"),
            ("a.b.test", "b.test"),
            ("", ""),
            (".", "."),
            ("..", ".."),
        ] {
            assert_eq!(domain(host), expected, "{host}");
        }
    }

    /// Names whose look-ups of names with "silent" in them hang until the sender is dropped.
    fn half_silent(ages: Ages) -> (Arc<Shared>, mpsc::Sender<()>) {
        let (hold, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let lookup = move |host: &str| {
            if host.contains("silent") {
                let _ = wait.lock().unwrap().recv();
                return Err(io::Error::other("no answer"));
            }
            Ok(vec![ip("192.0.2.1")])
        };
        (with(ages, Box::new(lookup)), hold)
    }

    #[test]
    fn silent_domains_leave_look_ups_for_all_others() {
        let (shared, hold) = half_silent(AGES);
        let moment = Duration::from_millis(1);
        for domain in 0..10 {
            for n in 0..200 {
                let _ = find(&shared, &format!("{n}.silent-{domain}.example"), moment);
            }
        }
        // Each left eight ninths of what it found: a third of 256.
        let n_lookups = shared.lock().n_lookups;
        assert!((165..=185).contains(&n_lookups), "{n_lookups}");
        for n in 0..200 {
            find(&shared, &format!("{n}.good.example"), LONG).unwrap();
        }
        drop(hold);
    }

    #[test]
    fn a_name_that_resolved_before_is_served_although_no_look_up_is_free() {
        let ages = Ages { good: Duration::ZERO, bad: LONG, stale: LONG };
        let (shared, hold) = half_silent(ages);
        for n in 0..MAX_LOOKUPS {
            find(&shared, &format!("proven.example-{n}.example"), LONG).unwrap();
        }
        let take = |most: usize| {
            let mut n = 0;
            while shared.lock().n_lookups < most {
                let _ = find(&shared, &format!("silent.domain-{n}.test"), Duration::from_millis(1));
                n += 1;
                assert!(n < 2 * MAX_LOOKUPS);
            }
        };
        take(MAX_LOOKUPS - RESERVED_LOOKUPS - LOOKUPS_OF_ANSWERED);
        // Newcomers have nothing left, names that resolved before have their own.
        let (failure, error) = failure_of(find(&shared, "new.example", Duration::from_millis(1)).unwrap_err());
        assert_eq!(failure, Failure::Resolve);
        assert!(error.contains("new.example could not be looked up in time"), "{error}");
        let asked_at = || shared.lock().by_name["proven.example-0.example"].good.as_ref().unwrap().1;
        let before = asked_at();
        find(&shared, "proven.example-0.example", LONG).unwrap();
        assert!(asked_at() > before);
        // With none left at all, what is known serves at once.
        shared.lock().n_lookups = MAX_LOOKUPS;
        let before = asked_at();
        find(&shared, "proven.example-0.example", LONG).unwrap();
        assert_eq!(asked_at(), before);
        shared.lock().n_lookups = MAX_LOOKUPS - RESERVED_LOOKUPS - LOOKUPS_OF_ANSWERED;
        drop(hold);
    }

    #[test]
    fn with_no_look_up_free_a_name_gets_one_if_the_name_servers_say_anything_about_it() {
        let lookup = |_: &str| Ok(vec![ip("192.0.2.1")]);
        let n_probes = Arc::new(AtomicUsize::new(0));
        let counter = n_probes.clone();
        let probe = move |host: &str, _: Duration| {
            counter.fetch_add(1, SeqCst);
            Ok(!host.contains("silent"))
        };
        let shared = Arc::new(Shared::new(AGES, Box::new(lookup), Box::new(probe)));
        find(&shared, "early.example", LONG).unwrap();
        assert_eq!(n_probes.load(SeqCst), 0);
        shared.lock().n_lookups = MAX_LOOKUPS - RESERVED_LOOKUPS - LOOKUPS_OF_ANSWERED;
        find(&shared, "good.example", LONG).unwrap();
        assert_eq!(n_probes.load(SeqCst), 1);
        // Silence is remembered, as that of a look-up is.
        for _ in 0..3 {
            let (failure, error) = failure_of(find(&shared, "silent.example", LONG).unwrap_err());
            assert_eq!(failure, Failure::Resolve);
            assert_eq!(error, "no answer about host silent.example from the name server in time");
        }
        assert_eq!(n_probes.load(SeqCst), 2);
    }

    #[test]
    fn what_hung_lately_is_not_waited_for_again() {
        let (shared, hold) = half_silent(AGES);
        let within = Duration::from_millis(20);
        find(&shared, "silent.example", within).unwrap_err();
        // Under way for longer than this one may wait: it does not wait at all.
        let started = Instant::now();
        std::thread::sleep(within);
        find(&shared, "silent.example", within).unwrap_err();
        // A look-up that took 1.2 s is over, and not repeated for as long.
        std::thread::sleep(Duration::from_millis(1200).saturating_sub(started.elapsed()));
        drop(hold);
        let (_, error) = failure_of(find(&shared, "silent.example", LONG).unwrap_err());
        assert_eq!(error, "host silent.example has no address: no answer");
        let names = shared.lock();
        let bad = names.by_name["silent.example"].bad.as_ref().unwrap();
        assert!(bad.until - bad.at >= Duration::from_millis(1200), "{:?}", bad.until - bad.at);
        assert_eq!((names.n_lookups, names.by_domain.len()), (0, 0));
    }

    #[test]
    fn names_too_old_to_serve_are_forgotten() {
        let ages = Ages { stale: Duration::ZERO, ..AGES };
        let shared = with(ages, Box::new(|_| Ok(vec![ip("192.0.2.1")])));
        for n in 0..500 {
            find(&shared, &format!("{n}.example"), LONG).unwrap();
        }
        shared.tidy();
        let names = shared.lock();
        assert_eq!(names.by_name.len(), 0);
        assert!(names.by_name.capacity() < 500, "{}", names.by_name.capacity());
    }
}
