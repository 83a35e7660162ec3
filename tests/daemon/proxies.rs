//! What goes through a proxy, and what does not even so: through a Squid and a tinyproxy as Debian
//! installs them, on ports of their own; and through one written by hand that never connects to where it
//! is asked to.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use std::{env, fs, thread};

use crate::support::wire::{envelope, numbered};
use crate::support::{Agent, Answer, Redis, SOON, SecureSink, Sink, TempDir, eventually, eventually_eq, ms};

/// Set in the namespace that a test runs itself again in.
const INSIDE: &str = "ACAPY_DELIVER_TEST_INSIDE";

#[test]
fn addresses_are_judged_through_a_proxy_too_and_names_are_the_proxys_to_judge() {
    if !inside("proxies::addresses_are_judged_through_a_proxy_too_and_names_are_the_proxys_to_judge") {
        return;
    }
    let redis = Redis::start();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let proxy = proxy(asked.clone());
    let refused = [
        "http://169.254.169.254/latest/meta-data".to_string(),
        "http://0xa9fea9fe/".to_string(),
        "http://[::ffff:169.254.169.254]/".to_string(),
        "http://10.1.2.3/".to_string(),
        "http://012.1.515/".to_string(),
        "http://0.0.0.0:8020/".to_string(),
        format!("http://{}/", redis.address()),
    ];
    let refused: Vec<String> = refused.iter().flat_map(|url| [url.clone(), url.replace("http:", "ws:")]).collect();
    redis.push_all(refused.iter().map(|url| envelope(url, b"x")));
    redis.push(&envelope("http://redirects.example/", b"x"));
    redis.push(&envelope("http://inside.example/", b"x"));
    let mut command = Agent::command();
    command.args(["-oq", &redis.url(), "--deny-net", "private"]).env("ALL_PROXY", &proxy);
    let _agent = Agent::spawn(command);
    redis.wait_empty_but_dead(SOON);
    eventually_eq("all are dead but one", SOON, refused.len() + 1, || redis.dead().len());
    for letter in redis.dead() {
        let reason = letter.history;
        let known = ["which is always refused", "is refused by '--deny-net private'"];
        assert!(known.iter().any(|words| reason.contains(words)), "{reason}");
    }
    let mut asked = asked.lock().unwrap().clone();
    asked.sort();
    assert_eq!(asked, ["inside.example", "redirects.example"]);
}

#[test]
fn squid_as_it_is_installed_takes_http_https_and_ws_and_what_needs_no_proxy_goes_directly() {
    let proxy = RealProxy::squid();
    let redis = Redis::start();
    let (through, direct) = (Sink::new(|_| Answer::ok()), Sink::new(|_| Answer::ok()));
    let ws = Sink::at(Ipv4Addr::new(127, 77, 4, 45), 443, |_| Answer::ok());
    // CONNECT is for port 443 there, and for no other.
    let secure = SecureSink::start("127.77.4.43:443");
    redis.push_all(numbered(&through.url(), 20));
    redis.push_all(numbered(&direct.url(), 3));
    redis.push_all((0..5).map(|_| envelope("https://127.77.4.43/inbox", b"secret")));
    redis.push_all(numbered("ws://127.77.4.45:443/inbox", 5));
    let mut command = Agent::command();
    command.args(["-oq", &redis.url(), "--ca-file", &secure.ca_file()]);
    command.env("http_proxy", proxy.url("")).env("HTTPS_PROXY", proxy.url(""));
    command.env("NO_PROXY", format!("example.org, {}/32 ,10.0.0.0/8", direct.address().ip()));
    let agent = Agent::spawn(command);
    redis.wait_empty(SOON);
    assert_eq!((through.n_delivered(), direct.n_delivered(), secure.requests()), (20, 3, 5));
    assert_eq!(ws.n_delivered(), 5);
    assert!(through.requests().iter().all(|request| request.header("via").is_some_and(|via| via.contains("squid"))));
    assert!(direct.requests().iter().all(|request| request.header("via").is_none()));
    // A tunnel is written down when it ends.
    drop(agent);
    let line = format!("POST {}", through.url());
    eventually("Squid has written down what it did", SOON, || {
        let log = proxy.log();
        log.matches(&line).count() == 20
            && ["CONNECT 127.77.4.43:443", "CONNECT 127.77.4.45:443"].iter().all(|line| log.contains(line))
            && !log.contains("DENIED")
    });
}

