//! Why the pool, the transport, the resolver and the way through proxies are ours: what the release of
//! ureq in use does by itself, each reason in a test. One that fails after an update says that ureq has
//! learned it, and that ours may go (or that it has forgotten what we leave to it).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error, Proxy};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// A server that gives each connection, with its number, to a function of its own thread.
fn server(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream.unwrap(), n));
        }
    });
    addr
}

/// The head of a request without a body, or of one whose body is not read.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

fn answering(answer: &'static [u8]) -> SocketAddr {
    server(move |mut stream, _| {
        while read_head(&mut stream).is_some() {
            let _ = stream.write_all(answer);
        }
    })
}

fn agent(proxy: Option<Proxy>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(proxy)
        .timeout_connect(Some(Duration::from_secs(2)))
        .timeout_global(Some(Duration::from_secs(4)));
    config.build().into()
}

/// The status, or that there is none.
fn post(agent: &Agent, addr: SocketAddr, body: &[u8]) -> Result<u16, Error> {
    agent.post(format!("http://{addr}/")).send(body).map(|answer| answer.status().as_u16())
}

#[test]
fn idle_connections_are_given_up_only_with_the_agent() {
    let addr = answering(OK);
    let agent = agent(None);
    assert_eq!(post(&agent, addr, b"").unwrap(), 200);
    agent.clone().shutdown();
    // Ours closes what is idle when descriptors run out, and goes on.
    assert!(post(&agent, addr, b"").is_err());
}

#[test]
fn each_request_looks_at_all_idle_connections() {
    let port = {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    while read_head(&mut stream).is_some() {
                        let _ = stream.write_all(OK);
                    }
                });
            }
        });
        port
    };
    let config = Agent::config_builder().max_idle_connections(1_000).max_idle_age(Duration::from_secs(600));
    let agent: Agent = config.build().into();
    let first = SocketAddr::from(([127, 66, 0, 1], port));
    let cost = || {
        let begun = time_on_processor();
        for _ in 0..20 {
            assert_eq!(post(&agent, first, b"").unwrap(), 200);
        }
        time_on_processor() - begun
    };
    assert_eq!(post(&agent, first, b"").unwrap(), 200);
    let with_one = cost();
    for n in 0..300_u16 {
        let [high, low] = n.to_be_bytes();
        assert_eq!(post(&agent, SocketAddr::from(([127, 66, 1 + high, low], port)), b"").unwrap(), 200);
    }
    let with_many = cost();
    println!("20 requests with 1 idle connection: {with_one:?}, with 301: {with_many:?}");
    assert!(with_many > 2 * with_one, "{with_one:?} {with_many:?}");
}

/// Of this thread.
fn time_on_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn what_follows_a_body_is_read_until_the_time_is_over() {
    let sent = Arc::<AtomicUsize>::default();
    let counted = sent.clone();
    let addr = server(move |mut stream, _| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n");
        let trailers = b"Trailer: x\r\n".repeat(1_000);
        while stream.write_all(&trailers).is_ok() {
            counted.fetch_add(trailers.len(), SeqCst);
        }
    });
    let agent = agent(None);
    let request = agent.post(format!("http://{addr}/")).config().timeout_global(Some(Duration::from_secs(2))).build();
    assert!(request.send(&b""[..]).unwrap().body_mut().read_to_vec().is_err());
    println!("{} kB were read after the body", sent.load(SeqCst) / 1024);
    assert!(sent.load(SeqCst) > 8 << 20);
}

#[test]
fn a_request_that_met_the_end_of_an_idle_connection_fails() {
    let addr = server(|mut stream, n| {
        read_head(&mut stream);
        stream.write_all(OK).unwrap();
        // The next request is read, and the connection closes with it.
        read_head(&mut stream);
        if n > 0 {
            let _ = stream.write_all(OK);
        }
    });
    let agent = agent(None);
    assert_eq!(post(&agent, addr, b"").unwrap(), 200);
    assert!(post(&agent, addr, b"").is_err());
}

#[test]
fn a_status_is_lost_when_what_follows_it_cannot_be_read() {
    let addr = answering(b"HTTP/1.1 200 OK\r\nbad header line\r\n\r\n");
    assert!(post(&agent(None), addr, b"").is_err());
}

#[test]
fn a_continue_with_headers_is_an_error_and_other_interim_answers_are_none() {
    let status_after = |interim: &'static str| {
        let addr = server(move |mut stream, _| {
            stream.set_nodelay(true).unwrap();
            while read_head(&mut stream).is_some() {
                for byte in [interim.as_bytes(), OK].concat() {
                    let _ = stream.write_all(&[byte]);
                }
            }
        });
        post(&agent(None), addr, b"").ok()
    };
    assert_eq!(status_after("HTTP/1.1 100 Continue\r\nX: y\r\n\r\n"), None);
    assert_eq!(status_after("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"), Some(200));
}

#[test]
fn an_answer_is_not_heard_while_the_request_is_not_read() {
    let addr = server(|mut stream, _| {
        read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").unwrap();
        thread::sleep(Duration::from_secs(6));
    });
    assert!(post(&agent(None), addr, &vec![b'x'; 32 << 20]).is_err());
}

