//! A master, two replicas and three Sentinels that watch them, of one test.

#![allow(dead_code)] // only some tests need them

use std::fs;
use std::process::{Child, Command, Stdio};

use super::{Redis, SOON, TempDir, eventually, ms};

/// The name under which they know the master.
const NAME: &str = "mymaster";
const PASSWORD: &str = "secret";

pub struct Sentinels {
    /// The first is master at first.
    pub servers: Vec<Redis>,
    watchers: Vec<Watcher>,
}

pub struct Watcher {
    dir: TempDir,
    pub address: String,
    password: Option<String>,
    process: Child,
}

impl Sentinels {
    pub fn start() -> Sentinels {
        Sentinels::with(&[], "")
    }

    /// With a password for the servers, as a Sentinel that is [cut off](Sentinels::cut_off) needs.
    pub fn guarded() -> Sentinels {
        let lines = format!("sentinel auth-pass {NAME} {PASSWORD}\n");
        Sentinels::with(&[&format!("requirepass {PASSWORD}"), &format!("masterauth {PASSWORD}")], &lines)
    }

    /// With further lines of configuration, for each server and for each Sentinel.
    pub fn with(configuration: &[&str], for_sentinels: &str) -> Sentinels {
        let lines: Vec<&str> = ["repl-diskless-sync-delay 0"].iter().chain(configuration).copied().collect();
        let servers: Vec<Redis> = (0..3).map(|_| Redis::with(&lines)).collect();
        // They know each other by this one.
        let tls_port = configuration.iter().find_map(|line| line.strip_prefix("tls-port "));
        let (host, port) = servers[0].address().split_once(':').map(|(h, p)| (h.to_string(), p.to_string())).unwrap();
        let master = format!("{host} {}", tls_port.unwrap_or(&port));
        for replica in &servers[1..] {
            let follow: Vec<&str> = master.split(' ').collect();
            redis::cmd("REPLICAOF").arg(follow).exec(&mut replica.client()).unwrap();
        }
        eventually("the replicas follow", SOON, || {
            servers[1..].iter().all(|one| one.info("replication", "master_link_status").is_ok_and(|link| link == "up"))
        });
        let watchers = (0..3).map(|_| Watcher::start(&master, for_sentinels)).collect();
        let sentinels = Sentinels { servers, watchers };
        sentinels.wait_whole();
        sentinels
    }

    /// Waits until each Sentinel knows the others and the replicas.
    pub fn wait_whole(&self) {
        eventually("the Sentinels know each other", ms(60_000), || {
            self.watchers.iter().all(|watcher| {
                let master: redis::RedisResult<Vec<String>> = watcher
                    .client()
                    .and_then(|mut client| redis::cmd("SENTINEL").arg(&["MASTER", NAME]).query(&mut client));
                let field = |name: &str| {
                    let at = master.as_ref().ok()?.iter().position(|word| word == name)?;
                    master.as_ref().ok()?.get(at + 1).cloned()
                };
                let is = |name: &str, value: &str| field(name).as_deref() == Some(value);
                is("num-other-sentinels", "2") && is("num-slaves", "2") && is("flags", "master")
            })
        });
    }

    /// All of the Sentinels, and the master's name.
    pub fn url(&self) -> String {
        url_of("", &self.addresses())
    }

    pub fn addresses(&self) -> Vec<String> {
        self.watchers.iter().map(|watcher| watcher.address.clone()).collect()
    }

    /// One more, which hears of no other and of no failover, as if it were cut off from all but the first server: it
    /// may not read there what others say, and no other server lets it in. And the first goes on as a master.
    pub fn cut_off(&self) -> Watcher {
        let first = &self.servers[0];
        let rules = [
            &["lonely", "on", ">lonely", "+ping", "+info", "+role", "+client"][..],
            &["default", "-replicaof", "-slaveof"],
        ];
        for rule in rules {
            redis::cmd("ACL").arg("SETUSER").arg(rule).exec(&mut first.client()).unwrap();
        }
        let lines = format!("sentinel auth-user {NAME} lonely\nsentinel auth-pass {NAME} lonely\n");
        let watcher = Watcher::start(&first.address().replace(':', " "), &lines);
        eventually("it knows the first", SOON, || watcher.master() == Some(first.address()));
        watcher
    }

    /// Which server most of the Sentinels name.
    pub fn master(&self) -> Option<usize> {
        let named: Vec<String> = self.watchers.iter().filter_map(Watcher::master).collect();
        let host = |address: &str| address.split(':').next().unwrap_or_default().to_string();
        let count = |server: &Redis| named.iter().filter(|named| host(named) == host(&server.address())).count();
        self.servers.iter().position(|server| count(server) >= 2)
    }

    /// Has them put another in the place of the master, which is well.
    pub fn fail_over(&self) {
        let force = || redis::cmd("SENTINEL").arg(&["FAILOVER", NAME]).exec(&mut self.watchers[0].client()?);
        eventually("a failover begins", SOON, || force().is_ok());
    }
}

/// These Sentinels, and the master's name; before them, the [guarded](Sentinels::guarded) servers' password.
pub fn guarded_url<A: AsRef<str>>(addresses: &[A]) -> String {
    url_of(&format!(":{PASSWORD}@"), addresses)
}

fn url_of<A: AsRef<str>>(login: &str, addresses: &[A]) -> String {
    let addresses: Vec<&str> = addresses.iter().map(AsRef::as_ref).collect();
    format!("redis+sentinel://{login}{}/{NAME}", addresses.join(","))
}

impl Watcher {
    fn start(master: &str, configuration: &str) -> Watcher {
        let dir = TempDir::new("sentinel");
        let address = super::own_address();
        let port = super::redis_server::free_port(address);
        let lines = format!(
            "bind {address}\nport {port}\ndir {}\nlogfile sentinel.log\nsentinel announce-ip {address}\n\
             sentinel monitor {NAME} {master} 2\nsentinel down-after-milliseconds {NAME} 1500\n\
             sentinel failover-timeout {NAME} 6000\n{configuration}\n",
            dir.path().display()
        );
        let file = dir.path().join("sentinel.conf");
        fs::write(&file, lines).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&file).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("redis-server can be started");
        let password = configuration.lines().find_map(|line| line.strip_prefix("requirepass ")).map(str::to_string);
        Watcher { dir, address: format!("{address}:{port}"), password, process }
    }

    fn client(&self) -> redis::RedisResult<redis::Connection> {
        let login = self.password.as_ref().map_or(String::new(), |password| format!(":{password}@"));
        redis::Client::open(format!("redis://{login}{}", self.address))?.get_connection()
    }

    /// Where it says that the master is.
    pub fn master(&self) -> Option<String> {
        let mut asked = redis::cmd("SENTINEL");
        asked.arg(&["get-master-addr-by-name", NAME]);
        let (host, port): (String, String) = asked.query(&mut self.client().ok()?).ok()?;
        Some(format!("{host}:{port}"))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("sentinel.log")).unwrap_or_default();
            let tail = log.lines().count().saturating_sub(15);
            eprintln!("--- Sentinel {}:\n{}", self.address, log.lines().skip(tail).collect::<Vec<_>>().join("\n"));
        }
    }
}
