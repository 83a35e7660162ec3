//! A Cluster: its keys are found from any of its nodes, and again when they have moved.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use super::name::Name;
use crate::support::wire::{envelope, numbered};
use crate::support::{
    Agent, Answer, Authority, Cluster, SOON, Sink, StopAtEnd, eventually, eventually_eq, ms, run_to_end,
};

#[test]
fn from_whatever_node_the_queue_is_found() {
    let cluster = Cluster::start();
    let sink = Sink::new(|_| Answer::ok());
    let mut n = 0;
    for node in cluster.nodes() {
        let url = node.url();
        let mut agent = cluster.agent(&url, &["--drain-timeout", "1s"]);
        // By a node that is not its own, too.
        let enqueue = ["enqueue", "-oq", &url, "--queue", "acapy_outbound", "--endpoint", &sink.url(), "--text", "a"];
        let enqueued = run_to_end(&enqueue);
        assert!(enqueued.status.success(), "{enqueued:?}");
        cluster.push_all((0..10).map(|i| envelope(&sink.url(), format!("{n}/{i}").as_bytes())));
        n += 11;
        eventually_eq("all are delivered", SOON, n, || sink.n_delivered());
        cluster.home().wait_empty(SOON);
        for command in [&["status", "--json"][..], &["dead", "list"], &["check"]] {
            let output = run_to_end(&[command, &["-oq", &url, "--queue", "acapy_outbound"]].concat());
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // There are no dead ones: that is 1.
            assert!(output.status.success() || command[0] == "dead", "{command:?}: {output:?}");
            assert!(command[0] != "check" || text.contains("ok    cluster"), "{text}");
        }
        agent.term();
        assert_eq!(agent.wait_exit(SOON), Some(0));
        assert_eq!(agent.complaints(), Vec::<String>::new());
    }
}

#[test]
fn what_the_plugins_deliverer_put_off_on_another_master_is_taken_over() {
    let cluster = Cluster::start();
    let sink = Sink::new(|_| Answer::ok());
    let retry = "acapy_outbound_retry";
    let other = cluster.owner_of(retry).unwrap();
    assert_ne!(Some(other), cluster.owner());
    let due = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut client = cluster.nodes()[other].client();
    for n in 0..20 {
        let entry = envelope(&sink.url(), format!("{n}").as_bytes());
        redis::cmd("ZADD").arg(retry).arg(due).arg(entry).exec(&mut client).unwrap();
    }
    let agent = cluster.agent(&cluster.url(), &[]);
    eventually_eq("all are delivered", SOON, 20, || sink.copies().len());
    agent.wait_log("20 messages that were put off by the plugin's deliverer");
    cluster.home().wait_empty(SOON);
    assert_eq!(sink.n_delivered(), 20);
    assert_eq!(redis::cmd("EXISTS").arg(retry).query::<usize>(&mut client).unwrap(), 0);
}

#[test]
fn a_cluster_that_comes_back_elsewhere_behind_the_same_names_is_found() {
    let mut cluster = Cluster::start();
    let sink = Sink::new(|_| Answer::ok());
    // None of them is the one that has the queue.
    let names = [0, 4].map(|n| (n, Name::of(&cluster.nodes()[n].address())));
    let url = format!("redis://{},{}", names[0].1.address(), names[1].1.address());
    let mut agent = cluster.agent(&url, &[]);
    cluster.push(&sink.url(), b"before");
    eventually("it is delivered", SOON, || sink.n_delivered() == 1);
    cluster.home().wait_empty(SOON);
    cluster.restart_on_other_ports();
    for (n, name) in &names {
        name.lead_to(&cluster.nodes()[*n].address());
    }
    cluster.push(&sink.url(), b"after");
    eventually("it is delivered", ms(60_000), || sink.copies().contains_key("after"));
    cluster.home().wait_empty(SOON);
    assert!(agent.is_running());
    assert_said_at_most(&agent, 2);
}

