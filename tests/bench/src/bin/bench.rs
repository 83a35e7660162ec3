//! Throughput, latency, and what a message costs: the agent beside what it is compared with, in
//! interleaved rounds, so that a busy moment of the machine hits both.
//!
//! `bench [--quick] [--only NAME]… [--rounds N] [--workers N] [--json FILE] [--table FILE] [--svg FILE]`
//!
//! Progress goes to standard error, the table to standard output.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use acapy_deliver_bench::closing::Closing;
use acapy_deliver_bench::figures::{Machine, Row, Sample, Spread, Unit, Wanted, document, quantile, spread, table};
use acapy_deliver_bench::ground::{Nginx, Redis};
use acapy_deliver_bench::load::{Load, QUEUE};
use acapy_deliver_bench::program::{Program, agent_binary, reference_binary};
use acapy_deliver_bench::recipient::Recipient;
use acapy_deliver_bench::{picture, proxy};
use redis::Commands;

type Measure = fn(&Bench) -> Vec<Row>;

/// The names that `--only` takes, with what each measures.
const MEASURES: [(&str, Measure); 12] = [
    ("throughput", throughput),
    ("json", json),
    ("deliverer", deliverer),
    ("sizes", sizes),
    ("everysec", everysec),
    ("distance", distance),
    ("latency", latency),
    ("start", start),
    ("growth", growth),
    ("agents", agents),
    ("tls", tls),
    ("websocket", websocket),
];
/// What `--quick` measures.
const QUICK: [&str; 3] = ["throughput", "latency", "start"];
/// Longer than any round should take, on a busy machine too.
const ROUND: Duration = Duration::from_secs(300);
/// What the agent does when nothing is said.
const DEFAULT_WORKERS: usize = 128;

struct Bench {
    quick: bool,
    rounds: usize,
    /// The number of workers that does best, as `growth` shows it.
    best: usize,
    redis: Redis,
    nginx: Nginx,
}

