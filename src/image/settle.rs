//! Settling: making an image's cache durable and certain in the background, and letting go of images
//! that are closed.
//!
//! One thread looks once a second while there is something to do, and sleeps otherwise. What blocks runs
//! on the store's executor.
//!
//! # Order of steps
//! 1. Take the regions in doubt that are quiet.
//! 2. fsync of the store: their writes are durable there. If it fails their pages are dropped.
//! 3. Commit of the cache ([`crate::cache::commit`]), which clears their marks.
//! 4. With no region in doubt left: read the validator and record it for certain.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::store::executor::Health;
use crate::store::{Error, Result};

use super::{Image, Images};

/// How often images are looked at while there is something to do.
const INTERVAL: Duration = Duration::from_secs(1);
/// Just after a mount orphans are looked at sooner, so many times.
const EARLY_INTERVAL: Duration = Duration::from_millis(20);
const EARLY_LOOKS: usize = 10;
/// A region in doubt of an open image is left alone while it is being written.
const QUIET: Duration = Duration::from_secs(10);
/// Records of an open image wait this long for their commit.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// A clean stop waits no longer for a store that hangs.
const HANGING_DEADLINE: Duration = Duration::from_secs(4);

impl Images {
    /// The thread's loop; ends when the last reference to `self` elsewhere is gone.
    pub(super) fn tend_all(self: Arc<Self>) {
        self.look_for_orphans_soon();
        loop {
            self.wait_for_work();
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(INTERVAL);
            self.awake.store(false, Ordering::Release);
            if self.tend_once(false) {
                self.awake.store(true, Ordering::Release);
            }
        }
    }

    /// What looks like an orphan just after a mount is mostly a file that the daemon before has not closed yet.
    fn look_for_orphans_soon(&self) {
        for _ in 0..EARLY_LOOKS {
            if !self.shared.pool.has_orphans() || self.closing.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(EARLY_INTERVAL);
            let open: Vec<_> = self.open.iter().map(|image| image.clone()).collect();
            for entry in open.iter().filter_map(|image| image.entry()) {
                entry.stays_frozen();
            }
        }
    }

    /// Looks at every image; true if one has something left to do.
    fn tend_once(self: &Arc<Self>, at_once: bool) -> bool {
        let images: Vec<_> = self.open.iter().map(|image| image.clone()).collect();
        let mut busy = false;
        for image in images {
            busy |= image.tend(at_once);
            self.let_go(&image);
        }
        for entry in self.shared.pool.all() {
            if entry.is_pending()
                && !self.open.contains_key(&entry.id)
                && let Err(error) = entry.commit(&[])
            {
                log::debug!("commit of {}: {error}", entry.id);
            }
            busy |= entry.stays_frozen() && !at_once;
        }
        busy
    }

    /// Forgets an image that is closed and settled.
    fn let_go(&self, image: &Arc<Image>) {
        let gone = self.open.remove_if(&image.id, |_, known| {
            known.handles.load(Ordering::Acquire) == 0
                && known.lanes.is_idle()
                && !known.has_work()
                && !known.settling.load(Ordering::Acquire)
        });
        if gone.is_none() {
            return;
        }
        *image.file.lock() = None;
        *image.entry.write() = None;
        if image.removed.load(Ordering::Acquire) {
            self.shared.pool.forget(image.id);
        } else {
            self.shared.pool.forget_if_empty(image.id);
        }
        self.shared.prune_counters(image.id);
    }

    /// Settles everything, for a clean stop; waits at most `deadline`, less while the store hangs, then
    /// the rest is left for the next mount to sort out.
    pub fn shutdown(self: &Arc<Self>, deadline: Duration) -> Result<()> {
        self.shared.ending.store(true, Ordering::Release);
        let begun = Instant::now();
        loop {
            self.tend_once(true);
            if self.open.is_empty() {
                self.shared.pool.close();
                self.stop();
                return Ok(());
            }
            let deadline = match self.shared.store_executor.health() {
                Health::Hanging => deadline.min(HANGING_DEADLINE),
                Health::Responding | Health::Failing => deadline,
            };
            if begun.elapsed() >= deadline {
                self.stop();
                return Err(Error::Deadline(deadline.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Image {
    /// True when something is not durable or not certain.
    fn has_work(&self) -> bool {
        if self.removed.load(Ordering::Acquire) {
            return false;
        }
        self.entry().is_some_and(|entry| {
            entry.is_pending() || entry.is_unsettled() || !self.unsynced.lock().is_empty()
        })
    }

    /// Does what is due, in the background; true if something is left.
    fn tend(self: &Arc<Self>, at_once: bool) -> bool {
        if !self.has_work() {
            return self.handles.load(Ordering::Acquire) == 0;
        }
        let closed = at_once || self.handles.load(Ordering::Acquire) == 0;
        let due = closed || self.settled_at.lock().elapsed() >= COMMIT_INTERVAL;
        if due && !self.settling.swap(true, Ordering::AcqRel) {
            let quiet = if closed { Duration::ZERO } else { QUIET };
            let this = self.clone();
            let ended = self.clone();
            self.store_executor().submit(
                "settle",
                move || this.settle(quiet),
                move |result| {
                    if let Err(error) = result {
                        log::debug!("settling {}: {error}", ended.name());
                    }
                    *ended.settled_at.lock() = Instant::now();
                    ended.settling.store(false, Ordering::Release);
                },
            );
        }
        true
    }

    /// Steps 1 to 4. Blocks.
    fn settle(&self, quiet: Duration) -> Result<()> {
        let Some(entry) = self.entry() else {
            return Ok(());
        };
        let file = self.file.lock().clone();
        let writes = entry.writes_begun();
        let mut regions = std::mem::take(&mut *self.unsynced.lock());
        regions.extend(entry.quiet_regions(quiet));
        let synced = match (&file, regions.is_empty()) {
            (_, true) => Ok(()),
            (Some(file), false) => file.sync(true),
            (None, false) => Err(Error::from_errno(libc::EBADF)),
        };
        if let Err(error) = synced {
            entry.drop_regions(&regions);
            self.unsynced.lock().extend(regions);
            return Err(error);
        }
        if !regions.is_empty() || entry.is_pending() {
            entry.commit(&regions)?;
        }
        if entry.is_unsettled()
            && let Some(file) = file
        {
            entry.settle(&file.attr()?.validator(), writes)?;
        }
        Ok(())
    }
}
