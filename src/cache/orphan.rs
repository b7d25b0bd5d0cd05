//! Orphans: readers of an earlier mount that still have a cache file (rule 14).
//!
//! Kernel passthrough goes on when the daemon is gone: a handle that was open then reads the cache file
//! until it is closed. To punch under it would give its guest zeros without an error. Such an entry is
//! *frozen*: served as far as it is valid, and its file left alone, which is what a hold does
//! ([`super::hold`]); it thaws when the file is ours alone.
//!
//! Whether somebody has a file is told by a write lease, which the kernel grants only to the sole
//! opener. The lease is asked for on the entry's own descriptor, so that our own use of the file does
//! not count, and given back at once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::logs;

use super::entry::Entry;

/// What has just been closed, by a reader or by the end of a daemon, is gone a moment later: so many looks
/// before somebody is believed to have a file.
const LOOKS: usize = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// An orphan is worth a line when it stays this long: readers that a server leaves to its successor are
/// none, and what it had under way ends at once.
const NEWS_AFTER: Duration = Duration::from_millis(500);

impl Entry {
    /// True while a reader of an earlier mount keeps the cache file from being touched.
    pub fn is_frozen(&self) -> bool {
        self.holds.frozen.load(Ordering::Acquire)
    }

    /// At a mount, before anything touches the file: freezes the entry if somebody has it, be it only
    /// the daemon before, whose files close one by one. Waits for nothing: guests may wait for this.
    pub(super) fn freeze_if_shared(&self) {
        if self.is_shared() {
            self.holds.freeze();
        }
    }

    /// When the last direct reader has let go: true if somebody still has the file, because a mapping outlives
    /// its handle. Then the hold lingers, as that of an orphan; others may join it, as the file is as
    /// it was.
    pub(super) fn lingers_if_shared(&self) -> bool {
        let shared = self.is_shared_for_long();
        if shared {
            log::debug!("image {}: its cache file is mapped", self.name());
            self.holds.linger();
        }
        shared
    }

    /// As [`Entry::stays_frozen`], with the patience for what is just being closed.
    pub fn stays_frozen_for_long(&self) -> bool {
        self.is_frozen() && self.is_shared_for_long() && self.stays_frozen()
    }

    fn is_shared_for_long(&self) -> bool {
        (0..LOOKS).all(|look| {
            if look > 0 {
                std::thread::sleep(LOOK_AGAIN);
            }
            self.is_shared()
        })
    }

    /// Looks again; true if the entry is still frozen.
    pub fn stays_frozen(&self) -> bool {
        if !self.is_frozen() {
            return false;
        }
        if self.is_shared() {
            if self.holds.is_frozen_news(NEWS_AFTER) {
                log::info!(
                    "image {}: a reader of an earlier mount still has its cache file, which is left alone until that ends",
                    self.name()
                );
            }
            return true;
        }
        if self.holds.frozen.swap(false, Ordering::AcqRel) {
            if self.holds.thaw() {
                log::info!(
                    "image {}: its cache file is in nobody else's use any more",
                    self.name()
                );
            }
            self.end_hold();
        }
        false
    }

    /// Whether somebody else has the cache file open; where the system does not tell, somebody may.
    fn is_shared(&self) -> bool {
        let Some(files) = self.files() else {
            return false;
        };
        files.data.is_shared().unwrap_or_else(|error| {
            let name = self.name();
            logs::say(log::Level::Warn, "orphan", &name, || {
                format!(
                    "image {name}: whether somebody reads its cache file cannot be told ({error}); look at sysctl \
                     fs.leases-enable"
                )
            });
            true
        })
    }
}
