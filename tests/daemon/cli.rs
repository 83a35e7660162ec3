//! The command line as a user meets it: the real binary, its output and its exit codes.
//! What single options accept is tested beside `config.rs`; here is what only a process
//! shows, `enqueue` on a real Redis, and `listen` on real sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;

const PATIENCE: Duration = Duration::from_secs(20);

/// The binary, with no variable of ours in its environment.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_acapy-deliver"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ACAPY_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

fn run_with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = program(arguments).stdin(Stdio::piped()).spawn().unwrap();
    // Whoever does not read its input may close it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// One line on standard error, nothing on standard output, and the exit code.
#[track_caller]
fn fails(output: &Output, code: i32, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(text(&output.stdout), "");
    assert!(message.starts_with("acapy-deliver: "), "{message}");
    assert_eq!(message.matches('\n').count(), 1, "{message}");
    for word in words {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
    assert!(!message.contains("secret"), "{message}");
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout)
}

#[test]
fn wrong_usage_ends_with_2_and_one_line() {
    let table: &[(&[&str], &[&str])] = &[
        (&[], &["-oq", "ACAPY_OUTBOUND_TRANSPORT_QUEUE"]),
        (&["-oq"], &["'--outbound-queue'", "needs a value"]),
        (&["-oq", "http://:secret@h"], &["'--outbound-queue'", "redis://"]),
        (&["-oq", "redis://:secret@h", "--workers", "many"], &["'--workers'", "'many'", "1 to 4096"]),
        (&["-oq", "redis://:secret@h", "--wokers=3"], &["'--wokers'", "'--workers'"]),
        (&["-oq", "redis://:secret@h", "--password", "secret"], &["'--password'"]),
        (&["-oqx", "redis://:secret@h"], &["'-oqx'"]),
        (
            &["-oq=redis://:secret@h", "--timeout", "1s", "--connect-timeout", "2s"],
            &["'--connect-timeout'", "'--timeout'"],
        ),
        (&["--ordered", "listen"], &["'listen'", "first"]),
        (&["nonsense"], &["'nonsense'", "enqueue"]),
        (&["listen", "--workers", "3"], &["'--workers'", "'run'"]),
        (&["dead"], &["list, show"]),
        (&["enqueue", "-oq", "redis://h", "--endpoint", "nonsense", "--text", "x"], &["nonsense", "--endpoint"]),
        (&["enqueue", "-oq", "redis://h", "--endpoint", "ftp://h", "--text", "x"], &["ftp", "https"]),
        (&["enqueue", "-oq", "redis://h", "--endpoint", "http://h"], &["no payload", "empty"]),
        (
            &[
                "enqueue",
                "-oq",
                "redis://h",
                "--endpoint",
                "http://h",
                "--text",
                "x",
                "--header",
                "a: b",
                "--header",
                "A: c",
            ],
            &["'--header'", "twice"],
        ),
    ];
    for (arguments, words) in table {
        fails(&run(arguments), 2, words);
    }
    let variable = program(&[]).env("ACAPY_OUTBOUND_TRANSPORT_QUEUE", "kafka://:secret@h").output().unwrap();
    fails(&variable, 2, &["variable ACAPY_OUTBOUND_TRANSPORT_QUEUE", "redis://"]);
    let variable = program(&["-oq", "redis://h"]).env("ACAPY_DELIVER_LEASE", "1s").output().unwrap();
    fails(&variable, 2, &["variable ACAPY_DELIVER_LEASE", "'1s'", "3s"]);
}

#[test]
fn what_cannot_go_on_ends_with_1_and_one_line() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("redis://u:secret@{closed}");
    let arguments = ["enqueue", "-oq", &url, "--endpoint", "http://h", "--text", "x"];
    fails(&run(&arguments), 1, &[&closed.to_string(), "refused"]);
    let arguments = ["enqueue", "-oq", &url, "--endpoint", "http://h", "/nonexistent"];
    fails(&run(&arguments), 1, &["'/nonexistent'"]);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    fails(&run(&["listen", &address]), 1, &[&address, "cannot listen"]);
}

#[test]
fn help_and_version_go_to_standard_output() {
    assert_eq!(succeeds(&run(&["--version"])), format!("acapy-deliver {}\n", env!("CARGO_PKG_VERSION")));
    let help = succeeds(&run(&["--help"]));
    assert!(help.contains("--outbound-queue") && help.contains("acapy-deliver enqueue"));
    assert_eq!(succeeds(&run(&["help"])), help);
    assert!(succeeds(&run(&["enqueue", "-h"])).contains("--endpoint URL"));
}

