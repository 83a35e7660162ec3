//! What one bad endpoint may cost the others, and what it costs itself: each figure with what is
//! wanted, what was seen, and the same without the bad endpoint from the same run.
//!
//! `lane-figures [--full] [--only NAME]… [--json FILE] [--table FILE]`
//!
//! Without `--full` the scenarios are shorter: minutes become tens of seconds.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use acapy_deliver_bench::figures::{Machine, Row, Spread, Unit, Wanted, document, quantile, table};
use acapy_deliver_bench::ground::{Nginx, Redis};
use acapy_deliver_bench::load::{Load, QUEUE, origin};
use acapy_deliver_bench::program::{Program, agent_binary};
use acapy_deliver_bench::recipient::{Arrival, Deaf, Recipient, Request};
use redis::Commands;

type Scenario = fn(bool) -> Vec<Row>;

const SCENARIOS: [(&str, Scenario); 17] = [
    ("hanging", hanging),
    ("deaf", deaf),
    ("silent", silent),
    ("dead", dead),
    ("slow", slow),
    ("eight", eight),
    ("throttling", throttling),
    ("one-in-ten", one_in_ten),
    ("descriptors", descriptors),
    ("four-agents", four_agents),
    ("small", small),
    ("bad-path", bad_path),
    ("late-answers", late_answers),
    ("back", back),
    ("newcomers", newcomers),
    ("failed-once", failed_once),
    ("killed-twice", killed_twice),
];

/// Size of a message: what most of them have.
const BYTES: usize = 1500;

fn main() {
    rlimit::increase_nofile_limit(u64::MAX).ok();
    let (mut full, mut only, mut json, mut file) = (false, Vec::new(), None, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| usage(&format!("option '{word}' needs a value")));
        match word.as_str() {
            "--full" => full = true,
            "--only" => only.push(value()),
            "--json" => json = Some(value()),
            "--table" => file = Some(value()),
            other => usage(&format!("unknown option '{other}'")),
        }
    }
    for name in &only {
        if !SCENARIOS.iter().any(|(known, _)| known == name) {
            usage(&format!("option '--only': there is no scenario '{name}'"));
        }
    }
    if !agent_binary().exists() {
        usage(&format!("there is no agent at {}; scripts/lane-figures builds it", agent_binary().display()));
    }
    let machine = Machine::look(Redis::start(&[]).version());
    let mut rows = Vec::new();
    for (name, scenario) in SCENARIOS {
        if only.is_empty() || only.iter().any(|wanted| wanted == name) {
            eprintln!("lane-figures: {name}");
            let seen = scenario(full);
            eprint!("{}", table(&seen));
            rows.extend(seen);
        }
    }
    let text = format!("{}\n{}", machine.text(), table(&rows));
    println!("{text}");
    let write = |path: Option<String>, content: String| {
        if let Some(path) = path {
            std::fs::write(&path, content).unwrap_or_else(|error| usage(&format!("{path}: {error}")));
        }
    };
    write(file, text);
    write(json, format!("{:#}\n", document(&machine, &rows)));
    if rows.iter().any(|row| row.is_reached() == Some(false)) {
        std::process::exit(1);
    }
}

fn usage(why: &str) -> ! {
    let names = SCENARIOS.map(|(name, _)| name).join(", ");
    eprintln!(
        "lane-figures: {why}\nlane-figures [--full] [--only NAME]… [--json FILE] [--table FILE]\nscenarios: {names}"
    );
    std::process::exit(2)
}

// ---- the scenarios ----

/// 1,000 messages to 40 endpoints that accept and never answer, among 2,000 to a healthy one.
fn hanging(full: bool) -> Vec<Row> {
    const HEALTHY: usize = 2_000;
    let watch = seconds(if full { 45 } else { 10 });
    let run = |order: &str| {
        let stage = Stage::new(|request| if request.origin == 0 { 200 } else { request.hang() });
        let mut entries: Vec<usize> = match order {
            "alone" => Vec::new(),
            _ => (0..1_000).map(|n| 1 + n % 40).collect(),
        };
        entries.extend([0; HEALTHY]);
        if order == "shuffled" {
            shuffle(&mut entries);
        }
        let entries =
            entries.iter().enumerate().map(|(n, &o)| stage.recipient.entry(o, n as u64, BYTES)).collect::<Vec<_>>();
        stage.push(&entries);
        let begun = stage.recipient.now();
        let _agent = stage.agent(&[]);
        stage.wait_good(HEALTHY, seconds(60));
        let good = stage.recipient.answered();
        let last = good.iter().filter(|a| a.origin == 0).map(|a| a.arrived).max().expect("they arrived");
        if order != "alone" {
            thread::sleep(watch.saturating_sub(stage.recipient.now() - begun));
        }
        let dead = stage.recipient.arrivals().iter().filter(|a| a.origin > 0).count();
        ((last - begun).as_secs_f64(), dead as f64)
    };
    let (mut alone, mut shuffled, mut first) = (vec![], vec![], vec![]);
    for _ in 0..3 {
        alone.push(run("alone").0);
        shuffled.push(run("shuffled"));
        first.push(run("first"));
    }
    let alone = Some(("the healthy alone".to_string(), Spread::of(alone)));
    let row = |what: &str, seen: &[(f64, f64)]| Row {
        group: "40 endpoints hang",
        what: what.to_string(),
        unit: Unit::Seconds,
        seen: Spread::of(seen.iter().map(|seen| seen.0)),
        reference: alone.clone(),
        wanted: Wanted::TimesReferencePlus(1.1, 0.3),
    };
    let schedules = if full { 80.0 } else { 40.0 };
    let attempts = Row {
        group: "40 endpoints hang",
        what: format!("attempts at the 40 within {} s", watch.as_secs()),
        unit: Unit::Number,
        seen: Spread::of(shuffled.iter().chain(&first).map(|seen| seen.1)),
        reference: None,
        wanted: Wanted::AtMost(schedules),
    };
    vec![row("2,000 healthy ones out, shuffled", &shuffled), row("the same, all the others first", &first), attempts]
}

