//! The status server of a running agent: what it tells, that the tools of its readers agree, and
//! that neither strangers nor an absent Redis harm it or the deliveries.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

mod browser;
mod page;

use crate::support::{Agent, Answer, Redis, SOON, Sink, StopAtEnd, TempDir, eventually, ms, run_to_end, wire};

/// An agent with a status server on a free port, and where that is.
fn start(redis: &Redis, options: &[&str]) -> (Agent, SocketAddr) {
    let agent = Agent::start(redis, &[&["--status-addr", "127.0.0.1:0"], options].concat());
    let address = status_address(&agent);
    (agent, address)
}

fn status_address(agent: &Agent) -> SocketAddr {
    const BEFORE: &str = "status is served at http://";
    agent.wait_log(BEFORE);
    let log = agent.log();
    let after = log.split(BEFORE).nth(1).expect("the line was just seen");
    after.split('/').next().unwrap().parse().expect("an address")
}

/// Status, head and body of one answer; the connection must end with it.
fn ask_as(address: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).expect("the status server listens");
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head}"));
    (status, head.to_string(), body.to_string())
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let (status, _, body) = ask_as(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"));
    (status, body)
}

fn metrics(address: SocketAddr) -> String {
    let (status, body) = get(address, "/metrics");
    assert_eq!(status, 200, "{body}");
    body
}

/// The value of one series, written as in the page.
fn value(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// The names of the metrics on a page.
fn names(page: &str) -> BTreeSet<String> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_string)).collect()
}

/// Runs a program that scripts/test installs; its output on both channels, and whether it was content.
fn run(program: &str, args: &[&str], input: &str) -> (bool, String) {
    let child =
        Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| {
        panic!("cannot run {program} ({error}): run scripts/test, which installs it, or `apt-get install prometheus`")
    });
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn script(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name).display().to_string()
}

