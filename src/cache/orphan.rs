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

/// The files of a daemon that was just killed close one by one: it gets so many looks.
const LOOKS: usize = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Entry {
    /// True while a reader of an earlier mount keeps the cache file from being touched.
    pub fn is_frozen(&self) -> bool {
        self.holds.frozen.load(Ordering::Acquire)
    }

    /// At a mount, before anything touches the file: freezes the entry if somebody has it.
    pub(super) fn freeze_if_shared(&self) {
        for look in 0..LOOKS {
            if !self.is_shared() {
                return;
            }
            if look + 1 < LOOKS {
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        log::info!(
            "image {}: a reader of an earlier mount still has its cache file, which is left alone until that ends",
            self.name()
        );
        self.holds.freeze();
    }

    /// Looks again; true if the entry is still frozen.
    pub fn stays_frozen(&self) -> bool {
        if !self.is_frozen() {
            return false;
        }
        if self.is_shared() {
            return true;
        }
        if self.holds.frozen.swap(false, Ordering::AcqRel) {
            log::info!(
                "image {}: its cache file is in nobody else's use any more",
                self.name()
            );
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
