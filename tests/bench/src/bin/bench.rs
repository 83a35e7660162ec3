use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use acapy_deliver_bench::figures::*;
use acapy_deliver_bench::ground::*;
use acapy_deliver_bench::load::*;
use acapy_deliver_bench::program::*;
use redis::Commands;

fn main() {
    let redis = Redis::start(&[]);
    let nginx = Nginx::start();
    let rounds = 3;
    let n: usize = std::env::args().nth(1).map_or(100_000, |n| n.parse().unwrap());
    for origins in [1, 1000] {
        let load = Load { messages: n, bytes: 2048, origins, scheme: "http", port: nginx.http };
        for threads in [8, 32, 128] {
            let w = threads.to_string();
            let mut all: [Vec<Sample>; 3] = Default::default();
            for _ in 0..rounds {
                all[0].push(agent_round(&redis, &redis.url(), &["--workers", &w], &load, Duration::from_secs(100)));
                all[1].push(bare(&load, threads, &nginx));
                all[2].push(pop(&redis, &redis.url(), &load, threads));
            }
            println!("origins {origins} threads {threads}: agent {:?}", spread(&all[0], "per_second"));
            for k in all[0][0].keys() { print!(" {k} {:.2}", spread(&all[0], k).median); }
            println!();
            println!("   bare {:?} cpu {:.1}", spread(&all[1], "per_second"), spread(&all[1], "cpu_us").median);
            println!("   pop {:?} cpu {:.1}", spread(&all[2], "per_second"), spread(&all[2], "cpu_us").median);
        }
    }
}

fn agent_round(redis: &Redis, url: &str, options: &[&str], load: &Load, within: Duration) -> Sample {
    redis.reset();
    let mut client = redis.client();
    load.preload(&mut client);
    redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut client).unwrap();
    let before = redis.counts();
    let agent = Program::agent(url, options);
    let mut seconds;
    loop {
        let (queued, held): (usize, usize) = redis::pipe().llen(QUEUE).hlen(format!("{{{QUEUE}}}:messages")).query(&mut client).unwrap();
        seconds = agent.started.elapsed();
        if queued + held == 0 { break; }
        assert!(seconds < within, "{}", agent.log());
        thread::sleep(Duration::from_millis(5));
    }
    let (used, after) = (agent.used(), redis.counts());
    let n = load.messages as f64;
    let sum = |of: fn(&(u64, u64)) -> u64| ["evalsha", "eval", "blmove"].iter().filter_map(|c| after.commands.get(*c)).map(of).sum::<u64>() as f64;
    Sample::from([
        ("per_second", n / seconds.as_secs_f64()),
        ("cpu_us", used.cpu * 1e6 / n),
        ("redis_cpu_us", (after.cpu - before.cpu) * 1e6 / n),
        ("trips", sum(|c| c.0) / n),
        ("script_us", sum(|c| c.1) / n),
        ("peak_rss", used.peak_rss),
    ])
}

fn bare(load: &Load, threads: usize, nginx: &Nginx) -> Sample {
    let mut command = Command::new(reference_binary());
    command.arg("bare");
    for (name, value) in [("--threads", threads), ("--count", load.messages), ("--bytes", load.bytes), ("--origins", load.origins), ("--port", load.port.into())] {
        command.args([name, &value.to_string()]);
    }
    command.arg("--ca-file").arg(nginx.ca_file());
    done(command, load)
}

fn pop(redis: &Redis, url: &str, load: &Load, threads: usize) -> Sample {
    redis.reset();
    load.preload(&mut redis.client());
    let mut command = Command::new(reference_binary());
    command.args(["pop", "--threads", &threads.to_string(), "--count", &load.messages.to_string(), "--redis", url]);
    done(command, load)
}

fn done(command: Command, load: &Load) -> Sample {
    let mut program = Program::start(command);
    let said = program.finish(Duration::from_secs(300));
    let seconds = program.started.elapsed().as_secs_f64();
    let words: Vec<f64> = said.split_whitespace().map(|w| w.parse().unwrap_or_else(|_| panic!("{said}"))).collect();
    let n = load.messages as f64;
    Sample::from([("per_second", n / seconds), ("cpu_us", words[0] * 1e6 / n), ("peak_rss", words[1])])
}
