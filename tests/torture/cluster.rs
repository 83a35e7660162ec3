//! `--cluster`: agents on a Redis Cluster of three masters and three replicas, struck by all that
//! befalls one: its nodes killed, frozen, cut off (from all, from each other alone, or from all but each other)
//! and failed over with and without their consent, the queue's slot moved, connections cut, agents killed and
//! frozen. A push counts as certain when a replica has it too, so that what a failover loses is told apart
//! from what an agent would: what is certain must arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::cuts::{self, Cut};
use super::rng::Rng;
use crate::support::wire::envelope;
use crate::support::{Agent, Answer, Cluster, Redis, Sink, ms};

/// Longer than a node may be silent before it is failed over.
const FROZEN: Duration = Duration::from_secs(5);
/// An agent's lease, and longer than that.
const LEASE: &str = "3s";
const PAST_LEASE: Duration = Duration::from_secs(5);
/// Messages a second.
const RATE: u64 = 60;
/// After the last fault: an outage, a lease, retries, and a slow machine.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    MasterKilled,
    MasterFrozen,
    MasterCutOff,
    MasterCutFromNodes,
    MasterCutFromClients,
    FailedOver,
    TakenOver,
    OtherNodeKilled,
    SlotMoved,
    ConnectionsCut,
    AgentKilled,
    AgentFrozen,
    AgentTold,
}

use Fault::*;

/// Each with how likely it is.
const ALL: [(Fault, u64); 13] = [
    (MasterKilled, 4),
    (MasterFrozen, 3),
    (MasterCutOff, 3),
    (MasterCutFromNodes, 4),
    (MasterCutFromClients, 3),
    (FailedOver, 5),
    (TakenOver, 4),
    (OtherNodeKilled, 2),
    (SlotMoved, 5),
    (ConnectionsCut, 5),
    (AgentKilled, 5),
    (AgentFrozen, 3),
    (AgentTold, 3),
];

/// Torments for so long; what is wrong, if anything.
pub fn run(minutes: u32, seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::start();
    let n_asked = AtomicU64::new(0);
    let sink = Sink::new(move |_| match n_asked.fetch_add(1, Ordering::Relaxed) % 20 {
        // Some are put off, and so wait in Redis for a while.
        3 => Answer::status(503),
        7 => Answer::status(500),
        _ => Answer::ok().after(ms(3)),
    });
    let start = |cluster: &Cluster| {
        let options = ["--lease", LEASE, "--retry-first", "200ms", "--retry-max", "2s", "--timeout", "2s"];
        cluster.agent(&cluster.url(), &[&options[..], &["--connect-timeout", "1s", "--drain-timeout", "1s"]].concat())
    };
    let mut agents: Vec<Agent> = (0..3).map(|_| start(&cluster)).collect();

    let certain = Arc::new(Mutex::new(BTreeSet::new()));
    let (stop, n_pushed) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(0)));
    let producer = {
        let (pusher, url) = (cluster.pusher(), sink.url());
        let (stop, certain, n_pushed) = (stop.clone(), certain.clone(), n_pushed.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let n = {
                    let mut n = n_pushed.lock().unwrap();
                    *n += 1;
                    *n
                };
                if pusher.push(&envelope(&url, format!("{n}").as_bytes())) {
                    certain.lock().unwrap().insert(format!("{n}"));
                }
                thread::sleep(Duration::from_millis(1000 / RATE));
            }
        })
    };

    let begun = Instant::now();
    let mut faults: BTreeMap<Fault, usize> = BTreeMap::new();
    let mut wrong = None;
    while begun.elapsed() < Duration::from_secs(60) * minutes && wrong.is_none() {
        thread::sleep(ms(rng.between(200, 2500)));
        let fault = rng.weighted(&ALL);
        if matches!(fault, MasterCutOff | MasterCutFromNodes | MasterCutFromClients) && !cuts::are_possible() {
            continue;
        }
        *faults.entry(fault).or_default() += 1;
        println!("{:>6.1} s  {fault:?}", begun.elapsed().as_secs_f64());
        strike(fault, &mut cluster, &mut agents, &mut rng, &start);
        if let Some(agent) = agents.iter_mut().find_map(|agent| (!agent.is_running()).then_some(agent)) {
            wrong = Some(format!("an agent has ended by itself: {}", agent.log()));
        }
    }
    stop.store(true, Ordering::SeqCst);
    producer.join().expect("the producer does not panic");
    cluster.wait_whole();

    let certain = std::mem::take(&mut *certain.lock().unwrap());
    let (faults_ended, mut lost) = (Instant::now(), certain.len());
    while lost > 0 && faults_ended.elapsed() < PATIENCE {
        thread::sleep(ms(100));
        let copies = sink.copies();
        lost = certain.iter().filter(|one| !copies.contains_key(*one)).count();
    }
    let drained = faults_ended.elapsed();
    let left = |home: &Redis| {
        let counts = home.counts();
        counts.queue + counts.messages
    };
    while left(cluster.home()) > 0 && faults_ended.elapsed() < PATIENCE {
        thread::sleep(ms(100));
    }
    let (stuck, invariant) = (left(cluster.home()), cluster.home().invariant());
    let copies = sink.copies();
    let row = |name: &str, value: String| println!("{name:<60} {value:>12}");
    println!("\nseed {seed}, on a Cluster, in {:.0?}", begun.elapsed());
    for (fault, n) in &faults {
        row(&format!("{fault:?}"), n.to_string());
    }
    row("faults", faults.values().sum::<usize>().to_string());
    row("messages pushed", n_pushed.lock().unwrap().to_string());
    row("  of these certain, in a replica too", certain.len().to_string());
    row("  delivered", copies.len().to_string());
    row("lost", lost.to_string());
    row("stuck", stuck.to_string());
    row("delivered more than once", copies.values().filter(|n| **n > 1).count().to_string());
    row("most copies of one", copies.values().max().copied().unwrap_or(0).to_string());
    row("drained after the last fault in", format!("{drained:.1?}"));
    match (wrong, lost, stuck, invariant) {
        (Some(wrong), ..) => Err(wrong),
        (None, 0, 0, Ok(())) => Ok(()),
        (None, _, _, invariant) => {
            let logs: Vec<String> = agents.iter().map(Agent::log).collect();
            Err(format!("{lost} lost, {stuck} stuck, the invariant: {invariant:?}\n{}", logs.join("\n---\n")))
        }
    }
}

