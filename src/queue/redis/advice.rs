//! What an operator should know or change about a Redis that holds a queue: it
//! must keep what it was given. Read from INFO, which nearly every account may, and from CONFIG, which
//! who runs Redis for others often refuses: what cannot be seen is said, and not taken for missing.

use redis::Value;

use super::list::RedisList;
use crate::queue::Error;

/// What INFO and CONFIG say that matters to a queue; `None` where they do not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Server {
    /// `redis_version`, as three numbers.
    pub version: Option<(u32, u32, u32)>,
    /// Whether the append-only file is on.
    pub has_aof: Option<bool>,
    /// Whether snapshots are taken.
    pub has_snapshots: Option<bool>,
    /// `maxmemory` in bytes; 0 for no limit.
    pub maxmemory: Option<u64>,
    /// `maxmemory_policy`.
    pub maxmemory_policy: String,
    /// How many replicas follow it.
    pub replicas: Option<u64>,
    /// `min-replicas-to-write`.
    pub min_replicas: Option<u64>,
    /// Whether it is a node of a Cluster.
    pub is_cluster: bool,
}

/// Whether a restart of Redis keeps the queue, as far as can be seen; with what to say about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Persistence {
    /// It writes down each change.
    Kept,
    /// It does not, or seldom.
    Lacking(&'static str),
    /// It does not let us see.
    Unseen(&'static str),
}

impl Server {
    /// Asks a server.
    ///
    /// # Errors
    ///
    /// If the server cannot be asked at all.
    pub fn ask(queue: &mut RedisList) -> Result<Server, Error> {
        let info = match queue.link.query_if_let(&redis::cmd("INFO"))? {
            Some(Value::BulkString(text)) => String::from_utf8_lossy(&text).into_owned(),
            Some(Value::SimpleString(text) | Value::VerbatimString { text, .. }) => text,
            // Not permitted: `check` says so, a running agent goes without.
            _ => String::new(),
        };
        let field =
            |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        if field("loading") == Some("1") {
            // Until it has loaded, it says that it has no append-only file.
            return Err(Error::Unavailable("Redis is still loading its data".to_string()));
        }
        let version = field("redis_version").map(|version| {
            let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
            let mut number = || numbers.next().unwrap_or(0);
            (number(), number(), number())
        });
        let number = |name: &str| field(name).and_then(|number| number.parse().ok());
        let mut setting = |name: &str| -> Result<Option<String>, Error> {
            let answer = queue.link.query_if_let(redis::cmd("CONFIG").arg("GET").arg(name))?;
            let pairs: Vec<String> = answer.and_then(|pairs| redis::from_redis_value(pairs).ok()).unwrap_or_default();
            Ok(pairs.into_iter().nth(1))
        };
        Ok(Server {
            version,
            has_aof: field("aof_enabled").map(|is_on| is_on == "1"),
            has_snapshots: setting("save")?.map(|save| !save.is_empty()),
            maxmemory: number("maxmemory"),
            maxmemory_policy: field("maxmemory_policy").unwrap_or_default().to_string(),
            replicas: number("connected_slaves"),
            min_replicas: setting("min-replicas-to-write")?.and_then(|least| least.parse().ok()),
            is_cluster: field("cluster_enabled") == Some("1"),
        })
    }

    /// Whether a restart keeps the queue.
    pub fn persistence(&self) -> Persistence {
        match (self.has_aof, self.has_snapshots) {
            (Some(true), _) => Persistence::Kept,
            (Some(false), Some(true)) => Persistence::Lacking(
                "Redis keeps snapshots only: a crash of Redis loses what was queued since the last one; set 'appendonly yes'",
            ),
            (Some(false), Some(false)) => Persistence::Lacking(
                "Redis has no persistence: a restart of Redis loses the queue; set 'appendonly yes' (and 'appendfsync everysec' or 'always')",
            ),
            (Some(false), None) => Persistence::Unseen(
                "Redis has no append-only file, and CONFIG is refused: whether a restart keeps the queue by snapshots or replicas, ask who runs it",
            ),
            (None, _) => Persistence::Unseen(
                "INFO does not tell of persistence here: whether a restart keeps the queue, ask who runs this Redis",
            ),
        }
    }

    /// What to change or to know, a line each, with the setting that does it.
    pub fn advice(&self) -> Vec<String> {
        let mut lines = Vec::new();
        match self.persistence() {
            Persistence::Kept => {}
            Persistence::Lacking(line) | Persistence::Unseen(line) => lines.push(line.to_string()),
        }
        lines.extend(self.evicts());
        lines
    }

    /// What it says about memory, if that may cost messages.
    pub fn evicts(&self) -> Option<String> {
        let evicts = self.maxmemory.is_some_and(|most| most > 0)
            && !self.maxmemory_policy.is_empty()
            && self.maxmemory_policy != "noeviction";
        evicts.then(|| {
            format!(
                "Redis may evict queued messages when it is full (maxmemory-policy {}); set 'maxmemory-policy noeviction'",
                self.maxmemory_policy
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_not_said_to_be_missing() {
        for (has_aof, has_snapshots, says) in [
            (Some(true), None, None),
            (Some(false), Some(true), Some("snapshots only")),
            (Some(false), Some(false), Some("no persistence")),
            (Some(false), None, Some("CONFIG is refused")),
            (None, None, Some("does not tell")),
            (None, Some(false), Some("does not tell")),
        ] {
            let advice = Server { has_aof, has_snapshots, ..Server::default() }.advice();
            assert_eq!(advice.len(), usize::from(says.is_some()), "{advice:?}");
            assert!(says.is_none_or(|says| advice[0].contains(says)), "{advice:?}");
        }
    }
}
