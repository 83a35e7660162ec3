//! A connection as ureq sees it for one request, and how far the request came.
//!
//! It promises that a connection goes back to the pool only if ureq has finished with it cleanly, so that
//! nothing of an answer is left in its buffers; that the end of a connection which closed for having been
//! idle is told from every other, as far as that can be; and that a status which came whole is known
//! whatever followed it. It leaves to the wire how bytes come and go, and HTTP to ureq.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::{Buffers, NextTimeout, Transport};

use super::exchange::status_of;
use super::pool::{Key, Pool};
use super::trouble::{Trouble, is_break};
use super::wire::Wire;

/// How soon after a request's end a connection that had been idle must have closed
/// for both to have crossed on the way. Longer than the way to nearly all there is.
const RACE: Duration = Duration::from_millis(100);

/// A connection as ureq sees it for one request. It is dropped when ureq is done
/// with it, and only then goes back to the pool, if it may.
pub(super) struct Pooled {
    wire: Option<Wire>,
    home: Option<(Arc<Pool<Wire>>, Key)>,
    /// What comes before the path, for a proxy that is to read the whole URL.
    absolute: Option<Box<str>>,
    reused: bool,
    /// When the request was written whole; noted on reused connections alone.
    sent: Option<Instant>,
    answered: bool,
    finished: bool,
    /// What came of the request here, for who only learns ureq's error.
    stage: Stage,
}

/// How far a request came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// There was no connection to its recipient.
    Unconnected,
    /// Nothing of it was written.
    Unsent,
    /// Some of it, or all. The status is known if its line came whole and what
    /// followed could not be read.
    Sent(Option<u16>),
}

thread_local! {
    /// Of the last request of this thread. ureq drops a connection before it
    /// returns an error, and errors of its own can carry nothing of ours.
    static STAGE: Cell<Stage> = const { Cell::new(Stage::Unconnected) };
}

impl Stage {
    /// Of the request that this thread has just seen fail.
    pub(super) fn reached() -> Stage {
        STAGE.get()
    }

    /// To be called before each request.
    pub(super) fn forget() {
        STAGE.set(Stage::Unconnected);
    }
}

impl Pooled {
    pub(super) fn new(wire: Wire, home: (Arc<Pool<Wire>>, Key), reused: bool, absolute: Option<Box<str>>) -> Pooled {
        Pooled {
            wire: Some(wire),
            home: Some(home),
            absolute,
            reused,
            sent: None,
            answered: false,
            finished: false,
            stage: Stage::Unsent,
        }
    }

    fn wire(&mut self) -> &mut Wire {
        self.wire.as_mut().expect("taken only when dropped")
    }

    /// Whether this is the end of a connection that was closed for having been idle,
    /// as far as that can be told: see the head of `http`.
    fn is_stale(&mut self, result: &Result<bool, Error>) -> bool {
        let is_end = match result {
            Ok(progress) => !progress,
            Err(error) => is_break(error),
        };
        is_end
            && self.reused
            && !self.answered
            && self.wire().exchange().input().is_empty()
            && (self.wire().is_cut() || self.sent.is_none_or(|sent| sent.elapsed() <= RACE))
    }
}

impl Transport for Pooled {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.wire().exchange()
    }

    fn transmit_output(&mut self, mut amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stage = Stage::Sent(None);
        if let Some(absolute) = self.absolute.take() {
            amount = self.wire().exchange().make_absolute(amount, absolute.as_bytes());
        }
        let result = self.wire().transmit_output(amount, timeout).map(|()| true);
        if self.is_stale(&result) {
            return Err(Trouble::Stale.into());
        }
        result.map(|_| ())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let mut result = Ok(true);
        if self.reused && self.sent.is_none() {
            result = self.wire().flush(timeout).map(|()| true);
            if result.is_ok() {
                self.sent = Some(Instant::now());
            }
        }
        let result = result.and_then(|_| self.wire().await_input(timeout));
        if self.is_stale(&result) {
            return Err(Trouble::Stale.into());
        }
        self.answered |= matches!(result, Ok(true));
        result
    }

    /// ureq asks this when it has read an answer to its end and means to keep
    /// the connection. Answering no makes it drop the connection at once,
    /// without the lock of its own pool, and into ours.
    fn is_open(&mut self) -> bool {
        self.finished = true;
        false
    }

    fn is_tls(&self) -> bool {
        matches!(self.wire, Some(Wire::Tls(_)))
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let (Some(mut wire), Some((pool, key))) = (self.wire.take(), self.home.take()) {
            if self.finished {
                wire.rest();
                pool.put(key, wire, Instant::now());
                return;
            }
            if self.stage != Stage::Unsent {
                self.stage = Stage::Sent(status_of(wire.exchange().input()));
            }
            // Not there any more while a thread ends.
            let _ = STAGE.try_with(|stage| stage.set(self.stage));
            wire.rest();
        }
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("reused", &self.reused).finish_non_exhaustive()
    }
}
