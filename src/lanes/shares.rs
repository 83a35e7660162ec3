//! Who may be out: how the workers are shared among the lanes (bulkheads). A number of
//! workers, and sums over all lanes; it knows no lane.
//!
//! * Lanes that have not delivered (since they last failed) have at most half of the workers
//!   together, those that failed at most a quarter. A sixteenth is kept for those that failed,
//!   however many black holes nobody has tried yet arrive, and a sixteenth for those that
//!   fail fast, however many fail slowly: a probe of those takes milliseconds.
//! * Lanes that deliver are *exposed* as far as they have not lately shown to be fast: slow is
//!   not down, and still must not take every worker. Exposed attempts have at most half of the
//!   workers, and three quarters together with the lanes above.

use std::ops::{AddAssign, SubAssign};

/// What one lane has out and holds, and the sum of all lanes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Shares {
    /// Claims out.
    pub(super) out: usize,
    /// Of these: of lanes that have neither delivered nor failed.
    pub(super) new: usize,
    /// Of lanes that failed since their last delivery.
    pub(super) failed: usize,
    /// Of these: whose last failure was slow.
    pub(super) failed_slowly: usize,
    /// Of lanes that deliver: as far as not known to be fast.
    pub(super) exposed: usize,
    /// Claims held by lanes that do not deliver.
    pub(super) held_unproven: usize,
}

/// What kind of claim is to go out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Of a lane never tried.
    New,
    /// The probe of a lane that failed fast.
    Failed,
    /// The probe of a lane that failed slowly.
    FailedSlowly,
    /// Of a lane that delivers and is not known to be fast.
    Exposed,
    /// Of a lane that delivers fast.
    Trusted,
}

/// The most of each kind, of this many workers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    half: usize,
    quarter: usize,
    kept: usize,
    unsure: usize,
}

impl Most {
    pub(super) fn of(workers: usize) -> Most {
        let half = (workers / 2).max(1);
        Most {
            half,
            quarter: (workers / 4).max(1),
            kept: workers / 16,
            unsure: (workers * 3 / 4).max(half + 1).min(workers),
        }
    }

    /// Lanes never tried.
    pub(super) fn new_lanes(&self) -> usize {
        self.half - 2 * self.kept
    }

    /// Lanes that failed.
    pub(super) fn failed(&self) -> usize {
        self.quarter
    }

    /// Lanes that failed slowly.
    pub(super) fn failed_slowly(&self) -> usize {
        self.quarter - self.kept
    }

    /// Whether one more of this kind may go out beside these.
    pub(super) fn allows(&self, kind: Kind, now: &Shares) -> bool {
        let unproven = now.new + now.failed;
        let has_room = unproven < self.half && unproven + now.exposed < self.unsure;
        match kind {
            Kind::New => has_room && now.new < self.new_lanes() && now.new + now.failed_slowly < self.half - self.kept,
            Kind::Failed => has_room && now.failed < self.quarter,
            Kind::FailedSlowly => {
                has_room
                    && now.failed < self.quarter
                    && now.failed_slowly < self.failed_slowly()
                    && now.new + now.failed_slowly < self.half - self.kept
            }
            Kind::Exposed => now.exposed < self.half && unproven + now.exposed < self.unsure,
            Kind::Trusted => true,
        }
    }
}

impl AddAssign for Shares {
    fn add_assign(&mut self, other: Shares) {
        self.out += other.out;
        self.new += other.new;
        self.failed += other.failed;
        self.failed_slowly += other.failed_slowly;
        self.exposed += other.exposed;
        self.held_unproven += other.held_unproven;
    }
}

impl SubAssign for Shares {
    fn sub_assign(&mut self, other: Shares) {
        self.out -= other.out;
        self.new -= other.new;
        self.failed -= other.failed;
        self.failed_slowly -= other.failed_slowly;
        self.exposed -= other.exposed;
        self.held_unproven -= other.held_unproven;
    }
}
