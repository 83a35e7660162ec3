//! Sentinels: the master is found by them, at the start and after each failover.

use std::net::TcpListener;
use std::time::Instant;

use super::name::Name;
use crate::support::wire::{envelope, numbered};
use crate::support::{
    Agent, Answer, Authority, SOON, Sentinels, Sink, eventually, eventually_eq, guarded_url, ms, run_to_end,
};

#[test]
fn the_master_is_found_and_again_after_a_failover() {
    let sentinels = Sentinels::start();
    let url = sentinels.url();
    let sink = Sink::new(|_| Answer::ok());
    let mut agent = Agent::start_at(&url, &["--lease", "5s"]);
    sentinels.servers[0].push_all(numbered(&sink.url(), 20));
    eventually_eq("all arrive", SOON, 20, || sink.copies().len());
    sentinels.servers[0].wait_empty(SOON);
    // The old master is well, and follows the new one as soon as the Sentinels tell it to.
    sentinels.fail_over();
    eventually("another is master", ms(60_000), || sentinels.master().is_some_and(|now| now != 0));
    let master = &sentinels.servers[sentinels.master().unwrap()];
    let (text, endpoint) = ("hello", sink.url());
    let enqueued = run_to_end(&["enqueue", "-oq", &url, "--endpoint", &endpoint, "--text", text]);
    assert!(enqueued.status.success(), "{enqueued:?}");
    eventually_eq("it arrives", SOON, 21, || sink.copies().len());
    master.wait_empty(SOON);
    let check = run_to_end(&["check", "-oq", &url]);
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && text.matches("ok    Sentinel").count() == 3, "{text}");
    assert_eq!(sink.n_delivered(), 21);
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
    let lost = agent.complaints().iter().filter(|line| line.contains("Redis cannot be used")).count();
    assert!(lost <= 2, "{}", agent.log());
}

#[test]
fn a_master_that_is_cut_off_and_comes_back_gets_no_claim_and_loses_no_settlement() {
    let sentinels = Sentinels::start();
    let sink = Sink::new(|_| Answer::ok().after(ms(5)));
    let old = &sentinels.servers[0];
    old.push_all(numbered(&sink.url(), 300));
    let replicated: usize = redis::cmd("WAIT").arg(&["2", "5000"]).query(&mut old.client()).unwrap();
    assert_eq!(replicated, 2);
    let mut agent = Agent::start_at(&sentinels.url(), &["--workers", "8", "--lease", "5s", "--in-flight", "64"]);
    eventually("it is in the middle", SOON, || sink.copies().len() > 50);
    // To all others it is away; it takes itself for the master still when it thaws.
    old.freeze();
    eventually("another is master", ms(60_000), || sentinels.master().is_some_and(|now| now != 0));
    let new = sentinels.master().unwrap();
    eventually_eq("all arrive", ms(60_000), 300, || sink.copies().len());
    sentinels.servers[new].wait_empty(ms(60_000));
    old.thaw();
    eventually("the old one follows the new", ms(60_000), || {
        old.info("replication", "role").is_ok_and(|role| role == "slave")
            && old.info("replication", "master_link_status").is_ok_and(|link| link == "up")
    });
    sentinels.servers[new].push_all(numbered(&sink.url(), 320).into_iter().skip(300));
    eventually_eq("all arrive", ms(60_000), 320, || sink.copies().len());
    sentinels.servers[new].wait_empty(SOON);
    assert!(agent.is_running());
    // What the old one had confirmed and the new one had not yet heard of may come again, and no more.
    let again = sink.copies().values().filter(|n| **n > 1).count();
    assert!(again <= 64, "{again} arrived more than once");
}

