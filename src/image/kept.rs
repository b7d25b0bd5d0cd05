//! Blocks that were read ahead and that a reader is about to ask for, kept in memory until it has: the
//! reader of a cold stream need not read back from flash what was written there a moment ago.
//!
//! # Invariants
//! - A kept fetch stays in the lanes' sight: a write to its pages poisons it, and poisoned pages are not
//!   served.
//! - All kept bytes together stay below [`KEPT_BYTES_MAX`] (rule 13).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cache::{PAGE_BYTES, PAGES_PER_BLOCK, Pages};

use super::fetch::Fetch;
use super::handle::Handle;
use super::{Image, ReadDone};

/// Bytes kept at most, over all images.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// Fetches one handle keeps at most.
const KEPT_PER_HANDLE: usize = 8;

/// A fetch that is kept; forgotten when dropped.
pub struct Kept {
    image: Arc<Image>,
    fetch: Arc<Fetch>,
}

impl Kept {
    /// Keeps a fetch that has ended well, if there is room.
    pub fn new(image: &Arc<Image>, fetch: &Arc<Fetch>) -> Option<Kept> {
        let total = image.kept_bytes();
        let len = fetch.len_bytes();
        if total.fetch_add(len, Ordering::AcqRel) + len > KEPT_BYTES_MAX {
            total.fetch_sub(len, Ordering::AcqRel);
            return None;
        }
        image.lanes.keep(fetch);
        Some(Kept {
            image: image.clone(),
            fetch: fetch.clone(),
        })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.image.lanes.unkeep(&self.fetch);
        let bytes = self.fetch.take_bytes();
        if let Some(Ok(buffer)) = bytes.map(Arc::try_unwrap) {
            self.image.buffers().give(buffer);
        }
        let total = self.image.kept_bytes();
        total.fetch_sub(self.fetch.len_bytes(), Ordering::AcqRel);
    }
}

impl Handle {
    /// Keeps what was read ahead for this handle, if there is room; the oldest goes when it has more than
    /// a few.
    pub(super) fn keep(&self, fetch: &Arc<Fetch>) -> bool {
        let Some(new) = Kept::new(&self.image, fetch) else {
            return false;
        };
        let dropped = {
            let mut kept = self.kept.lock();
            kept.push_back(new);
            (kept.len() > KEPT_PER_HANDLE).then(|| kept.pop_front())
        };
        drop(dropped);
        if self.is_released() {
            self.keep_nothing();
        }
        true
    }

    /// The stream is over.
    pub(super) fn keep_nothing(&self) {
        let dropped = std::mem::take(&mut *self.kept.lock());
        drop(dropped);
    }

    /// True if what is kept for this handle holds the first of `pages`, or did when last looked at.
    pub(super) fn has_kept(&self, pages: &Pages) -> bool {
        let block = pages.start / PAGES_PER_BLOCK;
        !self.kept.lock().is_empty() && self.image.lanes.kept(block).is_some()
    }

    /// Answers a read from what is kept; otherwise gives `done` back.
    pub(super) fn read_kept(
        &self,
        offset_bytes: u64,
        len_bytes: usize,
        pages: &Pages,
        done: ReadDone,
    ) -> Option<ReadDone> {
        if self.kept.lock().is_empty() {
            return Some(done);
        }
        let block = pages.start / PAGES_PER_BLOCK;
        let era = self.image.entry().map(|entry| entry.era());
        let Some(fetch) = self.image.lanes.kept(block) else {
            return Some(done);
        };
        let Some(bytes) = fetch.bytes_of(pages, era) else {
            return Some(done);
        };
        let begin = (offset_bytes - fetch.pages.start * PAGE_BYTES) as usize;
        done(Ok(&bytes.bytes()[begin..begin + len_bytes]));
        drop(bytes);
        if pages.end >= fetch.pages.end {
            let used: Vec<Kept> = {
                let mut kept = self.kept.lock();
                let at = kept
                    .iter()
                    .position(|kept| Arc::ptr_eq(&kept.fetch, &fetch));
                at.and_then(|at| kept.remove(at)).into_iter().collect()
            };
            drop(used);
        }
        None
    }
}
