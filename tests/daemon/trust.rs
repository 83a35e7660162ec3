//! Whom TLS trusts, and what of it changes while an agent runs: files are replaced, vanish, hold garbage.

use std::cell::Cell;
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::support::wire::envelope;
use crate::support::{Agent, Redis, SOON, SecureSink, TempDir, eventually, eventually_eq, ms};

#[test]
fn a_root_file_that_is_replaced_is_taken_up_at_sighup_and_nothing_is_dropped() {
    replace_roots(|agent, _| agent.hang_up());
}

#[test]
#[ignore = "it takes an hour: cargo test --test daemon within_the_hour -- --ignored --nocapture"]
fn a_root_file_that_is_replaced_is_taken_up_within_the_hour_and_nothing_is_dropped() {
    replace_roots(|agent, deliver| {
        let begun = Instant::now();
        while !agent.log().contains("whom TLS trusts has changed") {
            assert!(begun.elapsed() < Duration::from_secs(3_600) + SOON, "{}", agent.log());
            thread::sleep(ms(5_000));
            deliver();
        }
        println!("taken up {:?} after it was replaced", begun.elapsed());
    });
}

/// `renew` has the agent read its roots again, and may have the first recipient delivered to meanwhile.
fn replace_roots(renew: impl Fn(&Agent, &dyn Fn())) {
    let redis = Redis::start();
    let [first, second] = ["127.77.6.1:0", "127.77.6.2:0"].map(SecureSink::start);
    let push = |sink: &SecureSink, path: &str| {
        redis.push(&envelope(&format!("https://{}/{path}", sink.address), b"secret"));
    };
    let dir = TempDir::new("roots");
    let file = dir.path().join("roots.pem");
    let replace = |content: &[u8]| {
        fs::write(dir.path().join("new.pem"), content).unwrap();
        fs::rename(dir.path().join("new.pem"), &file).unwrap();
    };
    replace(&fs::read(first.ca_file()).unwrap());
    let mut command = Agent::command();
    command.args(["-oq", &redis.url(), "--retry-first", "200ms", "--retry-max", "400ms"]);
    command.env("SSL_CERT_FILE", &file).env_remove("SSL_CERT_DIR");
    let agent = Agent::spawn(command);
    let n_first = Cell::new(0);
    let to_first = |path| {
        n_first.set(n_first.get() + 1);
        push(&first, path);
    };
    let deliver = || {
        to_first("");
        eventually_eq("the first recipient has it", SOON, n_first.get(), || first.requests());
    };
    deliver();
    push(&second, "close");
    agent.wait_log("is down: TLS: certificate ");

    replace(&fs::read(second.ca_file()).unwrap());
    // Under way while the roots change.
    to_first("slow");
    eventually("it is under way", SOON, || redis.counts().inflight >= 1);
    renew(&agent, &deliver);
    eventually_eq("the second recipient is trusted", SOON, 1, || second.requests());
    agent.wait_log(" bundled, 1 of the system (1 of them not bundled)");
    redis.wait_empty(SOON);
    deliver();
    assert_eq!(first.connections(), 1, "the connection that was open was given up");

    // What cannot be read takes away nothing.
    let n_kept = || agent.log().matches("TLS goes on with what was read before").count();
    fs::remove_file(&file).unwrap();
    for n in 1..=3 {
        agent.hang_up();
        eventually_eq("it says so", SOON, n, n_kept);
        push(&second, "close");
        eventually_eq("the second recipient is still trusted", SOON, 1 + n, || second.requests());
        replace([&b"no PEM"[..], b"-----BEGIN CERTIFICATE-----\nAAAA"][n % 2]);
    }
    let log = agent.log();
    let named = format!("(SSL_CERT_FILE is '{}')", file.display());
    assert!(log.contains(&format!("{named}: {}: No such file", file.display())), "{log}");
    assert!(log.contains(&format!("{named}: that file holds no PEM certificate")), "{log}");
    assert!(log.contains(&format!("{named}: a file is not PEM: a part of it has no end")), "{log}");
}
