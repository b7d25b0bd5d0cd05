//! Reads: the fast lane, and the way of a miss.
//!
//! Fast: bit test, one direct read of the cache file, reply, on the thread that got the request. Slow:
//! pages not yet verified since the mount are verified on a flash thread; missing ones are fetched, each
//! block once however many wait; the reply comes from where the last of them arrives.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cache::pagemap::State;
use crate::cache::{BLOCK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK, Pages, blocks_of};
use crate::io::sync::read_now;
use crate::io::{Buffer, Read};
use crate::store::executor::Parked;

use super::begun::Begun;
use super::counters::add;
use super::fetch::{Fetch, Registered, missing_runs};
use super::handle::Handle;
use super::lanes;
use super::miss::{Miss, ReadBytes};
use super::{Image, ReadDone};

/// Fetches for readahead under way at once, over all images.
const AHEAD_FETCHES_MAX: usize = 16;

thread_local! {
    /// The buffer of the fast lane, one per FUSE thread.
    static BUFFER: RefCell<Buffer> = RefCell::new(Buffer::new(0));
}

/// What a slow read has to wait for, worked out under the lanes' lock.
#[derive(Default)]
struct Plan {
    resident: Vec<Pages>,
    begin: Vec<Arc<Fetch>>,
    join: Vec<(Arc<Fetch>, Pages)>,
}

impl Plan {
    /// Waits for `wanted` from `fetch`, once for consecutive blocks.
    fn add_join(&mut self, fetch: &Arc<Fetch>, wanted: Pages) {
        match self.join.last_mut() {
            Some((last, pages)) if Arc::ptr_eq(last, fetch) && pages.end == wanted.start => {
                pages.end = wanted.end;
            }
            _ => self.join.push((fetch.clone(), wanted)),
        }
    }
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

    pub(super) fn read_slowly(
        self: &Arc<Self>,
        offset_bytes: u64,
        len_bytes: usize,
        pages: Pages,
        parked: Parked<ReadBytes>,
    ) {
        let entry = self.image.entry();
        let unverified =
            entry.filter(|entry| blocks_of(&pages).any(|block| entry.has_unverified(block)));
        let Some(entry) = unverified else {
            return self.read_missing(offset_bytes, len_bytes, pages, parked);
        };
        let this = self.clone();
        let verify = move || {
            if let Err(error) = entry.verify(&pages) {
                log::debug!("verifying {}: {error}", this.image.name());
            }
            let mut buffer = Buffer::new(0);
            match entry.read(offset_bytes, len_bytes, &mut buffer) {
                Some(begin) => {
                    add(&this.image.counters.read_hits, 1);
                    parked.answer(Ok(ReadBytes {
                        buffer: Arc::new(buffer),
                        begin,
                        len: len_bytes,
                    }));
                }
                None => this.read_missing(offset_bytes, len_bytes, pages, parked),
            }
            Ok(())
        };
        self.image.flash_executor().submit("verify", verify, |_| {});
    }

    fn read_missing(
        self: &Arc<Self>,
        offset_bytes: u64,
        len_bytes: usize,
        pages: Pages,
        parked: Parked<ReadBytes>,
    ) {
        let mut plan = self.image.plan(&pages, usize::MAX);
        let resident = std::mem::take(&mut plan.resident);
        let miss = Miss::new(self.clone(), offset_bytes, len_bytes, resident, parked);
        for fetch in &plan.begin {
            miss.expect();
            fetch.wait(&miss);
        }
        for (fetch, wanted) in &plan.join {
            miss.expect();
            if !fetch.join(wanted, &miss) {
                miss.fail(crate::store::Error::from_errno(libc::EAGAIN));
            }
        }
        for fetch in plan.begin {
            self.start(fetch, None, || {});
        }
        miss.begun();
    }

    /// Runs a registered fetch on a store thread.
    fn start(
        self: &Arc<Self>,
        fetch: Arc<Fetch>,
        keep_for: Option<Arc<Handle>>,
        ended: impl FnOnce() + Send + 'static,
    ) {
        let registered = Registered::new(self.image.clone(), fetch);
        let file = self.file.clone();
        let what = match keep_for {
            Some(_) => "readahead",
            None => "fetch",
        };
        let work = move || registered.run(file.as_ref(), keep_for.as_deref());
        self.image
            .store_executor()
            .submit(what, work, move |_| ended());
    }