fn main() {
    rlimit::increase_nofile_limit(u64::MAX).ok();
    let mut quick = false;
    let (mut only, mut rounds, mut best) = (Vec::new(), None, 32);
    let (mut json, mut table_file, mut svg) = (None::<PathBuf>, None::<PathBuf>, None::<PathBuf>);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| usage(&format!("option '{word}' needs a value")));
        match word.as_str() {
            "--quick" => quick = true,
            "--only" => only.push(value()),
            "--rounds" => rounds = Some(number(&word, &value())),
            "--workers" => best = number(&word, &value()),
            "--json" => json = Some(value().into()),
            "--table" => table_file = Some(value().into()),
            "--svg" => svg = Some(value().into()),
            "-h" | "--help" => usage("measures the agent beside its references"),
            other => usage(&format!("unknown option '{other}'")),
        }
    }
    for name in &only {
        if !MEASURES.iter().any(|(known, _)| known == name) {
            usage(&format!("option '--only': there is no measure '{name}'"));
        }
    }
    if !agent_binary().exists() {
        usage(&format!("there is no agent at {}; scripts/bench builds it", agent_binary().display()));
    }
    let rounds = rounds.unwrap_or(if quick { 3 } else { 5 });
    let bench = Bench { quick, rounds, best, redis: Redis::start(&[]), nginx: Nginx::start() };
    let machine = Machine::look(bench.redis.version());
    let mut rows = Vec::new();
    for (name, measure) in MEASURES {
        let wanted = if only.is_empty() { !quick || QUICK.contains(&name) } else { only.iter().any(|o| o == name) };
        if wanted {
            eprintln!("bench: {name}");
            let begun = Instant::now();
            rows.extend(measure(&bench));
            eprintln!("bench: {name} took {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    let text = format!("{}\n{}", machine.text(), table(&rows));
    println!("{text}");
    let write = |path: &Option<PathBuf>, content: &str| {
        if let Some(path) = path {
            std::fs::write(path, content).unwrap_or_else(|error| usage(&format!("{}: {error}", path.display())));
        }
    };
    write(&table_file, &text);
    write(&json, &format!("{:#}\n", document(&machine, &rows)));
    if let Some(drawn) = picture::bars(&rows, "throughput", "messages per second, 2 KB, one machine") {
        write(&svg, &drawn);
    }
}

fn usage(why: &str) -> ! {
    let names = MEASURES.map(|(name, _)| name).join(", ");
    eprintln!(
        "bench: {why}\nbench [--quick] [--only NAME]… [--rounds N] [--workers N] [--json FILE] [--table FILE] [--svg FILE]\nmeasures: {names}"
    );
    std::process::exit(2)
}

fn number(option: &str, text: &str) -> usize {
    match text.parse() {
        Ok(n) if n > 0 => n,
        _ => usage(&format!("option '{option}': '{text}' is not a number above 0")),
    }
}

// ---- what is measured ----

/// The main comparison, and what a message costs.
fn throughput(bench: &Bench) -> Vec<Row> {
    let mut rows = Vec::new();
    for origins in [1, 1000] {
        let load = bench.load(if bench.quick { 40_000 } else { 200_000 }, 2048, origins);
        let threads = if bench.quick { vec![DEFAULT_WORKERS] } else { vec![DEFAULT_WORKERS, bench.best] };
        let (mut agents, mut bares, mut pops, mut ceilings) = (vec![], vec![], vec![], vec![]);
        for threads in &threads {
            let workers = threads.to_string();
            let [agent, bare, pop, wrk] = contest(
                bench.rounds,
                [
                    &|| bench.agent(&["--workers", &workers], &load),
                    &|| bench.bare(&load, *threads),
                    &|| bench.pop(&load, *threads),
                    &|| if origins == 1 { bench.wrk(*threads) } else { Sample::from([("per_second", f64::NAN)]) },
                ],
            );
            agents.push(agent);
            bares.push(bare);
            pops.push(pop);
            ceilings.push(wrk);
        }
        let place = if origins == 1 { "1 origin".to_string() } else { format!("{origins} origins") };
        let mut row = |what: String, unit, seen: Spread, reference: Option<(String, Spread)>, wanted| {
            rows.push(Row { group: "throughput", what, unit, seen, reference, wanted });
        };
        for (at, threads) in threads.iter().enumerate() {
            let kind = if at == 0 { format!("default ({threads} workers)") } else { format!("{threads} workers") };
            let (agent, bare, pop) = (&agents[at], &bares[at], &pops[at]);
            let speed = |samples: &[Sample]| spread(samples, "per_second");
            row(
                format!("{place}, {kind}"),
                Unit::PerSecond,
                speed(agent),
                Some((format!("bare loop, {threads} threads"), speed(bare))),
                Wanted::TimesReference(0.75),
            );
            row(
                format!("{place}, {kind}"),
                Unit::PerSecond,
                speed(agent),
                Some((format!("plain pop, {threads} workers"), speed(pop))),
                Wanted::TimesReference(2.0),
            );
            if origins == 1 {
                let ceiling = Some(("wrk, the recipient's ceiling".to_string(), speed(&ceilings[at])));
                row(format!("{place}, {kind}"), Unit::PerSecond, speed(agent), ceiling, Wanted::Shown);
            }
            let of = |samples: &[Sample], name| spread(samples, name);
            let cpu = Some(("plain pop".to_string(), of(pop, "cpu")));
            row(
                format!("{place}, {kind}: CPU of the agent per message"),
                Unit::Micros,
                of(agent, "cpu"),
                cpu,
                Wanted::Shown,
            );
            let cpu = Some(("bare loop".to_string(), of(bare, "cpu")));
            row(format!("{place}, {kind}: the same"), Unit::Micros, of(agent, "cpu"), cpu, Wanted::Shown);
            let cpu = Some(("plain pop".to_string(), of(pop, "redis_cpu")));
            row(
                format!("{place}, {kind}: CPU of Redis per message"),
                Unit::Micros,
                of(agent, "redis_cpu"),
                cpu,
                Wanted::Shown,
            );
            let time = Some(("plain pop".to_string(), of(pop, "redis_time")));
            row(
                format!("{place}, {kind}: Redis's time in commands per message"),
                Unit::Micros,
                of(agent, "redis_time"),
                time,
                Wanted::AtMost(12.0),
            );
            let trips = Some(("plain pop".to_string(), of(pop, "trips")));
            row(
                format!("{place}, {kind}: round trips to Redis per message"),
                Unit::Number,
                of(agent, "trips"),
                trips,
                Wanted::AtMost(0.1),
            );
            let most = if *threads >= DEFAULT_WORKERS { 24.0 } else { 16.0 };
            let memory = Some(("plain pop".to_string(), of(pop, "memory")));
            row(
                format!("{place}, {kind}: peak resident memory"),
                Unit::Mebibytes,
                of(agent, "memory"),
                memory,
                Wanted::AtMost(most),
            );
        }
    }
    rows
}

/// Messages as today's ACA-Py writes them, beside those of 0.7 with the same payload.
fn json(bench: &Bench) -> Vec<Row> {
    let mut rows = Vec::new();
    for origins in [1, 1000] {
        let msgpack = bench.load(if bench.quick { 40_000 } else { 200_000 }, 2048, origins);
        let json = Load { json: true, ..msgpack.clone() };
        let [json, msgpack] = contest(bench.rounds, [&|| bench.agent(&[], &json), &|| bench.agent(&[], &msgpack)]);
        let place = if origins == 1 { "1 origin".to_string() } else { format!("{origins} origins") };
        let figures = [
            ("", Unit::PerSecond, "per_second", Wanted::TimesReference(0.9)),
            (": CPU of the agent per message", Unit::Micros, "cpu", Wanted::Shown),
            (": CPU of Redis per message", Unit::Micros, "redis_cpu", Wanted::Shown),
            (": peak resident memory", Unit::Mebibytes, "memory", Wanted::Shown),
        ];
        for (what, unit, name, wanted) in figures {
            rows.push(Row {
                group: "json",
                what: format!("JSON, {place}, default{what}"),
                unit,
                seen: spread(&json, name),
                reference: Some(("the same in MessagePack".to_string(), spread(&msgpack, name))),
                wanted,
            });
        }
    }
    rows
}

/// Beside what the plugin's own deliverer does, with recipients of several tempers.
fn deliverer(bench: &Bench) -> Vec<Row> {
    let mut rows = Vec::new();
    for (millis, messages, few) in [(0, 100_000, 5_000), (1, 10_000, 1_000), (50, 1_000, 40)] {
        let recipient = Recipient::start(move |_| {
            thread::sleep(Duration::from_millis(millis));
            200
        });
        let port = if millis == 0 { bench.nginx.http } else { recipient.port() };
        for origins in [1, 100] {
            let load = Load { port, json: true, ..bench.load(messages, 2048, origins) };
            let short = Load { messages: few, ..load.clone() };
            let [agent, deliverer] = contest(bench.rounds, [&|| bench.agent(&[], &load), &|| bench.deliverer(&short)]);
            let place = if origins == 1 { "1 origin".to_string() } else { format!("{origins} origins") };
            rows.push(Row {
                group: "deliverer",
                what: format!("JSON, {place}, answers after {millis} ms, default"),
                unit: Unit::PerSecond,
                seen: spread(&agent, "per_second"),
                reference: Some(("one at a time, a connection each".to_string(), spread(&deliverer, "per_second"))),
                wanted: Wanted::Shown,
            });
        }
    }
    rows
}

fn sizes(bench: &Bench) -> Vec<Row> {
    let mut rows = Vec::new();
    for (messages, bytes, name) in [(200_000, 200, "200 B"), (20_000, 64 << 10, "64 KB")] {
        let load = bench.load(messages, bytes, 1);
        let [agent, bare, pop] = contest(
            bench.rounds,
            [&|| bench.agent(&[], &load), &|| bench.bare(&load, DEFAULT_WORKERS), &|| {
                bench.pop(&load, DEFAULT_WORKERS)
            }],
        );
        rows.extend(both("sizes", &format!("{name}, 1 origin, default"), &agent, &bare, &pop));
        rows.push(shown("sizes", &format!("{name}: peak resident memory"), Unit::Mebibytes, &agent, &pop, "memory"));
    }
    rows
}

/// With Redis writing to disk.
fn everysec(bench: &Bench) -> Vec<Row> {
    let redis = Redis::start(&["appendonly yes", "appendfsync everysec", "auto-aof-rewrite-percentage 0"]);
    let load = bench.load(200_000, 2048, 1);
    let [agent, bare, pop] = contest(
        bench.rounds,
        [&|| bench.agent_on(&redis, &redis.url(), &[], &load), &|| bench.bare(&load, DEFAULT_WORKERS), &|| {
            bench.pop_on(&redis, &redis.url(), &load, DEFAULT_WORKERS)
        }],
    );
    both("everysec", "appendfsync everysec, 1 origin, default", &agent, &bare, &pop)
}

/// With a millisecond between Redis and everybody else: half of it each way.
fn distance(bench: &Bench) -> Vec<Row> {
    let far = proxy::start(bench.redis.port(), Duration::from_micros(500));
    let url = format!("redis://127.0.0.1:{far}");
    let load = bench.load(100_000, 2048, 1);
    let short = Load { messages: 2_000, ..load.clone() };
    let [agent, pop] = contest(
        bench.rounds,
        [&|| bench.agent_on(&bench.redis, &url, &[], &load), &|| {
            bench.pop_on(&bench.redis, &url, &short, DEFAULT_WORKERS)
        }],
    );
    let reference = Some(("plain pop".to_string(), spread(&pop, "per_second")));
    let what = "Redis 1 ms away, 1 origin, default".to_string();
    let wanted = Wanted::TimesReference(20.0);
    vec![Row { group: "distance", what, unit: Unit::PerSecond, seen: spread(&agent, "per_second"), reference, wanted }]
}

/// From push to arrival.
fn latency(bench: &Bench) -> Vec<Row> {
    let (idle, steady) = if bench.quick { (60, 3_000) } else { (300, 20_000) };
    let recipient = Recipient::start(|_| 200);
    let pop = || {
        let mut command = Command::new(reference_binary());
        command.args(["pop", "--threads", "32", "--redis", &bench.redis.url()]);
        Program::start(command)
    };
    let agent = || Program::agent::<&str>(&bench.redis.url(), &[]);
    let measure = |program: &dyn Fn() -> Program, n: usize, gap: Duration| {
        bench.redis.reset();
        let _program = program();
        push_and_wait(bench, &recipient, n, gap)
    };
    let gap = Duration::from_millis(23);
    let [idle_agent, idle_pop] = contest(bench.rounds, [&|| measure(&agent, idle, gap), &|| measure(&pop, idle, gap)]);
    let gap = Duration::from_millis(1);
    let [busy_agent, busy_pop] =
        contest(bench.rounds, [&|| measure(&agent, steady, gap), &|| measure(&pop, steady, gap)]);
    let mut rows = Vec::new();
    for (what, agent, pop) in [("idle", idle_agent, idle_pop), ("1,000/s", busy_agent, busy_pop)] {
        for name in ["p50", "p99", "p99.9"] {
            let wanted = if what == "idle" && name == "p50" { Wanted::OverReference(0.3) } else { Wanted::Shown };
            rows.push(Row {
                group: "latency",
                what: format!("push to arrival, {what}, {name}"),
                unit: Unit::Millis,
                seen: spread(&agent, name),
                reference: Some(("plain pop".to_string(), spread(&pop, name))),
                wanted,
            });
        }
    }
    rows
}

/// Pushes this many, one at a time, this far apart, and waits for their arrival.
fn push_and_wait(bench: &Bench, recipient: &Recipient, n: usize, gap: Duration) -> Sample {
    let mut client = bench.redis.client();
    let mut push = |number| {
        let _: usize = client.rpush(QUEUE, recipient.entry(0, number, 2048)).expect("our Redis answers");
    };
    recipient.forget();
    // The first ones open connections and prove the lane.
    for number in 0..50 {
        push(number);
    }
    wait_for(recipient, 50);
    recipient.forget();
    let begun = Instant::now();
    for number in 0..n {
        thread::sleep((begun + gap * number as u32).saturating_duration_since(Instant::now()));
        push(number as u64);
    }
    wait_for(recipient, n);
    let latencies: Vec<Duration> = recipient.arrivals().iter().map(|arrival| arrival.latency()).collect();
    [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)].map(|(name, share)| (name, quantile(&latencies, share))).into()
}

fn wait_for(recipient: &Recipient, n: usize) {
    let deadline = Instant::now() + ROUND;
    while recipient.n_good() < n {
        assert!(Instant::now() < deadline, "{} of {n} messages arrived", recipient.n_good());
        thread::sleep(Duration::from_millis(5));
    }
}

/// From the start of the process to the first arrival.
fn start(bench: &Bench) -> Vec<Row> {
    let recipient = Recipient::start(|_| 200);
    let first = |command: &dyn Fn() -> Program| {
        bench.redis.reset();
        recipient.forget();
        let _: usize = bench.redis.client().rpush(QUEUE, recipient.entry(0, 1, 2048)).expect("our Redis answers");
        let begun = recipient.now();
        let _program = command();
        wait_for(&recipient, 1);
        Sample::from([("ms", (recipient.arrivals()[0].arrived - begun).as_secs_f64() * 1000.0)])
    };
    let pop = || {
        let mut command = Command::new(reference_binary());
        command.args(["pop", "--threads", "128", "--redis", &bench.redis.url()]);
        Program::start(command)
    };
    let agent = || Program::agent::<&str>(&bench.redis.url(), &[]);
    let [agent, pop] = contest(bench.rounds * 3, [&|| first(&agent), &|| first(&pop)]);
    vec![Row {
        group: "start",
        what: "start of the process to the first arrival".to_string(),
        unit: Unit::Millis,
        seen: spread(&agent, "ms"),
        reference: Some(("plain pop".to_string(), spread(&pop, "ms"))),
        wanted: Wanted::AtMost(50.0),
    }]
}

fn growth(bench: &Bench) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |what: String, load: &Load, threads: usize| {
        let workers = threads.to_string();
        let [agent, bare] = contest(
            bench.rounds.min(3),
            [&|| bench.agent(&["--workers", &workers], load), &|| bench.bare(load, threads)],
        );
        let name = format!("bare loop, {threads} threads");
        let reference = Some((name, spread(&bare, "per_second")));
        let seen = spread(&agent, "per_second");
        rows.push(Row {
            group: "growth",
            what: what.clone(),
            unit: Unit::PerSecond,
            seen,
            reference,
            wanted: Wanted::Shown,
        });
        rows.push(shown("growth", &format!("{what}: peak resident memory"), Unit::Mebibytes, &agent, &bare, "memory"));
    };
    for origins in [1, 100, 10_000] {
        row(format!("{origins} origins"), &bench.load(100_000, 2048, origins), DEFAULT_WORKERS);
    }
    for workers in [1, 8, 32, 128] {
        row(format!("{workers} workers, 100 origins"), &bench.load(100_000, 2048, 100), workers);
    }
    for (power, messages) in [(3, 1_000), (4, 10_000), (5, 100_000), (6, 1_000_000)] {
        row(format!("backlog 10^{power}, 100 origins"), &bench.load(messages, 2048, 100), DEFAULT_WORKERS);
    }
    rows
}

