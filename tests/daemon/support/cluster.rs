//! A Redis Cluster of three masters and three replicas, each a [`Redis`] of its own. The slot of the
//! queue and that of the retry key of the plugin's deliverer belong to different masters.

#![allow(dead_code)] // only some tests need one

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::{Agent, Redis, SOON, eventually, ms, wire};

/// Its slot is 7658.
const QUEUE: &str = "acapy_outbound";
const SLOT: u16 = 7658;
/// `acapy_outbound_retry` is in 9517.
const SLOTS: [RangeInclusive<u16>; 3] = [0..=4095, 4096..=8191, 8192..=16383];

pub struct Cluster {
    nodes: Vec<Redis>,
    /// By which they know each other, if they speak TLS.
    tls_port: Option<String>,
}

impl Cluster {
    pub fn start() -> Cluster {
        Cluster::with(&[])
    }

    /// With further lines of configuration, for each node.
    pub fn with(configuration: &[&str]) -> Cluster {
        let usual = ["cluster-enabled yes", "cluster-node-timeout 2000", "repl-diskless-sync-delay 0"];
        let lines: Vec<&str> = usual.iter().chain(configuration).copied().collect();
        let nodes: Vec<Redis> = (0..6).map(|_| Redis::of_with(QUEUE, &lines)).collect();
        for (n, (node, slots)) in nodes.iter().zip(SLOTS).enumerate() {
            cluster(node, &["SET-CONFIG-EPOCH", &(n + 1).to_string()]);
            let slots: Vec<String> = slots.map(|slot| slot.to_string()).collect();
            redis::cmd("CLUSTER").arg("ADDSLOTS").arg(slots).exec(&mut node.client()).unwrap();
        }
        let tls_port = configuration.iter().find_map(|line| line.strip_prefix("tls-port ")).map(str::to_string);
        let joined = Cluster { nodes, tls_port };
        let nodes = &joined.nodes;
        for node in &nodes[1..] {
            let (host, port) = joined.place(node);
            cluster(&nodes[0], &["MEET", &host, &port]);
        }
        let knows_all = |node: &Redis| {
            let known = cluster(node, &["NODES"]);
            known.lines().count() == 6 && !known.contains("handshake")
        };
        eventually("all know each other", SOON, || nodes.iter().all(knows_all));
        for (master, replica) in nodes[..3].iter().zip(&nodes[3..]) {
            let id = cluster(master, &["MYID"]);
            // It must have heard which of the others are masters.
            eventually("a replica follows", SOON, || {
                let follow = ["REPLICATE", &id];
                redis::cmd("CLUSTER").arg(&follow).exec(&mut replica.client()).is_ok()
            });
        }
        joined.wait_whole();
        joined
    }

    /// Host and port by which the others know a node.
    fn place(&self, node: &Redis) -> (String, String) {
        let address = node.address();
        let (host, port) = address.split_once(':').unwrap();
        (host.to_string(), self.tls_port.clone().unwrap_or_else(|| port.to_string()))
    }

    /// Waits until all nodes that run agree that all is well, and all replicas follow.
    #[track_caller]
    pub fn wait_whole(&self) {
        eventually("the Cluster is whole", ms(60_000), || {
            let running: Vec<&Redis> = self.nodes.iter().filter(|node| node.is_running()).collect();
            let mut masters = Vec::new();
            let each_is_well = running.iter().all(|node| {
                let info = |section: &str, field: &str| node.info(section, field).unwrap_or_default();
                if info("replication", "role") == "master" {
                    masters.push(node.address());
                }
                cluster(node, &["INFO"]).contains("cluster_state:ok")
                    && (info("replication", "role") == "master" || info("replication", "master_link_status") == "up")
            });
            // Each of them agrees on where the queue is, and has heard that all live.
            let mut owners: Vec<String> = Vec::new();
            let each_agrees = running.iter().all(|node| {
                let nodes = cluster(node, &["NODES"]);
                owners.push(owner_in(&nodes).unwrap_or_default());
                nodes.lines().filter(|line| line.contains("fail")).count() == 6 - running.len()
            });
            owners.dedup();
            each_is_well && each_agrees && masters.len() == 3 && owners.len() == 1
        });
    }

    /// A node; the first three are masters at first, the second of them that of the queue.
    pub fn node(&mut self, n: usize) -> &mut Redis {
        &mut self.nodes[n]
    }

    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// All of its nodes, without a password.
    pub fn url(&self) -> String {
        let addresses: Vec<String> =
            self.nodes.iter().map(|node| self.place(node)).map(|(h, p)| h + ":" + &p).collect();
        let scheme = if self.tls_port.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://{}", addresses.join(","))
    }