/// 1,000 endpoints that never accept, one message each, and a steady 200/s to 20 healthy ones.
fn deaf(full: bool) -> Vec<Row> {
    let deaf = Deaf::start();
    black_holes("1,000 endpoints never accept", full, 6.0, Some(&deaf))
}

/// The same with endpoints that accept and hang.
fn silent(full: bool) -> Vec<Row> {
    black_holes("1,000 endpoints hang", full, 31.0, None)
}

fn black_holes(group: &'static str, full: bool, newcomer_within: f64, deaf: Option<&Deaf>) -> Vec<Row> {
    const HEALTHY: usize = 20;
    const BAD: usize = 100;
    const NEWCOMER: usize = 50;
    // Warm: by then every lane has had its turn.
    let warm_after = seconds(if newcomer_within > 10.0 { 35 } else { 10 });
    // The newcomer comes two seconds into it, and has all the time that it may take.
    let length = warm_after + seconds(if full { 60 } else { 5 + newcomer_within as u64 });
    let run = |with_bad: bool| {
        let stage = Stage::new(|request| if request.origin < BAD { 200 } else { request.hang() });
        if with_bad {
            let entry = |n: usize| match deaf {
                Some(deaf) => stage.recipient.entry_at(origin(BAD + n), deaf.port, n as u64, BYTES),
                None => stage.recipient.entry(BAD + n, n as u64, BYTES),
            };
            stage.push(&(0..1_000).map(entry).collect::<Vec<_>>());
        }
        let begun = stage.recipient.now();
        let agent = stage.agent(&[]);
        let newcomer_at = warm_after + seconds(2);
        let mut newcomer = false;
        stage.push_steadily(200.0, length, |n, at| {
            if at >= newcomer_at && !newcomer {
                newcomer = true;
                return NEWCOMER;
            }
            n % HEALTHY
        });
        thread::sleep(seconds(1));
        let all = stage.recipient.arrivals();
        let healthy: Vec<Arrival> = all.into_iter().filter(|arrival| arrival.origin < BAD).collect();
        let warm = healthy.iter().filter(|a| a.origin < HEALTHY && a.pushed > begun + warm_after);
        let p99 = quantile(&warm.clone().map(Arrival::latency).collect::<Vec<_>>(), 0.99);
        if p99 > 10.0 {
            // Which of them were late, and when, tells the machine's mood from a lane's.
            let mut late = BTreeMap::new();
            for arrival in warm.filter(|a| a.latency() > Duration::from_millis(10)) {
                let entry =
                    late.entry(arrival.origin).or_insert((0, arrival.pushed - begun, Duration::ZERO, Duration::ZERO));
                entry.0 += 1;
                entry.2 = entry.2.max(arrival.pushed - begun);
                entry.3 = entry.3.max(arrival.latency());
            }
            for (o, (n, from, to, worst)) in late {
                eprintln!("lane-figures: origin {o}: {n} late ones, pushed {from:.1?} to {to:.1?}, worst {worst:.1?}");
            }
            eprintln!("lane-figures: the agent said:\n{}", agent.log());
        }
        let first = |o: usize| {
            let arrived = healthy.iter().filter(|a| a.origin == o).min_by_key(|a| a.arrived);
            arrived.map_or(f64::INFINITY, |a| (a.arrived - if o == NEWCOMER { a.pushed } else { begun }).as_secs_f64())
        };
        let begun_by = (0..HEALTHY).map(first).fold(0.0, f64::max);
        (p99, begun_by, first(NEWCOMER))
    };
    let (alone, with) = (run(false), run(true));
    let row = |what: &str, unit, seen: f64, alone: f64, wanted| {
        one(group, what, unit, seen, Some(("the healthy alone", alone)), wanted)
    };
    vec![
        row("healthy ones, warm, p99 from push to arrival", Unit::Millis, with.0, alone.0, Wanted::AtMost(10.0)),
        row(
            "from a cold start all healthy lanes have begun",
            Unit::Seconds,
            with.1,
            alone.1,
            Wanted::AtMost(newcomer_within),
        ),
        row("a newcomer's first arrival", Unit::Seconds, with.2, alone.2, Wanted::AtMost(newcomer_within)),
    ]
}

