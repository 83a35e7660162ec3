//! The arguments of a move, gathered in one buffer.

use std::fmt::Display;
use std::time::Duration;

/// The arguments of a move, in the order in which it reads them; one buffer for all.
#[derive(Default)]
pub struct Arguments {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
    /// Which one is the highest number seen, and that number.
    seen: Option<(usize, u64)>,
}

impl Arguments {
    /// Whether the highest number seen is among them.
    pub(super) fn has_seen(&self) -> bool {
        self.seen.is_some()
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Arguments {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self
    }

    /// Appends anything that can be written as text.
    pub fn text(&mut self, text: impl Display) -> &mut Arguments {
        use std::io::Write;
        write!(self.bytes, "{text}").expect("a vector takes all");
        self.ends.push(self.bytes.len());
        self
    }

    /// Appends a number as 16 digits: an id or an agent's number, of which there are many.
    pub fn sixteen(&mut self, number: u64) -> &mut Arguments {
        let mut digits = [b'0'; 16];
        let mut left = number;
        for digit in digits.iter_mut().rev() {
            *digit += (left % 10) as u8;
            left /= 10;
        }
        self.bytes(&digits)
    }

    /// Appends the highest number that the agent has seen. On a connection that is new, more is said: so many as
    /// others may have been given since.
    pub fn seen(&mut self, number: u64) -> &mut Arguments {
        self.seen = Some((self.ends.len(), number)).filter(|_| number > 0);
        self.text(number)
    }

    /// Appends a flag as `1` or `0`.
    pub fn flag(&mut self, flag: bool) -> &mut Arguments {
        self.text(u8::from(flag))
    }

    /// Appends a duration in whole milliseconds.
    pub fn millis(&mut self, duration: Duration) -> &mut Arguments {
        self.text(duration.as_millis().min(u128::from(u32::MAX) * 1000))
    }

    /// Each of them, with the number seen raised by so much.
    pub(super) fn each(&self, raise: u64, mut take: impl FnMut(&[u8])) {
        let mut begin = 0;
        for (n, end) in self.ends.iter().enumerate() {
            match self.seen {
                Some((at, number)) if at == n && raise > 0 => take((number + raise).to_string().as_bytes()),
                _ => take(&self.bytes[begin..*end]),
            }
            begin = *end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_seen_is_raised_and_nothing_else() {
        let mut arguments = Arguments::default();
        arguments.sixteen(7).seen(100).text(100);
        let all = |raise| {
            let mut all = Vec::new();
            arguments.each(raise, |argument| all.push(String::from_utf8(argument.to_vec()).unwrap()));
            all
        };
        assert_eq!(all(0), ["0000000000000007", "100", "100"]);
        assert_eq!(all(5), ["0000000000000007", "105", "100"]);
        // Who has seen nothing has nothing to say.
        let mut arguments = Arguments::default();
        arguments.seen(0).flag(true);
        let mut all = Vec::new();
        arguments.each(5, |argument| all.push(argument.to_vec()));
        assert_eq!(all, [b"0", b"1"]);
    }
}
