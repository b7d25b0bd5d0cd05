//! What an executor has to do, for metrics: jobs that wait, calls under way, calls left behind.
//!
//! *Locking*: none; a call may come back before it is counted as left behind, so a count may be below zero
//! for a moment and is shown as zero then.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::Class;
use super::parked::Expired;

/// The jobs of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub class: Class,
    /// Waiting for a thread.
    pub queued: usize,
    /// Calls that somebody waits for.
    pub running: usize,
    /// Calls that have not returned though their deadline has passed: each keeps a thread.
    pub abandoned: usize,
}

/// Counts of deadlines that have passed.
#[derive(Default)]
pub(super) struct Abandoned {
    now: [AtomicI64; 3],
    expired: AtomicU64,
}

impl Abandoned {
    /// A deadline has passed.
    pub fn expired(&self, what: Expired) {
        match what {
            Expired::Nothing => return,
            Expired::Waiting => {}
            Expired::Abandoned(class) => {
                self.now[class as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
        self.expired.fetch_add(1, Ordering::Relaxed);
    }

    /// A call that had been left behind has returned.
    pub fn came_back(&self, class: Class) {
        self.now[class as usize].fetch_sub(1, Ordering::Relaxed);
    }

    /// Calls of a class that are left behind now.
    pub fn now(&self, class: Class) -> usize {
        usize::try_from(self.now[class as usize].load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Deadlines that have passed since the start.
    pub fn count(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }
}