#[test]
fn a_closed_pipe_ends_a_command_without_a_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = program(&["--help"]).stdout(writer).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = program(&["--nonsense"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn log_lines_carry_their_time_unless_told_not_to() {
    let first_line = |format: &str| {
        // The unknown variable is told at the start, after the line that says which queue is delivered.
        let mut command = program(&["-oq", "redis://127.0.0.1:1", "--log-format", format]);
        let mut agent = Killed(command.env("ACAPY_DELIVER_WORKER", "1").spawn().unwrap());
        let lines = BufReader::new(agent.0.stderr.take().unwrap()).lines();
        let line = lines.map_while(Result::ok).take(5).find(|line| line.contains("ACAPY_DELIVER_WORKER"));
        line.expect("it is told") + "\n"
    };
    let bare = first_line("bare");
    let told = "variable ACAPY_DELIVER_WORKER is not known and does nothing (did you mean 'ACAPY_DELIVER_WORKERS'?)\n";
    assert_eq!(bare, format!("WARN  {told}"));
    let full = first_line("full");
    let (time, rest) = full.split_once(' ').unwrap();
    assert_eq!(rest, bare);
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z");
}

#[test]
fn enqueue_pushes_the_very_bytes_that_aca_py_pushes() {
    let redis = Redis::start(&[]);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let manifest = std::fs::read_to_string(fixtures.join("manifest.json")).unwrap();
    let manifest: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&manifest).unwrap();
    let mut compared = 0;
    for (name, entry) in manifest.iter().filter(|(name, _)| !name.starts_with("oldraw-")) {
        let expected = std::fs::read(fixtures.join(name)).unwrap();
        let payload = &expected[expected.len() - entry["payload_size"].as_u64().unwrap() as usize..];
        let url = redis.url();
        let mut arguments =
            vec!["enqueue", "-oq", &url, "-oqp", name, "--endpoint", entry["endpoint"].as_str().unwrap()];
        let headers: Vec<String> = entry["headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.as_str().unwrap()))
            .collect();
        // The default is left to the program where it is what ACA-Py sent.
        for header in headers.iter().filter(|header| *header != "Content-Type: application/ssi-agent-wire") {
            arguments.extend(["--header", header]);
        }
        let said = succeeds(&run_with_input(&arguments, payload));
        assert!(
            said.contains(&format!("{} bytes", payload.len())) && said.contains(&format!("{name}.outbound_transport"))
        );
        let key = format!("{name}.outbound_transport");
        let pushed: Vec<Vec<u8>> = redis.query(redis::cmd("LRANGE").arg(key).arg(0).arg(-1));
        assert!(pushed == [expected], "{name} differs");
        compared += 1;
    }
    assert_eq!(compared, 8);
}

#[test]
fn enqueue_writes_json_as_aca_py_of_today_does_where_the_key_is_its() {
    let redis = Redis::start(&[]);
    let url = redis.url();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/today");
    let lrange = |key: &str| -> Vec<Vec<u8>> { redis.query(redis::cmd("LRANGE").arg(key).arg(0).arg(-1)) };
    let mut compared = 0;
    for (name, endpoint, headers) in [
        ("real-bytes-256.json", "http://127.0.0.1:8020", &[][..]),
        ("real-empty.json", "http://127.0.0.1:8020", &[]),
        ("real-padding-1.json", "http://127.0.0.1:8020", &[]),
        ("real-large-60k.json", "http://127.0.0.1:8020", &[]),
        ("real-mime-v0.json", "http://127.0.0.1:8020", &["Content-Type: application/ssi-agent-wire"]),
        (
            "real-not-ascii.json",
            "http://b\u{fc}cher.example/\u{2603}",
            &["x-note: h\u{e9} \u{2603}", "Content-Type: application/didcomm-envelope-enc"],
        ),
    ] {
        let expected = std::fs::read(fixtures.join(name)).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&expected).unwrap();
        let payload = BASE64_URL_SAFE.decode(value["payload"].as_str().unwrap()).unwrap();
        for (key, format) in [(name.to_owned(), &[][..]), (format!("{name}.outbound_transport"), &["--format", "json"])]
        {
            let mut arguments = vec!["enqueue", "-oq", &url, "--queue", &key, "--endpoint", endpoint, "-"];
            arguments.extend(headers.iter().flat_map(|header| ["--header", header]).chain(format.iter().copied()));
            let said = succeeds(&run_with_input(&arguments, &payload));
            assert!(said.contains("as json") && said.contains(&key), "{said}");
            assert!(
                lrange(&key) == [expected.clone()],
                "{name} differs: {:?}",
                lrange(&key)[0].escape_ascii().to_string()
            );
            compared += 1;
        }
    }
    assert_eq!(compared, 12);
    succeeds(&run(&[
        "enqueue",
        "-oq",
        &url,
        "--queue",
        "acapy_outbound",
        "--format",
        "msgpack",
        "--endpoint",
        "http://h/",
        "--text",
        "x",
    ]));
    assert_eq!(lrange("acapy_outbound")[0][0], 0x83);
}

#[test]
fn enqueue_takes_a_file_a_text_or_standard_input_and_pushes_at_the_right() {
    let redis = Redis::start(&[]);
    let url = redis.url();
    let file = redis.directory.join("payload");
    std::fs::write(&file, "one").unwrap();
    let enqueue = ["enqueue", "-oq", &url, "--endpoint", "http://user:secret@h/"];
    let with = |more: &[&'static str]| [enqueue.as_slice(), more].concat();

    let said = succeeds(&run(&[enqueue.as_slice(), &[file.to_str().unwrap()]].concat()));
    assert!(
        said.contains("pushed 1 message of 3 bytes") && said.contains("now 1") && !said.contains("secret"),
        "{said}"
    );
    succeeds(&run_with_input(&with(&["-"]), b"two"));
    succeeds(&run(&with(&["--text", "three"])));
    let said = succeeds(&run(&with(&["--text", "many", "--count", "25000"])));
    assert!(said.contains("pushed 25000 messages") && said.contains("now 25003"), "{said}");

    let pushed: Vec<Vec<u8>> = redis.query(redis::cmd("LRANGE").arg("acapy.outbound_transport").arg(0).arg(-1));
    assert_eq!(pushed.len(), 25_003);
    for (bytes, payload) in pushed.iter().zip(["one", "two", "three", "many"]) {
        assert!(bytes.ends_with(payload.as_bytes()), "{bytes:?}");
    }
    assert!(pushed[3..].iter().all(|bytes| *bytes == pushed[3]));
}

#[test]
fn enqueue_says_what_redis_has_against_it() {
    let redis = Redis::start(&["--requirepass", "secret"]);
    let password = redis.directory.join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let password = password.to_str().unwrap();
    let address = format!("127.0.0.1:{}", redis.port);
    let enqueue = |url: &str, more: &[&str]| {
        run(&[&["enqueue", "-oq", url, "--endpoint", "http://h", "--text", "x"], more].concat())
    };
    let said = succeeds(&enqueue(&format!("redis://{address}"), &["--redis-password-file", password]));
    assert!(said.contains("now 1"), "{said}");
    let said = succeeds(&enqueue(&format!("redis://:secret@{address}"), &[]));
    assert!(said.contains("now 2") && !said.contains("secret"), "{said}");
    let socket = redis.directory.join("socket");
    let said = succeeds(&enqueue(&format!("unix://{}?pass=secret", socket.display()), &[]));
    assert!(said.contains("now 3") && !said.contains("secret"), "{said}");

    fails(&enqueue(&format!("redis://:secretly@{address}"), &[]), 1, &[&address, "assword"]);
    fails(&enqueue(&format!("redis://{address}"), &[]), 1, &[&address, "wants a password"]);
    let _: () = redis.query(redis::cmd("SET").arg("other.outbound_transport").arg("x"));
    let wrong_type = enqueue(&format!("redis://:secret@{address}"), &["-oqp", "other"]);
    fails(&wrong_type, 1, &["other.outbound_transport", "WRONGTYPE"]);
}

#[test]
fn listen_shows_each_request_and_ends_after_its_count() {
    let mut recipient = Recipient::start(&["--count", "3"]);
    let mut stream = recipient.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nX-Key: a\x1bb\r\n\r\n").unwrap();
    assert_eq!(stream.answer(), "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert!(recipient.line().contains("refused with 400"));

    let mut stream = recipient.connect();
    stream
        .write_all("POST /in?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\n\r\n{\"k\":\n\"vé\"}".as_bytes())
        .unwrap();
    assert_eq!(stream.answer(), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(recipient.line().contains(" #1 POST /in?x=1 12 bytes from 127.0.0.1:"));
    assert_eq!(recipient.line(), "  Host: h\n");
    assert_eq!(recipient.line(), "  Content-Length: 12\n");
    assert_eq!(recipient.line(), "  {\"k\":\\n\"vé\"}\n");

    // The same connection again: chunks, a trailer, and a body that waits to be asked for.
    stream.write_all(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert_eq!(stream.answer(), "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nA: b\r\n\r\n").unwrap();
    assert_eq!(stream.answer(), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(recipient.line().contains(" #2 POST / 5 bytes from"));
    assert_eq!(recipient.line(), "  Transfer-Encoding: chunked\n");
    assert_eq!(recipient.line(), "  Expect: 100-continue\n");
    assert_eq!(recipient.line(), "  abcde\n");

    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(stream.answer(), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert!(recipient.line().contains(" #3 GET / 0 bytes"));
    assert_eq!(recipient.ended(), Some(0));
}

#[test]
fn listen_plays_a_bad_recipient() {
    let mut recipient = Recipient::start(&["--status", "503", "--delay", "300ms", "--quiet"]);
    let mut stream = recipient.connect();
    let begun = Instant::now();
    stream.write_all(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi").unwrap();
    assert_eq!(stream.answer(), "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert!(recipient.line().contains(" #1 POST / 2 bytes"));
    stream.write_all(b"POST /2 HTTP/1.1\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert!(stream.answer().starts_with("HTTP/1.1 503"));
    assert!(recipient.line().contains(" #2 POST /2 0 bytes"), "headers or payload were shown with --quiet");
}

#[test]
fn listen_refuses_what_it_cannot_read_and_lives_on() {
    let mut recipient = Recipient::start(&["--quiet"]);
    let large_head = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(80 << 10));
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(101));
    let table: [(&str, u16); 8] = [
        ("nonsense\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", 400),
        (&large_head, 431),
        (&many_headers, 431),
    ];
    for (request, status) in table {
        let mut stream = recipient.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let answer = stream.answer();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{}: {answer}", &request[..40.min(request.len())]);
        assert!(recipient.line().contains(&format!("refused with {status}")));
    }
    // One that goes away in the middle is nothing to speak of.
    recipient.connect().write_all(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx").unwrap();
    let mut stream = recipient.connect();
    stream.write_all(b"GET /last HTTP/1.1\r\n\r\n").unwrap();
    assert!(stream.answer().starts_with("HTTP/1.1 200"));
    assert!(recipient.line().contains(" #1 GET /last"));
}

#[test]
fn listen_ends_when_nobody_reads_what_it_shows() {
    let mut recipient = Recipient::start(&["--quiet"]);
    recipient.lines = None;
    let mut stream = recipient.connect();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(recipient.ended(), Some(0));
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `acapy-deliver listen` on a free port.
struct Recipient {
    child: Child,
    address: String,
    lines: Option<BufReader<ChildStdout>>,
}

impl Recipient {
    fn start(arguments: &[&str]) -> Recipient {
        let mut child = program(&[&["listen", "127.0.0.1:0"], arguments].concat()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut recipient = Recipient { child, address: String::new(), lines: Some(lines) };
        let line = recipient.line();
        recipient.address = line.trim_end().strip_prefix("listening on http://").expect(&line).to_owned();
        recipient
    }

    /// The next line shown.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    /// The exit code, once it has one.
    fn ended(&mut self) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it did not end by itself");
    }

    fn connect(&self) -> Stream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Stream(stream)
    }
}

impl Drop for Recipient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Stream(TcpStream);

impl Stream {
    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }

    /// One answer's head; none of ours has a body.
    fn answer(&mut self) -> String {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {:?}", text(&answer)));
            answer.push(byte[0]);
        }
        text(&answer)
    }
}

/// A redis-server of one test's own, in a directory of its own.
struct Redis {
    server: Killed,
    port: u16,
    directory: PathBuf,
    password: Option<String>,
}

impl Redis {
    fn start(options: &[&str]) -> Redis {
        // Between finding a port free and taking it another process may take it.
        (0..5).find_map(|_| Redis::try_start(options)).expect("no redis-server could be started; is it installed?")
    }

    fn try_start(options: &[&str]) -> Option<Redis> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = std::env::temp_dir().join(format!("acapy-deliver-cli-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let server = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--unixsocket", directory.join("socket").to_str().unwrap(), "--dir", directory.to_str().unwrap()])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is not installed");
        let password =
            options.iter().position(|option| *option == "--requirepass").map(|at| options[at + 1].to_owned());
        let mut redis = Redis { server: Killed(server), port, directory, password };
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && redis.server.0.try_wait().unwrap().is_none() {
            let pong =
                redis.connection().and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection));
            if pong.is_ok() {
                return Some(redis);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    fn url(&self) -> String {
        let password = self.password.as_ref().map_or(String::new(), |password| format!(":{password}@"));
        format!("redis://{password}127.0.0.1:{}", self.port)
    }

    fn connection(&self) -> redis::RedisResult<redis::Connection> {
        redis::Client::open(self.url())?.get_connection_with_timeout(PATIENCE)
    }

    fn query<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        command.query(&mut self.connection().unwrap()).unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.0.kill();
        let _ = self.server.0.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