/// Several agents on one queue: what Redis spends per message tells how many it can feed.
fn agents(bench: &Bench) -> Vec<Row> {
    let mut rows = Vec::new();
    let load = bench.load(200_000, 2048, 100);
    let [one, two, four] = contest(
        bench.rounds.min(3),
        [
            &|| bench.agents(&bench.redis, &bench.redis.url(), &[], &load, 1),
            &|| bench.agents(&bench.redis, &bench.redis.url(), &[], &load, 2),
            &|| bench.agents(&bench.redis, &bench.redis.url(), &[], &load, 4),
        ],
    );
    for (n, samples) in [(1, &one), (2, &two), (4, &four)] {
        rows.push(shown("agents", &format!("{n} agents"), Unit::PerSecond, samples, &one, "per_second"));
        rows.push(shown(
            "agents",
            &format!("{n} agents: CPU of Redis per message"),
            Unit::Micros,
            samples,
            &one,
            "redis_cpu",
        ));
    }
    let most = Spread::of(four.iter().map(|sample| 1e6 / sample["redis_cpu"]));
    rows.push(Row {
        group: "agents",
        what: "messages a second that one Redis can feed (a core over its CPU per message)".to_string(),
        unit: Unit::PerSecond,
        seen: most,
        reference: None,
        wanted: Wanted::Shown,
    });
    rows
}

