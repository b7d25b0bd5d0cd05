//! One open of an image: the door for reads, writes and everything else a guest asks for.
//!
//! Every operation takes a `done` that is called exactly once, from any thread; nothing here blocks the
//! caller on the store.
//!
//! # Order of steps of a write (write-through)
//! 1. The write gets its lane; fetches under way forget its pages.
//! 2. In-doubt mark and horizon are durable, and the witness knows the write ([`Entry::begin_write`]).
//! 3. The store takes it. On an error the store may hold old or new bytes: the cache drops the pages.
//! 4. The cache follows; where flash fails it drops the pages.
//! 5. The witness sees it done; the lane ends; the guest is answered.
//!
//! Were 4 before 3, a crash in between would show the guest bytes that no other host will ever see;
//! were 2 after 3, a power cut could bring the old bytes back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::cache::{Entry, Pages, Written, pages_touched};
use crate::io::Buffer;
use crate::store::{Error, ImageId, Result, StoreFile, Validator};

use super::budget::Permit;
use super::counters::add;
use super::kept::Kept;
use super::lanes::Lane;
use super::latencies::Timed;
use super::stream::Streams;
use super::{Done, Image};

/// One open of an image.
pub struct Handle {
    pub(super) image: Arc<Image>,
    pub(super) file: Arc<dyn StoreFile>,
    /// The version that was found when it was opened.
    pub(super) opened_as: Validator,
    /// What it reads one after the other.
    pub(super) streams: Mutex<Streams>,
    /// What it writes one after the other.
    write_streams: Mutex<Streams>,
    /// What was read ahead for it, and how many.
    pub(super) kept: Mutex<VecDeque<Kept>>,
    pub(super) kept_count: AtomicUsize,
    /// Written since the last flush through this handle.
    wrote: AtomicBool,
    released: AtomicBool,
}

/// A write on its way.
struct Write {
    offset_bytes: u64,
    len_bytes: u64,
    /// It belongs to a long stream: pages that are not on flash are not put there.
    around: bool,
    buffer: Buffer,
    permit: Permit,
}

impl Handle {
    pub(super) fn new(image: Arc<Image>, file: Arc<dyn StoreFile>, opened_as: Validator) -> Handle {
        Handle {
            image,
            file,
            opened_as,
            streams: Mutex::default(),
            write_streams: Mutex::default(),
            kept: Mutex::default(),
            kept_count: AtomicUsize::new(0),
            wrote: AtomicBool::new(false),
            released: AtomicBool::new(false),
        }
    }

    /// The image it opens.
    pub fn id(&self) -> ImageId {
        self.image.id
    }

    /// The store's file behind it.
    pub fn store_file(&self) -> &Arc<dyn StoreFile> {
        &self.file
    }

    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// Memory for a write of `len_bytes`, if there is some without waiting.
    pub fn try_permit(&self, len_bytes: usize) -> Option<Permit> {
        self.image.budget().try_take(len_bytes)
    }

    /// Memory for a write of `len_bytes`; waits for it. `None` past the deadline.
    pub fn permit(&self, len_bytes: usize) -> Option<Permit> {
        self.image.budget().take(len_bytes)
    }

    /// Writes `data` at `offset_bytes`, on memory taken before; acknowledged when the store has taken it.
    pub fn write(self: &Arc<Self>, offset_bytes: u64, data: &[u8], permit: Permit, done: Done<()>) {
        let len_bytes = data.len() as u64;
        let end = offset_bytes.checked_add(len_bytes);
        if end.is_none_or(|end| end > i64::MAX as u64) {
            return done(Err(Error::from_errno(libc::EFBIG)));
        }
        if data.is_empty() {
            return done(Ok(()));
        }
        let counters = &self.image.counters;
        add(&counters.writes, 1);
        add(&counters.write_bytes, len_bytes);
        self.wrote.store(true, Ordering::Release);
        let pages = pages_touched(offset_bytes, len_bytes);
        let begin = (offset_bytes % crate::cache::PAGE_BYTES) as usize;
        let cover = ((pages.end - pages.start) * crate::cache::PAGE_BYTES) as usize;
        let mut buffer = self.image.buffers().take(cover);
        buffer.bytes_mut()[begin..begin + data.len()].copy_from_slice(data);
        let done = self.image.timed(Timed::Write, "write", done);
        let parked = self.image.store_executor().park("write", done);
        let policy = &self.image.shared.streams;
        let advice = (self.write_streams.lock()).follow(offset_bytes, len_bytes, policy);
        let write = Write {
            offset_bytes,
            len_bytes,
            around: advice.around,
            buffer,
            permit,
        };
        let this = self.clone();
        self.image.lanes.enter(pages, move |lane| {
            parked.run(move || this.write_now(lane, write));
        });
    }

