//! What the program and the scripts are made of: its dependencies, and `scripts/run` from its
//! start to Ctrl-C.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{SOON, TempDir, eventually, forget_package};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn no_async_runtime_is_among_the_dependencies() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--edges", "normal", "--prefix", "none", "--locked", "--offline"])
        .args(["--target", "all"])
        .current_dir(root())
        .output()
        .unwrap();
    // Crates for other systems may never have been downloaded here.
    let output = if output.status.success() { output } else { tree_of_this_system() };
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let crates: Vec<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains(&"ureq") && crates.contains(&"redis"), "{tree}");
    let runtimes = [
        "tokio",
        "async-std",
        "smol",
        "async-executor",
        "async-io",
        "futures-executor",
        "futures-util",
        "mio",
        "hyper",
        "actix-rt",
        "glommio",
        "monoio",
        "embassy-executor",
        "pollster",
    ];
    for name in runtimes {
        assert!(!crates.contains(&name), "{name} is in the tree:\n{tree}");
    }
}

fn tree_of_this_system() -> std::process::Output {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["tree", "--edges", "normal", "--prefix", "none", "--locked", "--offline"]);
    command.current_dir(root()).output().unwrap()
}

#[test]
fn scripts_run_shows_three_messages_arriving_and_stops_all_it_started() {
    let dir = TempDir::new("run");
    let mut first = Script::start(&dir, "first", &[]);
    first.wait_for("push more");
    for n in 1..=3 {
        assert!(first.output().contains(&format!("hello {n}")), "{}", first.output());
    }
    assert!(first.output().contains("WebSocket /"), "{}", first.output());
    assert!(first.output().contains("delivers the queue 'acapy_outbound'"), "{}", first.output());
    let redis = first.address_after("redis://");
    let recipient = first.address_after("--endpoint http://");
    assert!(TcpStream::connect(&redis).is_ok() && TcpStream::connect(&recipient).is_ok());

    // A second one uses the Redis of the first, and leaves it running.
    let endpoint = format!("http://{recipient}/more");
    let args = ["enqueue", "--endpoint", &endpoint, "--text", "hello again"];
    let mut second = Script::start(&dir, "second", &args);
    assert_eq!(second.wait_exit(), Some(0));
    first.wait_for("hello again");

    // So does one for the queue of ACA-Py 0.7.
    let args = ["0.7", "enqueue", "--endpoint", &endpoint, "--text", "hello of old"];
    assert_eq!(Script::start(&dir, "old push", &args).wait_exit(), Some(0));
    let mut old = Script::start(&dir, "old", &["0.7", "--workers", "2"]);
    first.wait_for("hello of old");
    assert!(old.output().contains("delivers the queue 'acapy.outbound_transport'"), "{}", old.output());
    old.interrupt();
    assert_eq!(old.wait_exit(), Some(0));

    first.interrupt();
    assert_eq!(first.wait_exit(), Some(0));
    for address in [&redis, &recipient] {
        let listens = TcpStream::connect(address).is_ok();
        assert!(!listens, "{address} still listens after: {}", first.output());
    }
}

#[test]
fn scripts_run_with_arguments_starts_the_agent_alone_and_keeps_the_queue() {
    let dir = TempDir::new("run");
    let endpoint = "http://127.0.0.1:1/nobody";
    let args = ["enqueue", "--endpoint", endpoint, "--text", "kept over a restart"];
    assert_eq!(Script::start(&dir, "push", &args).wait_exit(), Some(0));
    // As a run of an earlier version left it: with data, and of no Cluster.
    fs::remove_file(dir.path().join("nodes.conf")).unwrap();

    let mut agent = Script::start(&dir, "agent", &["--workers", "2"]);
    // The message that an earlier Redis was given is attempted.
    let client = || {
        let port = fs::read_to_string(dir.path().join("redis.port")).ok()?;
        redis::Client::open(format!("redis://127.0.0.1:{}", port.trim())).ok()?.get_connection().ok()
    };
    let held = "{acapy_outbound}:history";
    eventually("the message is attempted", SOON, || {
        client().is_some_and(|mut c| redis::cmd("HLEN").arg(held).query(&mut c) == Ok(1))
    });
    assert!(!agent.output().contains("push more"), "{}", agent.output());
    agent.interrupt();
    assert_eq!(agent.wait_exit(), Some(0));
    assert!(client().is_none(), "Redis still runs after: {}", agent.output());
}

#[test]
fn scripts_run_passes_on_how_the_agent_ended() {
    let dir = TempDir::new("run");
    let mut wrong = Script::start(&dir, "wrong", &["--workers", "none"]);
    assert_eq!(wrong.wait_exit(), Some(2));
    assert!(wrong.output().contains("--workers"), "{}", wrong.output());
}

/// `scripts/run` with a directory of its own and the binary that the tests use.
struct Script {
    child: Child,
    log: std::path::PathBuf,
}