fn strike(
    fault: Fault,
    cluster: &mut Cluster,
    agents: &mut [Agent],
    rng: &mut Rng,
    start: &impl Fn(&Cluster) -> Agent,
) {
    let n = rng.index(agents.len());
    match fault {
        AgentKilled => {
            agents[n].kill9();
            agents[n] = start(cluster);
            return;
        }
        AgentTold => {
            agents[n].term();
            agents[n].wait_exit(Duration::from_secs(20));
            agents[n] = start(cluster);
            return;
        }
        AgentFrozen => {
            agents[n].freeze();
            thread::sleep(PAST_LEASE);
            agents[n].thaw();
            return;
        }
        ConnectionsCut => {
            for node in cluster.nodes() {
                let kill = ["KILL", "TYPE", "normal", "SKIPME", "yes"];
                redis::cmd("CLIENT").arg(&kill).exec(&mut node.client()).unwrap();
            }
            return;
        }
        _ => {}
    }
    // What strikes a master strikes one that has a replica which follows.
    cluster.wait_whole();
    let master = cluster.owner().expect("the Cluster is whole");
    let masters: Vec<usize> = (0..cluster.nodes().len()).filter(|n| is_master(&cluster.nodes()[*n])).collect();
    let others: Vec<usize> = (0..cluster.nodes().len()).filter(|n| *n != master).collect();
    match fault {
        MasterKilled => {
            cluster.replica_of(master);
            cluster.node(master).kill9();
            if rng.percent(70) {
                cluster.home();
            }
            cluster.node(master).restart();
        }
        MasterFrozen => {
            cluster.replica_of(master);
            cluster.node(master).freeze();
            thread::sleep(FROZEN);
            cluster.node(master).thaw();
        }
        MasterCutOff | MasterCutFromNodes | MasterCutFromClients => {
            cluster.replica_of(master);
            let ip = |n: &usize| cluster.nodes()[*n].address().split(':').next().unwrap_or_default().to_string();
            let others: Vec<String> = others.iter().map(ip).collect();
            let cut = match fault {
                MasterCutOff => Cut::off(&ip(&master)),
                MasterCutFromNodes => Cut::between(&ip(&master), &others),
                // Each client's own address, as of whoever binds to none.
                _ => Cut::between(&ip(&master), &["127.0.0.1".to_string()]),
            };
            thread::sleep(ms(rng.between(500, 2 * FROZEN.as_millis() as u64)));
            drop(cut);
        }
        OtherNodeKilled => {
            let other = others[rng.index(others.len())];
            cluster.node(other).kill9();
            thread::sleep(ms(rng.between(0, 4000)));
            cluster.node(other).restart();
        }
        SlotMoved => {
            let to: Vec<usize> = masters.into_iter().filter(|n| *n != master).collect();
            cluster.move_slot(master, to[rng.index(to.len())]);
        }
        FailedOver | TakenOver => {
            let replica = cluster.replica_of(master);
            let mut command = redis::cmd("CLUSTER");
            command.arg("FAILOVER");
            if fault == TakenOver {
                command.arg("TAKEOVER");
            }
            command.exec(&mut cluster.nodes()[replica].client()).unwrap();
        }
        _ => {}
    }
}

fn is_master(node: &Redis) -> bool {
    node.info("replication", "role").is_ok_and(|role| role == "master")
}