/// Many messages wait for one dead endpoint, 5,000/s go to healthy ones; then it comes back.
fn dead(full: bool) -> Vec<Row> {
    let group = "many wait for a dead endpoint";
    let (waiting, rate, length) = if full { (100_000, 5_000.0, 1_200) } else { (20_000, 2_000.0, 30) };
    const DEAD: usize = 99;
    let answer_time = Duration::from_millis(5);
    let run = |with_dead: bool| {
        let is_dead = Arc::new(AtomicBool::new(true));
        let switch = is_dead.clone();
        let stage = Stage::new(move |request| match request.origin {
            DEAD if switch.load(Ordering::Relaxed) => 0,
            DEAD => {
                thread::sleep(answer_time);
                200
            }
            _ => 200,
        });
        if with_dead {
            let entries = (0..waiting).map(|n| stage.recipient.entry(DEAD, n as u64, 400)).collect::<Vec<_>>();
            stage.push(&entries);
        }
        let agent = stage.agent(&[]);
        // What is put to wait first is not what is measured.
        let settled = Instant::now() + seconds(60);
        while with_dead && stage.length() > 0 && Instant::now() < settled {
            thread::sleep(Duration::from_millis(50));
        }
        stage.push_steadily(200.0, seconds(1), |n, _| n % 20);

        let (cpu, begun) = (agent.used().cpu, stage.recipient.now());
        stage.push_steadily(rate, seconds(length), |n, _| n % 20);
        let cpu = (agent.used().cpu - cpu) / length as f64 * 100.0;
        let arrivals = stage.recipient.arrivals();
        let mut by_second = BTreeMap::new();
        for arrival in arrivals.iter().filter(|a| a.origin != DEAD && a.arrived > begun) {
            *by_second.entry((arrival.arrived - begun).as_secs()).or_insert(0.0) += 1.0;
        }
        let worst = (1..length - 1).map(|s| by_second.get(&s).copied().unwrap_or(0.0)).fold(f64::INFINITY, f64::min);
        let attempts = arrivals.iter().filter(|a| a.origin == DEAD).count() as f64;
        let (mut drain, mut ideal) = (f64::NAN, f64::NAN);
        if with_dead {
            is_dead.store(false, Ordering::Relaxed);
            let good = |r: &Recipient| {
                let mut times: Vec<Duration> =
                    r.answered().iter().filter(|a| a.origin == DEAD && a.status == 200).map(|a| a.arrived).collect();
                times.sort();
                times
            };
            let limit = Instant::now() + seconds(700);
            while good(&stage.recipient).len() < waiting && Instant::now() < limit {
                thread::sleep(Duration::from_millis(500));
            }
            let times = good(&stage.recipient);
            if times.len() >= waiting {
                drain = (times[times.len() - 1] - times[0]).as_secs_f64();
                ideal = waiting as f64 * mean_answer(&stage.recipient, DEAD) / 8.0;
            }
        }
        (cpu, worst / rate * 100.0, attempts, drain, ideal)
    };
    let (alone, with) = (run(false), run(true));
    // Attempts of its schedule: 0, 5, 15, 35, 75 … s, each up to a fifth earlier.
    let mut allowed = 2.0;
    let (mut at, mut step) = (4.0, 8.0_f64);
    while at < length as f64 + 5.0 {
        allowed += 1.0;
        at += step;
        step = (step * 2.0).min(480.0);
    }
    vec![
        one(
            group,
            "CPU of the agent",
            Unit::Percent,
            with.0,
            Some(("without it", alone.0)),
            Wanted::OverReference(1.0),
        ),
        one(
            group,
            "healthy ones in the worst second, of those pushed",
            Unit::Percent,
            with.1,
            Some(("without it", alone.1)),
            Wanted::AtLeast(95.0),
        ),
        one(group, &format!("attempts at it in {length} s"), Unit::Number, with.2, None, Wanted::AtMost(allowed)),
        one(
            group,
            &format!("once it is back, {waiting} delivered (number × answer time / 8 + 1 s)"),
            Unit::Seconds,
            with.3,
            Some(("ideal", with.4)),
            Wanted::OverReference(1.0),
        ),
    ]
}

/// Three endpoints take 30 % of the traffic each and 50 ms for an answer.
fn slow(full: bool) -> Vec<Row> {
    let group = "three slow endpoints";
    let length = seconds(if full { 180 } else { 30 });
    let run = |with_slow: bool| {
        let fast = Arc::new(AtomicBool::new(false));
        let switch = fast.clone();
        let stage = Stage::new(move |request| {
            match request.origin {
                0 if switch.load(Ordering::Relaxed) => thread::sleep(Duration::from_millis(1)),
                0..3 => thread::sleep(Duration::from_millis(50)),
                _ => {}
            }
            200
        });
        let _agent = stage.agent(&[]);
        let begun = stage.recipient.now();
        let choose = |n: usize, _| match n % 10 {
            k if with_slow && k < 9 => k % 3,
            _ => 3 + n / 10 % 10,
        };
        stage.push_steadily(if with_slow { 1_000.0 } else { 100.0 }, length, |n, at| {
            if with_slow { choose(n, at) } else { 3 + n % 10 }
        });
        let arrivals = stage.recipient.arrivals();
        let warm = begun + seconds(5);
        let end = begun + length;
        let others = arrivals.iter().filter(|a| a.origin >= 3 && a.pushed > warm).map(Arrival::latency);
        let p99 = quantile(&others.collect::<Vec<_>>(), 0.99);
        if !with_slow {
            return (p99, 0.0, 0.0, 0.0, 0.0);
        }
        let rate = |o: usize| {
            let n = arrivals.iter().filter(|a| a.origin == o && a.arrived > warm && a.arrived < end).count();
            n as f64 / (end - warm).as_secs_f64()
        };
        let slowest = (0..3).map(rate).fold(f64::INFINITY, f64::min);
        let mut inversions = 0;
        for o in 0..3 {
            let numbers: Vec<u64> = arrivals.iter().filter(|a| a.origin == o).map(|a| a.number).collect();
            // Eight at once may change places; more than that is out of order.
            inversions += numbers.windows(17).filter(|w| w[0] > w[16]).count();
        }
        let slow_answer: Vec<f64> = (0..3).map(|o| mean_answer(&stage.recipient, o)).collect();
        fast.store(true, Ordering::Relaxed);
        let switched = stage.recipient.now();
        thread::sleep(seconds(3));
        let after = stage.recipient.arrivals();
        let backlog: Vec<Duration> =
            after.iter().filter(|a| a.origin == 0 && a.arrived > switched).map(|a| a.arrived).collect();
        let last = backlog.iter().max().expect("more was pushed than it could take");
        let fast_rate = backlog.len() as f64 / (*last - switched).as_secs_f64();
        let ideal = 8.0 / (0..3).map(|o| slow_answer[o]).fold(0.0, f64::max);
        (p99, slowest, inversions as f64, fast_rate, ideal)
    };
    let (alone, with) = (run(false), run(true));
    vec![
        one(
            group,
            "the others' p99 from push to arrival",
            Unit::Millis,
            with.0,
            Some(("the others alone", alone.0)),
            Wanted::OverReference(10.0),
        ),
        one(
            group,
            "each of the three gets (window over answer time)",
            Unit::PerSecond,
            with.1,
            Some(("8 / answer time", with.4)),
            Wanted::TimesReference(0.95),
        ),
        one(group, "out of order by more than the window", Unit::Number, with.2, None, Wanted::AtMost(0.0)),
        one(
            group,
            "one becomes fast (1 ms): it gets what waits for it at",
            Unit::PerSecond,
            with.3,
            Some(("8 / answer time", with.4)),
            Wanted::TimesReference(6.0),
        ),
    ]
}