/// Pushes while `faults` happen, and then until this many have been delivered, each at least once.
fn under_load(cluster: &mut Cluster, sink: &Sink, faults: impl FnOnce(&mut Cluster)) -> usize {
    let url = sink.url();
    let stop = AtomicBool::new(false);
    let client = cluster.pusher();
    let pushed = thread::scope(|scope| {
        let pusher = scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                for message in numbered(&url, n + 5).into_iter().skip(n) {
                    eventually("a message is pushed", ms(60_000), || client.push(&message));
                }
                n += 5;
            }
            n
        });
        let stops = StopAtEnd(&stop);
        eventually("some arrive", SOON, || sink.copies().len() > 20);
        faults(cluster);
        let so_far = sink.copies().len();
        eventually("more arrive", ms(60_000), || sink.copies().len() > so_far + 20);
        drop(stops);
        pusher.join().unwrap()
    });
    eventually_eq("all arrive", ms(60_000), pushed, || sink.copies().len());
    let home = cluster.home();
    home.wait_empty(ms(60_000));
    pushed
}

/// It said of each outage once that it began, whatever was tried meanwhile.
#[track_caller]
fn assert_said_at_most(agent: &Agent, most: usize) {
    let lost = agent.complaints().iter().filter(|line| line.contains("Redis cannot be used")).count();
    assert!(lost <= most, "{lost} outages are spoken of: {}", agent.log());
}

#[test]
fn a_slot_that_moves_to_another_master_and_back_under_load_loses_and_repeats_nothing() {
    let mut cluster = Cluster::start();
    let sink = Sink::new(|_| Answer::ok().after(ms(5)));
    let mut agent = cluster.agent(&cluster.url(), &["--workers", "8"]);
    let n = under_load(&mut cluster, &sink, |cluster| {
        cluster.move_slot(1, 0);
        let so_far = sink.copies().len();
        eventually("it goes on at its new home", ms(60_000), || sink.copies().len() > so_far + 20);
        cluster.move_slot(0, 1);
    });
    assert!(agent.is_running());
    let copies = sink.copies();
    assert!(copies.values().all(|n| *n == 1), "some of {n} arrived twice: {copies:?}");
    // The agent may see both moves, each by two threads.
    assert_said_at_most(&agent, 4);
}

/// With passwords and certificates throughout: these have a name that nothing leads to.
#[test]
fn failovers_wanted_and_not_lose_nothing() {
    let authority = Authority::new();
    let (certificate, key) = authority.certify(&["redis.example"], |_| {});
    let (ca, certificate, key) = (authority.file(), certificate.display().to_string(), key.display().to_string());
    let password = authority.path().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let lines = [
        "requirepass secret",
        "masterauth secret",
        "tls-port 19000",
        "tls-cluster yes",
        "tls-replication yes",
        &format!("tls-ca-cert-file {ca}"),
        &format!("tls-cert-file {certificate}"),
        &format!("tls-key-file {key}"),
    ];
    let mut cluster = Cluster::with(&lines);
    let sink = Sink::new(|_| Answer::ok().after(ms(5)));
    let options = [
        "--redis-ca-file",
        &ca,
        "--redis-cert-file",
        &certificate,
        "--redis-key-file",
        &key,
        "--redis-password-file",
        &password.display().to_string(),
    ];
    // Without the name it is said what to do.
    let mut agent = cluster.agent(&cluster.url(), &options);
    agent.wait_log("--redis-server-name");
    agent.kill9();
    let named = [&options[..], &["--redis-server-name", "redis.example", "--workers", "8", "--lease", "5s"]].concat();
    let mut agent = cluster.agent(&cluster.url(), &named);
    under_load(&mut cluster, &sink, |cluster| {
        for how in [&["FAILOVER"][..], &["FAILOVER", "TAKEOVER"], &[]] {
            cluster.wait_whole();
            let master = cluster.owner().unwrap();
            let replica = cluster.replica_of(master);
            match how {
                [] => cluster.node(master).kill9(),
                how => redis::cmd("CLUSTER").arg(how).exec(&mut cluster.nodes()[replica].client()).unwrap(),
            }
            eventually("the replica has the queue", ms(60_000), || cluster.owner() == Some(replica));
            let so_far = sink.copies().len();
            eventually("it goes on", ms(60_000), || how.is_empty() || sink.copies().len() > so_far + 20);
            if how.is_empty() {
                // It comes back as a replica of the one that has taken its place.
                cluster.node(master).restart();
            }
        }
    });
    assert!(agent.is_running());
}