#[test]
fn a_master_that_takes_itself_for_one_still_is_left_when_the_sentinels_know_another() {
    let sentinels = Sentinels::start();
    let sink = Sink::new(|_| Answer::ok());
    let agent = Agent::start_at(&sentinels.url(), &["--lease", "5s"]);
    let old = &sentinels.servers[0];
    eventually("it is at the first", SOON, || old.agents().len() == 1);
    // As if it were cut off from the Sentinels and the replicas, and from nobody else: its commands by
    // which it is told to follow are refused.
    redis::cmd("ACL").arg(&["SETUSER", "default", "-replicaof", "-slaveof"]).exec(&mut old.client()).unwrap();
    sentinels.fail_over();
    eventually("another is master", ms(60_000), || sentinels.master().is_some_and(|now| now != 0));
    let new = &sentinels.servers[sentinels.master().unwrap()];
    eventually("the agent is at the new one", ms(30_000), || {
        let names: redis::RedisResult<String> = redis::cmd("CLIENT").arg("LIST").query(&mut new.client());
        names.is_ok_and(|names| {
            names.lines().filter(|line| line.contains("cmd=llen") || line.contains("cmd=evalsha")).count() >= 1
        })
    });
    assert_eq!(old.info("replication", "role").unwrap(), "master");
    // The old one would still take it; nobody looks there.
    old.push_all(numbered(&sink.url(), 1));
    new.push_all(numbered(&sink.url(), 5).into_iter().skip(1));
    eventually_eq("those at the new one arrive", SOON, 4, || sink.copies().len());
    assert_eq!(old.counts().queue, 1);
    drop(agent);
}

/// The first server still takes itself for the master.
#[test]
fn a_sentinel_that_is_cut_off_and_takes_itself_for_one_that_knows_is_not_believed_though_it_stands_first() {
    let sentinels = Sentinels::guarded();
    let lonely = sentinels.cut_off();
    let old = &sentinels.servers[0];
    sentinels.fail_over();
    eventually("another is master", ms(60_000), || sentinels.master().is_some_and(|now| now != 0));
    let new = &sentinels.servers[sentinels.master().unwrap()];
    eventually("it knows", SOON, || new.info("replication", "role").is_ok_and(|role| role == "master"));
    let sink = Sink::new(|_| Answer::ok());
    // From here on who looks at the old one finds this.
    old.push(&envelope(&sink.url(), b"at the old one"));
    let others = sentinels.addresses();
    let url = guarded_url(&[&[lonely.address.clone()][..], &others].concat());
    let mut agent = Agent::start_at(&url, &["--lease", "5s"]);
    // Each is asked now and then, the one that is cut off too.
    let (begun, mut n) = (Instant::now(), 0);
    while begun.elapsed() < ms(10_000) {
        n += 1;
        new.push(&envelope(&sink.url(), format!("{n}").as_bytes()));
        eventually_eq("it arrives", SOON, n, || sink.n_delivered());
        std::thread::sleep(ms(100));
    }
    assert_eq!(lonely.master(), Some(old.address()));
    assert_eq!(old.info("replication", "role").unwrap(), "master");
    assert_eq!(old.counts().queue, 1);
    assert!(!agent.log().contains(&old.address()), "{}", agent.log());
    let check = run_to_end(&["check", "-oq", &url]);
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    let told = format!("{} says that the master is at {}; others know a newer one", lonely.address, old.address());
    assert!(!check.status.success() && text.contains(&told), "{text}");
    agent.term();
    assert_eq!(agent.wait_exit(SOON), Some(0));
}

#[test]
fn who_is_cut_off_with_the_old_master_that_takes_itself_for_one_leaves_it_when_the_cut_heals() {
    let sentinels = Sentinels::guarded();
    let lonely = sentinels.cut_off();
    let old = &sentinels.servers[0];
    let others = [Name::of_nobody(), Name::of_nobody()];
    let url = guarded_url(&[lonely.address.clone(), others[0].address().to_string(), others[1].address().to_string()]);
    let sink = Sink::new(|_| Answer::ok());
    let mut agent = Agent::start_at(&url, &["--lease", "5s"]);
    sentinels.fail_over();
    eventually("another is master", ms(60_000), || sentinels.master().is_some_and(|now| now != 0));
    let new = &sentinels.servers[sentinels.master().unwrap()];
    // On its side of the cut all is as before.
    old.push(&envelope(&sink.url(), b"a"));
    eventually_eq("it arrives", SOON, 1, || sink.n_delivered());
    old.wait_empty(SOON);
    eventually("it may be written to", SOON, || {
        let mut push = redis::cmd("RPUSH");
        push.arg(old.queue_key()).arg(envelope(&sink.url(), b"b")).exec(&mut new.client()).is_ok()
    });
    for (name, address) in others.iter().zip(sentinels.addresses()) {
        name.lead_to(&address);
    }
    eventually_eq("it arrives", ms(30_000), 2, || sink.n_delivered());
    new.wait_empty(SOON);
    assert!(agent.is_running());
    assert_eq!(agent.complaints(), Vec::<String>::new());
}