#[test]
fn tinyproxy_as_it_is_installed_takes_http_https_and_ws_and_a_password() {
    let proxy = RealProxy::tinyproxy("");
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let ws = Sink::new(|_| Answer::ok());
    let secure = SecureSink::start("127.77.4.44:0");
    let run = |proxy: String| {
        let mut command = Agent::command();
        command.args(["-oq", &redis.url(), "--retry-first", "200ms", "--ca-file", &secure.ca_file()]);
        Agent::spawn({
            command.env("ALL_PROXY", proxy);
            command
        })
    };
    let push = || {
        redis.push_all(numbered(&sink.url(), 20));
        redis.push_all((0..5).map(|_| envelope(&format!("https://{}/inbox", secure.address), b"secret")));
        redis.push_all(numbered(&ws.ws_url(), 5));
    };
    push();
    let agent = run(proxy.url(""));
    redis.wait_empty(SOON);
    assert_eq!((sink.n_delivered(), secure.requests(), ws.n_delivered()), (20, 5, 5));
    assert!(sink.requests().iter().all(|request| request.header("via").is_some_and(|via| via.contains("tinyproxy"))));
    for address in [secure.address, ws.address()] {
        assert!(proxy.log().contains(&format!("CONNECT {address} HTTP/1.1")), "{}", proxy.log());
    }
    drop(agent);

    let strict = RealProxy::tinyproxy("BasicAuth agent passw0rd\n");
    push();
    let agent = run(strict.url(""));
    agent.wait_log("wants a user and password (407): write them into ALL_PROXY");
    assert_eq!((sink.n_delivered(), secure.requests()), (20, 5));
    drop(agent);
    // To a wrong one it answers as an endpoint might.
    redis.push(&envelope(&sink.url(), b"x"));
    let agent = run(strict.url("agent:wrong@"));
    eventually("it is tried", SOON, || redis.put_off().iter().any(|held| held.history.contains("401 ")));
    let held = redis.put_off();
    assert!(held.iter().any(|held| held.history.contains("refuses the user or password in ALL_PROXY")), "{held:?}");
    drop(agent);
    let check = |proxy: String, endpoint: &str| {
        let mut command = Agent::command();
        command.args(["check", "-oq", &redis.url(), "--endpoint", endpoint, "--ca-file", &secure.ca_file()]);
        let output = command.env("ALL_PROXY", proxy).env("NO_PROXY", "10.0.0.0/33").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let endpoint = format!("https://{}/inbox", secure.address);
    for (user, words) in [
        ("", "mend  endpoint      proxy "),
        ("agent:wrong@", "refuses the user or password in ALL_PROXY (401)"),
        ("agent:passw%30rd@", " leads to it, and the two ends agree on TLS with a good certificate"),
    ] {
        let said = check(strict.url(user), &endpoint);
        assert!(said.contains(words), "{user}: {said}");
        assert!(said.contains("note  proxies       variable NO_PROXY: no name, address or network: '10.0.0.0/33'"));
    }
    let said = check(strict.url(""), "http://recipient.invalid/");
    assert!(said.contains(" takes a connection; what it says of the endpoint is not tried"), "{said}");
    let said = check("http://127.0.0.1:1".to_string(), "http://recipient.invalid/");
    assert!(said.contains("connection refused (127.0.0.1:1) through proxy 127.0.0.1:1"), "{said}");
    let agent = run(strict.url("agent:passw%30rd@"));
    redis.wait_empty(SOON);
    assert_eq!((sink.n_delivered(), secure.requests()), (41, 10));
    assert!(!agent.log().contains("pass"), "{}", agent.log());
    assert!(sink.requests().iter().all(|request| request.header("proxy-authorization").is_none()));
}

#[test]
fn more_endpoints_than_tinyproxy_takes_connections_do_not_wait_for_idle_ones() {
    let proxy = RealProxy::tinyproxy("");
    let redis = Redis::start();
    let plain = Sink::origins(55, |_| Answer::ok());
    let hosts: Vec<String> = (1..=55).map(|n| format!("127.77.5.{n}")).collect();
    let secure = SecureSink::start_as("0.0.0.0:0", hosts.clone());
    let port = secure.address.port();
    let endpoints: Vec<String> =
        hosts.iter().map(|host| format!("https://{host}:{port}/")).chain(plain.urls()).collect();
    let mut command = Agent::command();
    command.args(["-oq", &redis.url(), "--connect-timeout", "20s", "--ca-file", &secure.ca_file()]);
    command.env("ALL_PROXY", proxy.url(""));
    let _agent = Agent::spawn(command);
    for round in 1..=2 {
        redis.push_all(endpoints.iter().map(|url| envelope(url, b"secret")));
        let begun = Instant::now();
        redis.wait_empty(SOON * 3);
        println!("round {round}: {} endpoints in {:?}", endpoints.len(), begun.elapsed());
        assert_eq!((secure.requests(), plain.n_delivered()), (55 * round, 55 * round));
        // It takes a hundred in all, and has others wait until one ends.
        eventually("few connections stay open", SOON, || proxy.n_connections() <= 32);
    }
}

#[test]
fn a_proxy_that_cannot_be_used_is_named_at_the_start_without_its_password() {
    for (name, value, words) in [
        ("HTTPS_PROXY", "socks5://user:secret@127.0.0.1:1", "names a SOCKS proxy, which is not supported"),
        ("all_proxy", "127.0.0.1:secret", "is not the URL of a proxy"),
        ("HTTP_PROXY", "http://user:1#secret@127.0.0.1:1", "holds '/', '?' or '#'"),
        ("NO_PROXY", "\u{fffd}", "is not UTF-8"),
    ] {
        let mut command = Agent::command();
        let value = match value {
            "\u{fffd}" => OsString::from_vec(vec![0xff]),
            value => value.into(),
        };
        let output = command.args(["-oq", "redis://127.0.0.1:1"]).env(name, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("variable {name} {words}")) && !said.contains("secret"), "{said}");
    }
}

