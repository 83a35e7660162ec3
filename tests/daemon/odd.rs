//! Values in Redis that no agent writes: whatever stands at the queue's keys, the agent that runs and
//! the one after it go on delivering, lose nothing, and do not ask Redis without a pause. What they
//! skip is counted, said once, named by `check`, and moved aside by `check --repair --yes`.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::wire::envelope;
use crate::support::{Agent, Answer, Redis, SOON, Sink, eventually, ms, run_to_end};

/// A word of a command; `<name>` stands for a key or what [`Places`] knows.
type Word = &'static [u8];

/// What is planted at which key, and what of it must still be somewhere in the end.
struct Case {
    name: &'static str,
    commands: &'static [&'static [Word]],
    /// Bodies and members that may not disappear.
    kept: &'static [Word],
}

const fn case(name: &'static str, commands: &'static [&'static [Word]], kept: &'static [Word]) -> Case {
    Case { name, commands, kept }
}

/// A valid id of a message that nobody claimed, and its body, which no agent can deliver.
const STRAY: Word = b"0000000000000007";

const CASES: &[Case] = &[
    case("nothing", &[], &[]),
    // The counter.
    case("id: word", &[&[b"SET", b"<id>", b"word"]], &[]),
    case("id: empty", &[&[b"SET", b"<id>", b""]], &[]),
    case("id: negative", &[&[b"SET", b"<id>", b"-5"]], &[]),
    case("id: 1e17", &[&[b"SET", b"<id>", b"1e17"]], &[]),
    case("id: 2^53", &[&[b"SET", b"<id>", b"9007199254740992"]], &[]),
    case("id: inf", &[&[b"SET", b"<id>", b"inf"]], &[]),
    case("id: nan", &[&[b"SET", b"<id>", b"nan"]], &[]),
    case("id: bytes", &[&[b"SET", b"<id>", b"\xff\xfe"]], &[]),
    // The bodies.
    case(
        "messages: fields",
        &[
            &[b"HSET", b"<messages>", b"word", b"body 1", b"12345", b"body 2"],
            &[b"HSET", b"<messages>", b"\xff\xfe", b"body 3", b"", b"body 4"],
        ],
        &[b"body 1", b"body 2", b"body 3", b"body 4"],
    ),
    // In flight.
    case("inflight: score inf", &[&[b"ZADD", b"<inflight>", b"inf", b"<held>"]], &[b"<held>"]),
    case("inflight: score -inf", &[&[b"ZADD", b"<inflight>", b"-inf", b"<held>"]], &[b"<held>"]),
    case("inflight: score negative", &[&[b"ZADD", b"<inflight>", b"-5", b"<held>"]], &[b"<held>"]),
    case("inflight: score huge", &[&[b"ZADD", b"<inflight>", b"1e17", b"<held>"]], &[b"<held>"]),
    case("inflight: score 1.5", &[&[b"ZADD", b"<inflight>", b"1.5", b"<held>"]], &[b"<held>"]),
    case("inflight: stranger, score inf", &[&[b"ZADD", b"<inflight>", b"inf", STRAY]], &[STRAY]),
    case("inflight: member word of mine", &[&[b"ZADD", b"<inflight>", b"<me>", b"word"]], &[b"word"]),
    case("inflight: member word of nobody", &[&[b"ZADD", b"<inflight>", b"5", b"word"]], &[b"word"]),
    case("inflight: member bytes of mine", &[&[b"ZADD", b"<inflight>", b"<me>", b"\xff\xfe"]], &[b"\xff\xfe"]),
    case(
        "inflight: short id of mine",
        &[&[b"ZADD", b"<inflight>", b"<me>", b"12345"], &[b"HSET", b"<messages>", b"12345", b"body"]],
        &[b"12345", b"body"],
    ),
    // Waiting.
    case("waiting: member word", &[&[b"ZADD", b"<waiting>", b"0", b"word"]], &[b"word"]),
    case("waiting: score -1", &[&[b"ZADD", b"<waiting>", b"-1", b"zzz"]], &[b"zzz"]),
    case("waiting: score 5", &[&[b"ZADD", b"<waiting>", b"5", b"aaa"]], &[b"aaa"]),
    case("waiting: score of a true one", &[&[b"ZADD", b"<waiting>", b"5", b"<lane>\n<waits>"]], &[]),
    case("waiting: short id", &[&[b"ZADD", b"<waiting>", b"0", b"<lane>\n12345"]], &[b"<lane>\n12345"]),
    case("waiting: word in place of an id", &[&[b"ZADD", b"<waiting>", b"0", b"<lane>\nword"]], &[b"<lane>\nword"]),
    case(
        "waiting: origin bytes",
        &[&[b"ZADD", b"<waiting>", b"0", b"\xff\xfe\n0000000000000008"], &[b"ZADD", b"<lanes>", b"0", b"\xff\xfe"]],
        &[],
    ),
    // Lanes.
    case("lanes: bytes", &[&[b"ZADD", b"<lanes>", b"1", b"\xff\xfe"]], &[]),
    case("lanes: bytes, open", &[&[b"ZADD", b"<lanes>", b"0", b"\xff\xfe"]], &[]),
    case("lanes: bytes, later", &[&[b"ZADD", b"<lanes>", b"9e12", b"\xff\xfe"]], &[]),
    case("lanes: word -inf", &[&[b"ZADD", b"<lanes>", b"-inf", b"word"]], &[]),
    case("lanes: empty inf", &[&[b"ZADD", b"<lanes>", b"inf", b""]], &[]),
    case("lanes: a true one inf", &[&[b"ZADD", b"<lanes>", b"inf", b"<lane>"]], &[]),
    case("lanes: a true one 1e17", &[&[b"ZADD", b"<lanes>", b"1e17", b"<lane>"]], &[]),
    // Failures.
    case("failures: word", &[&[b"HSET", b"<failures>", b"<lane>", b"word"]], &[]),
    case("failures: negative", &[&[b"HSET", b"<failures>", b"<lane>", b"-1 f x"]], &[]),
    case("failures: huge", &[&[b"HSET", b"<failures>", b"<lane>", b"99999999999999999999 s x"]], &[]),
    case("failures: 2^32 - 1", &[&[b"HSET", b"<failures>", b"<lane>", b"4294967295 f x"]], &[]),
    case("failures: bytes", &[&[b"HSET", b"<failures>", b"<lane>", b"\xff\xfe"]], &[]),
    // The retry schedule.
    case("retry: word", &[&[b"ZADD", b"<retry>", b"0", b"word"]], &[b"word"]),
    case("retry: word -inf", &[&[b"ZADD", b"<retry>", b"-inf", b"word"]], &[b"word"]),
    case("retry: word inf", &[&[b"ZADD", b"<retry>", b"inf", b"word"]], &[b"word"]),
    case("retry: empty", &[&[b"ZADD", b"<retry>", b"0", b""]], &[]),
    case("retry: bytes", &[&[b"ZADD", b"<retry>", b"0", b"\xff\xfe"]], &[b"\xff\xfe"]),
    case(
        "retry: short id",
        &[&[b"ZADD", b"<retry>", b"0", b"12345"], &[b"HSET", b"<messages>", b"12345", b"body"]],
        &[b"12345", b"body"],
    ),
    case(
        "retry: three thousand words",
        &[&[b"EVAL", b"for i = 1, 3000 do redis.call('ZADD', KEYS[1], i, 'word' .. i) end", b"1", b"<retry>"]],
        &[b"word3000"],
    ),
    case("retry: a true one inf", &[&[b"ZADD", b"<retry>", b"inf", b"<put off>"]], &[]),
    // Dead letters.
    case("dead: word", &[&[b"ZADD", b"<dead>", b"5", b"word"]], &[b"word"]),
    case("dead: bytes inf", &[&[b"ZADD", b"<dead>", b"inf", b"\xff\xfe"]], &[b"\xff\xfe"]),
    case(
        "dead: a true one -inf",
        &[&[b"ZADD", b"<dead>", b"-inf", STRAY], &[b"HSET", b"<messages>", STRAY, b"body"]],
        &[STRAY, b"body"],
    ),
    // History.
    case("history: word", &[&[b"HSET", b"<history>", b"<waits>", b"word"]], &[]),
    case(
        "history: beyond",
        &[&[b"HSET", b"<history>", b"<waits>", b"4294967295 4294967295 -9223372036854775808 x"]],
        &[],
    ),
    case("history: of 1970", &[&[b"HSET", b"<history>", b"<waits>", b"1 0 0 x"]], &[]),
    case("history: bytes", &[&[b"HSET", b"<history>", b"<waits>", b"\xff\xfe"]], &[]),
    // Deaths.
    case("recovered: word", &[&[b"HSET", b"<recovered>", b"<waits>", b"word"]], &[]),
    case("recovered: negative", &[&[b"HSET", b"<recovered>", b"<waits>", b"-1"]], &[]),
    case("recovered: 1e17", &[&[b"HSET", b"<recovered>", b"<waits>", b"1e17"]], &[]),
    case("recovered: 2.5", &[&[b"HSET", b"<recovered>", b"<waits>", b"2.5"]], &[]),
    case("recovered: empty", &[&[b"HSET", b"<recovered>", b"<waits>", b""]], &[]),
    case("recovered: word, in flight", &[&[b"HSET", b"<recovered>", b"<held>", b"word"]], &[]),
    case("recovered: inf, put off", &[&[b"HSET", b"<recovered>", b"<put off>", b"inf"]], &[]),
    // Agents.
    case("agents: word", &[&[b"ZADD", b"<agents>", b"9e12", b"word"]], &[b"word"]),
    case("agents: empty", &[&[b"ZADD", b"<agents>", b"5", b""]], &[]),
    case("agents: short", &[&[b"ZADD", b"<agents>", b"5", b"12345"]], &[b"12345"]),
    case("agents: negative", &[&[b"ZADD", b"<agents>", b"5", b"-1"]], &[b"-1"]),
    case("agents: bytes", &[&[b"ZADD", b"<agents>", b"5", b"\xff\xfe"]], &[b"\xff\xfe"]),
    case("agents: lease inf", &[&[b"ZADD", b"<agents>", b"inf", STRAY]], &[]),
    case("agents: lease negative", &[&[b"ZADD", b"<agents>", b"-5", STRAY]], &[]),
    // Calls.
    case("calls: word", &[&[b"HSET", b"<calls>", b"<me>", b"word"]], &[]),
    case("calls: empty", &[&[b"HSET", b"<calls>", b"<me>", b""]], &[]),
    case("calls: huge", &[&[b"HSET", b"<calls>", b"<me>", b"99999999999999999999"]], &[]),
    case("calls: settle word", &[&[b"HSET", b"<calls>", b"s<me>", b"word"]], &[]),
    case("calls: settle huge", &[&[b"HSET", b"<calls>", b"s<me>", b"99999999999999999999"]], &[]),
    case("calls: settle 1000", &[&[b"HSET", b"<calls>", b"s<me>", b"1000"]], &[]),
    case("calls: lease word", &[&[b"HSET", b"<calls>", b"l<me>", b"word"]], &[]),
    case("calls: lease huge", &[&[b"HSET", b"<calls>", b"l<me>", b"99999999999999999999 99999999999999999999"]], &[]),
    case("calls: recovered bytes", &[&[b"HSET", b"<calls>", b"recovered", b"\xff\xfe"]], &[]),
    // The prototype's schedule.
    case("the prototype's key holds a string", &[&[b"SET", b"acapy.outbound_retry", b"x"]], &[]),
];

/// In order one agent works at a time, so what is planted may also look like another's.
const IN_ORDER: &[&str] = &["nothing", "id: 1e17", "inflight", "waiting", "retry", "agents"];

const LEASE: Duration = Duration::from_secs(3);
/// Long beside a delivery on this machine, and shorter than what stops for good.
const PATIENCE: Duration = Duration::from_secs(25);
/// Cases side by side.
const AT_ONCE: usize = 24;

#[test]
fn no_value_at_any_key_stops_an_agent_or_its_successor() {
    let cases: Vec<_> = CASES.iter().collect();
    all_survive(&cases, &[]);
}

#[test]
fn no_value_at_any_key_stops_an_agent_that_keeps_the_order() {
    let cases: Vec<_> = CASES.iter().filter(|case| IN_ORDER.iter().any(|name| case.name.starts_with(name))).collect();
    all_survive(&cases, &["--ordered"]);
}

/// `ODD=word` runs the cases whose name has it.
#[track_caller]
fn all_survive(cases: &[&Case], options: &[&str]) {
    let wanted = std::env::var("ODD").unwrap_or_default();
    let cases: Vec<_> = cases.iter().filter(|case| case.name.contains(&wanted)).collect();
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let tried = catch_unwind(AssertUnwindSafe(|| survives(case, options)));
                    let tried = tried.unwrap_or_else(|_| Err("the test panicked, see above".to_string()));
                    if let Err(why) = tried {
                        failed.lock().unwrap().push(format!("{}: {why}", case.name));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// A queue with messages in every place, and recipients for them.
struct World {
    redis: Redis,
    /// The first origin answers 200, but for what is put off or held there; the second is down at first.
    sink: Sink,
    is_down: Arc<AtomicBool>,
    n: usize,
}

fn survives(case: &Case, options: &[&str]) -> Result<(), String> {
    let is_down = Arc::new(AtomicBool::new(true));
    let (seen, down) = (Mutex::new(HashSet::new()), is_down.clone());
    let sink = Sink::origins(2, move |request| {
        let is_first = seen.lock().unwrap().insert(request.text());
        match request.target.as_str() {
            "/down" if down.load(Ordering::Relaxed) => Answer::status(503).header("Retry-After", "4"),
            "/late" if is_first => Answer::status(500),
            "/held" if is_first => Answer::Hang,
            _ => Answer::ok(),
        }
    });
    let mut world = World { redis: Redis::with(&["appendonly no"]), sink, is_down, n: 0 };
    let options = [
        ["--workers", "8", "--lease", "3s", "--timeout", "60s", "--retry-first", "2s", "--retry-max", "4s"].as_slice(),
        options,
    ]
    .concat();

    let mut agent = Agent::start(&world.redis, &options);
    world.push("/", 0);
    world.wait("a message of the first agent", |world| world.is_delivered("/"))?;
    let first = world.newest_agent(0)?;
    world.push("/down", 1);
    world.wait("a message that waits", |world| world.count("waiting") == 1)?;
    if !options.contains(&"--ordered") {
        world.push("/held", 0);
        world.wait("a message in flight", |world| world.count("inflight") == 1)?;
        world.push("/late", 0);
        world.wait("a message put off", |world| world.count("retry") == 1)?;
    }
    if case.commands.is_empty() && !world.check(&[])?.contains("odd entries   none") {
        return Err("what an agent writes is taken for odd".to_string());
    }
    let kept = world.plant(case, first)?;

    world.goes_on("with the first agent", first)?;
    world.is_down.store(false, Ordering::Relaxed);
    world.wait("what waited", |world| world.is_delivered("/down"))?;
    let complaints = agent.complaints();
    if !agent.is_running() {
        return Err(format!("the agent ended: {}", agent.log()));
    }
    agent.kill9();

    let mut successor = Agent::start(&world.redis, &options);
    world.push("/", 0);
    world.wait("a message of the successor", |world| world.is_delivered("/"))?;
    let second = world.newest_agent(first)?;
    world.goes_on("with the successor", second)?;
    // What is in flight in nobody's hands is for the operator.
    let stuck = usize::from(case.name.starts_with("inflight: score") && !options.contains(&"--ordered"));
    world.wait("everything", |world| world.sink.copies().len() >= world.n - stuck)?;
    let calls = world.scripts_run();
    let begun = Instant::now();
    thread::sleep(ms(1000));
    let rate = (world.scripts_run() - calls) as f64 / begun.elapsed().as_secs_f64();
    if rate > 60.0 {
        return Err(format!("{rate:.0} scripts a second of an idle agent"));
    }
    for kept in &kept {
        if !world.is_somewhere(kept) {
            return Err(format!("lost: {}", String::from_utf8_lossy(kept)));
        }
    }
    let lost_redis = |line: &&String| line.contains("Redis cannot be used") || line.contains("internal error");
    if let Some(line) = complaints.iter().chain(&successor.complaints()).find(lost_redis) {
        return Err(line.clone());
    }
    // What operators see of it, and what they mend, under an agent at work.
    let before = world.dump();
    world.check(&["--repair"])?;
    for look in [&["status"][..], &["status", "--json"], &["dead", "list"]] {
        let output = run_to_end(&[look, &["-oq", &world.redis.url()]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(2) || !(said.is_empty() || said.trim_end().ends_with("no dead letters")) {
            return Err(format!("{look:?}: {said}"));
        }
    }
    if world.dump() != before {
        return Err("'check --repair' changed something".to_string());
    }
    world.check(&["--repair", "--yes"])?;
    let said = world.check(&[])?;
    if !said.contains("odd entries   none") {
        return Err(format!("after the repair: {said}"));
    }
    world.wait("what was in nobody's hands", |world| world.sink.copies().len() >= world.n)?;
    for kept in kept.iter().filter(|_| stuck == 0) {
        if !world.is_somewhere(kept) {
            return Err(format!("lost by the repair: {}", String::from_utf8_lossy(kept)));
        }
    }
    let most = world.sink.copies().into_values().max();
    if most > Some(2) {
        return Err(format!("{most:?} copies of one message"));
    }
    successor.term();
    match successor.wait_exit(SOON) {
        Some(0) => Ok(()),
        code => Err(format!("the successor ended with {code:?}: {}", successor.log())),
    }
}

impl World {
    /// One more message, for a target of an origin.
    fn push(&mut self, target: &str, origin: usize) {
        self.n += 1;
        let url = format!("{}{target}", self.sink.urls()[origin].trim_end_matches('/'));
        self.redis.push(&envelope(&url, format!("{} {target}", self.n).as_bytes()));
    }

    /// Whether the last of those for this target has arrived.
    fn is_delivered(&self, target: &str) -> bool {
        let numbers = self.sink.delivered();
        let wanted = |text: &&String| text.ends_with(&format!(" {target}"));
        let newest =
            numbers.iter().filter(wanted).filter_map(|text| text.split(' ').next()?.parse::<usize>().ok()).max();
        match target {
            "/" => newest == Some(self.n),
            _ => newest.is_some(),
        }
    }

    fn wait(&self, what: &str, condition: impl Fn(&World) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            if Instant::now() > deadline {
                return Err(format!("not within {PATIENCE:?}: {what} ({:?})", self.redis.counts()));
            }
            thread::sleep(ms(10));
        }
        Ok(())
    }

    /// Delivers at once, and still once no beat from before can carry the agent any more.
    fn goes_on(&mut self, who: &str, agent: u64) -> Result<(), String> {
        for n in 0..5 {
            let mut lease = self.lease(agent);
            self.push("/", 0);
            self.wait(&format!("message {n} {who}"), |world| world.is_delivered("/"))?;
            let deadline = Instant::now() + LEASE / 3;
            while self.lease(agent) == lease && Instant::now() < deadline {
                thread::sleep(ms(20));
                lease = lease.or(self.lease(agent));
            }
        }
        Ok(())
    }

    fn lease(&self, agent: u64) -> Option<f64> {
        let key = self.redis.key("agents");
        redis::cmd("ZSCORE").arg(key).arg(format!("{agent:016}")).query(&mut self.redis.client()).unwrap()
    }

    fn newest_agent(&self, but: u64) -> Result<u64, String> {
        let agents: Vec<Vec<u8>> =
            redis::cmd("ZRANGE").arg(self.redis.key("agents")).arg(&[0, -1]).query(&mut self.redis.client()).unwrap();
        let numbers = agents.iter().filter_map(|agent| String::from_utf8_lossy(agent).parse::<u64>().ok());
        let newest = numbers.filter(|number| *number != but && *number < 8_000_000_000_000_000).max();
        newest.ok_or_else(|| "no agent is registered".to_string())
    }

    fn count(&self, name: &str) -> usize {
        redis::cmd("ZCARD").arg(self.redis.key(name)).query(&mut self.redis.client()).unwrap()
    }

    fn first_of(&self, name: &str) -> String {
        let key = self.redis.key(name);
        let first: Vec<String> = redis::cmd("ZRANGE").arg(key).arg(&[0, 0]).query(&mut self.redis.client()).unwrap();
        first.into_iter().next().unwrap_or_default()
    }

    /// Returns what is to be kept, as it was really planted.
    fn plant(&self, case: &Case, me: u64) -> Result<Vec<Vec<u8>>, String> {
        let waiting = self.first_of("waiting");
        let (lane, waits) = waiting.split_once('\n').ok_or("nothing waits")?;
        let (held, late, me) = (self.first_of("inflight"), self.first_of("retry"), format!("{me:016}"));
        let names = ["id", "messages", "inflight", "waiting", "lanes", "failures", "retry", "dead", "history"];
        let names = names.into_iter().chain(["recovered", "agents", "calls"]);
        let mut words: Vec<(String, String)> = names.map(|name| (format!("<{name}>"), self.redis.key(name))).collect();
        for (name, value) in
            [("<lane>", lane), ("<waits>", waits), ("<held>", &held), ("<put off>", &late), ("<me>", &me)]
        {
            words.push((name.to_string(), value.to_string()));
        }
        let spell = |word: &[u8]| match std::str::from_utf8(word) {
            Ok(text) => {
                words.iter().fold(text.to_string(), |text, (name, value)| text.replace(name, value)).into_bytes()
            }
            Err(_) => word.to_vec(),
        };
        for command in case.commands {
            let mut planted = redis::Cmd::new();
            for word in *command {
                planted.arg(spell(word));
            }
            planted.exec(&mut self.redis.client()).map_err(|error| error.to_string())?;
        }
        Ok(case.kept.iter().map(|word| spell(word)).filter(|word| !word.is_empty()).collect())
    }

    /// As a member, a field or a value of any key of the queue; what was delivered is somewhere too.
    fn is_somewhere(&self, wanted: &[u8]) -> bool {
        let mut client = self.redis.client();
        for name in ["inflight", "waiting", "retry", "dead", "agents", "messages", "aside"] {
            let mut command = redis::cmd(if ["messages", "aside"].contains(&name) { "HGETALL" } else { "ZRANGE" });
            command.arg(self.redis.key(name));
            if !["messages", "aside"].contains(&name) {
                command.arg(&[0, -1]);
            }
            let all: Vec<Vec<u8>> = command.query(&mut client).unwrap();
            // What was moved aside is named by its key as well.
            if all.iter().any(|one| one == wanted || name == "aside" && one.ends_with(wanted)) {
                return true;
            }
        }
        false
    }

    /// What `check` says, which must not end by itself.
    fn check(&self, options: &[&str]) -> Result<String, String> {
        let output = run_to_end(&[&["check", "-oq", &self.redis.url()], options].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match said.contains("odd entries") && output.stderr.is_empty() {
            true => Ok(said),
            false => Err(format!("check {options:?}: {said}{}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// The keys that a repair may change, as they are, but for what an agent at work renews.
    fn dump(&self) -> Vec<redis::Value> {
        let names = ["messages", "inflight", "waiting", "failures", "retry", "dead", "history", "recovered", "aside"];
        let mut client = self.redis.client();
        names.map(|name| redis::cmd("DUMP").arg(self.redis.key(name)).query(&mut client).unwrap()).to_vec()
    }

    fn scripts_run(&self) -> u64 {
        let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut self.redis.client()).unwrap();
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        calls.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
    }
}

#[test]
fn odd_entries_are_counted_said_once_named_and_moved_aside() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let status = format!("{}:0", std::net::Ipv4Addr::LOCALHOST);
    let agent = Agent::start(&redis, &["--lease", "3s", "--status-addr", &status]);
    redis.push(&envelope(&sink.url(), b"x"));
    redis.wait_empty(SOON);
    let check = |options: &[&str]| {
        let output = run_to_end(&[&["check", "-oq", &redis.url()], options].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let of_odd = |said: &str| -> Vec<String> {
        said.lines().filter(|line| line.contains("odd entries")).map(str::to_string).collect()
    };
    assert_eq!(of_odd(&check(&[]).1), ["ok    odd entries   none: agents alone have written to the keys"]);

    let mut client = redis.client();
    let retry = redis.key("retry");
    for n in 0..8 {
        redis::cmd("ZADD").arg(&retry).arg(5).arg(format!("word {n}\u{1b}[31m")).exec(&mut client).unwrap();
    }
    redis::cmd("HSET").arg(redis.key("messages")).arg("12345").arg("a body").exec(&mut client).unwrap();
    agent.wait_log("no agent writes");
    thread::sleep(ms(1500));
    assert_eq!(agent.complaints().len(), 1, "{:?}", agent.complaints());
    redis.push(&envelope(&sink.url(), b"y"));
    eventually("it is delivered", SOON, || sink.n_delivered() == 2);

    let (code, said) = check(&[]);
    let lines = of_odd(&said);
    assert_eq!(code, Some(1));
    assert_eq!(lines.len(), 8, "one body, five words, how many more, what to do: {said}");
    assert!(lines[0].contains("'12345'") && lines[0].contains(&redis.key("messages")) && lines[0].contains("is no id"));
    assert!(lines[1].contains("word") && lines[1].contains("is no id") && !said.contains('\u{1b}'), "{said}");
    assert!(lines[6].contains("and 3 more") && lines[7].contains("check --repair"), "{said}");

    let (code, said) = check(&["--repair"]);
    assert_eq!(code, Some(1));
    assert!(of_odd(&said)[1].contains(&format!("would be moved to '{}'", redis.key("aside"))), "{said}");
    assert!(of_odd(&said).last().unwrap().contains("nothing was changed"), "{said}");
    let n: usize = redis::cmd("ZCARD").arg(&retry).query(&mut client).unwrap();
    assert_eq!((n, redis.counts().messages), (8, 1));

    let said = check(&["--repair", "--yes"]).1;
    assert!(of_odd(&said).last().unwrap().contains("mended: 9"), "{said}");
    redis.wait_empty(SOON);
    let aside: std::collections::BTreeMap<String, String> =
        redis::cmd("HGETALL").arg(redis.key("aside")).query(&mut client).unwrap();
    assert_eq!((aside.len(), aside["messages 12345"].as_str()), (9, "a body"));
    // The agent has put them out of its way meanwhile.
    assert_eq!(aside["retry word 7\u{1b}[31m"], "9000000000000000");
    assert_eq!(of_odd(&check(&[]).1), ["ok    odd entries   none: agents alone have written to the keys"]);
    // What is there twice is kept twice.
    redis::cmd("HSET").arg(redis.key("messages")).arg("12345").arg("another").exec(&mut client).unwrap();
    check(&["--repair", "--yes"]);
    let second: String =
        redis::cmd("HGET").arg(redis.key("aside")).arg("messages 12345 (2)").query(&mut client).unwrap();
    assert_eq!(second, "another");
}

#[test]
fn a_wrong_type_at_any_key_ends_the_agent_and_is_named() {
    let redis = Redis::with(&["appendonly no"]);
    let names = ["id", "messages", "inflight", "waiting", "lanes", "failures", "retry", "dead", "history"];
    let mut client = redis.client();
    for key in names.into_iter().chain(["recovered", "agents", "calls"]).map(|name| redis.key(name)) {
        let foreign = ["SADD", "LPUSH"][usize::from(key.contains("id"))];
        redis::cmd(foreign).arg(&key).arg("x").exec(&mut client).unwrap();
        let output = run_to_end(&["run", "-oq", &redis.url()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{key}: {said}");
        assert!(said.contains(&format!("key '{key}'")), "{key}: {said}");
        redis::cmd("DEL").arg(&key).exec(&mut client).unwrap();
    }
}
