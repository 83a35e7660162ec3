//! What goes through a proxy, and what does not even so. The proxy is written by hand, and never
//! connects to where it is asked to.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::{env, fs, thread};

use crate::support::wire::envelope;
use crate::support::{Agent, Redis, SOON, eventually_eq};

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
    assert_eq!(asked, ["inside.example:80", "redirects.example:80"]);
}

/// A CONNECT proxy that notes whom it is asked for, and answers in their place: with a redirect to
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
                let target = head.split(' ').nth(1).unwrap_or_default().to_string();
                let answer = match target.starts_with("redirects.") {
                    true => "307 There\r\nLocation: http://169.254.169.254/",
                    false => "200 OK",
                };
                asked.lock().unwrap().push(target);
                stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").unwrap();
                if matches!(stream.read(&mut [0; 4096]), Ok(1..)) {
                    let _ = write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                    let _ = stream.read(&mut [0]);
                }
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