    /// An agent on its queue that knows this URL.
    pub fn agent(&self, url: &str, options: &[&str]) -> Agent {
        Agent::start_at(url, &[&["--queue", QUEUE], options].concat())
    }

    /// Which node has the queue's slot, as it says itself; none in the midst of a failover.
    pub fn owner(&self) -> Option<usize> {
        self.owner_of(QUEUE)
    }

    /// The same for another key.
    pub fn owner_of(&self, key: &str) -> Option<usize> {
        self.nodes.iter().position(|node| {
            let asked = || redis::cmd("TYPE").arg(key).query::<String>(&mut node.try_client()?);
            node.is_running() && asked().is_ok()
        })
    }

    /// The node that has the queue.
    #[track_caller]
    pub fn home(&self) -> &Redis {
        let mut owner = None;
        eventually("a node has the queue", ms(60_000), || {
            owner = self.owner();
            owner.is_some()
        });
        &self.nodes[owner.unwrap()]
    }

    /// A replica of that node.
    #[track_caller]
    pub fn replica_of(&self, master: usize) -> usize {
        let (host, port) = self.place(&self.nodes[master]);
        let mut found = None;
        eventually("it has a replica that follows", ms(60_000), || {
            found = self.nodes.iter().position(|node| {
                let info = |field: &str| node.info("replication", field).unwrap_or_default();
                info("master_host") == host && info("master_port") == port && info("master_link_status") == "up"
            });
            found.is_some()
        });
        found.unwrap()
    }

    /// Appends messages as a client of the Cluster does; each is in a replica too before the next, and is
    /// pushed again if that is not certain.
    pub fn push_all<B: AsRef<[u8]>>(&self, messages: impl IntoIterator<Item = B>) {
        for message in messages {
            let begun = Instant::now();
            while let Err(error) = self.try_push(message.as_ref()) {
                assert!(begun.elapsed() < Duration::from_secs(60), "cannot push: {error}");
            }
        }
    }

    fn try_push(&self, message: &[u8]) -> redis::RedisResult<()> {
        let node = &self.nodes[self.owner().ok_or((redis::ErrorKind::Io, "no node has the queue"))?];
        let mut client = node.try_client()?;
        client.set_read_timeout(Some(ms(2000)))?;
        redis::cmd("RPUSH").arg(QUEUE).arg(message).exec(&mut client)?;
        match redis::cmd("WAIT").arg(&["1", "1000"]).query::<usize>(&mut client)? {
            0 => Err((redis::ErrorKind::Io, "no replica has it").into()),
            _ => Ok(()),
        }
    }

    /// Appends one.
    pub fn push(&self, url: &str, payload: &[u8]) {
        self.push_all([wire::envelope(url, payload)]);
    }

    /// Moves the queue's slot, key by key, as a resharding does.
    pub fn move_slot(&self, from: usize, to: usize) {
        let (old, new) = (&self.nodes[from], &self.nodes[to]);
        let (old_id, new_id) = (cluster(old, &["MYID"]), cluster(new, &["MYID"]));
        let slot = SLOT.to_string();
        cluster(new, &["SETSLOT", &slot, "IMPORTING", &old_id]);
        cluster(old, &["SETSLOT", &slot, "MIGRATING", &new_id]);
        let (host, port) = self.place(new);
        loop {
            let command = redis::cmd("CLUSTER").arg(&["GETKEYSINSLOT", &slot, "1"]).to_owned();
            let keys: Vec<String> = command.query(&mut old.client()).unwrap();
            let Some(key) = keys.first() else { break };
            redis::cmd("MIGRATE").arg(&[&host, &port, key, "0", "5000"]).exec(&mut old.client()).unwrap();
        }
        for node in [new, old] {
            cluster(node, &["SETSLOT", &slot, "NODE", &new_id]);
        }
    }
}

/// A command of CLUSTER, and its answer as text.
pub fn cluster(node: &Redis, command: &[&str]) -> String {
    let answer: redis::Value = redis::cmd("CLUSTER").arg(command).query(&mut node.client()).unwrap();
    redis::from_redis_value(answer).unwrap_or_default()
}

/// The id of the node that CLUSTER NODES names as that of the queue's slot.
fn owner_in(nodes: &str) -> Option<String> {
    nodes.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let id = words.next()?;
        let has = |range: &str| match range.split_once('-') {
            Some((first, last)) => first.parse().is_ok_and(|n: u16| n <= SLOT) && last.parse().is_ok_and(|n| SLOT <= n),
            None => range.parse() == Ok(SLOT),
        };
        words.skip(7).any(has).then(|| id.to_string())
    })
}