fn tls(bench: &Bench) -> Vec<Row> {
    let ca = bench.nginx.ca_file().display().to_string();
    let mut rows = Vec::new();
    for (what, messages, port) in
        [("connections reused", 100_000, bench.nginx.https), ("a connection each", 5_000, bench.nginx.https_close)]
    {
        let load = Load { messages, bytes: 2048, origins: 100, scheme: "https", port, json: false };
        let [agent, bare] = contest(
            bench.rounds.min(3),
            [&|| bench.agent(&["--ca-file", &ca], &load), &|| bench.bare(&load, DEFAULT_WORKERS)],
        );
        rows.push(shown("TLS", what, Unit::PerSecond, &agent, &bare, "per_second"));
        rows.push(shown("TLS", &format!("{what}: CPU of the agent per message"), Unit::Micros, &agent, &bare, "cpu"));
    }
    for row in &mut rows {
        row.reference.as_mut().expect("each has one").0 = format!("bare loop, {DEFAULT_WORKERS} threads");
    }
    rows
}

/// Over ws and over http with a connection for each message, to the same recipient; sessions of TLS are resumed.
fn websocket(bench: &Bench) -> Vec<Row> {
    const ORIGINS: usize = 100;
    let recipient = Closing::start(ORIGINS);
    let ca = recipient.ca_file().display().to_string();
    let mut rows = Vec::new();
    for (what, messages, schemes, port) in [
        ("plain, a connection each", 40_000, ["ws", "http"], recipient.plain),
        ("TLS, a connection each", 20_000, ["wss", "https"], recipient.tls),
    ] {
        let [ws, http] =
            schemes.map(|scheme| Load { messages, bytes: 2048, origins: ORIGINS, scheme, port, json: false });
        let [ws, http] = contest(
            bench.rounds.min(3),
            [&|| bench.agent(&["--ca-file", &ca], &ws), &|| bench.agent(&["--ca-file", &ca], &http)],
        );
        let cpu = format!("{what}: CPU of the agent per message");
        rows.push(shown("WebSocket", what, Unit::PerSecond, &ws, &http, "per_second"));
        rows.push(shown("WebSocket", &cpu, Unit::Micros, &ws, &http, "cpu"));
    }
    rows
}

