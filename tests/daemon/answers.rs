//! Recipients that answer oddly: what counts as an answer, to which message, and how long it is
//! waited for. The recipients are written by hand, byte by byte; every kind of answer, one by one,
//! is tested in `tests/recipients.rs`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::wire::numbered;
use crate::support::{Agent, Redis, SOON};

/// A recipient that gives each connection, with its number from 0, to a function in its own thread.
struct Recipient {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl Recipient {
    fn new(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Recipient {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let recipient = Recipient { address: listener.local_addr().unwrap(), stopped: Arc::default() };
        let (stopped, serve) = (recipient.stopped.clone(), Arc::new(serve));
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let serve = serve.clone();
                thread::spawn(move || serve(stream.unwrap(), number));
            }
        });
        recipient
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for Recipient {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// The body of the next request; `None` when the connection ends before it.
fn read_request(stream: &mut impl Read) -> Option<Vec<u8>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

#[test]
fn a_message_counts_as_delivered_at_its_status_however_slowly_the_body_follows() {
    let redis = Redis::start();
    let recipient = Recipient::new(|mut stream, _| {
        if read_request(&mut stream).is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n").unwrap();
            while stream.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        }
    });
    redis.push_all(numbered(&recipient.url(), 5));
    let _agent = Agent::start(&redis, &["--endpoint-concurrency", "1"]);
    redis.wait_empty(SOON);
    assert_eq!(redis.counts().dead, 0);
}
