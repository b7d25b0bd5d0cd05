//! Reads: the fast lane, and the way of a miss.
//!
//! Fast: bit test, one direct read of the cache file, reply, on the thread that got the request. Slow:
//! pages not yet verified since the mount are verified on a flash thread; missing ones are fetched, each
//! block once however many wait; the reply comes from where the last of them arrives.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cache::{BLOCK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK, Pages, blocks_of};
use crate::io::sync::read_now;
use crate::io::{Buffer, Read};
use crate::store::Result;
use crate::store::executor::{Class, Parked};

use super::ReadDone;
use super::begun::Begun;
use super::counters::add;
use super::fetch::{FETCH_BLOCKS_MAX, Fetch, Purpose, Registered};
use super::handle::Handle;
use super::kept::{Keep, Space};
use super::miss::{Miss, ReadBytes};
use super::plan::Wish;
use super::stream::StreamId;

/// Fetches for readahead under way at once, over all images.
const AHEAD_FETCHES_MAX: usize = 16;

thread_local! {
    /// The buffer of the fast lane, one per FUSE thread.
    static BUFFER: RefCell<Buffer> = RefCell::new(Buffer::new(0));
}

impl Handle {
    /// Reads up to `len_bytes` at `offset_bytes`; short at the end of the image. Flash is read on this
    /// thread.
    pub fn read(self: &Arc<Self>, offset_bytes: u64, len_bytes: usize, done: ReadDone) {
        match self.begin_read(offset_bytes, len_bytes) {
            Begun::End => done(Ok(&[])),
            Begun::Slow(pending) => pending.finish(done),
            Begun::Hit(hit, pending) => BUFFER.with_borrow_mut(|buffer| {
                buffer.reserve(hit.len_bytes());
                let read = Read {
                    file: hit.file(),
                    offset_bytes: hit.offset_bytes(),
                    to: buffer.bytes_mut().as_mut_ptr(),
                    len_bytes: hit.len_bytes() as u32,
                    ticket: 0,
                };
                // SAFETY: the hit keeps the file open, the buffer is this thread's and large enough.
                let read = unsafe { read_now(&read) };
                match hit.is_valid(&read) {
                    true => {
                        done(Ok(&buffer.bytes()[pending.wanted()]));
                        pending.served();
                    }
                    false => pending.finish(done),
                }
            }),
        }
    }

    pub(super) fn read_slowly(self: &Arc<Self>, read: SlowRead) {
        let entry = self.image.entry();
        let unverified =
            entry.filter(|entry| blocks_of(&read.pages).any(|block| entry.has_unverified(block)));
        let Some(entry) = unverified else {
            return self.read_missing(read);
        };
        let this = self.clone();
        let verify = move || {
            if let Err(error) = entry.verify(&read.pages) {
                log::debug!("verifying {}: {error}", this.image.name());
            }
            let mut buffer = Buffer::new(0);
            match entry.read(read.offset_bytes, read.len_bytes, &mut buffer) {
                Some(begin) => {
                    add(&this.image.counters.read_hits, 1);
                    read.parked.answer(Ok(ReadBytes {
                        buffer: Arc::new(buffer),
                        begin,
                        len: read.len_bytes,
                        from_flash: true,
                    }));
                }
                None => this.read_missing(read),
            }
            Ok(())
        };
        self.image.flash_executor().submit("verify", verify, |_| {});
    }

    /// Has the missing pages fetched; answers when all is there.
    fn read_missing(self: &Arc<Self>, read: SlowRead) {
        let mut space = self.space_around(&read);
        let mut plan = self.image.plan(
            &read.pages,
            &Wish {
                begin_max: usize::MAX,
                fill: read.around.is_none(),
                whole_blocks: read.around.is_none() || space.is_some(),
                use_kept: true,
            },
        );
        let resident = std::mem::take(&mut plan.resident);
        let (offset_bytes, len_bytes) = (read.offset_bytes, read.len_bytes);
        let miss = Miss::new(self.clone(), offset_bytes, len_bytes, resident, read.parked);
        for (fetch, bytes, wanted) in plan.kept {
            miss.expect();
            miss.deliver(&wanted, fetch.pages.start, &bytes);
            drop(bytes);
            self.was_read(&fetch, bytes_within(&wanted, offset_bytes, len_bytes));
        }
        for fetch in &plan.begin {
            miss.expect();
            fetch.wait(&miss);
        }
        for (fetch, wanted) in &plan.join {
            miss.expect();
            if read.around.is_none() {
                fetch.want_fill();
            }
            if !fetch.join(wanted, &miss) {
                miss.fail(crate::store::Error::from_errno(libc::EAGAIN));
            } else if let Some(ticket) = fetch.hurry() {
                self.image.store_executor().promote(ticket);
            }
        }
        for fetch in plan.begin {
            let space = space.as_mut().map(|space| space.split(fetch.len_bytes()));
            let keep = read.around.zip(space).map(|(stream, space)| Keep {
                handle: self.clone(),
                stream,
                space: Some(space),
            });
            let purpose = Purpose { keep, room: None };
            self.start(Class::Guest, fetch, purpose, |_| {});
        }
        miss.begun();
    }

