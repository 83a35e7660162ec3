//! Which addresses no message reaches: the agent's own Redis and status server wherever they are,
//! the metadata services of clouds, and what `--deny-net` closes; and what an agent does while only
//! the name server is silent.
//!
//! Most of these name addresses of others. Such a test runs itself again in a network namespace of
//! its own, that has loopback alone and into which it may write `/etc/hosts`, and refuses to go on
//! anywhere else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::support::wire::envelope;
use crate::support::{Agent, Answer, Redis, SOON, Sink, TempDir, eventually, eventually_eq, ms, run_to_end};

/// Addresses that a machine in the namespace has, beside loopback.
const PRIVATE: &str = "10.9.9.9";
const PUBLIC: &str = "203.0.113.5";
const PUBLIC_V6: &str = "2001:db8::9";

const LET_IN: &str = "protected-mode no";
const EVERYWHERE: &str = "bind 0.0.0.0 ::";

#[test]
fn its_own_redis_and_status_server_are_refused_at_every_address_of_this_machine() {
    let test = "its_own_redis_and_status_server_are_refused_at_every_address_of_this_machine";
    let Some(_world) = World::enter(test) else { return };
    let redis = Redis::with(&[EVERYWHERE, LET_IN]);
    let port = port_of(&redis.address());
    let url = format!("redis://{PRIVATE}:{port}");
    let agent = Agent::start_at(&url, &["--status-addr", "127.0.0.1:0"]);
    agent.wait_log("status is served at");
    let log = agent.log();
    let status = log.split("http://").nth(1).and_then(|rest| rest.split("/metrics").next()).unwrap();
    let status_port = port_of(status);
    for (port, what) in [(port, "Redis"), (status_port, "status server")] {
        assert_refused(&redis, &every_spelling(port), &format!("the agent's own {what}"));
    }
}

#[test]
fn a_redis_whose_name_is_known_only_later_is_refused_like_any_other() {
    let Some(world) = World::enter("a_redis_whose_name_is_known_only_later_is_refused_like_any_other") else { return };
    let redis = Redis::with(&[EVERYWHERE, LET_IN]);
    let port = port_of(&redis.address());
    let agent = Agent::start_at(&format!("redis://redis.internal:{port}"), &[]);
    agent.wait_log("cannot be used");
    world.name("redis.internal", PRIVATE);
    eventually("the agent registers", SOON, || redis.agents().len() == 1);
    assert_refused(&redis, &every_spelling(port), "the agent's own Redis");
}

#[test]
fn a_redis_on_a_unix_socket_is_refused_at_its_port_too() {
    let Some(_world) = World::enter("a_redis_on_a_unix_socket_is_refused_at_its_port_too") else { return };
    let redis = Redis::with(&[EVERYWHERE, LET_IN]);
    let port = port_of(&redis.address());
    let _agent = Agent::start_at(&format!("unix://{}", redis.socket().display()), &[]);
    assert_refused(&redis, &every_spelling(port), "the agent's own Redis");
}

