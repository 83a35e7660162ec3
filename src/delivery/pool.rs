//! Idle connections, kept by us: ureq's own pool (3.5) looks at every idle connection
//! at least twice per request under one lock, and gives them up only together with the
//! agent, while we must when file descriptors run out.
//!
//! It promises that taking and keeping cost the same however many are idle (but
//! for a logarithm), that both limits hold, and that connections are closed
//! outside of its lock. It leaves to the connector to look whether what it took
//! is still open.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ureq::http::Uri;
use ureq::http::uri::{Authority, Scheme};

/// Which requests a connection may serve: those to one origin, through a proxy too. One proxy reads
/// each request and sends it where it is to go; another (tinyproxy) reads the first and passes on what
/// follows to the same server.
#[derive(Clone, Debug)]
pub(super) struct Key {
    https: bool,
    authority: Authority,
}

// Authorities themselves compare and hash letter by letter, whatever their case:
// that is for who asks twice per message to save. Two spellings are two keys.
impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.https == other.https && self.authority.as_str() == other.authority.as_str()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.authority.as_str().hash(state);
    }
}

impl Key {
    pub(super) fn of(uri: &Uri) -> Option<Key> {
        Some(Key { https: uri.scheme() == Some(&Scheme::HTTPS), authority: uri.authority()?.clone() })
    }
}

/// The idle connections that lead to their endpoints, and those that lead to a proxy.
#[derive(Debug)]
pub(super) struct Pools<T> {
    pub(super) direct: Arc<Pool<T>>,
    pub(super) proxied: Arc<Pool<T>>,
}

impl<T> Pools<T> {
    pub(super) fn both(&self) -> [&Pool<T>; 2] {
        [&self.direct, &self.proxied]
    }
}

/// The idle connections of all endpoints.
#[derive(Debug)]
pub(super) struct Pool<T> {
    idle: Mutex<Idle<T>>,
    max: usize,
    max_per_key: usize,
    max_age: Duration,
}

#[derive(Debug)]
struct Idle<T> {
    /// By the order in which they became idle: the first is the oldest.
    by_age: BTreeMap<u64, Entry<T>>,
    /// The numbers above, newest at the back. May hold empty lists: one of
    /// them is about to be filled again.
    by_key: HashMap<Key, VecDeque<u64>>,
    next: u64,
}

#[derive(Debug)]
struct Entry<T> {
    key: Key,
    since: Instant,
    connection: T,
}

impl<T> Pool<T> {
    /// At most `max` connections in all and `max_per_key` of one key, each idle for
    /// at most `max_age`.
    pub(super) fn new(max: usize, max_per_key: usize, max_age: Duration) -> Pool<T> {
        Pool {
            idle: Mutex::new(Idle { by_age: BTreeMap::new(), by_key: HashMap::new(), next: 0 }),
            max,
            max_per_key,
            max_age,
        }
    }

    /// The connection that became idle last: it is the likeliest to be open still,
    /// and the others can grow old.
    pub(super) fn take(&self, key: &Key, now: Instant) -> Option<T> {
        let mut aged = Vec::new(); // closed after the lock is given back
        let mut idle = self.lock();
        idle.remove_aged(now, self.max_age, &mut aged);
        let number = idle.by_key.get_mut(key)?.pop_back()?;
        let entry = idle.by_age.remove(&number);
        drop(idle);
        Some(entry.expect("every number is in both maps").connection)
    }

    /// Keeps a connection; closes the oldest if there are now too many.
    pub(super) fn put(&self, key: Key, connection: T, now: Instant) {
        let mut over = Vec::new(); // closed after the lock is given back
        if self.max == 0 || self.max_per_key == 0 {
            return;
        }
        let mut idle = self.lock();
        idle.remove_aged(now, self.max_age, &mut over);
        let number = idle.next;
        idle.next += 1;
        let numbers = idle.by_key.entry(key.clone()).or_default();
        numbers.push_back(number);
        let oldest_of_key = (numbers.len() > self.max_per_key).then(|| numbers[0]);
        let entry = Entry { key, since: now, connection };
        idle.by_age.insert(number, entry);
        if let Some(oldest) = oldest_of_key {
            over.extend(idle.remove(oldest));
        }
        while idle.by_age.len() > self.max {
            let oldest = idle.by_age.first_key_value().map(|(number, _)| *number);
            over.extend(oldest.and_then(|oldest| idle.remove(oldest)));
        }
        if idle.by_key.len() > 2 * self.max {
            idle.by_key.retain(|_, numbers| !numbers.is_empty());
        }
        drop(idle);
    }