    /// Steps 2 to 5. Blocks.
    fn write_now(&self, lane: Lane, write: Write) -> Result<()> {
        let Write {
            offset_bytes,
            len_bytes,
            around,
            mut buffer,
            permit,
        } = write;
        let begin = (offset_bytes % crate::cache::PAGE_BYTES) as usize;
        let end = begin + len_bytes as usize;
        let counters = &self.image.counters;
        let written = self.change(offset_bytes, len_bytes, |image, entry| {
            add(&counters.store_write_requests, 1);
            let bytes = &buffer.bytes()[begin..end];
            let write = || self.file.write_at(bytes, offset_bytes);
            image.latencies().time(Timed::StoreWrite, write)?;
            add(&counters.store_write_bytes, len_bytes);
            let size_bytes = image.grow_to(offset_bytes + len_bytes);
            if let Some(entry) = entry {
                let written = Written {
                    offset_bytes,
                    len_bytes,
                    size_bytes,
                    admit: !around,
                };
                image.pool().overwrite(entry, &written, &mut buffer);
            }
            Ok(())
        });
        self.image.buffers().give(buffer);
        drop(permit);
        drop(lane);
        written
    }

    /// Announces a change of `len_bytes` at `offset_bytes`, lets `step` do it in store and cache, and
    /// drops the range from the cache if that fails. Blocks; the caller has the lane.
    fn change<T>(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        step: impl FnOnce(&Image, Option<&Entry>) -> Result<T>,
    ) -> Result<T> {
        let image = &self.image;
        let entry = image.entry();
        let Some(entry) = entry else {
            return step(image, None);
        };
        image.changed();
        let announced = match entry.begin_write(offset_bytes, len_bytes) {
            Ok(announced) => announced,
            Err(error) => {
                image.tell_flash_failed(&error);
                entry.disown();
                return step(image, None);
            }
        };
        let changed = step(image, Some(&entry));
        if changed.is_err() {
            entry.drop_pages(&pages_touched(offset_bytes, len_bytes));
        }
        let after = match image.store_is_local() {
            true => self.file.attr().ok().map(|attr| attr.validator()),
            false => None,
        };
        entry.end_write(announced, after.as_ref());
        changed
    }