#[test]
fn when_the_name_of_redis_leads_elsewhere_the_new_address_is_refused_and_the_old_one_is_free() {
    let test = "when_the_name_of_redis_leads_elsewhere_the_new_address_is_refused_and_the_old_one_is_free";
    let Some(world) = World::enter(test) else { return };
    // On another machine, so that its addresses are not this one's.
    let other = Machine::beside(&["10.9.8.8", "10.9.8.9"]);
    let dir = TempDir::new("other-redis");
    let dir_path = dir.path().display().to_string();
    let port = "20111";
    let _server =
        other.run("redis-server", &["--port", port, "--protected-mode", "no", "--save", "", "--dir", &dir_path]);
    let url = |ip: &str| format!("redis://{ip}:{port}");
    let client = |ip: &str| redis::Client::open(url(ip)).and_then(|client| client.get_connection());
    eventually("redis-server answers there", SOON, || client("10.9.8.9").is_ok());
    world.name("redis.internal", "10.9.8.9");
    let agent = Agent::start_at(&url("redis.internal"), &["--retry-first", "200ms"]);
    let registered = |ip: &str| -> usize {
        let query = redis::cmd("ZCARD").arg("{acapy.outbound_transport}:agents").to_owned();
        client(ip).and_then(|mut client| query.query(&mut client)).unwrap_or(0)
    };
    eventually("the agent registers", SOON, || registered("10.9.8.9") == 1);
    let push = |ip: &str, to: &str| {
        let message = envelope(&format!("http://{to}:{port}/"), b"x");
        redis::cmd("RPUSH").arg("acapy.outbound_transport").arg(message).exec(&mut client(ip).unwrap()).unwrap();
    };
    let n_dead = |ip: &str| -> usize {
        let dead = redis::cmd("ZCARD").arg("{acapy.outbound_transport}:dead").to_owned();
        dead.query(&mut client(ip).unwrap()).unwrap()
    };
    push("10.9.8.9", "10.9.8.9");
    eventually_eq("the old address is refused", SOON, 1, || n_dead("10.9.8.9"));

    // The name moves on, and Redis with it; somebody else gets the old address.
    world.name("redis.internal", "10.9.8.8");
    redis::cmd("CONFIG").arg(&["SET", "bind", "10.9.8.8"]).exec(&mut client("10.9.8.9").unwrap()).unwrap();
    let kill = ["KILL", "TYPE", "normal", "SKIPME", "yes"];
    redis::cmd("CLIENT").arg(&kill).exec(&mut client("10.9.8.8").unwrap()).unwrap();
    let listens = other.run(Agent::command().get_program().to_str().unwrap(), &["listen", &format!("10.9.8.9:{port}")]);
    let connections = || -> usize {
        let list = redis::cmd("CLIENT").arg(&["LIST", "TYPE", "normal"]).to_owned();
        let list: String = list.query(&mut client("10.9.8.8").unwrap()).unwrap();
        list.lines().filter(|line| line.contains("addr=10.9.8.1:") && !line.contains("cmd=client")).count()
    };
    eventually("reader and settler are connected again", SOON, || connections() >= 2);
    push("10.9.8.8", "10.9.8.8");
    eventually_eq("the new address is refused", SOON, 2, || n_dead("10.9.8.8"));
    push("10.9.8.8", "10.9.8.9");
    let left = || -> usize {
        let messages = redis::cmd("HLEN").arg("{acapy.outbound_transport}:messages").to_owned();
        messages.query(&mut client("10.9.8.8").unwrap()).unwrap()
    };
    eventually_eq("what goes to the old address is delivered", SOON, (2, 2), || (left(), n_dead("10.9.8.8")));
    drop((agent, listens));
}

#[test]
fn an_address_that_leads_nowhere_costs_a_quarter_of_a_second_once() {
    let Some(world) = World::enter("an_address_that_leads_nowhere_costs_a_quarter_of_a_second_once") else { return };
    let redis = Redis::start();
    // Each message has a connection of its own.
    let sink = Sink::new(|_| Answer::ok().header("Connection", "close"));
    let port = port_of(&sink.address().to_string());
    // As many names have two of each family.
    let dead = [PUBLIC_V6, "2001:db8::a"];
    world.add(dead[1]);
    let silent = dead.map(|ip| Silent::at(SocketAddr::new(ip.parse().unwrap(), port)));
    let alive = sink.address().ip();
    let names = format!(
        "{0} one.example\n{alive} one.example\n{0} two.example\n{1} two.example\n{alive} two.example\n",
        dead[0], dead[1]
    );
    fs::write(&world.hosts, fs::read_to_string(&world.hosts).unwrap() + &names).unwrap();
    let _agent = Agent::start(&redis, &["--workers", "1"]);
    eventually("the agent registers", SOON, || redis.agents().len() == 1);
    for name in ["one", "two"] {
        let mut took = Vec::new();
        for _ in 0..6 {
            let (pushed, n) = (Instant::now(), sink.n_requests());
            redis.push(&envelope(&format!("http://{name}.example:{port}/"), b"x"));
            eventually_eq("it arrives", SOON, n + 1, || sink.n_requests());
            took.push(sink.requests()[n].at - pushed);
        }
        println!("{name} IPv6 that leads nowhere: six new connections after one another took {took:?}");
        assert!(took[0] >= ms(240) && took[0] < ms(2_400), "{took:?}");
        let mut later = took[1..].to_vec();
        later.sort();
        assert!(later[2] < ms(200), "the address that answered is not tried first: {took:?}");
    }
    drop(silent);
}

