//! What an operator should know or change about a Redis that holds a queue: it
//! must keep what it was given. Read from INFO, which nearly every account may.

use redis::Value;

use super::Error;
use super::redis_list::RedisList;

/// What INFO says that matters to a queue.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Server {
    /// `redis_version`, as three numbers.
    pub version: (u32, u32, u32),
    /// Whether the append-only file is on.
    pub has_aof: bool,
    /// Whether snapshots are taken, as far as CONFIG may be read.
    pub has_snapshots: Option<bool>,
    /// `maxmemory` in bytes; 0 for no limit.
    pub maxmemory: u64,
    /// `maxmemory_policy`.
    pub maxmemory_policy: String,
    /// Whether it is a node of a Cluster.
    pub is_cluster: bool,
}

impl Server {
    /// Asks a server; what may not be read is left at its default.
    ///
    /// # Errors
    ///
    /// If the server cannot be asked at all.
    pub fn ask(queue: &mut RedisList) -> Result<Server, Error> {
        let info = match queue.query(&redis::cmd("INFO")) {
            Ok(Value::BulkString(text)) => String::from_utf8_lossy(&text).into_owned(),
            Ok(Value::SimpleString(text)) => text,
            Ok(Value::VerbatimString { text, .. }) => text,
            Ok(_) => String::new(),
            // Not permitted: `check` says so, a running agent goes without.
            Err(Error::Fatal(why)) if why.contains("NOPERM") => String::new(),
            Err(error) => return Err(error),
        };
        let field = |name: &str| {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
        };
        if field("loading") == "1" {
            // Until it has loaded, it says that it has no append-only file.
            return Err(Error::Unavailable("Redis is still loading its data".to_string()));
        }
        let mut numbers = field("redis_version").split('.').map(|number| number.parse().unwrap_or(0));
        let mut number = || numbers.next().unwrap_or(0);
        let version = (number(), number(), number());
        let has_snapshots = match queue.query(redis::cmd("CONFIG").arg("GET").arg("save")) {
            Ok(Value::Array(values)) => match values.get(1) {
                Some(Value::BulkString(save)) => Some(!save.is_empty()),
                _ => None,
            },
            _ => None,
        };
        Ok(Server {
            version,
            has_aof: field("aof_enabled") == "1",
            has_snapshots,
            maxmemory: field("maxmemory").parse().unwrap_or(0),
            maxmemory_policy: field("maxmemory_policy").to_string(),
            is_cluster: field("cluster_enabled") == "1",
        })
    }

    /// What to change, a line each, with the setting that does it.
    pub fn advice(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.version != (0, 0, 0) && !self.has_aof {
            match self.has_snapshots {
                Some(true) => lines.push(
                    "Redis keeps snapshots only: a crash of Redis loses what was queued since the last one; set 'appendonly yes'"
                        .to_string(),
                ),
                _ => lines.push(
                    "Redis has no persistence: a restart of Redis loses the queue; set 'appendonly yes' (and 'appendfsync everysec' or 'always')"
                        .to_string(),
                ),
            }
        }
        if self.maxmemory > 0 && !self.maxmemory_policy.is_empty() && self.maxmemory_policy != "noeviction" {
            lines.push(format!(
                "Redis may evict queued messages when it is full (maxmemory-policy {}); set 'maxmemory-policy noeviction'",
                self.maxmemory_policy
            ));
        }
        lines
    }
}