    /// Memory for the blocks that a read of a long stream touches: whole blocks are fetched only where
    /// what is not wanted yet can be kept.
    fn space_around(&self, read: &SlowRead) -> Option<Space> {
        read.around?;
        let blocks = blocks_of(&read.pages);
        let bytes = (blocks.end - blocks.start) * BLOCK_BYTES;
        Space::take(&self.image, usize::try_from(bytes).ok()?)
    }

    /// Runs a registered fetch on a store thread.
    pub(super) fn start(
        self: &Arc<Self>,
        class: Class,
        fetch: Arc<Fetch>,
        purpose: Purpose,
        ended: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let registered = Registered::new(self.image.clone(), fetch.clone());
        let file = self.file.clone();
        let what = match class {
            Class::Guest => "fetch",
            Class::Ahead => "readahead",
            Class::Warm => "warming",
        };
        let work = move || registered.run(file.as_ref(), purpose);
        let executor = self.image.store_executor();
        let ticket = executor.submit_as(class, what, work, ended);
        if class != Class::Guest
            && let Some(ticket) = fetch.begun_as(ticket)
        {
            executor.promote(ticket);
        }
    }

    /// Takes a read into account for its stream and for the heat of its blocks; gives what to read ahead.
    /// A long stream makes nothing hot: a backup says nothing of what is used.
    pub(super) fn follow_stream(&self, offset_bytes: u64, len_bytes: u64, pages: &Pages) -> Follow {
        let policy = &self.image.shared.streams;
        let advice = (self.streams.lock()).follow(offset_bytes, len_bytes, policy);
        if let Some(ended) = advice.ended {
            self.forget_stream(ended);
        }
        if !advice.around
            && let Some(entry) = self.image.entry()
        {
            let from = match advice.continues_block {
                true => pages.start.next_multiple_of(PAGES_PER_BLOCK),
                false => pages.start,
            };
            if from < pages.end {
                entry.heat_up(&(from..pages.end));
            }
        }
        let end = advice.ahead.end.min(self.image.size_bytes());
        let start = advice.ahead.start.next_multiple_of(BLOCK_BYTES);
        Follow {
            stream: advice.stream,
            around: advice.around,
            ahead: start / PAGE_BYTES..end.div_ceil(PAGE_BYTES),
        }
    }

    /// Begins fetches for the missing blocks of what is ahead, as far as the bounds allow; the rest is
    /// asked for again.
    pub(super) fn read_ahead(self: &Arc<Self>, follow: &Follow) {
        if follow.ahead.is_empty() || self.image.entry().is_none() {
            return; // without a cache there is nowhere to put it
        }
        let spaces = follow.around.then(|| self.spaces_ahead(&follow.ahead));
        let spaces_max = spaces.as_ref().map_or(usize::MAX, Vec::len);
        // Slots first: a fetch that is in the table must come, others may wait for it.
        let ahead = self.image.ahead_fetches();
        let taken = ahead.fetch_add(AHEAD_FETCHES_MAX, Ordering::AcqRel);
        let slots = AHEAD_FETCHES_MAX.saturating_sub(taken);
        let wish = Wish {
            begin_max: slots.min(spaces_max),
            fill: !follow.around,
            whole_blocks: true,
            use_kept: true,
        };
        let plan = self.image.plan(&follow.ahead, &wish);
        ahead.fetch_sub(AHEAD_FETCHES_MAX - plan.begin.len(), Ordering::AcqRel);
        if let Some(page) = plan.not_begun {
            (self.streams.lock()).not_begun(follow.stream, page * PAGE_BYTES);
        }
        let mut spaces = spaces.into_iter().flatten();
        for fetch in plan.begin {
            let image = self.image.clone();
            let space = spaces
                .next()
                .map(|mut space| space.split(fetch.len_bytes()));
            let keep = Keep {
                handle: self.clone(),
                stream: follow.stream,
                space,
            };
            let purpose = Purpose {
                keep: Some(keep),
                room: None,
            };
            self.start(Class::Ahead, fetch, purpose, move |_| {
                image.ahead_fetches().fetch_sub(1, Ordering::AcqRel);
            });
        }
    }

    /// Memory for fetches that go around the cache, one promise each, as far as there is any.
    fn spaces_ahead(&self, pages: &Pages) -> Vec<Space> {
        let blocks = blocks_of(pages);
        let fetches = (blocks.end - blocks.start).div_ceil(FETCH_BLOCKS_MAX);
        let bytes = (FETCH_BLOCKS_MAX * BLOCK_BYTES) as usize;
        (0..fetches)
            .map_while(|_| Space::take(&self.image, bytes))
            .collect()
    }
}

/// A read that could not be answered on the fast lane.
pub(super) struct SlowRead {
    pub offset_bytes: u64,
    pub len_bytes: usize,
    pub pages: Pages,
    /// The long stream it belongs to: what is missing is not put on flash.
    pub around: Option<StreamId>,
    pub parked: Parked<ReadBytes>,
}

/// What a read means for its stream.
pub(super) struct Follow {
    pub stream: StreamId,
    pub around: bool,
    /// To be read ahead.
    pub ahead: Pages,
}

/// How many bytes of a read lie in `pages`.
fn bytes_within(pages: &Pages, offset_bytes: u64, len_bytes: usize) -> usize {
    let begin = offset_bytes.max(pages.start * PAGE_BYTES);
    let end = (offset_bytes + len_bytes as u64).min(pages.end * PAGE_BYTES);
    end.saturating_sub(begin) as usize
}
