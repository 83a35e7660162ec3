//! What the agent is compared with, built from the same crates.
//!
//! `reference bare`: so many threads post the same body with ureq, as one who knows ureq would
//! write it: one agent for all, a resolver that does not start a thread each time, timeouts, a
//! pool as large as is useful. No Redis, no safety: the ceiling of what can be done with ureq.
//!
//! `reference pop`: the obvious delivery service: one BLPOP per message, a channel, workers.
//! What it holds when it is killed is lost. With `--count` it ends after so many messages.
//!
//! `reference deliverer`: what the deliverer of ACA-Py's plugin does, of the same crates and not in Python: one
//! BLPOP per message, one message at a time, a connection for each, ten seconds for it.
//!
//! Prints what it has used as `cpu seconds, peak MiB`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, thread};

use acapy_deliver_bench::load::{QUEUE, endpoint, payload};
use acapy_deliver_bench::program::used;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

fn main() {
    rlimit::increase_nofile_limit(u64::MAX).ok();
    let mut words = std::env::args().skip(1);
    let what = words.next().unwrap_or_default();
    let mut options = BTreeMap::new();
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        options.insert(name, value);
    }
    let text = |name: &str, default: &str| options.get(name).cloned().unwrap_or(default.to_string());
    let number = |name: &str, default: usize| {
        options.get(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} {value}")))
    };
    let threads = number("--threads", 128);
    let ca_file = options.get("--ca-file").map(String::as_str);
    let agent = ureq_agent(threads, number("--idle", threads), Duration::from_secs(30), ca_file);
    match what.as_str() {
        "bare" => {
            let endpoints = (0..number("--origins", 1))
                .map(|n| endpoint(&text("--scheme", "http"), n, number("--port", 80) as u16))
                .collect();
            bare(agent, threads, number("--count", 1000), endpoints, payload(number("--bytes", 2048)));
        }
        "pop" => pop(agent, threads, number("--count", usize::MAX), &text("--redis", "redis://127.0.0.1:6379")),
        "deliverer" => deliverer(number("--count", usize::MAX), &text("--redis", "redis://127.0.0.1:6379")),
        _ => panic!("reference bare|pop|deliverer"),
    }
    let used = used(std::process::id());
    println!("{} {}", used.cpu, used.peak_rss);
}

fn bare(agent: ureq::Agent, threads: usize, count: usize, endpoints: Vec<String>, body: Vec<u8>) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return;
                    }
                    post(
                        &agent,
                        &endpoints[n % endpoints.len()],
                        &[("Content-Type", b"application/ssi-agent-wire")],
                        &body,
                    );
                }
            });
        }
    });
}

fn pop(agent: ureq::Agent, threads: usize, count: usize, url: &str) {
    let (ready, popped) = crossbeam_channel::bounded::<Vec<u8>>(threads);
    thread::scope(|scope| {
        for _ in 0..threads {
            let (popped, agent) = (popped.clone(), &agent);
            scope.spawn(move || {
                for wire in popped {
                    let (headers, endpoint, payload) = decode(&wire);
                    post(agent, endpoint, &headers, payload);
                }
            });
        }
        drop(popped);
        let client = redis::Client::open(url).expect("a Redis URL");
        let mut redis = client.get_connection().expect("Redis answers");
        let mut left = count;
        while left > 0 {
            let found: Option<(String, Vec<u8>)> =
                redis::cmd("BLPOP").arg(QUEUE).arg(1).query(&mut redis).expect("Redis answers");
            if let Some((_, wire)) = found {
                left -= 1;
                ready.send(wire).expect("the workers work");
            }
        }
        drop(ready);
    });
}

fn deliverer(count: usize, url: &str) {
    let agent = ureq_agent(0, 0, Duration::from_secs(10), None);
    let client = redis::Client::open(url).expect("a Redis URL");
    let mut redis = client.get_connection().expect("Redis answers");
    let mut left = count;
    while left > 0 {
        let found: Option<(String, Vec<u8>)> =
            redis::cmd("BLPOP").arg(QUEUE).arg(1).query(&mut redis).expect("Redis answers");
        let Some((_, wire)) = found else { continue };
        left -= 1;
        let entry: serde_json::Value = serde_json::from_slice(&wire).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
        let payload = BASE64_URL_SAFE.decode(text(&entry["payload"])).expect("base64");
        let headers: Vec<(String, String)> = entry["headers"]
            .as_object()
            .map(|headers| headers.iter().map(|(name, value)| (name.clone(), text(value))).collect())
            .unwrap_or_default();
        let headers: Vec<(&str, &[u8])> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        post(&agent, &text(&entry["service"]["url"]), &headers, &payload);
    }
}

fn post(agent: &ureq::Agent, endpoint: &str, headers: &[(&str, &[u8])], body: &[u8]) {
    let mut request = agent.post(endpoint);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    match request.send(body) {
        Ok(mut answer) => {
            let _ = answer.body_mut().read_to_vec();
        }
        Err(error) => eprintln!("{error}"),
    }
}

/// As far as this program's own messages go.
#[allow(clippy::type_complexity)]
fn decode(wire: &[u8]) -> (Vec<(&str, &[u8])>, &str, &[u8]) {
    fn text<'a>(rest: &mut &'a [u8]) -> &'a str {
        let (text, tail) = rmp::decode::read_str_from_slice(*rest).expect("a str");
        *rest = tail;
        text
    }
    let mut rest = wire;
    let (mut headers, mut endpoint, mut payload) = (Vec::new(), "", &[][..]);
    for _ in 0..rmp::decode::read_map_len(&mut rest).expect("a map") {
        match text(&mut rest) {
            "headers" => {
                for _ in 0..rmp::decode::read_map_len(&mut rest).expect("a map") {
                    headers.push((text(&mut rest), text(&mut rest).as_bytes()));
                }
            }
            "endpoint" => endpoint = text(&mut rest),
            "payload" => {
                let length = rmp::decode::read_bin_len(&mut rest).expect("bytes") as usize;
                (payload, rest) = rest.split_at(length);
            }
            other => panic!("key {other}"),
        }
    }
    (headers, endpoint, payload)
}

fn ureq_agent(threads: usize, idle: usize, timeout: Duration, ca_file: Option<&str>) -> ureq::Agent {
    let mut tls = TlsConfig::builder();
    if let Some(path) = ca_file {
        let pem = fs::read(path).expect("the CA file can be read");
        let roots: Vec<Certificate<'static>> = parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        tls = tls.root_certs(RootCerts::Specific(Arc::new(roots)));
    }
    let config = ureq::Agent::config_builder()
        .tls_config(tls.build())
        .http_status_as_error(false)
        .timeout_global(Some(timeout))
        .timeout_connect(Some(Duration::from_secs(5)))
        .max_idle_connections(idle)
        .max_idle_connections_per_host(threads)
        .proxy(None)
        .build();
    ureq::Agent::with_parts(config, DefaultConnector::default(), Literal)
}

/// Every endpoint here is an address, so that the cache is the text itself.
#[derive(Debug)]
struct Literal;

impl Resolver for Literal {
    fn resolve(&self, uri: &Uri, _: &ureq::config::Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().and_then(|host| host.parse().ok()).ok_or(ureq::Error::HostNotFound)?;
        let address = SocketAddr::new(host, uri.port_u16().unwrap_or(80));
        let mut found = ResolvedSocketAddrs::from_fn(|_| address);
        found.push(address);
        Ok(found)
    }
}