#[test]
fn sentinels_that_do_not_answer_hold_up_nothing() {
    let sentinels = Sentinels::guarded();
    let silent: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let silent = silent.iter().map(|listener| listener.local_addr().unwrap().to_string());
    let url = guarded_url(&silent.chain(sentinels.addresses().into_iter().take(1)).collect::<Vec<_>>());
    let sink = Sink::new(|_| Answer::ok());
    let begun = Instant::now();
    let enqueued = run_to_end(&["enqueue", "-oq", &url, "--endpoint", &sink.url(), "--text", "a"]);
    assert!(enqueued.status.success(), "{enqueued:?}");
    // One after the other they would take a second each.
    assert!(begun.elapsed() < ms(2_500), "{:?}", begun.elapsed());
    let _agent = Agent::start_at(&url, &[]);
    eventually_eq("it arrives", SOON, 1, || sink.n_delivered());
}

/// Its passwords are two; its certificates have a name that nothing leads to.
#[test]
fn sentinels_and_servers_that_speak_tls_have_passwords_of_their_own() {
    let authority = Authority::new();
    let (certificate, key) = authority.certify(&["redis.example"], |_| {});
    let (ca, certificate, key) = (authority.file(), certificate.display().to_string(), key.display().to_string());
    let tls = [
        "tls-replication yes".to_string(),
        format!("tls-ca-cert-file {ca}"),
        format!("tls-cert-file {certificate}"),
        format!("tls-key-file {key}"),
    ];
    let servers = ["tls-port 19000", "requirepass secret", "masterauth secret"].map(str::to_string);
    let servers: Vec<&str> = servers.iter().chain(&tls).map(String::as_str).collect();
    let for_sentinels = "tls-port 19001\nrequirepass watching\nsentinel sentinel-pass watching\n\
                         sentinel auth-pass mymaster secret\n";
    let sentinels = Sentinels::with(&servers, &format!("{for_sentinels}{}\n", tls.join("\n")));
    let hosts =
        sentinels.addresses().into_iter().map(|address| address.split(':').next().unwrap().to_string() + ":19001");
    let hosts = hosts.collect::<Vec<_>>().join(",");
    let url = format!("rediss+sentinel://:secret@{hosts}/mymaster?sentinel-password=watching");
    let sink = Sink::new(|_| Answer::ok());
    let identity =
        ["--redis-cert-file", &certificate, "--redis-key-file", &key, "--redis-server-name", "redis.example"];
    let options = [&["--redis-ca-file", &ca][..], &identity].concat();
    let mut agent = Agent::start_at(&url, &[&options[..], &["--lease", "5s"]].concat());
    let enqueue = ["enqueue", "-oq", &url, "--endpoint", &sink.url(), "--text", "a"];
    let enqueued = run_to_end(&[&enqueue[..], &options].concat());
    assert!(enqueued.status.success(), "{enqueued:?}");
    eventually_eq("it arrives", SOON, 1, || sink.n_delivered());
    sentinels.fail_over();
    eventually("another is master", ms(60_000), || sentinels.master().is_some_and(|now| now != 0));
    eventually("it can be pushed", ms(30_000), || run_to_end(&[&enqueue[..], &options].concat()).status.success());
    eventually("it arrives", SOON, || sink.n_delivered() >= 2);
    assert!(agent.is_running());
    assert!(!agent.log().contains("secret") && !agent.log().contains("watching"), "{}", agent.log());
    // With the wrong one for the Sentinels it is told so, and by which option.
    let wrong = run_to_end(&[&["check", "-oq", &url.replace("watching", "other")][..], &options].concat());
    let text = String::from_utf8_lossy(&wrong.stdout).into_owned();
    assert!(text.contains("refused the user name or password"), "{text}");
}