/// Takes no connection at this address, and refuses none: its backlog is full.
struct Silent {
    _listener: socket2::Socket,
    _held: Vec<socket2::Socket>,
}

impl Silent {
    fn at(address: SocketAddr) -> Silent {
        let socket =
            || socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let mut held = Vec::new();
        loop {
            held.push(socket());
            if held.last().unwrap().connect_timeout(&address.into(), ms(100)).is_err() {
                return Silent { _listener: listener, _held: held };
            }
        }
    }
}

#[test]
fn a_signal_is_heard_while_the_name_server_is_silent() {
    let Some(world) = World::enter("a_signal_is_heard_while_the_name_server_is_silent") else { return };
    world.silence_names();
    let mut agent = Agent::start_at("redis://redis.internal:6379", &[]);
    agent.wait_log("delivers the queue");
    let asked = Instant::now();
    agent.term();
    // The name server would be waited for for 20 s and more.
    assert_eq!(agent.wait_exit(ms(5_000)), Some(0));
    println!("ended {:?} after the signal", asked.elapsed());
}

#[test]
fn an_agent_is_alive_while_only_the_name_server_is_silent() {
    let Some(world) = World::enter("an_agent_is_alive_while_only_the_name_server_is_silent") else { return };
    let redis = Redis::with(&[EVERYWHERE, LET_IN]);
    let port = port_of(&redis.address());
    world.name("redis.internal", PRIVATE);
    let options = ["--status-addr", "127.0.0.1:19100"];
    let agent = Agent::start_at(&format!("redis://redis.internal:{port}"), &options);
    eventually("the agent registers", SOON, || redis.agents().len() == 1);
    world.forget("redis.internal");
    world.silence_names();
    let kill = ["KILL", "TYPE", "normal", "SKIPME", "yes"];
    redis::cmd("CLIENT").arg(&kill).exec(&mut redis.client()).unwrap();
    agent.wait_log("cannot be used");
    // Longer than a look-up here, and than an agent may stand still: the length is what is tested.
    let until = Instant::now() + Duration::from_secs(38);
    while Instant::now() < until {
        assert_eq!(get("127.0.0.1:19100", "/healthz"), "200 ok");
        thread::sleep(ms(500));
    }
    world.name("redis.internal", PRIVATE);
    eventually("it is back", SOON, || get("127.0.0.1:19100", "/readyz") == "200 ok");
}

#[test]
fn the_metadata_services_of_clouds_are_always_refused() {
    let Some(world) = World::enter("the_metadata_services_of_clouds_are_always_refused") else { return };
    let metadata = ["100.100.100.200", "192.0.0.192", "168.63.129.16", "[fd00:ec2::254]", "[fd20:ce::254]"];
    metadata.iter().for_each(|ip| world.add(ip.trim_matches(['[', ']'])));
    let redis = Redis::start();
    let _agent = Agent::start(&redis, &["--deny-net", "192.0.2.1", "--allow-net", "all"]);
    let urls: Vec<String> = metadata.iter().map(|ip| format!("http://{ip}:80/")).collect();
    assert_refused(&redis, &urls, "metadata service, which is always refused");
}

#[test]
fn what_listens_on_every_address_is_closed_by_self_and_opened_by_its_address() {
    let test = "what_listens_on_every_address_is_closed_by_self_and_opened_by_its_address";
    let Some(_world) = World::enter(test) else { return };
    let sink = Sink::at(Ipv4Addr::UNSPECIFIED, 0, |_| Answer::ok());
    let port = sink.address().port();
    let public = format!("http://{PUBLIC}:{port}/");
    let recipe = ["--deny-net", "private", "--deny-net", "loopback", "--deny-net", "self"];
    {
        let redis = Redis::start();
        let agent = Agent::start(&redis, &recipe);
        let urls = [public.clone(), format!("http://[::ffff:{PUBLIC}]:{port}/")];
        assert_refused(&redis, &urls, "'--deny-net self'");
        assert_eq!(sink.n_requests(), 0);
        assert!(!agent.log().contains("strangers"), "{}", agent.log());
    }
    let opened = [&recipe[..], &["--allow-net", PUBLIC]].concat();
    for options in [&recipe[..4], &opened] {
        let redis = Redis::start();
        let _agent = Agent::start(&redis, options);
        let n = sink.n_delivered();
        redis.push(&envelope(&public, b"x"));
        redis.wait_empty(SOON);
        assert_eq!(sink.n_delivered(), n + 1);
    }
}

