//! Turns SIGTERM, SIGINT and SIGHUP into values on channels; the only file that knows signals.
//!
//! The first of the first two asks for a clean stop, a second one for a stop at once: the receiver
//! counts them, for only it knows what it has begun. SIGHUP asks for what was read at the start to
//! be read again. Further ones say nothing new and are dropped. SIGPIPE stays ignored, as Rust starts every program with it: a reader of our
//! output that went away becomes an error of the write (see `commands::Error`), and never
//! the end of an agent whose log pipe broke.

use std::fmt;
use std::io;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

/// A request to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// From a supervisor or `kill`.
    Terminate,
    /// From Ctrl-C.
    Interrupt,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Signal::Terminate => "SIGTERM",
            Signal::Interrupt => "SIGINT",
        })
    }
}

/// The thread `signals`. While it lives these signals end nothing by themselves; it ends
/// when this is closed or dropped, and the channels with it. From then on they are ignored.
#[derive(Debug)]
pub struct Watch {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// Starts to watch; call it before anything that must not be cut off. Requests to stop come on the first channel,
/// to read again on the second.
///
/// # Errors
///
/// If the system refuses a handler or a thread.
pub fn watch() -> io::Result<(Watch, Receiver<Signal>, Receiver<()>)> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let handle = signals.handle();
    // Two: the request and the urgent one.
    let (stop, stops) = bounded(2);
    // One: what is read after the last request is what all of them meant.
    let (hang_up, hang_ups) = bounded(1);
    let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for number in signals.forever() {
            let _ = match number {
                SIGHUP => hang_up.try_send(()).is_ok(),
                SIGINT => stop.try_send(Signal::Interrupt).is_ok(),
                _ => stop.try_send(Signal::Terminate).is_ok(),
            };
        }
    })?;
    Ok((Watch { handle, thread: Some(thread) }, stops, hang_ups))
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It cannot panic; if it did, there is nothing left to do about it.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::low_level::raise;
    use std::time::Duration;

    // One test, for signals reach every watch of a process.
    #[test]
    fn signals_arrive_as_values_a_third_is_dropped_and_closing_ends_the_channels() {
        let (watch, receiver, hang_ups) = watch().unwrap();
        let patience = Duration::from_secs(10);
        raise(SIGTERM).unwrap();
        assert_eq!(receiver.recv_timeout(patience), Ok(Signal::Terminate));
        raise(SIGINT).unwrap();
        assert_eq!(receiver.recv_timeout(patience), Ok(Signal::Interrupt));

        assert!(hang_ups.is_empty());
        raise(SIGHUP).unwrap();
        assert_eq!(hang_ups.recv_timeout(patience), Ok(()));
        assert!(receiver.is_empty());

        for _ in 0..10 {
            raise(SIGTERM).unwrap();
        }
        assert_eq!(receiver.recv_timeout(patience), Ok(Signal::Terminate));
        drop(watch);
        // Whatever was still in the channel is at most its capacity; then it ends.
        assert!(receiver.try_iter().count() <= 2);
        assert_eq!(receiver.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected));
    }
}