fn both(group: &'static str, what: &str, agent: &[Sample], bare: &[Sample], pop: &[Sample]) -> Vec<Row> {
    let row = |name: String, theirs: &[Sample], times| Row {
        group,
        what: what.to_string(),
        unit: Unit::PerSecond,
        seen: spread(agent, "per_second"),
        reference: Some((name, spread(theirs, "per_second"))),
        wanted: Wanted::TimesReference(times),
    };
    vec![
        row(format!("bare loop, {DEFAULT_WORKERS} threads"), bare, 0.75),
        row(format!("plain pop, {DEFAULT_WORKERS} workers"), pop, 2.0),
    ]
}

fn shown(group: &'static str, what: &str, unit: Unit, seen: &[Sample], theirs: &[Sample], name: &'static str) -> Row {
    let which = match group {
        "sizes" => "plain pop",
        "agents" => "1 agent",
        "WebSocket" => "the same by HTTP",
        _ => "bare loop",
    };
    Row {
        group,
        what: what.to_string(),
        unit,
        seen: spread(seen, name),
        reference: Some((which.to_string(), spread(theirs, name))),
        wanted: Wanted::Shown,
    }
}

/// The rounds of all, taking turns, each time beginning with another.
fn contest<const N: usize>(rounds: usize, contestants: [&dyn Fn() -> Sample; N]) -> [Vec<Sample>; N] {
    let mut samples = [const { Vec::new() }; N];
    for round in 0..rounds {
        for n in 0..N {
            let n = (n + round) % N;
            samples[n].push(contestants[n]());
        }
        eprintln!("bench:   round {} of {rounds}", round + 1);
    }
    samples
}