/// Eight proven endpoints start to hang at the same moment.
fn eight(full: bool) -> Vec<Row> {
    let length = seconds(if full { 60 } else { 20 });
    let run = |hang: bool| {
        let hangs = Arc::new(AtomicBool::new(false));
        let switch = hangs.clone();
        let stage = Stage::new(move |request| match request.origin {
            0..8 if switch.load(Ordering::Relaxed) => request.hang(),
            _ => 200,
        });
        let _agent = stage.agent(&[]);
        stage.push_steadily(400.0, seconds(5), |n, _| n % 16);
        let begun = stage.recipient.now();
        hangs.store(hang, Ordering::Relaxed);
        stage.push_steadily(400.0, length, |n, _| n % 16);
        thread::sleep(seconds(1));
        let arrivals = stage.recipient.arrivals();
        let others = arrivals.iter().filter(|a| a.origin >= 8 && a.pushed > begun);
        quantile(&others.map(Arrival::latency).collect::<Vec<_>>(), 0.99)
    };
    let (alone, with) = (run(false), run(true));
    vec![one(
        "eight proven endpoints hang",
        "the others' p99 from push to arrival",
        Unit::Millis,
        with,
        Some(("none hangs", alone)),
        Wanted::AtMost(50.0),
    )]
}

/// An endpoint that takes four at a time and answers 503 to more.
fn throttling(full: bool) -> Vec<Row> {
    let n = if full { 10_000 } else { 3_000 };
    let at_once = AtomicUsize::new(0);
    let stage = Stage::new(move |_| {
        let status = if at_once.fetch_add(1, Ordering::SeqCst) < 4 {
            thread::sleep(Duration::from_millis(20));
            200
        } else {
            503
        };
        at_once.fetch_sub(1, Ordering::SeqCst);
        status
    });
    stage.push(&(0..n).map(|k| stage.recipient.entry(0, k as u64, BYTES)).collect::<Vec<_>>());
    let _agent = stage.agent(&[]);
    stage.wait_good(n, seconds(600));
    let mut times: Vec<Duration> =
        stage.recipient.answered().iter().filter(|a| a.status == 200).map(|a| a.arrived).collect();
    times.sort();
    let rate = n as f64 / (times[n - 1] - times[0]).as_secs_f64();
    let good: Vec<f64> =
        stage.recipient.answered().iter().filter(|a| a.status == 200).map(|a| a.took.as_secs_f64()).collect();
    let capacity = 4.0 * good.len() as f64 / good.iter().sum::<f64>();
    vec![one(
        "503 above four at once",
        "delivered",
        Unit::PerSecond,
        rate,
        Some(("4 / answer time", capacity)),
        Wanted::TimesReference(0.9),
    )]
}

/// One message in ten is answered 500 for ever; the endpoint is away for two minutes in between.
fn one_in_ten(full: bool) -> Vec<Row> {
    let (outage, after) = if full { (120, 180) } else { (20, 40) };
    let away = Arc::new(AtomicBool::new(false));
    let switch = away.clone();
    let stage = Stage::new(move |request| match request.number % 10 {
        _ if switch.load(Ordering::Relaxed) => 0,
        9 => 500,
        _ => 200,
    });
    let agent = stage.agent(&[]);
    let mut pushed = 0;
    let mut phase = |length: u64| {
        pushed += stage.push_numbered(20.0, seconds(length), pushed as u64, |_, _| 0);
    };
    phase(10);
    away.store(true, Ordering::Relaxed);
    phase(outage);
    away.store(false, Ordering::Relaxed);
    phase(after);
    let now = stage.recipient.now();
    let good: BTreeMap<u64, Arrival> =
        stage.recipient.answered().into_iter().filter(|a| a.status == 200).map(|a| (a.number, a)).collect();
    let all: BTreeMap<u64, Duration> = stage.pushed();
    let missing = all.iter().filter(|(n, _)| **n % 10 != 9 && !good.contains_key(n));
    let oldest = missing.map(|(_, pushed)| (now - *pushed).as_secs_f64()).fold(0.0, f64::max);
    if oldest > 30.0 {
        eprintln!("lane-figures: the agent said:\n{}", agent.log());
        for arrival in stage.recipient.answered().iter().filter(|a| a.status == 0) {
            eprintln!("lane-figures: {} was not answered at {:?}", arrival.number, arrival.arrived);
        }
    }
    vec![one(
        "one in ten answered 500, and an outage",
        &format!("{after} s after an outage of {outage} s, the oldest good one still to come"),
        Unit::Seconds,
        oldest,
        None,
        Wanted::AtMost(30.0),
    )]
}