#[test]
fn what_happened_is_counted_and_promtool_finds_no_fault() {
    let redis = Redis::start();
    let sink = Sink::origins(2, |request| match request.target.as_str() {
        "/gone" => Answer::status(410),
        "/busy" => Answer::status(500),
        _ => Answer::ok(),
    });
    let (_agent, address) = start(&redis, &["--retry-first", "1h", "--retry-max", "1h"]);
    redis.push_all(wire::numbered(&sink.url(), 5));
    redis.push(&wire::envelope(&format!("{}/gone", sink.url()), b"gone"));
    redis.push(&wire::envelope(&format!("{}/busy", sink.url()), b"busy"));
    redis.push(b"not an envelope");
    // Nobody listens there: the lane closes, and the message waits.
    redis.push(&wire::envelope("http://127.0.0.1:1/", b"nobody"));

    let page = settled_page(address, |page| {
        value(page, "acapy_deliver_queue_messages{place=\"dead\"}") == Some(2.0)
            && value(page, "acapy_deliver_queue_messages{place=\"waiting\"}") == Some(1.0)
            && value(page, "acapy_deliver_queue_messages{place=\"retry\"}") == Some(1.0)
    });
    let check = |series: &str, expected: f64| assert_eq!(value(&page, series), Some(expected), "{series}\n{page}");
    check("acapy_deliver_outcomes_total{outcome=\"delivered\"}", 5.0);
    check("acapy_deliver_outcomes_total{outcome=\"later\"}", 2.0);
    check("acapy_deliver_outcomes_total{outcome=\"dead\"}", 2.0);
    check("acapy_deliver_undecodable_messages_total", 1.0);
    check("acapy_deliver_claimed_messages_total", 9.0);
    check("acapy_deliver_attempt_duration_seconds_count", 8.0);
    check("acapy_deliver_attempt_duration_seconds_bucket{le=\"+Inf\"}", 8.0);
    check("acapy_deliver_queue_messages{place=\"queue\"}", 0.0);
    check("acapy_deliver_queue_messages{place=\"in_flight\"}", 0.0);
    check("acapy_deliver_queue_waiting_lanes", 1.0);
    check("acapy_deliver_queue_paused_endpoints", 0.0);
    check("acapy_deliver_queue_agents", 1.0);
    check("acapy_deliver_lanes{state=\"up\"}", 1.0);
    check("acapy_deliver_lanes{state=\"down\"}", 1.0);
    check("acapy_deliver_held_messages", 0.0);
    check("acapy_deliver_redis_up", 1.0);
    check("acapy_deliver_ready", 1.0);
    check("acapy_deliver_workers", 128.0);
    check(&format!("acapy_deliver_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0);
    let oldest = value(&page, "acapy_deliver_queue_oldest_age_seconds").unwrap();
    assert!(oldest > 0.0 && oldest < 60.0, "{oldest}");
    for series in ["process_resident_memory_bytes", "process_open_fds", "process_threads", "process_max_fds"] {
        assert!(value(&page, series).unwrap() > 1.0, "{series}\n{page}");
    }

    let (content, said) = run("promtool", &["check", "metrics"], &page);
    assert!(content && said.trim().is_empty(), "promtool: {said}\n{page}");

    let text = include_str!("../../scripts/OPERATING.md");
    for name in names(&page) {
        let short = name.strip_prefix("acapy_deliver_").unwrap_or("process_");
        assert!(text.contains(short), "scripts/OPERATING.md does not name {name}");
    }
}

/// The page once it says what is waited for; figures of the queue are up to two seconds old.
fn settled_page(address: SocketAddr, says: impl Fn(&str) -> bool) -> String {
    let mut page = String::new();
    eventually("the page says what happened", SOON, || {
        page = metrics(address);
        says(&page)
    });
    page
}

#[test]
fn other_requests_are_answered_with_what_is_wrong() {
    let redis = Redis::start();
    let (mut agent, address) = start(&redis, &[]);
    assert_eq!(get(address, "/healthz"), (200, "ok\n".to_string()));
    eventually("it is ready", SOON, || get(address, "/readyz?x=y") == (200, "ok\n".to_string()));
    assert_eq!(get(address, "/else"), (404, "there are /, /metrics, /healthz and /readyz\n".to_string()));
    let (status, head, body) = ask_as(address, "HEAD /healthz HTTP/1.0\r\n\r\n");
    assert_eq!((status, body.as_str()), (200, ""), "{head}");
    assert!(head.contains("Content-Length: 3") && head.contains("Connection: close"), "{head}");
    let (status, head, _) = ask_as(address, "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
    assert!(status == 405 && head.contains("Allow: GET, HEAD"), "{head}");
    assert_eq!(ask_as(address, "\r\n\r\nnonsense\r\n\r\n").0, 400);

    // Stopping: it says so until the end.
    let sink = Sink::new(|_| Answer::Hang);
    redis.push(&wire::envelope(&sink.url(), b"hangs"));
    eventually("the attempt is under way", SOON, || sink.n_requests() == 1);
    agent.term();
    eventually("it is not ready any more", SOON, || get(address, "/readyz") == (503, "stopping\n".to_string()));
    assert_eq!(get(address, "/healthz").0, 200);
    assert_eq!(agent.wait_exit(SOON), Some(0));
}

#[test]
fn a_port_that_is_taken_is_a_reason_not_to_start() {
    let redis = Redis::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run_to_end(&["run", "-oq", &redis.url(), "--status-addr", &address]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--status-addr") && said.contains(&address), "{said}");
    assert_eq!(redis.agents().len(), 0);
}

#[test]
fn it_answers_while_redis_is_away_and_after() {
    let mut redis = Redis::start();
    let (agent, address) = start(&redis, &[]);
    settled_page(address, |page| {
        page.contains("acapy_deliver_queue_messages") && value(page, "acapy_deliver_claims_total") > Some(0.0)
    });
    redis.kill9();
    agent.wait_log("Redis cannot be used");
    let asked = Instant::now();
    let page = settled_page(address, |page| !page.contains("acapy_deliver_queue_"));
    assert_eq!(value(&page, "acapy_deliver_redis_up"), Some(0.0), "{page}");
    assert_eq!(value(&page, "acapy_deliver_ready"), Some(0.0), "{page}");
    assert!(value(&page, "acapy_deliver_claims_total").unwrap() > 0.0, "{page}");
    assert!(asked.elapsed() < Duration::from_secs(10));
    let (content, said) = run("promtool", &["check", "metrics"], &page);
    assert!(content && said.trim().is_empty(), "promtool: {said}");
    assert_eq!(get(address, "/healthz").0, 200);
    assert_eq!(get(address, "/readyz"), (503, "Redis cannot be used\n".to_string()));

    redis.restart();
    eventually("it is ready again", SOON, || get(address, "/readyz").0 == 200);
    settled_page(address, |page| {
        value(page, "acapy_deliver_redis_up") == Some(1.0) && page.contains("acapy_deliver_queue_messages")
    });
}

#[test]
fn a_redis_that_hangs_holds_up_no_answer() {
    let redis = Redis::start();
    let (_agent, address) = start(&redis, &[]);
    settled_page(address, |page| value(page, "acapy_deliver_redis_up") == Some(1.0));
    redis.pause(8_000);
    // What it knew may be served for two seconds more; from then on each look waits in vain.
    let page = settled_page(address, |page| value(page, "acapy_deliver_redis_up") == Some(0.0));
    assert!(!page.contains("acapy_deliver_queue_"), "{page}");
    for path in ["/metrics", "/healthz", "/readyz"] {
        let asked = Instant::now();
        let (status, body) = get(address, path);
        assert!(asked.elapsed() < ms(2500), "{path} took {:?}: {status} {body}", asked.elapsed());
        assert!(path != "/healthz" || status == 200, "{body}");
    }
}

#[test]
fn half_open_slow_and_oversized_clients_keep_nobody_out() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let (_agent, address) = start(&redis, &[]);
    // More than there are seats, some silent, some with half a request.
    let mut idle = Vec::new();
    for n in 0..60 {
        let mut stream = TcpStream::connect(address).unwrap();
        if n % 2 == 0 {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").unwrap();
        }
        idle.push(stream);
    }
    for _ in 0..5 {
        let asked = Instant::now();
        assert_eq!(get(address, "/healthz").0, 200);
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    }
    redis.push_all(wire::numbered(&sink.url(), 100));
    redis.wait_empty(SOON);
    let page = metrics(address);
    // Workers, reader, settler, main, signals, status, status-redis, and no more than 16 seats.
    assert!(value(&page, "process_threads").unwrap() <= 128.0 + 6.0 + 16.0, "{page}");
    // Each idle one is closed in the end, be it for others or for its time.
    for mut stream in idle {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty()),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    // One byte at a time never gets beyond the deadline.
    let mut slow = TcpStream::connect(address).unwrap();
    let begun = Instant::now();
    while slow.write_all(b"G").is_ok() && begun.elapsed() < SOON {
        thread::sleep(ms(50));
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());

    // Nor does a request without end. More than sockets buffer:
    const LARGE: usize = 64 << 20;
    let mut large = TcpStream::connect(address).unwrap();
    large.set_read_timeout(Some(SOON)).unwrap();
    large.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let header = format!("a: {}\r\n", "x".repeat(1000));
    let mut sent = 0;
    while sent < LARGE && large.write_all(header.as_bytes()).is_ok() {
        sent += header.len();
    }
    let mut answer = Vec::new();
    let _ = large.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(sent < LARGE, "all of it was taken");
}

#[test]
fn clients_that_ask_and_do_not_close_keep_nobody_waiting() {
    let redis = Redis::start();
    let (_agent, address) = start(&redis, &[]);
    let mut held = Vec::new();
    let mut slowest = Duration::ZERO;
    for _ in 0..6 {
        for _ in 0..48 {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
            held.push(stream);
        }
        let asked = Instant::now();
        // It panics at an empty answer.
        assert!(metrics(address).contains("acapy_deliver_ready"));
        slowest = slowest.max(asked.elapsed());
    }
    eprintln!("the slowest of six answers took {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    // Those before it were answered as well.
    for mut stream in held {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("acapy_deliver_ready"), "{answer:?}");
    }
}

#[test]
fn a_flood_of_requests_neither_stops_deliveries_nor_the_answers() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let (_agent, address) = start(&redis, &[]);
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (cpu, took) = thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(mut stream) = TcpStream::connect(address) else { continue };
                    let _ = stream.set_read_timeout(Some(SOON));
                    let mut answer = Vec::new();
                    if stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").is_ok()
                        && stream.read_to_end(&mut answer).is_ok()
                        && answer.starts_with(b"HTTP/1.1 200 ")
                    {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let stops = StopAtEnd(&stop);
        eventually("the flood is answered", SOON, || answered.load(Ordering::Relaxed) > 50);
        let (begun, before) = (Instant::now(), answered.load(Ordering::Relaxed));
        redis.push_all(wire::numbered(&sink.url(), 500));
        eventually("all is delivered in the flood", SOON, || sink.n_delivered() >= 500);
        let page = metrics(address);
        eventually("the flood goes on for a while", SOON, || begun.elapsed() > Duration::from_secs(2));
        drop(stops);
        let rate = (answered.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64();
        assert!(rate < 260.0, "{rate} answers a second");
        (value(&page, "process_cpu_seconds_total").unwrap(), begun.elapsed())
    });
    assert!(cpu < 1.0 + took.as_secs_f64(), "{cpu} s of CPU");
    redis.wait_empty(SOON);
}

/// A real Prometheus, killed on drop.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Prometheus {
    fn scraping(target: SocketAddr) -> Prometheus {
        let dir = TempDir::new("prometheus");
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let configuration = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs: [{{job_name: acapy-deliver, static_configs: [{{targets: ['{target}']}}]}}]\n",
            script("alerts.yml")
        );
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, configuration).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start prometheus ({error}): run scripts/test, which installs it"));
        Prometheus { child, address, _dir: dir }
    }

    fn ask(&self, path: &str) -> serde_json::Value {
        let Ok(mut stream) = TcpStream::connect(self.address) else { return serde_json::Value::Null };
        let _ = stream.set_read_timeout(Some(SOON));
        let _ = write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_default()
    }

    fn value(&self, query: &str) -> Option<f64> {
        let answer = self.ask(&format!("/api/v1/query?query={query}"));
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_prometheus_scrapes_it_and_knows_when_it_is_gone() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let (mut agent, address) = start(&redis, &[]);
    let prometheus = Prometheus::scraping(address);
    redis.push_all(wire::numbered(&sink.url(), 7));
    let delivered = "acapy_deliver_outcomes_total%7Boutcome=%22delivered%22%7D";
    eventually("Prometheus has seen seven deliveries", SOON * 2, || prometheus.value(delivered) == Some(7.0));
    let quantile = "histogram_quantile(0.5,acapy_deliver_attempt_duration_seconds_bucket)";
    eventually("the histogram can be asked", SOON, || prometheus.value(quantile).is_some_and(f64::is_finite));
    assert_eq!(prometheus.value("up"), Some(1.0));
    let rules = prometheus.ask("/api/v1/rules");
    let rules = rules["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
    assert!(rules.len() >= 6 && rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");

    agent.kill9();
    eventually("Prometheus knows that it is gone", SOON, || prometheus.value("up") == Some(0.0));
    let pending = |answer: serde_json::Value| answer["data"]["alerts"].to_string().contains("AcapyDeliverGone");
    eventually("the alert is pending", SOON, || pending(prometheus.ask("/api/v1/alerts")));
}

#[test]
fn alerts_are_valid_and_fire_when_they_should() {
    let (content, said) = run("promtool", &["check", "rules", &script("alerts.yml")], "");
    assert!(content, "{said}");
    let dir = TempDir::new("rules");
    let tests = dir.path().join("tests.yml");
    std::fs::write(&tests, include_str!("../alerts_test.yml").replace("ALERTS", &script("alerts.yml"))).unwrap();
    let (content, said) = run("promtool", &["test", "rules", &tests.display().to_string()], "");
    assert!(content, "{said}");
    // Each alert has a test of its own.
    let alerts = std::fs::read_to_string(script("alerts.yml")).unwrap();
    let named: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(named.len() >= 6, "{named:?}");
    for name in named {
        assert!(include_str!("../alerts_test.yml").contains(&format!("alertname: {name}\n")), "{name} is not tested");
    }
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_there_are() {
    let redis = Redis::start();
    let (_agent, address) = start(&redis, &[]);
    let page = settled_page(address, |page| page.contains("acapy_deliver_queue_messages"));
    let dashboard = std::fs::read_to_string(script("grafana-dashboard.json")).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).expect("the dashboard is JSON");
    assert!(parsed["panels"].as_array().is_some_and(|panels| panels.len() >= 8));
    let alerts = std::fs::read_to_string(script("alerts.yml")).unwrap();
    let known = names(&page);
    let mut seen = 0;
    for text in [dashboard, alerts] {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("acapy_deliver_") || word.starts_with("process_")) {
            let metric = word.strip_suffix("_bucket").unwrap_or(word);
            let metric = metric.strip_suffix("_sum").or(metric.strip_suffix("_count")).unwrap_or(metric);
            assert!(known.contains(metric), "there is no {word}");
            seen += 1;
        }
    }
    assert!(seen > 15, "{seen}");
}
