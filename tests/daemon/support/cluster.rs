//! A Redis Cluster of three masters and three replicas, each a [`Redis`] of its own. The slot of the
//! queue and that of the retry key of the plugin's deliverer belong to different masters.

#![allow(dead_code)] // only some tests need one

use super::{Agent, Redis, SOON, eventually, ms, wire};
use std::ops::RangeInclusive;

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

    /// Kills all nodes and starts them on other ports; they are told so, and find each other again.
    pub fn restart_on_other_ports(&mut self) {
        for node in &mut self.nodes {
            node.restart_on_another_port();
        }
        for node in &self.nodes[1..] {
            let (host, port) = self.place(node);
            cluster(&self.nodes[0], &["MEET", &host, &port]);
        }
        self.wait_whole();
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

    /// For a client that pushes while its nodes are struck.
    pub fn pusher(&self) -> Pusher {
        Pusher(self.nodes.iter().map(Redis::url).collect())
    }

    /// Appends messages, each until it is certain.
    #[track_caller]
    pub fn push_all<B: AsRef<[u8]>>(&self, messages: impl IntoIterator<Item = B>) {
        let pusher = self.pusher();
        for message in messages {
            eventually("a message is pushed", ms(60_000), || pusher.push(message.as_ref()));
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

/// A client of the Cluster that looks for the queue's home by itself.
pub struct Pusher(Vec<String>);

impl Pusher {
    /// Whether the node that has the queue has taken the message, and a replica of it too. If not, it may
    /// still have.
    pub fn push(&self, message: &[u8]) -> bool {
        self.0.iter().any(|url| {
            let pushed = || -> redis::RedisResult<usize> {
                let mut client = redis::Client::open(url.as_str())?.get_connection_with_timeout(ms(1000))?;
                client.set_read_timeout(Some(ms(2000)))?;
                redis::cmd("RPUSH").arg(QUEUE).arg(message).exec(&mut client)?;
                redis::cmd("WAIT").arg(&["1", "1000"]).query(&mut client)
            };
            pushed().is_ok_and(|replicas| replicas > 0)
        })
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