/// 10,000 endpoints in turn, with 256 open files.
fn descriptors(full: bool) -> Vec<Row> {
    let nginx = Nginx::start();
    let redis = Redis::start(&[]);
    let load = Load {
        messages: if full { 100_000 } else { 20_000 },
        bytes: 2048,
        origins: 10_000,
        scheme: "http",
        port: nginx.http,
        json: false,
    };
    let run = |limit: &str| {
        redis.reset();
        let mut client = redis.client();
        load.preload(&mut client);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" run -oq {}", redis.url())]).arg(agent_binary());
        let agent = Program::start(command);
        while client.llen::<_, usize>(QUEUE).unwrap_or(1) + client.hlen::<_, usize>(key("messages")).unwrap_or(1) > 0 {
            assert!(agent.started.elapsed() < seconds(300), "the agent said:\n{}", agent.log());
            thread::sleep(Duration::from_millis(10));
        }
        let log = agent.log();
        let blamed = log
            .lines()
            .filter(|line| line.contains("descriptor") || line.contains("WARN") && line.contains("http://"))
            .count();
        (agent.started.elapsed().as_secs_f64(), blamed as f64)
    };
    let (mut limited, mut free, mut blamed) = (vec![], vec![], 0.0);
    for _ in 0..3 {
        let (seconds, errors) = run("256");
        limited.push(seconds);
        blamed += errors;
        free.push(run("20000").0);
    }
    let group = "10,000 endpoints, 256 open files";
    vec![
        Row {
            group,
            what: "all delivered".to_string(),
            unit: Unit::Seconds,
            seen: Spread::of(limited),
            reference: Some(("20,000 open files".to_string(), Spread::of(free))),
            wanted: Wanted::TimesReferencePlus(1.3, 0.0),
        },
        one(
            group,
            "warnings that blame an endpoint or speak of descriptors",
            Unit::Number,
            blamed,
            None,
            Wanted::AtMost(0.0),
        ),
    ]
}

/// Four agents on one queue with a dead endpoint make as many attempts as one.
fn four_agents(full: bool) -> Vec<Row> {
    let length = seconds(if full { 300 } else { 40 });
    let run = |n: usize| {
        let stage = Stage::new(|request| if request.origin == 99 { 0 } else { 200 });
        stage.push(&(0..2_000).map(|k| stage.recipient.entry(99, k, BYTES)).collect::<Vec<_>>());
        let _agents: Vec<Program> = (0..n).map(|_| stage.agent(&[])).collect();
        stage.push_steadily(200.0, length, |n, _| n % 20);
        stage.recipient.arrivals().iter().filter(|a| a.origin == 99).count() as f64
    };
    let (alone, four) = (run(1), run(4));
    // Each of them may have begun one before it could know.
    vec![one(
        "four agents, a dead endpoint",
        &format!("attempts in {} s", length.as_secs()),
        Unit::Number,
        four,
        Some(("one agent", alone)),
        Wanted::OverReference(3.0),
    )]
}

/// `--workers 2 --in-flight 8`: nothing starves.
fn small(_full: bool) -> Vec<Row> {
    let run = |with_bad: bool| {
        let stage = Stage::new(|request| if request.origin >= 50 { request.hang() } else { 200 });
        let options = ["--workers", "2", "--in-flight", "8", "--timeout", "3s", "--connect-timeout", "1s"];
        if with_bad {
            stage.push(&(0..20).map(|k| stage.recipient.entry(50 + k as usize % 5, k, BYTES)).collect::<Vec<_>>());
        }
        let _agent = stage.agent(&options);
        let n_pushed = stage.push_steadily(50.0, seconds(20), |n, _| n % 5);
        let deadline = Instant::now() + seconds(40);
        while stage.recipient.n_good() < n_pushed && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let good = stage.recipient.answered();
        let worst = good.iter().filter(|a| a.status == 200).map(|a| a.latency().as_secs_f64()).fold(0.0, f64::max);
        if good.iter().filter(|a| a.status == 200).count() < n_pushed { f64::INFINITY } else { worst }
    };
    let (alone, with) = (run(false), run(true));
    // Five lanes to prove behind five that hang for 3 s each, one slot for all of them.
    vec![one(
        "--workers 2 --in-flight 8, five endpoints hang",
        "the latest of the healthy ones, 50/s for 20 s, push to arrival",
        Unit::Seconds,
        with,
        Some(("the healthy alone", alone)),
        Wanted::AtMost(20.0),
    )]
}

/// Numbers of bad messages begin here.
const BAD_ONES: u64 = 5_000_000;

/// Paths of an origin that has delivered, which close the connection, hang, or answer 503 or 429:
/// others' messages to the same origin do not wait for them.
fn bad_path(_full: bool) -> Vec<Row> {
    type Manner = fn(&Request) -> u16;
    const KINDS: [(&str, Manner); 4] = [
        ("closes", |_| 0),
        ("hangs", |request| request.hang()),
        ("answers 503", |_| 503),
        ("answers 429, Retry-After 3600", |request| request.with("Retry-After: 3600\r\n", 429)),
    ];
    let run = |manner: Manner, bad: &str| {
        let stage = Stage::new(move |request| if request.number < BAD_ONES { 200 } else { manner(request) });
        let _agent = stage.agent(&["--timeout", "5s"]);
        stage.push(&(0..20).map(|n| stage.recipient.entry(0, n, BYTES)).collect::<Vec<_>>());
        stage.wait_good(20, seconds(20));
        let at_start = match bad {
            "one" => 1,
            "ten" => 10,
            _ => 0,
        };
        let entry = |n: u64| stage.recipient.entry_to(0, &format!("/bad/{n}"), BAD_ONES + n, BYTES);
        stage.push(&(0..at_start).map(entry).collect::<Vec<_>>());
        let every_second = at_start == 0;
        let n_pushed = stage.push_numbered(2.0, seconds(60), 1_000, |n, _| {
            if every_second {
                stage.push(&[entry(n as u64)]);
            }
            0
        });
        thread::sleep(seconds(10));
        let mut first = BTreeMap::new();
        for arrival in stage.recipient.arrivals().iter().filter(|a| (1_000..BAD_ONES).contains(&a.number)) {
            first.entry(arrival.number).or_insert(arrival.latency());
        }
        let in_time = first.values().filter(|latency| **latency <= seconds(10)).count() as f64;
        let worst = first.values().max().filter(|_| first.len() == n_pushed);
        (in_time, worst.map_or(f64::INFINITY, Duration::as_secs_f64), n_pushed as f64)
    };
    let all: Vec<(&str, &str)> = ["one", "ten", "every second"]
        .into_iter()
        .flat_map(|bad| KINDS.iter().map(move |(name, _)| (bad, *name)))
        .collect();
    // They hardly load the machine, and take more than a minute each: all at the same time.
    let seen: Vec<(f64, f64, f64)> = thread::scope(|scope| {
        let runs: Vec<_> = all
            .iter()
            .map(|(bad, name)| {
                let manner = KINDS.iter().find(|(known, _)| known == name).expect("it is one of them").1;
                scope.spawn(move || run(manner, bad))
            })
            .collect();
        runs.into_iter().map(|run| run.join().expect("the scenario does not panic")).collect()
    });
    let group = "bad paths of an origin that has delivered twenty";
    let mut rows = Vec::new();
    for ((bad, name), (in_time, worst, n_pushed)) in all.iter().zip(seen) {
        let what = match *bad {
            "one" => format!("one path {name}: of the good ones of 60 s, arrived within 10 s"),
            "ten" => format!("ten paths, each {name}: the same"),
            _ => format!("a new path that {name} before each good one: the same"),
        };
        // With a bad one for each good one, several fail in a row now and then, as where an origin is down.
        let share = if *bad == "every second" { 0.9 } else { 1.0 };
        let pushed = Some(("pushed", n_pushed));
        rows.push(one(group, &what, Unit::Number, in_time, pushed, Wanted::TimesReference(share)));
        rows.push(one(group, "their latest, push to arrival", Unit::Seconds, worst, None, Wanted::Shown));
    }
    rows
}

