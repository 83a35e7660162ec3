//! What became of messages in each minute of the last hour: two arrays, whatever happens. Counters are
//! read often enough by whoever asks, and once a minute if nobody does.

/// Minutes that are remembered, the one that has just begun among them.
pub const REMEMBERED: usize = 60;

/// Counts of one minute: delivered, put off, dead.
pub type Counts = [u64; 3];

/// The last hour.
#[derive(Clone, Debug)]
pub struct Minutes {
    /// By the number of the minute since the start, modulo their number.
    ring: [Counts; REMEMBERED],
    /// The minute that is counted now.
    minute: u64,
    /// The counters when they were last read.
    read: Counts,
}

impl Default for Minutes {
    fn default() -> Minutes {
        Minutes { ring: [[0; 3]; REMEMBERED], minute: 0, read: [0; 3] }
    }
}

impl Minutes {
    /// The counters as they are in this minute since the start. What was counted since they were last read belongs
    /// to the minute in which that was.
    pub fn note(&mut self, minute: u64, counters: Counts) {
        let now = place(self.minute);
        for (n, counter) in counters.into_iter().enumerate() {
            self.ring[now][n] += counter.saturating_sub(self.read[n]);
        }
        self.read = counters;
        // A machine that has slept for longer has nothing to show of that time.
        for skipped in (self.minute + 1..=minute).rev().take(REMEMBERED) {
            self.ring[place(skipped)] = [0; 3];
        }
        self.minute = self.minute.max(minute);
    }

    /// Oldest first; the last is the minute that has begun.
    pub fn all(&self) -> [Counts; REMEMBERED] {
        let mut all = self.ring;
        all.rotate_left((place(self.minute) + 1) % REMEMBERED);
        all
    }
}

fn place(minute: u64) -> usize {
    (minute % REMEMBERED as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_minute_has_what_was_counted_in_it_and_an_hour_later_it_is_forgotten() {
        let mut minutes = Minutes::default();
        let delivered = |minutes: &Minutes| minutes.all().map(|counts| counts[0]);
        minutes.note(0, [5, 0, 0]);
        minutes.note(0, [7, 1, 0]);
        assert_eq!(minutes.all()[59], [7, 1, 0]);
        // Read a moment after the minute has ended: it is of that one.
        minutes.note(1, [10, 1, 2]);
        assert_eq!(minutes.all()[58..], [[10, 1, 2], [0, 0, 0]]);
        minutes.note(1, [11, 1, 2]);
        minutes.note(4, [11, 1, 2]);
        assert_eq!(delivered(&minutes)[54..], [0, 10, 1, 0, 0, 0]);
        for minute in 5..=63 {
            minutes.note(minute, [11 + minute, 1, 2]);
        }
        assert_eq!(delivered(&minutes)[..2], [5, 1]);
        assert_eq!(delivered(&minutes)[57..], [1, 1, 0]);
        minutes.note(1_000_000, [80, 1, 2]);
        assert_eq!(delivered(&minutes), [0; 60]);
        minutes.note(1_000_000, [81, 1, 2]);
        assert_eq!(minutes.all()[59], [1, 0, 0]);
        // A clock does not go back, nor does a counter; if they did, nothing is counted.
        minutes.note(3, [0, 0, 0]);
        assert_eq!(minutes.all()[59], [1, 0, 0]);
    }
}