// ---- one round each ----

impl Bench {
    fn load(&self, messages: usize, bytes: usize, origins: usize) -> Load {
        Load { messages, bytes, origins, scheme: "http", port: self.nginx.http, json: false }
    }

    fn agent(&self, options: &[&str], load: &Load) -> Sample {
        self.agent_on(&self.redis, &self.redis.url(), options, load)
    }

    fn agent_on(&self, redis: &Redis, url: &str, options: &[&str], load: &Load) -> Sample {
        self.agents(redis, url, options, load, 1)
    }

    /// From the start of the agents until Redis holds none of the messages any more.
    fn agents(&self, redis: &Redis, url: &str, options: &[&str], load: &Load, n_agents: usize) -> Sample {
        let mut client = prepare(redis, load);
        let before = redis.counts();
        let begun = Instant::now();
        let agents: Vec<Program> = (0..n_agents).map(|_| Program::agent(url, options)).collect();
        loop {
            let (queued, held): (usize, usize) = redis::pipe()
                .llen(QUEUE)
                .hlen(format!("{{{QUEUE}}}:messages"))
                .query(&mut client)
                .expect("our Redis answers");
            if queued + held == 0 {
                break;
            }
            assert!(begun.elapsed() < ROUND, "{queued} queued, {held} held; the agent said:\n{}", agents[0].log());
            thread::sleep(Duration::from_millis(5));
        }
        let seconds = begun.elapsed().as_secs_f64();
        let (used, after) = (agents.iter().map(Program::used).collect::<Vec<_>>(), redis.counts());
        let n = load.messages as f64;
        let moves = ["evalsha", "eval", "blmove"].iter().filter_map(|name| after.commands.get(*name));
        let (trips, time) = moves.fold((0, 0), |sum, (calls, usec)| (sum.0 + calls, sum.1 + usec));
        Sample::from([
            ("per_second", n / seconds),
            ("cpu", used.iter().map(|used| used.cpu).sum::<f64>() * 1e6 / n),
            ("redis_cpu", (after.cpu - before.cpu) * 1e6 / n),
            ("redis_time", time as f64 / n),
            ("trips", trips as f64 / n),
            ("memory", used.iter().map(|used| used.peak_rss).fold(0.0, f64::max)),
        ])
    }

