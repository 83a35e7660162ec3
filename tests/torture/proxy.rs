//! The network between two parties, as a TCP proxy that can fail in ways a socket's owner cannot
//! see: bytes held back without a word and delivered late, or never; answers alone lost; delays;
//! resets, also in the middle of an answer. What it holds back it keeps in order, as TCP does.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    Pass,
    /// Each piece so much later.
    Delay(Duration),
    /// Nothing passes, nothing closes.
    Hold,
}

pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    gate: Mutex<Gate>,
    changed: Condvar,
    connections: Mutex<HashMap<usize, Arc<Pair>>>,
}

struct Gate {
    /// Towards the target, and back.
    flows: [Flow; 2],
    /// So many bytes of answers pass, then the connection that carries the next is reset.
    budget: Option<usize>,
    closed: bool,
}

/// Both ends of one connection.
struct Pair {
    ends: [TcpStream; 2],
    /// Held back for ever: nothing on it arrives any more, and nobody is told.
    forgotten: AtomicBool,
}

impl Proxy {
    pub fn to(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback address can be listened on");
        let address = listener.local_addr().unwrap();
        let gate = Gate { flows: [Flow::Pass; 2], budget: None, closed: false };
        let target = Mutex::new(target);
        let shared = Shared { target, gate: Mutex::new(gate), changed: Condvar::new(), connections: Mutex::default() };
        let shared = Arc::new(shared);
        let acceptor = {
            let shared = shared.clone();
            spawn(move || accept(&listener, &shared))
        };
        Proxy { shared, address, acceptor: Some(acceptor) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, towards: Flow, back: Flow) {
        self.shared.gate().flows = [towards, back];
        self.shared.changed.notify_all();
    }

    /// All flows again. Connections that were held deliver late what they hold, or, when
    /// forgotten, stay silent for ever: a path that came back under another state.
    pub fn mend(&self, forget: bool) {
        if forget {
            for pair in self.shared.connections().values() {
                pair.forgotten.store(true, Ordering::SeqCst);
            }
        }
        let mut gate = self.shared.gate();
        gate.flows = [Flow::Pass; 2];
        gate.budget = None;
        drop(gate);
        self.shared.changed.notify_all();
    }

    /// New connections lead there: a name that now stands for another server.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
    }

    /// Resets every connection.
    pub fn reset_all(&self) {
        for pair in self.shared.connections().values() {
            pair.reset();
        }
    }

    /// Lets so many more bytes of answers pass, then resets the connection that carries the next.
    pub fn reset_after(&self, bytes: usize) {
        self.shared.gate().budget = Some(bytes);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.gate().closed = true;
        self.shared.changed.notify_all();
        self.reset_all();
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.reset_all();
    }
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap()
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<usize, Arc<Pair>>> {
        self.connections.lock().unwrap()
    }
}

impl Pair {
    fn reset(&self) {
        for end in &self.ends {
            // No lingering: the peer sees a reset, not an end.
            let _ = socket2::SockRef::from(end).set_linger(Some(Duration::ZERO));
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (n, near) in listener.incoming().enumerate() {
        if shared.gate().closed {
            return;
        }
        let Ok(near) = near else { continue };
        // A target that is down refuses: so does the proxy, a moment later.
        let Ok(far) = TcpStream::connect(*shared.target.lock().unwrap()) else { continue };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let pair = Arc::new(Pair { ends: [near, far], forgotten: AtomicBool::new(false) });
        shared.connections().insert(n, pair.clone());
        let back = {
            let (shared, pair) = (shared.clone(), pair.clone());
            spawn(move || pump(&shared, &pair, 1))
        };
        let shared = shared.clone();
        spawn(move || {
            pump(&shared, &pair, 0);
            let _ = back.join();
            shared.connections().remove(&n);
        });
    }
}

/// Carries one direction: 0 towards the target, 1 back.
fn pump(shared: &Shared, pair: &Pair, direction: usize) {
    let (mut from, mut to) = (&pair.ends[direction], &pair.ends[1 - direction]);
    let mut bytes = [0; 16 << 10];
    loop {
        let n = from.read(&mut bytes).unwrap_or(0);
        let Some(passes) = admit(shared, pair, direction, n) else { return };
        if pair.forgotten.load(Ordering::SeqCst) {
            if n == 0 {
                return;
            }
            continue;
        }
        if n == 0 {
            // The other direction goes on, as with a half-closed connection; HTTP and Redis end it then.
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        if to.write_all(&bytes[..passes]).is_err() {
            let _ = from.shutdown(Shutdown::Read);
            return;
        }
        if passes < n {
            pair.reset();
            return;
        }
    }
}

/// Waits until a piece of so many bytes may pass; how many of them do. `None` when the proxy closes.
fn admit(shared: &Shared, pair: &Pair, direction: usize, n: usize) -> Option<usize> {
    let mut gate = shared.gate();
    while gate.flows[direction] == Flow::Hold && !gate.closed && !pair.forgotten.load(Ordering::SeqCst) {
        gate = shared.changed.wait(gate).unwrap();
    }
    if gate.closed {
        return None;
    }
    let mut passes = n;
    if direction == 1
        && let Some(budget) = &mut gate.budget
    {
        passes = n.min(*budget);
        *budget -= passes;
        if passes < n {
            gate.budget = None;
        }
    }
    if let Flow::Delay(delay) = gate.flows[direction] {
        drop(gate);
        thread::sleep(delay);
    }
    Some(passes)
}

fn spawn(run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let builder = thread::Builder::new().name("proxy".into()).stack_size(128 << 10);
    builder.spawn(run).expect("a thread can be started")
}
