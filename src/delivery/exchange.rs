//! The buffers of one request and its answer, and what can be told of an answer
//! without reading it as HTTP.
//!
//! It promises that all that is received for one request is bounded, that interim
//! answers are passed over, and that a status is known as soon as its line is
//! whole. It leaves sockets to the wire and the rest of HTTP to ureq.

use std::cell::RefCell;
use std::mem;
use std::ops::Range;

use ureq::Error;
use ureq::unversioned::transport::Buffers;

use super::trouble::Trouble;
use crate::policy::Failure;

/// The most that the status line and headers of an answer may take.
pub(super) const MAX_HEADERS: usize = 64 * 1024;

/// The input buffer's first size, enough for nearly every answer, and its last:
/// a little over what headers may take, so that ureq sees them exceed it.
const INPUT: usize = 8 * 1024;
const MAX_INPUT: usize = MAX_HEADERS + 8 * 1024;

/// All that may be received for one request: headers, body (of which 64 kB are
/// read) and what chunks and interim answers add. A flood ends here.
pub(super) const MAX_RECEIVED: usize = 512 * 1024;

/// How much output is held back for what follows it: headers wait for the body,
/// so that both leave in one write and one packet.
pub(super) const HOLD: usize = 8 * 1024;

/// What ureq is offered to write into; also the longest header line that can be sent.
pub(super) const OUTPUT_WINDOW: usize = 32 * 1024;

/// The buffers of one exchange. They are made when first needed and handed on
/// from one connection to the next of the same worker: an idle connection has none.
#[derive(Default)]
pub(super) struct Exchange {
    input: Vec<u8>,
    consumed: usize,
    filled: usize,
    output: Vec<u8>,
    /// Output not yet sent, from the front of `output`.
    pending: usize,
    progress: bool,
    received: usize,
    /// Whether what comes next is the head of an answer, interim ones included.
    in_head: bool,
}

thread_local! {
    static SPARE: RefCell<Option<(Vec<u8>, Vec<u8>)>> = const { RefCell::new(None) };
}

impl Exchange {
    fn prepare(&mut self) {
        if self.output.is_empty() {
            (self.input, self.output) = SPARE.take().unwrap_or_else(|| (vec![0; INPUT], vec![0; HOLD + OUTPUT_WINDOW]));
        }
    }

    /// Output that was held back, to be sent now.
    pub(super) fn take_pending(&mut self) -> usize {
        mem::take(&mut self.pending)
    }

    pub(super) fn held(&self, range: Range<usize>) -> &[u8] {
        &self.output[range]
    }

    /// Puts what comes before the path into the request line that was just written, and so makes it one
    /// for a proxy. There is room: less than what is held back, and nothing has been yet. How much
    /// was written then.
    pub(super) fn make_absolute(&mut self, amount: usize, before_path: &[u8]) -> usize {
        let at = self.output[..amount].iter().position(|byte| *byte == b' ').map_or(amount, |at| at + 1);
        self.output.copy_within(at..amount, at + before_path.len());
        self.output[at..at + before_path.len()].copy_from_slice(before_path);
        amount + before_path.len()
    }

    pub(super) fn rest(&mut self) {
        let exchange = mem::take(self);
        if exchange.input.len() == INPUT {
            // Not there any more while a thread ends.
            let _ = SPARE.try_with(|spare| {
                spare.replace(Some((exchange.input, exchange.output)));
            });
        }
    }

    /// Takes note of output that was written; whether it is now too much to hold back.
    pub(super) fn hold(&mut self, amount: usize) -> bool {
        self.pending += amount;
        // What is received from here on answers this. A tunnel is never given
        // back to the pool between requests, so it is here that they begin.
        self.received = 0;
        self.in_head = true;
        self.pending > HOLD
    }

    /// Where to receive to; an error if the recipient has sent too much already.
    pub(super) fn room(&mut self) -> Result<&mut [u8], Error> {
        if self.received >= MAX_RECEIVED {
            let words = format!("answer has no end within {} kB", MAX_RECEIVED / 1024);
            return Err(Trouble::failed(Failure::Broken, words).into());
        }
        let room = self.input_append_buf();
        if room.is_empty() {
            let words = format!("a line of the answer is over {} kB", MAX_HEADERS / 1024);
            return Err(Trouble::failed(Failure::Broken, words).into());
        }
        Ok(room)
    }

    /// Takes note of what came before it was waited for: it is to be read at once.
    pub(super) fn came_early(&mut self, amount: usize) {
        self.input_appended(amount);
        self.progress = true;
    }

    /// Whether the unread input begins with an answer for which the rest of the
    /// request has no use. Who has said 2xx may still want it.
    pub(super) fn is_refusal(&self) -> bool {
        status_of(self.input()).is_some_and(|status| status >= 300)
    }

    /// Passes over interim answers, which may have headers of any kind and mean
    /// nothing to us. A `100 Continue` with headers is an error to ureq; and a refusal
    /// behind one is to be heard while the request is still being written.
    fn skip_interim(&mut self, new_from: usize) {
        let mut from = new_from.saturating_sub(3).max(self.consumed);
        while self.in_head && is_interim(self.input()) {
            let Some(end) = end_of_head(&self.input[from..self.filled]) else { return };
            self.consumed = from + end;
            from = self.consumed;
        }
    }
}

/// Whether this begins an answer that another follows.
pub(super) fn is_interim(input: &[u8]) -> bool {
    matches!(input, [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'1', tens, ones, ..] if [*tens, *ones] != *b"01")
}

