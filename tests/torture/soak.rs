//! Memory: one agent with default options, a queue that is never empty, mixed traffic at full speed,
//! and its resident size as it goes. It must have levelled by the middle: what grows with the
//! number of messages is a leak.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::rng::Rng;
use crate::support::wire::envelope;
use crate::support::{Agent, Redis, ms};

/// Origins that answer, and such as refuse.
const N_ORIGINS: usize = 60;
const N_REFUSING: usize = 20;
/// So many are kept in the queue; and looks at the size.
const BACKLOG: usize = 20_000;
const LOOKS: u64 = 20;
/// What the second half may be larger than the second quarter: a twentieth, and the allocator's slack.
const SLACK_KIB: u64 = 3 << 10;

/// Delivers so many messages; what is wrong, if anything.
pub fn run(n_messages: u64, seed: u64) -> Result<(), String> {
    let redis = Redis::with(&["appendonly no"]);
    let n_arrived = Arc::new(AtomicU64::new(0));
    let origins: Vec<SocketAddr> = (0..N_ORIGINS).map(|n| listen(n, n_arrived.clone())).collect();
    let refusing: Vec<SocketAddr> = (0..N_REFUSING).map(|_| free_address()).collect();
    let agent = Agent::start(&redis, &["--retry-first", "500ms", "--retry-max", "5s"]);

    let stop = Arc::new(AtomicBool::new(false));
    let producer = {
        let (stop, key, client) = (stop.clone(), redis.queue_key(), redis.client());
        thread::spawn(move || produce(&stop, &key, client, &origins, &refusing, Rng::new(seed)))
    };
    let begun = Instant::now();
    let mut sizes = Vec::new();
    let mut last = (0, Instant::now());
    println!("{:>10} {:>10} {:>8} {:>8} {:>9} {:>9}", "delivered", "RSS KiB", "files", "seconds", "waiting", "dead");
    while sizes.len() < LOOKS as usize {
        let arrived = n_arrived.load(Ordering::Relaxed);
        if arrived > last.0 {
            last = (arrived, Instant::now());
        }
        if last.1.elapsed() > Duration::from_secs(30) {
            stop.store(true, Ordering::SeqCst);
            return Err(format!(
                "nothing arrived for 30 s after {arrived} messages: {:?}\n{}",
                redis.counts(),
                agent.log()
            ));
        }
        if arrived >= n_messages * (sizes.len() as u64 + 1) / LOOKS {
            let (size, counts) = (agent.resident_kib(), redis.counts());
            let seconds = begun.elapsed().as_secs_f64();
            println!(
                "{arrived:>10} {size:>10} {:>8} {seconds:>8.1} {:>9} {:>9}",
                agent.n_files(),
                counts.waiting,
                counts.dead
            );
            sizes.push(size);
        }
        thread::sleep(ms(5));
    }
    stop.store(true, Ordering::SeqCst);
    producer.join().expect("the producer does not panic");
    let n = sizes.len();
    let before = *sizes[n / 4..n / 2].iter().max().expect("some looks");
    let after = *sizes[n / 2..].iter().max().expect("some looks");
    println!(
        "largest in the second quarter {before} KiB, in the second half {after} KiB, ever {} KiB; {} lines of log",
        agent.peak_kib(),
        agent.log().lines().count()
    );
    if after > before + before / 20 + SLACK_KIB {
        return Err(format!("the resident size grew from {before} to {after} KiB"));
    }
    Ok(())
}

/// Keeps the queue filled: mostly small messages to all origins, some large, some that die, some
/// for recipients that refuse, some that are no envelopes.
fn produce(
    stop: &AtomicBool,
    key: &str,
    mut client: redis::Connection,
    origins: &[SocketAddr],
    refusing: &[SocketAddr],
    mut rng: Rng,
) {
    let filler = vec![b'x'; 80_000];
    while !stop.load(Ordering::SeqCst) {
        let queued: usize = redis::cmd("LLEN").arg(key).query(&mut client).unwrap();
        if queued >= BACKLOG {
            thread::sleep(ms(10));
            continue;
        }
        let mut pipe = redis::pipe();
        for _ in 0..1_000 {
            let size = match rng.between(0, 1_000) {
                0..4 => 80_000,
                _ => rng.between(100, 3_000) as usize,
            };
            let origin = origins[rng.index(origins.len())];
            let bytes = match rng.between(0, 10_000) {
                0..3 => b"no envelope".to_vec(),
                3..10 => envelope(&format!("http://{origin}/gone"), &filler[..size]),
                10..110 => envelope(&format!("http://{origin}/sometimes"), &filler[..size]),
                110..120 => envelope(&format!("http://{}/", refusing[rng.index(refusing.len())]), &filler[..size]),
                _ => envelope(&format!("http://{origin}/"), &filler[..size]),
            };
            pipe.cmd("RPUSH").arg(key).arg(bytes).ignore();
        }
        pipe.exec(&mut client).unwrap();
    }
}

/// A recipient that keeps nothing of what it gets. Every seventh is slow.
fn listen(n: usize, n_arrived: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback address can be listened on");
    let address = listener.local_addr().unwrap();
    let delay = if n.is_multiple_of(7) { ms(20) } else { Duration::ZERO };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let n_arrived = n_arrived.clone();
            let builder = thread::Builder::new().stack_size(128 << 10);
            // A connection that breaks is the agent's right.
            let _ = builder.spawn(move || serve(&stream, delay, &n_arrived));
        }
    });
    address
}

fn serve(mut stream: &TcpStream, delay: Duration, n_arrived: &AtomicU64) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    let (mut line, mut body) = (String::new(), Vec::new());
    let mut n_here: u64 = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let status = match line.split(' ').nth(1)? {
            "/gone" => "410 Gone",
            // The message comes again on whichever connection, and is taken in one case of two.
            "/sometimes" if n_here.is_multiple_of(2) => "500 Internal Server Error",
            _ => "200 OK",
        };
        let mut length = 0;
        loop {
            line.clear();
            reader.read_line(&mut line).ok()?;
            if line.len() <= 2 {
                break;
            }
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok()?;
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body).ok()?;
        n_here += 1;
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        if status == "200 OK" {
            n_arrived.fetch_add(1, Ordering::Relaxed);
        }
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback address can be listened on");
    listener.local_addr().unwrap()
}