/// A proxy of Debian's, with the configuration that its package installs; only where it listens and
/// writes to is of its own.
struct RealProxy {
    dir: TempDir,
    port: u16,
    log: PathBuf,
    server: Child,
}

impl RealProxy {
    fn squid() -> RealProxy {
        RealProxy::start("squid", "/etc/squid/squid.conf", "http_port 3128", |dir, port| {
            let d = dir.display();
            let own = format!(
                "pid_filename {d}/pid\naccess_log stdio:{d}/log\ncache_log {d}/cache.log\nnetdb_filename none\n\
                 shutdown_lifetime 0 seconds\n"
            );
            (format!("{own}http_port 127.0.0.1:{port}"), vec!["-N", "-f"])
        })
    }

    fn tinyproxy(more: &str) -> RealProxy {
        RealProxy::start("tinyproxy", "/etc/tinyproxy/tinyproxy.conf", "Port 8888", |dir, port| {
            let d = dir.display();
            (format!("Port {port}\nLogFile \"{d}/log\"\nPidFile \"{d}/pid\"\n{more}"), vec!["-d", "-c"])
        })
    }

    fn start(
        program: &'static str,
        installed: &str,
        port_line: &str,
        own: impl Fn(&std::path::Path, u16) -> (String, Vec<&'static str>),
    ) -> RealProxy {
        // A port that is free now may be taken by another test before the program has it.
        let mut tries = (0..3).map(|_| RealProxy::try_start(program, installed, port_line, &own));
        tries.find_map(Result::ok).unwrap_or_else(|| panic!("{program} does not listen, in three tries"))
    }

    /// What it said, if it does not listen.
    fn try_start(
        program: &'static str,
        installed: &str,
        port_line: &str,
        own: impl Fn(&std::path::Path, u16) -> (String, Vec<&'static str>),
    ) -> Result<RealProxy, String> {
        let dir = TempDir::new(program);
        // As root they change to a user of their own.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (own, arguments) = own(dir.path(), port);
        let text =
            fs::read(installed).unwrap_or_else(|error| panic!("{installed}: {error}; apt-get install {program}"));
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(text.contains(port_line), "{installed} has not '{port_line}'");
        let lines = text.lines().map(|line| match line {
            line if line == port_line => own.as_str(),
            line if line.starts_with("LogFile ") || line.starts_with("PidFile ") => "",
            line => line,
        });
        let path = dir.path().join("conf");
        fs::write(&path, lines.collect::<Vec<_>>().join("\n") + "\n").unwrap();
        let said = fs::File::create(dir.path().join("said")).unwrap();
        let server = Command::new(program)
            .args(arguments)
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; apt-get install {program}"));
        let mut proxy = RealProxy { log: dir.path().join("log"), dir, port, server };
        let until = Instant::now() + SOON;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port)).is_err() {
            if proxy.server.try_wait().unwrap().is_some() || Instant::now() > until {
                let said = fs::read_to_string(proxy.dir.path().join("said")).unwrap_or_default();
                eprintln!("{program} does not listen: {said}{}", proxy.log());
                return Err(said);
            }
            thread::sleep(ms(20));
        }
        Ok(proxy)
    }

