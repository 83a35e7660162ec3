//! How many instructions the agent needs for a message: counted by valgrind, so that the figure
//! does not depend on how busy the machine is. What start and stop cost is taken out by a second
//! run without messages.
//!
//! `instructions [--bound N] [--messages N] [--origins N]`; ends with 1 if it is more than the bound.

use std::process::Command;
use std::thread;
use std::time::Duration;

use acapy_deliver_bench::ground::Redis;
use acapy_deliver_bench::load::{Load, QUEUE};
use acapy_deliver_bench::program::{Program, agent_binary};
use acapy_deliver_bench::recipient::Recipient;
use redis::Commands;

fn main() {
    let mut words = std::env::args().skip(1);
    let (mut bound, mut messages, mut origins) = (None, 2_000, 1);
    while let Some(word) = words.next() {
        let value = words.next().and_then(|text| text.parse().ok());
        match (word.as_str(), value) {
            ("--bound", Some(n)) => bound = Some(n),
            ("--messages", Some(n)) => messages = n,
            ("--origins", Some(n)) => origins = n,
            _ => {
                eprintln!("instructions: [--bound N] [--messages N] [--origins N], not '{word}'");
                std::process::exit(2);
            }
        }
    }
    let per_message = (count(messages, origins) - count(0, origins)) / messages.max(1);
    match bound {
        Some(bound) if per_message > bound => {
            println!("{per_message} instructions per delivered message, more than the bound of {bound}");
            std::process::exit(1);
        }
        Some(bound) => println!("{per_message} instructions per delivered message; the bound is {bound}"),
        None => println!("{per_message} instructions per delivered message"),
    }
}

/// Of a whole run that delivers so many messages, from the start to the clean stop.
fn count(messages: usize, origins: usize) -> usize {
    let redis = Redis::start(&[]);
    let recipient = Recipient::start(|_| 200);
    let mut client = redis.client();
    let load = Load { messages: messages + 1, bytes: 2048, origins, scheme: "http", port: recipient.port() };
    load.preload(&mut client);
    let mut command = Command::new("valgrind");
    let out = redis.dir().join("callgrind.out");
    command.args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())]);
    command.arg(agent_binary()).args(["run", "-oq", &redis.url(), "--workers", "8"]);
    let mut agent = Program::start(command);
    let messages_key = format!("{{{QUEUE}}}:messages");
    loop {
        let queued: usize = client.llen(QUEUE).expect("our Redis answers");
        let held: usize = client.hlen(&messages_key).expect("our Redis answers");
        if queued + held == 0 {
            break;
        }
        assert!(agent.is_running() && agent.started.elapsed() < Duration::from_secs(300), "{}", agent.log());
        thread::sleep(Duration::from_millis(20));
    }
    agent.stop();
    let log = agent.log();
    let line = log.lines().find_map(|line| line.split_once("Collected :"));
    line.and_then(|(_, count)| count.trim().parse().ok()).unwrap_or_else(|| panic!("valgrind said:\n{log}"))
}