/// Where an empty line ends, if there is one.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let line_ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    line_ends.into_iter().find_map(|at| match &bytes[at..] {
        [b'\n', ..] => Some(at + 1),
        [b'\r', b'\n', ..] => Some(at + 2),
        _ => None,
    })
}

/// The status of a final answer, once its status line is whole, whatever follows it.
pub(super) fn status_of(input: &[u8]) -> Option<u16> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    let mut answer = httparse::Response::new(&mut []);
    answer.parse(&input[..=end]).ok()?;
    answer.code.filter(|code| answer.version.is_some() && (200..1000).contains(code))
}

impl Buffers for Exchange {
    fn output(&mut self) -> &mut [u8] {
        self.prepare();
        &mut self.output[self.pending..][..OUTPUT_WINDOW]
    }

    fn input(&self) -> &[u8] {
        &self.input[self.consumed..self.filled]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.prepare();
        if self.consumed > 0 {
            self.input.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
        }
        if self.filled == self.input.len() {
            self.input.resize((2 * self.filled).min(MAX_INPUT), 0);
        }
        &mut self.input[self.filled..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.filled += amount;
        self.received += amount;
        if self.in_head {
            self.skip_interim(self.filled - amount);
        }
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        self.consumed += amount;
        // Nothing but a whole head is consumed while one is waited for.
        self.in_head &= amount == 0;
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.prepare();
        (&mut self.input[self.filled..], &mut self.output[self.pending..][..OUTPUT_WINDOW])
    }

    fn can_use_input(&self) -> bool {
        self.filled > self.consumed && self.progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_told_by_their_line_alone() {
        for (input, expected) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 410 Gone\n", Some(410)),
            ("HTTP/1.1 599 \r\nbad header line\r\n\r\n", Some(599)),
            ("HTTP/1.1 204\r\n", Some(204)),
            ("HTTP/1.1 200 OK", None),
            ("HTTP/1.1 20", None),
            ("HTTP/1.1 101 Switching Protocols\r\n", None),
            ("HTTP/1.1 000 Zero\r\n", None),
            ("HTTP/1.1 2000 OK\r\n", None),
            ("HTTP/3.7 200 OK\r\n", None),
            ("\r\nHTTP/1.1 200 OK\r\n", None),
            ("200 OK\r\n", None),
            ("", None),
        ] {
            assert_eq!(status_of(input.as_bytes()), expected, "{input:?}");
        }
    }

    #[test]
    fn interim_answers_are_passed_over_however_they_come() {
        let answer = b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 103 Hints\n\nHTTP/1.1 200 OK\r\n\r\n";
        for step in [1, 2, 3, 7, 1000] {
            let mut exchange = Exchange::default();
            exchange.hold(0);
            for part in answer.chunks(step) {
                exchange.room().unwrap()[..part.len()].copy_from_slice(part);
                exchange.input_appended(part.len());
            }
            assert_eq!(exchange.input(), b"HTTP/1.1 200 OK\r\n\r\n", "in steps of {step}");
            assert_eq!(status_of(exchange.input()), Some(200));
        }
        // In a body they are the body's.
        let mut exchange = Exchange::default();
        exchange.hold(0);
        for part in [&b"HTTP/1.1 200 OK\r\n\r\n"[..], b"HTTP/1.1 100 Continue\r\n\r\n"] {
            exchange.room().unwrap()[..part.len()].copy_from_slice(part);
            exchange.input_appended(part.len());
            if exchange.in_head {
                exchange.input_consume(part.len());
            }
        }
        assert_eq!(exchange.input(), b"HTTP/1.1 100 Continue\r\n\r\n");
    }

    #[test]
    fn buffers_keep_what_is_not_consumed_and_stop_growing() {
        let mut exchange = Exchange::default();
        let mut written = 0_usize;
        loop {
            let Ok(room) = exchange.room() else { break };
            let amount = room.len();
            for (n, byte) in room.iter_mut().enumerate() {
                *byte = ((written + n) % 251) as u8;
            }
            exchange.input_appended(amount);
            written += amount;
        }
        assert_eq!(written, MAX_INPUT);
        exchange.input_consume(1000);
        assert!(exchange.can_use_input());
        let room = exchange.room().unwrap().len();
        assert_eq!(room, 1000);
        let expected = (1000..written).map(|n| (n % 251) as u8);
        assert!(exchange.input().iter().copied().eq(expected));
        exchange.input_consume(0);
        assert!(!exchange.can_use_input());
    }

    #[test]
    fn all_that_is_received_for_one_request_is_bounded() {
        let mut exchange = Exchange::default();
        let mut received = 0;
        while let Ok(room) = exchange.room() {
            let amount = room.len();
            exchange.input_appended(amount);
            exchange.input_consume(amount);
            received += amount;
            assert!(received < MAX_RECEIVED + MAX_INPUT);
        }
        assert!(received >= MAX_RECEIVED);
    }

    #[test]
    fn the_window_offered_for_output_is_the_same_with_and_without_output_held_back() {
        let mut exchange = Exchange::default();
        for pending in [0, 1, HOLD] {
            exchange.pending = pending;
            assert_eq!(exchange.output().len(), OUTPUT_WINDOW);
            assert_eq!(exchange.tmp_and_output().1.len(), OUTPUT_WINDOW);
        }
    }
}