    fn bare(&self, load: &Load, threads: usize) -> Sample {
        let mut command = Command::new(reference_binary());
        command.args(["bare", "--scheme", load.scheme, "--ca-file"]).arg(self.nginx.ca_file());
        let numbers = [
            ("--threads", threads),
            ("--count", load.messages),
            ("--bytes", load.bytes),
            ("--origins", load.origins),
            ("--port", load.port.into()),
            ("--idle", idle_connections(load, threads)),
        ];
        for (name, value) in numbers {
            command.args([name, &value.to_string()]);
        }
        ended(command, load)
    }

    fn pop(&self, load: &Load, threads: usize) -> Sample {
        self.pop_on(&self.redis, &self.redis.url(), load, threads)
    }

    fn pop_on(&self, redis: &Redis, url: &str, load: &Load, threads: usize) -> Sample {
        prepare(redis, load);
        let before = redis.counts();
        let mut command = Command::new(reference_binary());
        let idle = idle_connections(load, threads).to_string();
        let (threads, count) = (threads.to_string(), load.messages.to_string());
        command.args(["pop", "--threads", &threads, "--count", &count, "--redis", url, "--idle", &idle]);
        let mut sample = ended(command, load);
        let after = redis.counts();
        let (trips, time) = after.commands.get("blpop").copied().unwrap_or_default();
        let n = load.messages as f64;
        sample.insert("redis_cpu", (after.cpu - before.cpu) * 1e6 / n);
        sample.insert("redis_time", time as f64 / n);
        sample.insert("trips", trips as f64 / n);
        sample
    }