/// 128 origins that answer 200 after 28 s, once they have answered one message at once, beside a
/// healthy endpoint with two messages a second.
fn late_answers(_full: bool) -> Vec<Row> {
    const SLOW: usize = 128;
    const HEALTHY: usize = 500;
    let run = |with_slow: bool| {
        let is_slow = Arc::new(AtomicBool::new(false));
        let switch = is_slow.clone();
        let stage = Stage::new(move |request| {
            if request.origin < SLOW && switch.load(Ordering::Relaxed) {
                thread::sleep(seconds(28));
            }
            200
        });
        let _agent = stage.agent(&[]);
        let mut entries: Vec<_> = (0..SLOW).map(|o| stage.recipient.entry(o, o as u64, BYTES)).collect();
        entries.extend((0..20).map(|n| stage.recipient.entry(HEALTHY, 500 + n, BYTES)));
        stage.push(&entries);
        stage.wait_good(entries.len(), seconds(60));
        is_slow.store(true, Ordering::Relaxed);
        if with_slow {
            let entry = |n: usize| stage.recipient.entry(n % SLOW, 1_000 + n as u64, BYTES);
            stage.push(&(0..4 * SLOW).map(entry).collect::<Vec<_>>());
        }
        stage.push_steadily(2.0, seconds(40), |_, _| HEALTHY);
        thread::sleep(seconds(3));
        let (now, pushed) = (stage.recipient.now(), stage.pushed());
        let arrivals = stage.recipient.arrivals();
        let arrived: BTreeMap<u64, Duration> =
            arrivals.iter().filter(|a| a.origin == HEALTHY).map(|a| (a.number, a.arrived)).collect();
        // What has not come is as late as the end, which is less than it is.
        let delays: Vec<Duration> =
            pushed.iter().map(|(n, at)| arrived.get(n).unwrap_or(&now).saturating_sub(*at)).collect();
        let missing = pushed.keys().filter(|n| !arrived.contains_key(n)).count();
        let share = |share| quantile(&delays, share) / 1000.0;
        [share(0.5), share(0.9), share(1.0), missing as f64]
    };
    let (alone, with) = (run(false), run(true));
    let group = "128 origins answer 200 after 28 s";
    let row = |what: &str, unit, n: usize, most| {
        one(group, what, unit, with[n], Some(("the healthy alone", alone[n])), Wanted::AtMost(most))
    };
    vec![
        row("80 to a healthy endpoint in 40 s, push to arrival, p50", Unit::Seconds, 0, 0.1),
        row("p90", Unit::Seconds, 1, 0.5),
        row("the latest", Unit::Seconds, 2, 2.0),
        row("not delivered 3 s after the last was pushed", Unit::Number, 3, 0.0),
    ]
}

/// 3,000 endpoints are down together, and back together when each has been tried.
fn back(_full: bool) -> Vec<Row> {
    const N: usize = 3_000;
    let is_down = Arc::new(AtomicBool::new(true));
    let switch = is_down.clone();
    let stage = Stage::new(move |_| if switch.load(Ordering::Relaxed) { 0 } else { 200 });
    stage.push(&(0..N).map(|o| stage.recipient.entry(o, o as u64, BYTES)).collect::<Vec<_>>());
    let agent = stage.agent(&[]);
    let tried = || {
        let mut last = BTreeMap::new();
        for arrival in stage.recipient.arrivals() {
            let (n, at) = last.entry(arrival.origin).or_insert((0, arrival.arrived));
            (*n, *at) = (*n + 1, arrival.arrived);
        }
        last
    };
    let limit = Instant::now() + seconds(120);
    while tried().len() < N && Instant::now() < limit {
        thread::sleep(Duration::from_millis(50));
    }
    is_down.store(false, Ordering::Relaxed);
    let (begun, cpu) = (stage.recipient.now(), agent.used().cpu);
    // Each is due a doubling pause after its last try, the first of 5 s.
    let due = tried().values().map(|(n, at)| *at + seconds(5 << (n - 1).min(6))).max().unwrap_or(begun);
    let all_out = stage.try_good(N, seconds(240));
    let cpu = agent.used().cpu - cpu;
    let last = stage.recipient.answered().iter().filter(|a| a.status == 200).map(|a| a.arrived).max();
    let after = |since: Duration| match last {
        Some(last) if all_out => last.saturating_sub(since).as_secs_f64(),
        _ => f64::INFINITY,
    };
    let group = "3,000 endpoints are down together, and back";
    vec![
        one(group, "all served, after the last of them is due", Unit::Seconds, after(due), None, Wanted::AtMost(5.0)),
        one(group, "the same, since they are back", Unit::Seconds, after(begun), None, Wanted::Shown),
        one(group, "processor of the agent for it", Unit::Seconds, cpu, None, Wanted::Shown),
    ]
}

