//! What happens when file descriptors run out. The limit is the whole process's, so the test runs itself once
//! more as a process of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use acapy_deliver::internals::delivery::{Options, Poster, raise_descriptor_limit};
use acapy_deliver::internals::policy::Attempt;

/// Answers each request on each connection, one connection after the other per thread.
fn start_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        loop {
            // Fails while descriptors are out, here too.
            let Ok((mut stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            std::thread::spawn(move || serve(&mut stream));
        }
    });
    url
}

fn serve(stream: &mut TcpStream) {
    let mut seen = Vec::new();
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        seen.push(byte[0]);
        if seen.ends_with(b"\r\n\r\n") {
            seen.clear();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    }
}

fn use_up_descriptors() -> Vec<File> {
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    files
}

fn post(poster: &Poster, url: &str) -> Attempt {
    poster.post(&url.parse().unwrap(), std::iter::empty(), b"", None)
}

/// In the environment of that process.
const ALONE: &str = "ACAPY_DELIVER_TEST_ALONE";

#[test]
fn lack_of_descriptors_costs_idle_connections_first_and_is_nobodys_fault() {
    if std::env::var_os(ALONE).is_some() {
        return run_out_of_descriptors();
    }
    let name = "descriptors::lack_of_descriptors_costs_idle_connections_first_and_is_nobodys_fault";
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn run_out_of_descriptors() {
    let (_, hard) = rlimit::Resource::NOFILE.get().unwrap();
    let soft = hard.min(256);
    rlimit::Resource::NOFILE.set(soft, hard).unwrap();
    let poster =
        Poster::new(Options { timeout: Duration::from_secs(2), idle_connections: Some(64), ..Options::default() })
            .unwrap();
    let urls: Vec<String> = (0..8).map(|_| start_server()).collect();
    let delivered = |attempt: &Attempt| matches!(attempt, Attempt::Answered { status: 200, .. });
    for url in &urls {
        let attempt = post(&poster, url);
        assert!(delivered(&attempt), "{attempt:?}");
    }
    assert_eq!(poster.n_idle(), 8);
    let newcomer = start_server();

    // The idle connections are given up for one that is needed.
    let files = use_up_descriptors();
    let attempt = post(&poster, &newcomer);
    assert!(delivered(&attempt), "{attempt:?}");
    assert_eq!(poster.n_idle(), 1);

    // Without any left to give up, it is this machine that is lacking. The
    // server's side of what was closed is closed a little later, so take what
    // becomes free until there is nothing. (What the client takes last, the server
    // lacks: then there is no answer in time, and the next try is looked at.)
    let mut more_files = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    let error = loop {
        poster.close_idle();
        more_files.push(use_up_descriptors());
        match post(&poster, &newcomer) {
            Attempt::Lacking { error } => break error,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    };
    assert!(error.contains("file descriptors"), "{error}");
    drop((files, more_files));
    let attempt = post(&poster, &newcomer);
    assert!(delivered(&attempt), "{attempt:?}");

    assert_eq!(raise_descriptor_limit(), hard);
    assert_eq!(rlimit::Resource::NOFILE.get_soft().unwrap(), hard);
}