    /// Takes a read into account for the stream and for the heat of its blocks; gives what to read
    /// ahead.
    pub(super) fn follow_stream(&self, offset_bytes: u64, len_bytes: u64, pages: &Pages) -> Pages {
        let window = self.image.readahead_max_bytes();
        let advice = self.stream.lock().read(offset_bytes, len_bytes, window);
        if advice.jumps {
            self.keep_nothing();
        }
        if let Some(entry) = self.image.entry() {
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
        start / PAGE_BYTES..end.div_ceil(PAGE_BYTES)
    }

    /// Begins fetches for the missing blocks of `pages`, as far as the bound allows.
    pub(super) fn read_ahead(self: &Arc<Self>, pages: Pages) {
        if pages.is_empty() || self.image.entry().is_none() {
            return; // without a cache there is nowhere to put it
        }
        // Slots first: a fetch that is in the table must come, others may wait for it.
        let ahead = self.image.ahead_fetches();
        let taken = ahead.fetch_add(AHEAD_FETCHES_MAX, Ordering::AcqRel);
        let slots = AHEAD_FETCHES_MAX.saturating_sub(taken);
        let begin = self.image.plan(&pages, slots).begin;
        ahead.fetch_sub(AHEAD_FETCHES_MAX - begin.len(), Ordering::AcqRel);
        for fetch in begin {
            let image = self.image.clone();
            self.start(fetch, Some(self.clone()), move || {
                image.ahead_fetches().fetch_sub(1, Ordering::AcqRel);
            });
        }
    }
}

impl Image {
    /// Works out how to get `pages`, and registers the fetches that have to be begun, the first
    /// `begin_max` of them.
    fn plan(&self, pages: &Pages, begin_max: usize) -> Plan {
        let entry = self.entry();
        let state = |pages: &Pages| {
            entry
                .as_ref()
                .map_or(State::Missing, |entry| entry.state(pages))
        };
        let end_of_image = self.size_bytes().div_ceil(PAGE_BYTES);
        let blocks_max = super::fetch::blocks_max(self.fetching_bytes().load(Ordering::Acquire));
        self.lanes.with(|lanes| {
            let mut plan = Plan::default();
            let mut runs: Vec<Pages> = Vec::new();
            for block in blocks_of(pages) {
                let base = block * PAGES_PER_BLOCK;
                let wanted = pages.start.max(base)..pages.end.min(base + PAGES_PER_BLOCK);
                if state(&wanted) != State::Missing {
                    plan.resident.push(wanted);
                } else if let Some(fetch) = lanes.fetches.get(&block) {
                    plan.add_join(fetch, wanted);
                } else {
                    let whole = base..(base + PAGES_PER_BLOCK).min(end_of_image);
                    let pages = missing_in(&whole, &wanted, &state);
                    add_to_runs(&mut runs, &pages, blocks_max);
                }
            }
            plan.begin = runs
                .into_iter()
                .take(begin_max)
                .map(|run| lanes_register(lanes, run))
                .collect();
            plan
        })
    }
}

/// What to fetch of a block: from its first to its last missing page, and all that is wanted.
fn missing_in(whole: &Pages, wanted: &Pages, state: &impl Fn(&Pages) -> State) -> Pages {
    let runs = missing_runs(whole, |page| state(&(page..page + 1)));
    let first = runs.first().map_or(wanted.start, |run| run.start);
    let end = runs.last().map_or(wanted.end, |run| run.end);
    first.min(wanted.start)..end.max(wanted.end)
}

/// Adds `pages` to the last run where they follow it and the run stays small enough.
fn add_to_runs(runs: &mut Vec<Pages>, pages: &Pages, blocks_max: u64) {
    let fits = |run: &Pages| {
        let blocks = blocks_of(&(run.start..pages.end));
        run.end == pages.start && blocks.end - blocks.start <= blocks_max
    };
    match runs.last_mut() {
        Some(run) if fits(run) => run.end = pages.end,
        _ => runs.push(pages.clone()),
    }
}

fn lanes_register(lanes: &mut lanes::State, pages: Pages) -> Arc<Fetch> {
    let fetch = Arc::new(Fetch::new(pages.clone(), lanes.taken(&pages)));
    for block in blocks_of(&pages) {
        lanes.fetches.insert(block, fetch.clone());
    }
    fetch
}