#[test]
fn a_policy_that_leaves_something_open_is_warned_of_once_and_by_check() {
    let redis = Redis::start();
    let cases: [(&[&str], Option<&str>); 4] = [
        (&[], Some("'--deny-net private --deny-net loopback --deny-net self'")),
        (&["--deny-net", "0.0.0.0/0"], Some("add '--deny-net ::/0'")),
        (&["--deny-net", "all", "--allow-net", "loopback"], None),
        (&["--deny-net", "private", "--deny-net", "loopback", "--deny-net", "self"], None),
    ];
    for (options, expected) in cases {
        let agent = Agent::start(&redis, options);
        if let Some(part) = expected {
            agent.wait_log(part);
        }
        let said =
            agent.log().lines().filter(|line| line.contains("--deny-net")).map(str::to_string).collect::<Vec<_>>();
        let checked = run_to_end(&[&["check", "-oq", &redis.url()], options].concat());
        let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
        match expected {
            Some(part) => {
                assert!(said.len() == 1 && said[0].contains("WARN") && said[0].contains(part), "{said:?}");
                assert_eq!(checked.matches(part).count(), 1, "{checked}");
            }
            None => assert!(said.is_empty() && !checked.contains("--deny-net"), "{said:?}\n{checked}"),
        }
    }
    let alone = run_to_end(&["-oq", &redis.url(), "--allow-net", "public"]);
    assert_eq!(alone.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&alone.stderr).contains("restricts nothing"), "{alone:?}");
}

/// Pushes one message to each, and waits until each is dead, or put off, for this reason.
#[track_caller]
fn assert_refused(redis: &Redis, urls: &[String], reason: &str) {
    let n_before = redis.dead().len() + redis.put_off().len();
    redis.push_all(urls.iter().map(|url| envelope(url, b"x")));
    eventually_eq("each is judged", SOON, urls.len(), || redis.dead().len() + redis.put_off().len() - n_before);
    for held in redis.dead().iter().chain(&redis.put_off()).filter(|held| urls.iter().any(|url| held.is_for(url))) {
        let bytes = String::from_utf8_lossy(&held.bytes);
        assert!(held.history.contains(reason), "{bytes} is not refused for {reason:?}: {}", held.history);
    }
}

fn every_spelling(port: u16) -> Vec<String> {
    let hosts = [
        "127.0.0.1",
        "127.0.0.2",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "0x7f.1",
        PRIVATE,
        PUBLIC,
        "[2001:db8::9]",
        "[::ffff:10.9.9.9]",
        "[64:ff9b::10.9.9.9]",
        "[2002:a09:909::]",
    ];
    hosts.iter().map(|host| format!("http://{host}:{port}/")).collect()
}

fn port_of(address: &str) -> u16 {
    address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("an address with a port")
}

/// The status and first line of an answer.
pub fn get(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_default();
    format!("{status} {}", answer.split("\r\n\r\n").nth(1).unwrap_or_default().trim())
}

/// The inside of a namespace: loopback, some addresses on it, and files of its own for names.
struct World {
    hosts: PathBuf,
    resolv: PathBuf,
    _dir: TempDir,
}

const INSIDE: &str = "DELIVER_TEST_IN_NAMESPACE";