impl Script {
    fn start(dir: &TempDir, name: &str, args: &[&str]) -> Script {
        let log = dir.path().join(format!("{name}.out"));
        let out = File::create(&log).unwrap();
        // Whoever runs the tests in the background has shells ignore SIGINT, and no shell below can undo that.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(root().join("scripts/run"));
        forget_package(&mut command);
        let child = command
            .args(args)
            .env("RUN_DIR", dir.path())
            .env("BUILD_PROFILE", "dev")
            .env_remove("ACAPY_OUTBOUND_TRANSPORT_QUEUE")
            .env_remove("REDIS_SERVER_URL")
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Script { child, log }
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        eventually(&format!("scripts/run says {text:?}"), PATIENCE, || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended ({ended:?}) and said:\n{}", self.output());
            self.output().contains(text)
        });
    }

    /// The `host:port` that follows some text in what it said.
    fn address_after(&self, text: &str) -> String {
        let output = self.output();
        let (_, after) = output.split_once(text).unwrap_or_else(|| panic!("no {text} in: {output}"));
        after.split([' ', '/', '\n']).next().unwrap().to_string()
    }

    /// As Ctrl-C does, to the script alone; what it started is in sessions of their own.
    fn interrupt(&self) {
        let kill = format!("kill -s INT {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    #[track_caller]
    fn wait_exit(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("scripts/run ends", PATIENCE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

/// It may have to wait for another cargo.
const PATIENCE: Duration = Duration::from_secs(120);

impl Drop for Script {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- scripts/run said:\n{}", self.output());
        }
        if self.child.try_wait().unwrap().is_none() {
            // So that its own clean-up runs.
            let kill = format!("kill -s TERM {}", self.child.id());
            let _ = Command::new("sh").args(["-c", &kill]).status();
            let _ = self.child.wait();
        }
    }
}

/// Of a file, without its tests.
const MOST_LINES: usize = 400;

/// The rooms of the house, floor by floor: a room imports from the floors above its own and from rooms of its own
/// floor, never from below.
const FLOORS: [(&str, &[&str]); 6] = [
    (
        "words",
        &[
            "text", "json", "headers", "frames", "journal", "policy", "orders", "queue", "guard", "roots", "clock",
            "envelope", "lanes",
        ],
    ),
    ("rules", &["peers", "claiming", "outbox", "metrics", "config"]),
    ("edges", &["delivery", "queue/", "serve"]),
    ("shared by threads", &["lease", "backoff", "dispatch", "health"]),
    ("threads", &["reader", "worker", "settler", "status", "notify"]),
    ("whole", &["signals", "agent", "commands", "logger", "lib", "main"]),
];

#[test]
fn no_file_is_longer_than_can_be_read_at_a_sitting() {
    let too_long: Vec<_> = sources(&root().join("src"))
        .into_iter()
        .filter(|path| !path.ends_with("tests.rs"))
        .map(|path| (code(&path).lines().count(), path))
        .filter(|(n_lines, _)| *n_lines > MOST_LINES)
        .collect();
    assert!(too_long.is_empty(), "find the seam in {too_long:#?}");
}

#[test]
fn imports_go_one_way_floor_by_floor_and_in_no_circle() {
    let floor_of = |room: &str| {
        let at = FLOORS.iter().position(|(_, rooms)| rooms.contains(&room));
        at.unwrap_or_else(|| panic!("'{room}' is in no floor: see FLOORS in {}", file!()))
    };
    let is_thread = |room: &str| FLOORS[floor_of(room)].0 == "threads";
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for path in sources(&root().join("src")) {
        let name = path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_string();
        if name.ends_with("tests.rs") {
            continue;
        }
        let room = room(&name.replace(".rs", "").replace('/', "::"));
        for line in code(&path).lines().map(|line| line.split("//").next().unwrap()) {
            for import in line.split("crate::").skip(1).flat_map(paths) {
                let other = self::room(&import);
                if other == room {
                    continue;
                }
                if floor_of(&other) > floor_of(&room) || is_thread(&other) && is_thread(&room) {
                    wrong.push(format!("{name} imports {other}"));
                }
                imports.entry(room.clone()).or_default().insert(other);
            }
        }
    }
    assert!(imports.len() > 15, "{imports:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Rooms that import nothing but what is taken away already are taken away in turn; a circle stays.
    while let Some(done) = imports.iter().find(|(_, others)| others.iter().all(|other| !imports.contains_key(other))) {
        let done = done.0.clone();
        imports.remove(&done);
    }
    assert!(imports.is_empty(), "a circle among {imports:?}");
}

/// A file without its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]\nmod tests").next().unwrap().to_string()
}

/// The room of a path below the crate: its first part, but for what is below `queue::redis`, which is an edge and
/// called `queue/`; the rest below `queue` are its words.
fn room(path: &str) -> String {
    let mut parts = path.split("::");
    let (first, second) = (parts.next().unwrap(), parts.next());
    if first == "queue" && second == Some("redis") { "queue/".to_string() } else { first.to_string() }
}

/// `a::b` of `a::b;`, and `a::b`, `a::c` of `a::{b, c::D}`.
fn paths(import: &str) -> Vec<String> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let path = import.split(|c| !is_path(c)).next().unwrap();
    match import[path.len()..].strip_prefix('{') {
        Some(list) => list.split('}').next().unwrap().split(',').map(|one| format!("{path}{}", one.trim())).collect(),
        None => vec![path.to_string()],
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    files.into_iter().filter(is_source).chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}