/// Gives out the same addresses, and counts how often it is asked.
#[derive(Clone, Debug)]
struct Fixed(Vec<SocketAddr>, Arc<AtomicUsize>);

impl Resolver for Fixed {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        self.1.fetch_add(1, SeqCst);
        let mut addrs = self.empty();
        self.0.iter().for_each(|addr| addrs.push(*addr));
        Ok(addrs)
    }
}

fn with_addresses(addrs: Vec<SocketAddr>) -> (Agent, Arc<AtomicUsize>) {
    let asked = Arc::<AtomicUsize>::default();
    let config = agent(None).config().clone();
    (Agent::with_parts(config, DefaultConnector::default(), Fixed(addrs, asked.clone())), asked)
}

#[test]
fn the_resolver_is_asked_for_every_request() {
    let n_connections = Arc::<AtomicUsize>::default();
    let counted = n_connections.clone();
    let addr = server(move |mut stream, _| {
        counted.fetch_add(1, SeqCst);
        while read_head(&mut stream).is_some() {
            let _ = stream.write_all(OK);
        }
    });
    let (agent, asked) = with_addresses(vec![addr]);
    for _ in 0..5 {
        assert_eq!(post(&agent, addr, b"").unwrap(), 200);
    }
    assert_eq!((n_connections.load(SeqCst), asked.load(SeqCst)), (1, 5));
}

#[test]
fn an_address_that_leads_nowhere_is_waited_for_before_the_next_every_time() {
    let good = answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    // Its backlog is full: connections are neither made nor refused.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let silent = listener.local_addr().unwrap().as_socket().unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&silent, Duration::from_millis(100)) {
        held.push(stream);
    }
    let (agent, _) = with_addresses(vec![silent, good]);
    for _ in 0..2 {
        let begun = Instant::now();
        let status = post(&agent, good, b"").ok();
        println!("with an address that leads nowhere: {status:?} after {:?}", begun.elapsed());
        assert!(status.is_none() || begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    }
}

#[test]
fn plain_http_goes_through_a_proxy_by_connect() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let proxy = server(move |mut stream, _| {
        seen.lock().unwrap().extend(read_head(&mut stream));
        let _ = stream.write_all(b"HTTP/1.1 403 Squid does not do that\r\n\r\n");
    });
    let agent = agent(Some(Proxy::new(&format!("http://{proxy}")).unwrap()));
    assert!(agent.post("http://inside.example/").send(&b""[..]).is_err());
    assert!(heads.lock().unwrap()[0].starts_with("CONNECT inside.example:80 "));
}

/// Set for the test that runs again with the environment that it is about.
const PROXY: &str = "HTTPS_PROXY";

#[test]
fn one_proxy_of_the_environment_is_for_all_schemes() {
    if std::env::var_os(PROXY).is_some() {
        let agent: Agent = Agent::config_builder().timeout_global(Some(Duration::from_secs(4))).build().into();
        assert!(agent.post("http://inside.example/").send(&b""[..]).is_err());
        return;
    }
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let proxy = server(move |mut stream, _| seen.lock().unwrap().extend(read_head(&mut stream)));
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "ureq_alone::one_proxy_of_the_environment_is_for_all_schemes"]);
    ["ALL_PROXY", "HTTP_PROXY", "NO_PROXY"].iter().for_each(|name| {
        again.env_remove(name).env_remove(name.to_lowercase());
    });
    let output = again.env(PROXY, format!("http://{proxy}")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(heads.lock().unwrap()[0].starts_with("CONNECT inside.example:80 "));
}

#[test]
fn no_proxy_knows_no_networks_ports_or_what_is_below_a_name() {
    for (list, uri) in [
        ("10.0.0.0/8", "http://10.1.2.3/"),
        ("a.example:8020", "http://a.example:8020/"),
        ("example.com", "http://a.example.com/"),
    ] {
        let proxy = Proxy::builder(ureq::ProxyProtocol::Http).host("127.0.0.1").no_proxy(list).build().unwrap();
        assert!(!proxy.is_no_proxy(&uri.parse().unwrap()), "{list}");
    }
}

#[test]
fn what_is_left_to_it_it_does() {
    // Names of headers as they are given, framing, chunks, a connection kept after a body that was read.
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let addr = server(move |mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            seen.lock().unwrap().push(head);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n");
        }
    });
    let agent = agent(None);
    for _ in 0..2 {
        let mut answer = agent.post(format!("http://{addr}/")).header_raw("X-ODD-Name", b"1").send(&b""[..]).unwrap();
        assert_eq!(answer.body_mut().read_to_string().unwrap(), "ab");
    }
    let heads = heads.lock().unwrap();
    assert!(heads.len() == 2 && heads.iter().all(|head| head.contains("\r\nX-ODD-Name: 1\r\n")), "{heads:?}");
    // Bytes that nobody asked for cost their connection.
    let addr = server(|mut stream, n| {
        while read_head(&mut stream).is_some() {
            let unasked: &[u8] = if n == 0 { b"HTTP/1.1 503 Never asked\r\nContent-Length: 0\r\n\r\n" } else { b"" };
            let _ = stream.write_all(&[OK, unasked].concat());
        }
    });
    assert_eq!(post(&agent, addr, b"").unwrap(), 200);
    assert_eq!(post(&agent, addr, b"").unwrap(), 200);
}