    fn deliverer(&self, load: &Load) -> Sample {
        prepare(&self.redis, load);
        let mut command = Command::new(reference_binary());
        command.args(["deliverer", "--count", &load.messages.to_string(), "--redis", &self.redis.url()]);
        ended(command, load)
    }

    /// What the recipient can take at most.
    fn wrk(&self, connections: usize) -> Sample {
        let script = self.redis.dir().join("post.lua");
        let body = "wrk.method = 'POST'; wrk.body = string.rep('x', 2048); \
                    wrk.headers['Content-Type'] = 'application/ssi-agent-wire'\n";
        std::fs::write(&script, body).expect("the directory can be written to");
        let seconds = if self.quick { "2s" } else { "4s" };
        let output = Command::new("wrk")
            .args(["-t2", "-c", &connections.max(2).to_string(), "-d", seconds, "-s"])
            .arg(&script)
            .arg(format!("http://127.1.0.1:{}/", self.nginx.http))
            .output()
            .expect("wrk is installed");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = said.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
        let speed = line.and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| panic!("wrk said: {said}"));
        Sample::from([("per_second", speed)])
    }
}

/// How large ureq's own pool is best: it looks at every idle connection for every request, so that
/// beyond some hundred origins it is faster to connect anew than to keep them all (1,000 origins,
/// 128 threads, 4,000 requests: 0.4 s with ten idle ones, 1.1 s with 128, over a minute with 1,024).
fn idle_connections(load: &Load, threads: usize) -> usize {
    if load.origins > threads { 10 } else { threads }
}

fn prepare(redis: &Redis, load: &Load) -> redis::Connection {
    redis.reset();
    let mut client = redis.client();
    load.preload(&mut client);
    redis.rewrite();
    redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut client).expect("our Redis answers");
    client
}

fn ended(command: Command, load: &Load) -> Sample {
    let mut program = Program::start(command);
    let said = program.finish(ROUND);
    let seconds = program.started.elapsed().as_secs_f64();
    let words: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [cpu, memory] = words[..] else { panic!("the reference said: {said}") };
    let n = load.messages as f64;
    Sample::from([("per_second", n / seconds), ("cpu", cpu * 1e6 / n), ("memory", memory)])
}