    /// Runs a change of `pages` other than a write, in its lane, on a store thread.
    fn submit_change<T: Send + 'static>(
        self: &Arc<Self>,
        what: &'static str,
        pages: Pages,
        done: Done<T>,
        work: impl FnOnce(&Arc<Handle>) -> Result<T> + Send + 'static,
    ) {
        self.wrote.store(true, Ordering::Release);
        let parked = self.image.store_executor().park(what, done);
        let this = self.clone();
        self.image.lanes.enter(pages, move |lane| {
            parked.run(move || {
                let result = work(&this);
                drop(lane);
                result
            });
        });
    }

    /// Sets the size of the image.
    pub fn truncate(self: &Arc<Self>, size_bytes: u64, done: Done<()>) {
        // In a lane of its own against everything past the smaller of old and new end.
        let first = size_bytes.min(self.image.size_bytes()) / crate::cache::PAGE_BYTES;
        self.submit_change("truncate", first..u64::MAX, done, move |this| {
            // Growing changes no page: past the end they are zeros already.
            let from = size_bytes.min(this.image.size_bytes());
            let span = this.image.size_bytes().saturating_sub(size_bytes);
            this.change(from, span, |image, entry| {
                this.file.set_len(size_bytes)?;
                image.set_size(size_bytes);
                if let Some(entry) = entry {
                    if span > 0 {
                        entry.drop_pages(&(from / crate::cache::PAGE_BYTES..u64::MAX));
                    }
                    entry.resize(size_bytes);
                }
                Ok(())
            })
        });
    }

    /// fallocate(2). Whatever it does to the content, the cache forgets the range.
    pub fn allocate(
        self: &Arc<Self>,
        mode: i32,
        offset_bytes: u64,
        len_bytes: u64,
        done: Done<()>,
    ) {
        let moves = mode & (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) != 0;
        let pages = match moves {
            true => offset_bytes / crate::cache::PAGE_BYTES..u64::MAX,
            false => pages_touched(offset_bytes, len_bytes),
        };
        self.submit_change("fallocate", pages.clone(), done, move |this| {
            let span = match moves {
                true => this.image.size_bytes().saturating_sub(offset_bytes) + len_bytes,
                false => len_bytes,
            };
            this.change(offset_bytes, span, |image, entry| {
                this.file.allocate(mode, offset_bytes, len_bytes)?;
                let size_bytes = this.file.attr()?.size_bytes;
                image.set_size(size_bytes);
                if let Some(entry) = entry {
                    if mode & !libc::FALLOC_FL_KEEP_SIZE != 0 {
                        entry.drop_pages(&pages);
                    }
                    entry.resize(size_bytes);
                }
                Ok(())
            })
        });
    }

    /// copy_file_range(2) within the store; returns the bytes copied.
    pub fn copy_to(
        self: &Arc<Self>,
        offset_bytes: u64,
        target: &Arc<Handle>,
        target_offset_bytes: u64,
        len_bytes: u64,
        done: Done<u64>,
    ) {
        let pages = pages_touched(target_offset_bytes, len_bytes);
        let source = self.clone();
        target.submit_change("copy_file_range", pages.clone(), done, move |target| {
            target.change(target_offset_bytes, len_bytes, |image, entry| {
                let file = &target.file;
                let copied = source.file.copy_range(
                    offset_bytes,
                    file.as_ref(),
                    target_offset_bytes,
                    len_bytes,
                )?;
                let size_bytes = image.grow_to(target_offset_bytes + copied);
                if let Some(entry) = entry {
                    entry.drop_pages(&pages);
                    entry.resize(size_bytes);
                }
                Ok(copied)
            })
        });
    }

    /// lseek(2) for data and holes, as the store sees them.
    pub fn seek(self: &Arc<Self>, offset_bytes: u64, whence: i32, done: Done<u64>) {
        let this = self.clone();
        let work = move || this.file.seek(offset_bytes, whence);
        self.image.store_executor().submit("lseek", work, done);
    }

    /// FLUSH (rule 2): answers when every write acknowledged before is durable in the store.
    pub fn flush(self: &Arc<Self>, data_only: bool, done: Done<()>) {
        let this = self.clone();
        self.wrote.store(false, Ordering::Release);
        let work = move || {
            let flushed = this.file.sync(data_only);
            if flushed.is_err() {
                this.wrote.store(true, Ordering::Release);
                this.image.store_lost_writes();
            }
            flushed
        };
        let done = self.image.timed(Timed::Flush, "fsync", done);
        self.image.store_executor().submit("fsync", work, done);
    }

    /// close(2) of one descriptor: a FLUSH if something was written since the last.
    pub fn close(self: &Arc<Self>, done: Done<()>) {
        if self.wrote.load(Ordering::Acquire) {
            self.flush(true, done);
        } else {
            done(Ok(()));
        }
    }

    /// The last close: the handle takes part in nothing any more.
    pub fn release(self: &Arc<Self>) {
        if !self.released.swap(true, Ordering::AcqRel) {
            self.keep_nothing();
            self.image.released();
        }
    }
}
