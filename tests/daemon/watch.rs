//! `status --watch`: on a terminal, which it leaves as it was, and elsewhere; rates; a Redis that goes away.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Agent, Answer, Redis, SOON, Sink, eventually, wire};

const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l\u{1b}[?7l";
const LEAVE: &str = "\u{1b}[?7h\u{1b}[?25h\u{1b}[?1049l";
/// Fewer than the tables need.
const ROWS: usize = 12;

/// `status --watch` at work, whose output is read as it comes; killed on drop.
struct Watch {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Watch {
    fn spawn(mut command: Command) -> Watch {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("it can be started");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (mut pipe, saying) = (child.stdout.take().unwrap(), said.clone());
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut chunk) {
                saying.lock().unwrap().extend_from_slice(&chunk[..n]);
            }
        });
        Watch { child, said, reader: Some(reader) }
    }

    /// Into a pipe.
    fn plain(redis: &Redis, options: &[&str]) -> Watch {
        let mut command = Agent::command();
        command.args(["status", "--watch", "-oq", &redis.url()]).args(options);
        Watch::spawn(command)
    }

    /// On a terminal of `script` (bsdutils), of so many rows.
    fn on_terminal(redis: &Redis) -> Watch {
        let agent = Agent::command();
        let program = agent.get_program().to_str().unwrap();
        let line = format!("stty rows {ROWS} cols 100; exec {program} status --watch -oq {}", redis.url());
        let mut command = Command::new("script");
        // What sets options in the tests' own environment is taken out of it, as for every agent.
        for (name, value) in agent.get_envs() {
            assert!(value.is_none());
            command.env_remove(name);
        }
        // Ctrl-C is to be one for it, whoever runs the tests in the background.
        command.args(["-q", "-e", "-c", &format!("exec env --default-signal=INT sh -c '{line}'"), "/dev/null"]);
        command.env("TERM", "xterm").env("SHELL", "/bin/sh");
        Watch::spawn(command)
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn wait_for(&self, text: &str) {
        eventually(&format!("it says {text:?}"), SOON, || self.said().contains(text));
    }

    /// Waits for what is new.
    #[track_caller]
    fn wait_for_new(&self, what: &str, is_it: impl Fn(&str) -> bool) {
        let before = self.said().len();
        eventually(what, SOON, || is_it(self.said().get(before..).unwrap_or_default()));
    }

    #[track_caller]
    fn wait_exit(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("it ends", SOON, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.reader.take().unwrap().join().unwrap();
        status.and_then(|status| status.code())
    }

    fn interrupt(&self) {
        let kill = format!("kill -s INT {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- status --watch said:\n{:?}", self.said());
        }
    }
}

/// How many were delivered in some second that it showed.
fn has_delivered(said: &str) -> bool {
    said.split("per second: ").skip(1).any(|rates| {
        let delivered = rates.split(", ").nth(1).and_then(|rate| rate.strip_suffix(" delivered"));
        delivered.and_then(|rate| rate.parse::<f64>().ok()).is_some_and(|rate| rate > 0.0)
    })
}

#[test]
fn a_terminal_is_drawn_on_every_second_and_left_as_it_was() {
    let mut redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let _agent = Agent::start(&redis, &["--retry-first", "1h", "--retry-max", "1h"]);
    for n in 1..=20 {
        redis.push(&wire::envelope(&format!("http://127.0.0.1:{n}/"), b"x"));
    }
    let mut watch = Watch::on_terminal(&redis);
    watch.wait_for("per second: not known yet");
    watch.wait_for("delivered, 0.0 put off, 0.0 dead");
    redis.push_all(wire::numbered(&sink.url(), 50));
    eventually("the rate is seen", SOON, || has_delivered(&watch.said()));
    redis.kill9();
    watch.wait_for("Redis cannot be used: ");
    watch.wait_for("what it told last:");
    redis.restart();
    watch.wait_for_new("it goes on", |new| new.contains("per second: 0.0 queued"));

    watch.child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    assert_eq!(watch.wait_exit(), Some(0));
    let said = watch.said();
    assert!(said.contains(ENTER), "{said:?}");
    let (_, after) = said.rsplit_once(LEAVE).expect("it leaves the other screen");
    assert_eq!(after.trim(), "", "{said:?}");
    let pictures: Vec<&str> = said.split("\u{1b}[H").skip(1).collect();
    assert!(pictures.len() > 4, "{said:?}");
    for picture in pictures {
        // Nothing is scrolled away.
        assert!(picture.split("\r\n").count() <= ROWS, "{picture:?}");
    }
}

#[test]
fn elsewhere_the_tables_follow_one_another() {
    let mut redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let _agent = Agent::start(&redis, &[]);
    let mut watch = Watch::plain(&redis, &[]);
    watch.wait_for("per second: not known yet");
    redis.push_all(wire::numbered(&sink.url(), 50));
    eventually("the rate is seen", SOON, || has_delivered(&watch.said()));
    redis.kill9();
    watch.wait_for("Redis cannot be used: ");
    redis.restart();
    watch.wait_for_new("it goes on", |new| new.contains("per second: "));
    watch.interrupt();
    assert_eq!(watch.wait_exit(), Some(0));
    let said = watch.said();
    assert!(!said.contains('\u{1b}'), "{said:?}");
    assert!(said.matches("\n\nPLACE").count() >= 3, "{said}");
}

#[test]
fn a_redis_that_hangs_holds_up_no_ctrl_c() {
    let redis = Redis::start();
    let mut watch = Watch::plain(&redis, &[]);
    watch.wait_for("per second: 0.0 queued");
    redis.freeze();
    watch.wait_for("it has not answered yet");
    let asked = std::time::Instant::now();
    watch.interrupt();
    assert_eq!(watch.wait_exit(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    redis.thaw();
}

#[test]
fn as_json_there_is_an_object_a_second_with_rates_that_add_up() {
    let redis = Redis::start();
    let sink = Sink::new(|request| match request.target.as_str() {
        "/busy" => Answer::status(500),
        "/gone" => Answer::status(410),
        _ => Answer::ok(),
    });
    let watch = Watch::plain(&redis, &["--json"]);
    watch.wait_for("\"per_second\":{");
    redis.push_all(wire::numbered(&sink.url(), 40));
    redis.push_all((0..3).map(|_| wire::envelope(&format!("{}/busy", sink.url()), b"x")));
    redis.push_all((0..2).map(|_| wire::envelope(&format!("{}/gone", sink.url()), b"x")));
    redis.push(b"no envelope");
    let _agent = Agent::start(&redis, &["--retry-first", "1h", "--retry-max", "1h"]);
    let lines = || -> Vec<Value> {
        let said = watch.said();
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    };
    // A rate is of the time between two looks, by Redis's clock.
    let sum = |what: &str| -> f64 {
        let lines = lines();
        let pairs = lines.windows(2).map(|pair| {
            let at = |line: &Value| humantime::parse_rfc3339(line["time"].as_str().unwrap()).unwrap();
            let seconds = at(&pair[1]).duration_since(at(&pair[0])).unwrap().as_secs_f64();
            pair[1]["per_second"][what].as_f64().unwrap() * seconds
        });
        pairs.sum()
    };
    let is_about = |what: &str, n: f64| (sum(what) - n).abs() < 1.0 + n * 0.05;
    eventually("all is seen", SOON, || {
        is_about("queued", 46.0) && is_about("delivered", 40.0) && is_about("put_off", 3.0) && is_about("dead", 3.0)
    });
    assert!(lines()[0]["per_second"].is_null());
}
