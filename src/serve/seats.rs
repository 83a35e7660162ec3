//! The seats of a server's connections, so many and no more: whoever comes when all are taken waits, and where
//! it may, one that is idle makes room.
//!
//! It promises that no connection that is being answered has to make room, and none before it has had a moment
//! to ask.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::limits::Limits;

/// A connection has at least so long to ask, however many wait for its seat.
const TO_ASK: Duration = Duration::from_millis(50);
/// Whoever waits for a seat looks again this often, should nobody say that one is free.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What all connections share.
pub(super) struct Room {
    pub(super) name: &'static str,
    pub(super) limits: Limits,
    pub(super) stopping: AtomicBool,
    seats: Mutex<Seats>,
    /// A seat became free, or may be taken.
    freed: Condvar,
}

#[derive(Default)]
struct Seats {
    next: u64,
    /// In the order of arrival.
    taken: VecDeque<Seat>,
}

struct Seat {
    number: u64,
    stream: Arc<TcpStream>,
    taken: Instant,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It has not asked yet.
    Silent,
    /// It is being answered.
    Asked,
    /// It has its answer, and has not closed.
    Answered,
}

impl Room {
    pub(super) fn new(name: &'static str, limits: Limits) -> Room {
        Room { name, limits, stopping: AtomicBool::new(false), seats: Mutex::default(), freed: Condvar::new() }
    }

    /// Waits for a seat; where it may, the oldest connection that can make room does.
    pub(super) fn take_seat(&self, stream: &Arc<TcpStream>) -> u64 {
        let mut seats = self.seats();
        while seats.taken.len() >= self.limits.connections {
            let mut patience = LOOK_AGAIN;
            if self.limits.idle_make_room {
                if let Some(seat) = seats.idle(Instant::now()).and_then(|at| seats.taken.remove(at)) {
                    // Its thread waits for a word of it, and ends with this.
                    let _ = seat.stream.shutdown(Shutdown::Both);
                    continue;
                }
                if seats.first(State::Silent).is_some() {
                    patience = TO_ASK;
                }
            }
            let waited = self.freed.wait_timeout(seats, patience);
            seats = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        seats.next += 1;
        let number = seats.next;
        seats.taken.push_back(Seat { number, stream: stream.clone(), taken: Instant::now(), state: State::Silent });
        number
    }

    /// How far a connection is; whoever waits for a seat may have that of one answered.
    pub(super) fn turn(&self, number: u64, state: State) {
        if let Some(seat) = self.seats().taken.iter_mut().find(|seat| seat.number == number) {
            seat.state = state;
        }
        if state == State::Answered {
            self.freed.notify_all();
        }
    }

    pub(super) fn leave_seat(&self, number: u64) {
        self.seats().taken.retain(|seat| seat.number != number);
        self.freed.notify_all();
    }

    /// Ends all connections.
    pub(super) fn clear(&self) {
        for seat in &self.seats().taken {
            let _ = seat.stream.shutdown(Shutdown::Both);
        }
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Seats {
    fn first(&self, state: State) -> Option<usize> {
        self.taken.iter().position(|seat| seat.state == state)
    }

    /// Who can make room.
    fn idle(&self, now: Instant) -> Option<usize> {
        let has_had_time = |at: &usize| now.saturating_duration_since(self.taken[*at].taken) >= TO_ASK;
        self.first(State::Answered).or(self.first(State::Silent).filter(has_had_time))
    }
}
