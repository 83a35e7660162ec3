//! What is measured, and not tested, for it takes minutes and a quiet machine: `scripts/failover-figures`.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::wire::envelope;
use crate::support::{Agent, Answer, Cluster, Redis, SOON, Sink, TempDir, eventually, ms, run_to_end};

const FAILOVERS: usize = 20;
const ROUNDS: usize = 10;
const MESSAGES: usize = 50_000;

/// From the moment at which a replica is master to the delivery of what is pushed there at once.
#[test]
#[ignore = "minutes"]
fn from_election_to_delivery() {
    let mut cluster = Cluster::start();
    let sink = Sink::new(|_| Answer::ok());
    let mut agent = cluster.agent(&cluster.url(), &[]);
    cluster.push(&sink.url(), b"first");
    eventually("it delivers", SOON, || sink.n_delivered() == 1);
    let mut times: Vec<Duration> = Vec::new();
    for n in 0..FAILOVERS {
        cluster.wait_whole();
        let master = cluster.owner().unwrap();
        let replica = cluster.replica_of(master);
        cluster.node(master).kill9();
        let elected = loop {
            let mut client = cluster.nodes()[replica].client();
            let asked = redis::cmd("RPUSH").arg("acapy_outbound").arg(envelope(&sink.url(), b"x")).to_owned();
            if asked.exec(&mut client).is_ok() {
                break Instant::now();
            }
            thread::sleep(ms(1));
        };
        eventually("it is delivered", ms(60_000), || sink.n_delivered() == n + 2);
        times.push(elected.elapsed());
        cluster.node(master).restart();
    }
    assert!(agent.is_running());
    times.sort();
    let (p50, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "from the election of a new master to the next delivery, {FAILOVERS} failovers: p50 {p50:?}, worst {worst:?}"
    );
    assert!(p50 <= ms(2000), "{times:?}");
}

/// Messages a second from a node of a Cluster beside those from a plain Redis, in turns.
#[test]
#[ignore = "minutes"]
fn throughput() {
    let (plain, cluster) = (Redis::of("acapy_outbound"), Redis::cluster_of("acapy_outbound"));
    for redis in [&plain, &cluster] {
        redis::cmd("CONFIG").arg(&["SET", "appendonly", "no"]).exec(&mut redis.client()).unwrap();
    }
    let dir = TempDir::new("figures");
    let payload = dir.path().join("payload");
    std::fs::write(&payload, vec![b'x'; 2000]).unwrap();
    let (_recipient, endpoint) = listen();
    // Of each the best, for what else the machine does only takes away.
    let mut best = [0.0_f64; 2];
    for round in 0..ROUNDS {
        let mut turn = [(0, &plain), (1, &cluster)];
        turn.rotate_left(round % 2);
        for (which, redis) in turn {
            let (url, count, payload) = (redis.url(), MESSAGES.to_string(), payload.display().to_string());
            let queue = ["-oq", &url, "--queue", "acapy_outbound"];
            let what = ["enqueue", "--endpoint", &endpoint, "--count", &count, &payload];
            let output = run_to_end(&[&what[..], &queue].concat());
            assert!(output.status.success(), "{output:?}");
            let begun = Instant::now();
            let agent = Agent::start_at(&url, &queue[2..]);
            eventually("all are delivered", ms(120_000), || {
                let counts = redis.counts();
                counts.queue + counts.messages == 0
            });
            best[which] = best[which].max(MESSAGES as f64 / begun.elapsed().as_secs_f64());
            drop(agent);
            // So that the next one need not wait for its lease.
            redis::cmd("FLUSHALL").exec(&mut redis.client()).unwrap();
        }
    }
    let ([plain, cluster], ratio) = (best, best[1] / best[0]);
    println!(
        "messages of 2 kB, best of {ROUNDS}: {cluster:.0}/s of a Cluster, {plain:.0}/s of a plain Redis: {ratio:.3}"
    );
    assert!(ratio >= 0.95, "{ratio}");
}

struct Listening(Child);

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The binary's own recipient, and where it is.
fn listen() -> (Listening, String) {
    let dir = TempDir::new("listening");
    let said = dir.path().join("said");
    let mut command: Command = Agent::command();
    command.args(["listen", "--quiet", "127.0.0.1:0"]).stdin(Stdio::null());
    command.stdout(std::fs::File::create(&said).unwrap()).stderr(Stdio::null());
    let listening = Listening(command.spawn().unwrap());
    let address = || {
        let text = std::fs::read_to_string(&said).unwrap();
        text.lines().find_map(|line| line.strip_prefix("listening on ")).map(str::to_string)
    };
    eventually("it listens", SOON, || address().is_some());
    (listening, address().unwrap())
}