    /// Closes what has been idle for too long.
    pub(super) fn tidy(&self, now: Instant) {
        let mut aged = Vec::new();
        self.lock().remove_aged(now, self.max_age, &mut aged);
    }

    /// Closes them all, for want of file descriptors.
    pub(super) fn close_idle(&self) {
        let mut idle = self.lock();
        let closed = mem::take(&mut idle.by_age);
        idle.by_key.clear();
        drop(idle);
        drop(closed);
    }

    pub(super) fn len(&self) -> usize {
        self.lock().by_age.len()
    }

    fn lock(&self) -> MutexGuard<'_, Idle<T>> {
        self.idle.lock().expect("no code panics while it holds the idle connections")
    }
}

impl<T> Idle<T> {
    fn remove_aged(&mut self, now: Instant, max_age: Duration, aged: &mut Vec<T>) {
        while let Some((number, entry)) = self.by_age.first_key_value()
            && now.saturating_duration_since(entry.since) >= max_age
        {
            let number = *number;
            aged.extend(self.remove(number));
        }
    }

    fn remove(&mut self, number: u64) -> Option<T> {
        let entry = self.by_age.remove(&number)?;
        // What goes is the oldest of all or of its key, so the first of its list.
        if let Some(numbers) = self.by_key.get_mut(&entry.key) {
            numbers.pop_front();
        }
        Some(entry.connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(uri: &str) -> Key {
        Key::of(&uri.parse().unwrap()).unwrap()
    }

    fn pool(max: usize, max_per_key: usize) -> Pool<u32> {
        Pool::new(max, max_per_key, Duration::from_secs(15))
    }

    #[test]
    fn the_newest_of_the_same_key_is_taken() {
        let (pool, now) = (pool(10, 10), Instant::now());
        pool.put(key("http://a/x"), 1, now);
        pool.put(key("http://a/y"), 2, now);
        pool.put(key("https://a/"), 3, now);
        pool.put(key("http://b/"), 4, now);
        assert_eq!(pool.take(&key("http://a/z"), now), Some(2));
        assert_eq!(pool.take(&key("http://a/z"), now), Some(1));
        assert_eq!(pool.take(&key("http://a/z"), now), None);
        assert_eq!(pool.take(&key("https://a/"), now), Some(3));
        assert_eq!(pool.len(), 1);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let (pool, now) = (pool(3, 2), Instant::now());
        for n in 1..=3 {
            pool.put(key("http://a/"), n, now);
        }
        assert_eq!(pool.len(), 2);
        pool.put(key("http://b/"), 4, now);
        pool.put(key("http://c/"), 5, now);
        assert_eq!(pool.len(), 3);
        assert_eq!(pool.take(&key("http://a/"), now), Some(3));
        assert_eq!(pool.take(&key("http://a/"), now), None);
        assert_eq!(pool.take(&key("http://b/"), now), Some(4));
        assert_eq!(pool.take(&key("http://c/"), now), Some(5));
    }

    #[test]
    fn what_is_too_old_goes() {
        let (pool, now) = (pool(10, 10), Instant::now());
        let second = Duration::from_secs(1);
        pool.put(key("http://a/"), 1, now);
        pool.put(key("http://a/"), 2, now + 10 * second);
        assert_eq!(pool.take(&key("http://b/"), now + 15 * second), None);
        assert_eq!(pool.len(), 1);
        pool.tidy(now + 24 * second);
        assert_eq!(pool.len(), 1);
        pool.tidy(now + 25 * second);
        assert_eq!(pool.len(), 0);
        assert_eq!(pool.take(&key("http://a/"), now + 25 * second), None);
    }

    #[test]
    fn all_can_be_closed_and_none_kept() {
        let (some, now) = (pool(10, 10), Instant::now());
        some.put(key("http://a/"), 1, now);
        some.close_idle();
        assert_eq!(some.len(), 0);
        assert_eq!(some.take(&key("http://a/"), now), None);
        let none = pool(0, 10);
        none.put(key("http://a/"), 1, now);
        assert_eq!(none.len(), 0);
    }

    #[test]
    fn memory_stays_bounded_with_ever_new_endpoints() {
        let (pool, now) = (pool(8, 4), Instant::now());
        for n in 0..998 {
            pool.put(key(&format!("http://host{n}/")), n, now);
            if n % 3 == 0 {
                pool.take(&key(&format!("http://host{n}/")), now);
            }
        }
        let idle = pool.lock();
        assert_eq!(idle.by_age.len(), 8);
        assert!(idle.by_key.len() <= 17, "{}", idle.by_key.len());
    }
}