    /// With a user and password, as `user:password@`, or without.
    fn url(&self, user: &str) -> String {
        format!("http://{user}127.0.0.1:{}", self.port)
    }

    /// How many connections there are to it.
    fn n_connections(&self) -> usize {
        let (remote, established) = (format!(":{:04X}", self.port), "01");
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row[2].ends_with(&remote) && row[3] == established).count()
    }

    fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

impl Drop for RealProxy {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A proxy that notes whom it is asked for, and answers in their place: with a redirect to
/// the metadata service for one of them, with 200 for the others. Its URL.
fn proxy(asked: Arc<Mutex<Vec<String>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, asked) = (stream.unwrap(), asked.clone());
            thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap_or_default();
                let target = target.trim_start_matches("http://").trim_end_matches('/').to_string();
                let answer = match target.starts_with("redirects.") {
                    true => "307 There\r\nLocation: http://169.254.169.254/",
                    false => "200 OK",
                };
                asked.lock().unwrap().push(target);
                let _ = write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.read(&mut [0; 4096]);
            });
        }
    });
    url
}

/// Runs this test again in a network namespace that has loopback alone, since it names addresses of
/// others; `true` in there, and nowhere else.
fn inside(test: &str) -> bool {
    if env::var_os(INSIDE).is_none() {
        let again = env::current_exe().unwrap();
        let enter = "ip link set lo up && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", enter, "sh"]).arg(again).args(["--exact", test, "--nocapture"]);
        let output = command.env(INSIDE, "1").output().expect("unshare (util-linux) can be run");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let passed = output.status.success() && said.contains("1 passed");
        assert!(passed, "in a network namespace of its own, for which one must be root: {said}");
        return false;
    }
    let devices = fs::read_to_string("/proc/self/net/dev").unwrap();
    let names: Vec<&str> = devices.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    assert_eq!(names, ["lo"], "this test runs with loopback alone");
    true
}
