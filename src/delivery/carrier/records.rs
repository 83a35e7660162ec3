//! Whether a stream of TLS records stands between two of them, told from their headers alone, in whatever
//! pieces its bytes come.

/// Where among the TLS records a stream is: rustls does not tell whether it holds
/// the beginning of one, and such a record was begun before the next request was sent.
#[derive(Default)]
pub(super) struct Records {
    /// Bytes seen of the header that is being read: kind, version (2), length (2).
    n_header: usize,
    length: usize,
    /// Bytes still to come of the record's content.
    left: usize,
}

impl Records {
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while let [first, rest @ ..] = bytes {
            if self.left > 0 {
                let amount = self.left.min(bytes.len());
                self.left -= amount;
                bytes = &bytes[amount..];
                continue;
            }
            self.n_header += 1;
            match self.n_header {
                4 => self.length = usize::from(*first) << 8,
                5 => {
                    self.left = self.length | usize::from(*first);
                    self.n_header = 0;
                }
                _ => {}
            }
            bytes = rest;
        }
    }

    pub(super) fn is_between(&self) -> bool {
        self.n_header == 0 && self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_records_are_found_however_they_come() {
        let stream = [&[23, 3, 3, 0, 3, 1, 2, 3][..], &[22, 3, 3, 0, 0], &[23, 3, 3, 1, 2], &[9; 258]].concat();
        let ends = [0, 8, 13, stream.len()];
        for step in [1, 2, 3, 7, 300] {
            let mut records = Records::default();
            let mut at = 0;
            for part in stream.chunks(step) {
                assert_eq!(records.is_between(), ends.contains(&at), "at {at} in steps of {step}");
                records.pass(part);
                at += part.len();
            }
            assert!(records.is_between());
        }
    }
}