impl World {
    /// `None` outside, after the test of this name has been run inside, and passed.
    fn enter(test: &str) -> Option<World> {
        if std::env::var_os(INSIDE).is_none() {
            let whole = format!("addresses::{test}");
            let mut inside = Command::new("unshare");
            inside.args(["--net", "--mount"]);
            if fs::metadata("/proc/self").map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).unwrap_or(1) != 0 {
                inside.arg("--map-root-user");
            }
            inside.arg(std::env::current_exe().unwrap()).args([&whole, "--exact", "--nocapture"]);
            let output = inside.env(INSIDE, "1").output().expect("unshare (util-linux) can be started");
            let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
            // Its summary is not that of the whole run.
            let said = said.replace("test result:", "inside:");
            assert!(output.status.success(), "{test} failed in its namespace, or none may be made:\n{said}");
            println!("{said}");
            return None;
        }
        let interfaces = fs::read_to_string("/proc/net/dev").unwrap();
        let others: Vec<&str> = interfaces.lines().skip(2).filter(|line| !line.trim().starts_with("lo:")).collect();
        // What some kernels put into each namespace is down, and leads nowhere.
        let routes = fs::read_to_string("/proc/net/route").unwrap();
        assert!(routes.lines().count() <= 1, "this is no empty namespace: {others:?}\n{routes}");
        ip(&["link", "set", "lo", "up"]);
        let dir = TempDir::new("world");
        let world = World { hosts: dir.path().join("hosts"), resolv: dir.path().join("resolv.conf"), _dir: dir };
        fs::write(&world.hosts, "127.0.0.1 localhost\n::1 localhost\n").unwrap();
        fs::write(&world.resolv, "nameserver 127.0.0.53\n").unwrap();
        for (file, place) in [(&world.hosts, "/etc/hosts"), (&world.resolv, "/etc/resolv.conf")] {
            let status = Command::new("mount").arg("--bind").arg(file).arg(place).status().unwrap();
            assert!(status.success(), "cannot give the namespace its own {place}");
        }
        [PRIVATE, PUBLIC, PUBLIC_V6].iter().for_each(|address| world.add(address));
        Some(world)
    }

    /// Gives this machine another address.
    fn add(&self, address: &str) {
        match address.parse().expect("an address") {
            IpAddr::V4(_) => ip(&["address", "add", &format!("{address}/32"), "dev", "lo"]),
            IpAddr::V6(_) => ip(&["address", "add", &format!("{address}/128"), "dev", "lo", "nodad"]),
        }
    }

    /// A name leads to this address from now on.
    fn name(&self, name: &str, address: &str) {
        self.forget(name);
        let hosts = fs::read_to_string(&self.hosts).unwrap() + &format!("{address} {name}\n");
        fs::write(&self.hosts, hosts).unwrap();
    }

    fn forget(&self, name: &str) {
        let hosts = fs::read_to_string(&self.hosts).unwrap();
        let others: Vec<&str> = hosts.lines().filter(|line| !line.ends_with(name)).collect();
        fs::write(&self.hosts, others.join("\n") + "\n").unwrap();
    }

    /// Two name servers and a search list, and nobody answers.
    fn silence_names(&self) {
        for address in ["127.0.0.53", "127.0.0.54"] {
            // Open for as long as the namespace lives.
            std::mem::forget(UdpSocket::bind(SocketAddr::new(address.parse().unwrap(), 53)).unwrap());
        }
        fs::write(&self.resolv, "nameserver 127.0.0.53\nnameserver 127.0.0.54\nsearch a.test b.test\n").unwrap();
    }
}

/// Another machine, on a wire to this one, where this one is 10.9.8.1.
struct Machine {
    /// Keeps it alive.
    sleeper: Child,
}

impl Machine {
    fn beside(addresses: &[&str]) -> Machine {
        let mut sleeper = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
        let pid = sleeper.id().to_string();
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        eventually("the other machine is there", SOON, || {
            assert!(sleeper.try_wait().unwrap().is_none(), "no namespace for another machine");
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "sleep" && fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|its| its != own)
        });
        let machine = Machine { sleeper };
        ip(&["link", "add", "here", "type", "veth", "peer", "name", "there"]);
        ip(&["link", "set", "there", "netns", &pid]);
        ip(&["address", "add", "10.9.8.1/24", "dev", "here"]);
        ip(&["link", "set", "here", "up"]);
        for args in [["lo", "up"], ["there", "up"]] {
            machine.finish(&["ip", "link", "set", args[0], args[1]]);
        }
        for address in addresses {
            machine.finish(&["ip", "address", "add", &format!("{address}/24"), "dev", "there"]);
        }
        machine
    }

    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.sleeper.id().to_string()]).stdout(Stdio::null());
        command
    }

    fn finish(&self, args: &[&str]) {
        let status = self.command().args(args).status().unwrap();
        assert!(status.success(), "{args:?} on the other machine: {status}");
    }

    fn run(&self, program: &str, args: &[&str]) -> Running {
        Running(self.command().arg(program).args(args).spawn().unwrap())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.sleeper.kill();
        let _ = self.sleeper.wait();
    }
}

/// A process that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status();
    let status = status.expect("these tests need ip: run scripts/test, which installs it, or apt-get install iproute2");
    assert!(status.success(), "ip {}: {status}", args.join(" "));
}