/// 10,000 endpoints that were never tried get one message each, and take 20 ms for an answer.
fn newcomers(_full: bool) -> Vec<Row> {
    const N: usize = 10_000;
    let stage = Stage::new(|_| {
        thread::sleep(Duration::from_millis(20));
        200
    });
    stage.push(&(0..N).map(|o| stage.recipient.entry(o, o as u64, BYTES)).collect::<Vec<_>>());
    let agent = stage.agent(&[]);
    let all_out = stage.try_good(N, seconds(180));
    let seen = if all_out { agent.started.elapsed().as_secs_f64() } else { f64::INFINITY };
    let ideal = N as f64 * 0.020 / 64.0;
    vec![one(
        "10,000 endpoints never tried, 20 ms an answer",
        "all served",
        Unit::Seconds,
        seen,
        Some(("64 at a time", ideal)),
        Wanted::TimesReferencePlus(2.0, 2.0),
    )]
}

/// An endpoint answered 503 once and is well: when it is tried again, however busy the agent is.
fn failed_once(full: bool) -> Vec<Row> {
    const FAILED: usize = 5_000;
    let watch = seconds(if full { 120 } else { 60 });
    // `hole` says of an origin whether it hangs, and how long its answer takes.
    let stage = |hole: fn(usize) -> bool, takes: Duration| {
        let n_tries = AtomicUsize::new(0);
        Stage::new(move |request| match request.origin {
            FAILED if n_tries.fetch_add(1, Ordering::SeqCst) == 0 => 503,
            FAILED => 200,
            o if hole(o) => request.hang(),
            _ => {
                thread::sleep(takes);
                200
            }
        })
    };
    let again = |stage: &Stage| {
        let tries: Vec<Duration> =
            stage.recipient.arrivals().iter().filter(|a| a.origin == FAILED).map(|a| a.arrived).collect();
        match tries[..] {
            [first, second, ..] => (second - first).as_secs_f64(),
            _ => f64::INFINITY,
        }
    };
    let wait_for = |stage: &Stage, n: usize, within: Duration| {
        let deadline = Instant::now() + within;
        while stage.recipient.arrivals().iter().filter(|a| a.origin == FAILED).count() < n && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(50));
        }
    };

    let busy = {
        let stage = stage(|_| false, Duration::from_millis(500));
        let _agent = stage.agent(&["--retry-first", "2s"]);
        stage.push(&(0..200).map(|n| stage.recipient.entry(n as usize % 20, n, BYTES)).collect::<Vec<_>>());
        stage.wait_good(200, seconds(60));
        stage.push(&[stage.recipient.entry(FAILED, 999, BYTES)]);
        let n = watch.as_secs() * 400;
        stage.push(&(0..n).map(|n| stage.recipient.entry(n as usize % 20, 1_000 + n, BYTES)).collect::<Vec<_>>());
        wait_for(&stage, 2, watch);
        again(&stage)
    };
    let holes = {
        let stage = stage(|_| true, Duration::ZERO);
        let _agent = stage.agent(&["--workers", "16", "--timeout", "5s", "--retry-first", "1s"]);
        stage.push(&[stage.recipient.entry(FAILED, 999, BYTES)]);
        wait_for(&stage, 1, seconds(20));
        stage.push(&(0..300).map(|n| stage.recipient.entry(n as usize, n, BYTES)).collect::<Vec<_>>());
        let begun = Instant::now();
        while begun.elapsed() < watch && again(&stage).is_infinite() {
            stage.push_numbered(20.0, seconds(1), 10_000 + begun.elapsed().as_secs() * 100, |n, _| {
                300 + 20 * begun.elapsed().as_secs() as usize + n
            });
        }
        again(&stage)
    };
    let group = "an endpoint answered 503 once and is well: tried again after";
    vec![
        one(
            group,
            "while 20 proven ones of 0.5 s with a backlog take all workers (due after 2 s)",
            Unit::Seconds,
            busy,
            None,
            Wanted::AtMost(5.0),
        ),
        one(
            group,
            "300 hang and 20 new ones a second, --workers 16 --timeout 5s (due after 1 s)",
            Unit::Seconds,
            holes,
            None,
            Wanted::AtMost(10.0),
        ),
    ]
}

