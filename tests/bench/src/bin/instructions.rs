//! How many instructions the agent needs for a message: counted by valgrind, so that the figure
//! does not depend on how busy the machine is. What start and stop cost is taken out by a second
//! run without messages.
//!
//! `instructions [--json-bound N] [--bound N] [--messages N] [--origins N] [--keep DIR]`: of JSON entries and
//! of MessagePack entries of the same payload; ends with 1 if either is more than its bound. What valgrind
//! wrote of either is kept in DIR, for callgrind_annotate.

use std::path::PathBuf;
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
    let (mut bounds, mut messages, mut origins, mut keep) = ([None, None], 2_000, 1, None);
    while let Some(word) = words.next() {
        let value = words.next();
        let number = value.as_ref().and_then(|text| text.parse().ok());
        match (word.as_str(), number) {
            ("--json-bound", Some(n)) => bounds[0] = Some(n),
            ("--bound", Some(n)) => bounds[1] = Some(n),
            ("--messages", Some(n)) => messages = n,
            ("--origins", Some(n)) => origins = n,
            ("--keep", _) if value.is_some() => keep = value.map(PathBuf::from),
            _ => {
                eprintln!(
                    "instructions: [--json-bound N] [--bound N] [--messages N] [--origins N] [--keep DIR], not '{word}'"
                );
                std::process::exit(2);
            }
        }
    }
    let mut is_too_many = false;
    for (name, bound) in ["json", "msgpack"].into_iter().zip(bounds) {
        let out = keep.as_ref().map(|dir| dir.join(format!("callgrind.{name}")));
        let json = name == "json";
        let idle = count(0, origins, json, None);
        let per_message = (count(messages, origins, json, out) - idle) / messages.max(1);
        let bound = match bound {
            Some(bound) if per_message > bound => {
                is_too_many = true;
                format!(", more than the bound of {bound}")
            }
            Some(bound) => format!("; the bound is {bound}"),
            None => String::new(),
        };
        println!("{name:<8} {per_message} instructions per delivered message{bound}");
    }
    std::process::exit(is_too_many.into());
}

/// Of a whole run that delivers so many messages, from the start to the clean stop.
fn count(messages: usize, origins: usize, json: bool, keep: Option<PathBuf>) -> usize {
    let redis = Redis::start(&[]);
    let recipient = Recipient::start(|_| 200);
    let mut client = redis.client();
    let load = Load { messages: messages + 1, bytes: 2048, origins, scheme: "http", port: recipient.port(), json };
    load.preload(&mut client);
    let mut command = Command::new("valgrind");
    let out = keep.unwrap_or_else(|| redis.dir().join("callgrind.out"));
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
