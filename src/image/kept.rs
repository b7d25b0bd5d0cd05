//! Blocks that were read ahead and that a reader is about to ask for, kept in memory until it has: the
//! reader of a cold stream need not read back from flash what was written there a moment ago, and a
//! stream that goes around the cache finds there what never went to flash.
//!
//! # Invariants
//! - A kept fetch stays in the lanes' sight: a write to its pages poisons it, and poisoned pages are not
//!   served.
//! - All kept bytes together stay below [`KEPT_BYTES_MAX`] (rule 13). What goes around the cache is only
//!   read ahead after its room was promised, and nothing else takes its place: it would be read twice.
//! - A fetch is kept until all its bytes were read, or its stream is over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cache::{PAGE_BYTES, PAGES_PER_BLOCK, Pages};
use crate::io::Buffer;

use super::fetch::Fetch;
use super::handle::Handle;
use super::stream::StreamId;
use super::{Image, ReadDone};

/// Bytes kept at most, over all images.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// Fetches one handle keeps at most of what is on flash as well.
const KEPT_PER_HANDLE: usize = 8;

/// Memory promised to what is kept; given back when dropped.
pub struct Space {
    image: Arc<Image>,
    bytes: usize,
}

impl Space {
    /// A promise of `bytes`, if there is room.
    pub fn take(image: &Arc<Image>, bytes: usize) -> Option<Space> {
        let space = Space {
            image: image.clone(),
            bytes,
        };
        let before = image.kept_bytes().fetch_add(bytes, Ordering::AcqRel);
        (before + bytes <= KEPT_BYTES_MAX).then_some(space)
    }

    /// Takes `bytes` of it away, or what there is.
    pub fn split(&mut self, bytes: usize) -> Space {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Space {
            image: self.image.clone(),
            bytes,
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let total = self.image.kept_bytes();
        total.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// For whom a fetch is kept.
pub struct Keep {
    pub handle: Arc<Handle>,
    pub stream: StreamId,
    /// The room it was promised, where it goes around the cache.
    pub space: Option<Space>,
}

/// A fetch that is kept; forgotten when dropped.
pub struct Kept {
    fetch: Arc<Fetch>,
    stream: StreamId,
    /// It is nowhere else.
    around: bool,
    unread_bytes: usize,
    space: Space,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let image = &self.space.image;
        image.lanes.unkeep(&self.fetch);
        let bytes = self.fetch.take_bytes();
        if let Some(Ok(buffer)) = bytes.map(Arc::try_unwrap) {
            image.buffers().give(buffer);
        }
    }
}

impl Handle {
    /// Keeps what was fetched for a stream, if there is room; the oldest goes when there is more than a
    /// few.
    pub(super) fn keep(&self, fetch: &Arc<Fetch>, keep: Keep) -> bool {
        let around = keep.space.is_some();
        let len = fetch.len_bytes();
        let Some(space) = keep.space.or_else(|| Space::take(&self.image, len)) else {
            return false;
        };
        self.image.lanes.keep(fetch);
        let new = Kept {
            fetch: fetch.clone(),
            stream: keep.stream,
            around,
            unread_bytes: len,
            space,
        };
        let dropped = {
            let mut kept = self.kept.lock();
            kept.push_back(new);
            let on_flash = kept.iter().filter(|kept| !kept.around).count();
            let oldest = kept.iter().position(|kept| !kept.around);
            let oldest = oldest.filter(|_| on_flash > KEPT_PER_HANDLE);
            let dropped = oldest.and_then(|at| kept.remove(at));
            self.kept_count.store(kept.len(), Ordering::Release);
            dropped
        };
        drop(dropped);
        if self.is_released() {
            self.keep_nothing();
        } else if !self.streams.lock().is_alive(keep.stream) {
            self.forget_stream(keep.stream);
        }
        true
    }

    /// The handle is closed.
    pub(super) fn keep_nothing(&self) {
        let dropped = std::mem::take(&mut *self.kept.lock());
        self.kept_count.store(0, Ordering::Release);
        drop(dropped);
    }

    /// True if what is kept for this handle has the bytes of `pages`, or had when last looked at.
    pub(super) fn has_kept(&self, pages: &Pages) -> bool {
        self.kept_count.load(Ordering::Acquire) > 0 && self.kept_bytes(pages).is_some()
    }

    fn kept_bytes(&self, pages: &Pages) -> Option<(Arc<Fetch>, Arc<Buffer>)> {
        let era = self.image.entry().map(|entry| entry.era());
        let fetch = self.image.lanes.kept(pages.start / PAGES_PER_BLOCK)?;
        let bytes = fetch.bytes_of(pages, era)?;
        Some((fetch, bytes))
    }

    /// A stream is over: nobody will ask for what is kept for it.
    pub(super) fn forget_stream(&self, stream: StreamId) {
        self.forget(|kept| kept.stream == stream);
    }

    fn forget(&self, gone: impl Fn(&Kept) -> bool) {
        if self.kept_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let dropped: VecDeque<Kept> = {
            let mut kept = self.kept.lock();
            let (dropped, left) = kept.drain(..).partition(gone);
            *kept = left;
            self.kept_count.store(kept.len(), Ordering::Release);
            dropped
        };
        drop(dropped);
    }

    /// `len_bytes` of a kept fetch have reached their reader.
    pub(super) fn was_read(&self, fetch: &Arc<Fetch>, len_bytes: usize) {
        let used_up = {
            let mut kept = self.kept.lock();
            let at = kept.iter().position(|kept| Arc::ptr_eq(&kept.fetch, fetch));
            at.filter(|at| {
                let unread = &mut kept[*at].unread_bytes;
                *unread = unread.saturating_sub(len_bytes);
                *unread == 0
            })
            .and_then(|at| kept.remove(at))
            .inspect(|_| self.kept_count.store(kept.len(), Ordering::Release))
        };
        drop(used_up);
    }

    /// Answers a read from what is kept; otherwise gives `done` back.
    pub(super) fn read_kept(
        &self,
        offset_bytes: u64,
        len_bytes: usize,
        pages: &Pages,
        done: ReadDone,
    ) -> Option<ReadDone> {
        if self.kept_count.load(Ordering::Acquire) == 0 {
            return Some(done);
        }
        let Some((fetch, bytes)) = self.kept_bytes(pages) else {
            return Some(done);
        };
        let begin = (offset_bytes - fetch.pages.start * PAGE_BYTES) as usize;
        done(Ok(&bytes.bytes()[begin..begin + len_bytes]));
        drop(bytes);
        self.was_read(&fetch, len_bytes);
        None
    }
}