/// Two agents in a row are killed with all of 4,096 messages in flight; then one recipient of fifty hangs.
fn killed_twice(full: bool) -> Vec<Row> {
    const N: usize = 4_096;
    const ORIGINS: usize = 50;
    const LEASE: Duration = Duration::from_secs(3);
    let all_hang = Arc::new(AtomicBool::new(false));
    let switch = all_hang.clone();
    let stage = Stage::new(move |request| match request.origin {
        _ if switch.load(Ordering::Relaxed) => request.hang(),
        0 if request.number >= 1_000 => request.hang(),
        _ => {
            thread::sleep(Duration::from_millis(50));
            200
        }
    });
    // With idle workers an agent holds as many as --in-flight says.
    let options = ["--lease", "3s", "--workers", "2048", "--in-flight", "4096", "--endpoint-concurrency", "40"];
    let in_flight = || stage.redis.client().zcard::<_, usize>(key("inflight")).expect("our Redis answers");
    let settled_at = |least: usize, within: Duration| {
        let deadline = Instant::now() + within;
        let (mut seen, mut since) = (in_flight(), Instant::now());
        while seen < least && Instant::now() < deadline && (seen == 0 || since.elapsed() < seconds(5)) {
            thread::sleep(Duration::from_millis(100));
            let now = in_flight();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
        in_flight()
    };
    let first = stage.agent(&options);
    let warm = ORIGINS * 20;
    stage.push(&(0..warm).map(|n| stage.recipient.entry(n % ORIGINS, n as u64 % 1_000, BYTES)).collect::<Vec<_>>());
    stage.wait_good(warm, seconds(60));
    all_hang.store(true, Ordering::Relaxed);
    stage.push(&(0..N).map(|n| stage.recipient.entry(n % ORIGINS, 1_000 + n as u64, BYTES)).collect::<Vec<_>>());
    let at_first = settled_at(N, seconds(20));
    drop(first);
    let second = stage.agent(&options);
    // The dead one's messages come back with its lease, and are then the second one's.
    thread::sleep(seconds(6));
    let at_second = settled_at(N, seconds(20));
    drop(second);
    all_hang.store(false, Ordering::Relaxed);
    let before = stage.recipient.now();
    let third = stage.agent(&["--lease", "3s", "--timeout", "5s"]);
    let deliverable = N - N.div_ceil(ORIGINS);
    let all_out = stage.try_good(warm + deliverable, seconds(if full { 1_200 } else { 180 }));
    let good: Vec<Arrival> =
        stage.recipient.answered().into_iter().filter(|a| a.status == 200 && a.arrived > before).collect();
    let last = good.iter().map(|a| a.arrived).max().unwrap_or(before);
    let took = last.saturating_sub(before + LEASE);
    eprintln!("lane-figures: {} of {deliverable} were delivered, the last {took:.1?} after the lease", good.len());
    if !all_out {
        eprintln!("lane-figures: the agent said:\n{}", third.log());
    }
    let group = "two kill -9 in a row, one recipient of fifty hangs";
    vec![
        one(group, "in flight at the first kill", Unit::Number, at_first as f64, None, Wanted::AtLeast(4_000.0)),
        one(group, "in flight at the second kill", Unit::Number, at_second as f64, None, Wanted::Shown),
        one(
            group,
            "all that can be delivered is out, after the lease",
            Unit::Seconds,
            if all_out { took.as_secs_f64() } else { f64::INFINITY },
            Some(("128 at a time", deliverable as f64 * 0.050 / 128.0)),
            Wanted::AtMost(60.0),
        ),
    ]
}

// ---- what they are made of ----

struct Stage {
    redis: Redis,
    recipient: Recipient,
    pushed: Mutex<BTreeMap<u64, Duration>>,
}

impl Stage {
    fn new(manners: impl Fn(&Request) -> u16 + Send + Sync + 'static) -> Stage {
        Stage { redis: Redis::start(&[]), recipient: Recipient::start(manners), pushed: Default::default() }
    }

    fn agent(&self, options: &[&str]) -> Program {
        Program::agent(&self.redis.url(), options)
    }

    fn length(&self) -> usize {
        self.redis.client().llen(QUEUE).expect("our Redis answers")
    }

    fn push(&self, entries: &[Vec<u8>]) {
        let mut client = self.redis.client();
        for entries in entries.chunks(500) {
            let _: usize = client.rpush(QUEUE, entries).expect("our Redis answers");
        }
    }

    fn push_steadily(&self, rate: f64, length: Duration, choose: impl FnMut(usize, Duration) -> usize) -> usize {
        self.push_numbered(rate, length, 1_000_000, choose)
    }

    /// So many a second for so long; `choose` says to which origin the `n`th goes. Returns how many.
    fn push_numbered(
        &self,
        rate: f64,
        length: Duration,
        first: u64,
        mut choose: impl FnMut(usize, Duration) -> usize,
    ) -> usize {
        let mut client = self.redis.client();
        let (begun, mut n) = (Instant::now(), 0);
        while begun.elapsed() < length {
            let due = ((begun.elapsed().as_secs_f64() * rate) as usize).min((length.as_secs_f64() * rate) as usize);
            let mut batch = Vec::new();
            while n < due {
                let number = first + n as u64;
                batch.push(self.recipient.entry(choose(n, begun.elapsed()), number, BYTES));
                self.pushed.lock().expect("nothing panics with it").insert(number, self.recipient.now());
                n += 1;
            }
            if !batch.is_empty() {
                let _: usize = client.rpush(QUEUE, batch).expect("our Redis answers");
            }
            thread::sleep(Duration::from_millis(1).min(Duration::from_secs_f64(1.0 / rate)));
        }
        n
    }

    fn pushed(&self) -> BTreeMap<u64, Duration> {
        self.pushed.lock().expect("nothing panics with it").clone()
    }

    fn wait_good(&self, n: usize, within: Duration) {
        assert!(self.try_good(n, within), "{} of {n} delivered within {within:?}", self.recipient.n_good());
    }

    /// Whether so many were delivered within this time.
    fn try_good(&self, n: usize, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.recipient.n_good() < n && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        self.recipient.n_good() >= n
    }
}

/// Seconds that an origin took for an answer, from arrival to answer.
fn mean_answer(recipient: &Recipient, origin: usize) -> f64 {
    let took: Vec<f64> = recipient
        .answered()
        .iter()
        .filter(|arrival| arrival.origin == origin && arrival.status == 200)
        .map(|arrival| arrival.took.as_secs_f64())
        .collect();
    took.iter().sum::<f64>() / took.len() as f64
}

fn key(name: &str) -> String {
    format!("{{{QUEUE}}}:{name}")
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn one(group: &'static str, what: &str, unit: Unit, seen: f64, reference: Option<(&str, f64)>, wanted: Wanted) -> Row {
    let reference = reference.map(|(name, value)| (name.to_string(), Spread::of([value])));
    Row { group, what: what.to_string(), unit, seen: Spread::of([seen]), reference, wanted }
}

/// The same order every time: an xorshift from a fixed seed.
fn shuffle(list: &mut [usize]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for n in (1..list.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        list.swap(n, (state % (n as u64 + 1)) as usize);
    }
}
