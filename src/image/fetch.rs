//! One read from the store on behalf of everybody who waits for these blocks, and the fill of the
//! cache that follows it.
//!
//! # Order of steps
//! 1. The fetch is registered, with the pages that writes have or wait for as poisoned.
//! 2. The store is read.
//! 3. Those who waited are answered: a write that came meanwhile was not acknowledged before they
//!    asked.
//! 4. Pages that are not poisoned and not resident are filled in, under a lane.
//! 5. The fetch is unregistered: whoever comes later finds the pages resident.
//!
//! # Locking
//! `state` is held for bookkeeping only, after the lanes' state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::cache::pagemap::State;
use crate::cache::{PAGE_BYTES, Pages, Room};
use crate::io::Buffer;
use crate::store::executor::Ticket;
use crate::store::{Error, Result, StoreFile};

use super::Image;
use super::counters::add;
use super::kept::Keep;
use super::lanes::overlap;
use super::latencies::Timed;
use super::miss::Miss;

/// Blocks one store request reads at most: 1 MiB.
pub const FETCH_BLOCKS_MAX: u64 = 16;
/// While more than [`FETCHING_MANY_BYTES`] are being fetched, requests are of this size at most: memory
/// stays bounded with a slow store and many readers.
const FETCH_BLOCKS_MANY: u64 = 4;
const FETCHING_MANY_BYTES: usize = 24 << 20;

/// Blocks a store request may read while `fetching_bytes` are on their way.
pub fn blocks_max(fetching_bytes: usize) -> u64 {
    match fetching_bytes > FETCHING_MANY_BYTES {
        true => FETCH_BLOCKS_MANY,
        false => FETCH_BLOCKS_MAX,
    }
}

/// A read from the store under way.
pub struct Fetch {
    /// What is read.
    pub pages: Pages,
    /// The cache takes the bytes; not so for a stream that goes around it.
    fill: AtomicBool,
    state: Mutex<FetchState>,
}

struct FetchState {
    poisoned: Vec<Pages>,
    waiters: Vec<(Arc<Miss>, Pages)>,
    /// The bytes, once read.
    bytes: Option<Arc<Buffer>>,
    /// The version of the image that the bytes belong to.
    era: Option<u64>,
    /// A guest waits for it.
    urgent: bool,
    /// Its job, where that is of a lower class.
    ticket: Option<Ticket>,
    /// Nothing more comes: who found the fetch in the table before it left is too late.
    ended: bool,
}

impl Fetch {
    /// A fetch of `pages`, of which `poisoned` are being written; the cache takes its bytes if `fill`.
    pub fn new(pages: Pages, poisoned: Vec<Pages>, fill: bool) -> Fetch {
        Fetch {
            pages,
            fill: AtomicBool::new(fill),
            state: Mutex::new(FetchState {
                poisoned,
                waiters: Vec::new(),
                bytes: None,
                era: None,
                urgent: false,
                ticket: None,
                ended: false,
            }),
        }
    }

    /// The cache takes the bytes, whoever the fetch was begun for.
    pub fn want_fill(&self) {
        self.fill.store(true, Ordering::Release);
    }

    /// A guest waits now; gives the job to put first, if there is one of a lower class.
    pub fn hurry(&self) -> Option<Ticket> {
        let mut state = self.state.lock();
        state.urgent = true;
        state.ticket.take()
    }

    /// Its job of a lower class; gives it back where a guest waits already.
    pub fn begun_as(&self, ticket: Ticket) -> Option<Ticket> {
        let mut state = self.state.lock();
        if state.urgent {
            return Some(ticket);
        }
        state.ticket = Some(ticket);
        None
    }

    /// A write has come that touches `pages`.
    pub fn poison(&self, pages: &Pages) {
        if overlap(&self.pages, pages) {
            self.state.lock().poisoned.push(pages.clone());
        }
    }

    /// Lets `miss` wait for `pages` of this fetch; false when it does not bring them as they are now.
    pub fn join(&self, pages: &Pages, miss: &Arc<Miss>) -> bool {
        let mut state = self.state.lock();
        let covered = self.pages.start <= pages.start && pages.end <= self.pages.end;
        if !covered || state.ended || state.poisoned.iter().any(|bad| overlap(bad, pages)) {
            return false;
        }
        match state.bytes.clone() {
            Some(bytes) => {
                drop(state);
                miss.deliver(pages, self.pages.start, &bytes);
            }
            None => state.waiters.push((miss.clone(), pages.clone())),
        }
        true
    }

    /// Bytes it reads.
    pub fn len_bytes(&self) -> usize {
        ((self.pages.end - self.pages.start) * PAGE_BYTES) as usize
    }

    /// Its bytes, if they hold `pages` as they are now in the version `era`.
    pub fn bytes_of(&self, pages: &Pages, era: Option<u64>) -> Option<Arc<Buffer>> {
        let state = self.state.lock();
        let covered = self.pages.start <= pages.start && pages.end <= self.pages.end;
        let poisoned = state.poisoned.iter().any(|bad| overlap(bad, pages));
        match covered && !poisoned && state.era == era {
            true => state.bytes.clone(),
            false => None,
        }
    }

    /// Lets nobody join any more, and gives the bytes away.
    pub fn take_bytes(&self) -> Option<Arc<Buffer>> {
        let mut state = self.state.lock();
        state.ended = true;
        state.bytes.take()
    }

    /// Lets nobody join any more; gives those who still wait.
    fn end(&self) -> Vec<(Arc<Miss>, Pages)> {
        let mut state = self.state.lock();
        state.ended = true;
        std::mem::take(&mut state.waiters)
    }

    /// Makes `miss`, for which the fetch was begun, its first waiter, for those of its pages that the
    /// fetch brings.
    pub fn wait(&self, miss: &Arc<Miss>) {
        let mine = miss.pages();
        let wanted = mine.start.max(self.pages.start)..mine.end.min(self.pages.end);
        self.state.lock().waiters.push((miss.clone(), wanted));
    }

    /// The pages of the fetch that no write has touched since it began.
    fn unpoisoned(&self) -> Vec<Pages> {
        let state = self.state.lock();
        let mut good: Vec<Pages> = Vec::new();
        for page in self.pages.clone() {
            if state.poisoned.iter().any(|bad| bad.contains(&page)) {
                continue;
            }
            match good.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => good.push(page..page + 1),
            }
        }
        good
    }
}

/// What comes with a fetch, and what becomes of it.
#[derive(Default)]
pub struct Purpose {
    /// It is kept for this stream.
    pub keep: Option<Keep>,
    /// There is room in the cache for it already.
    pub room: Option<Room>,
}

/// A registered fetch; unregisters itself when dropped, and fails those who still wait.
pub struct Registered {
    image: Arc<Image>,
    fetch: Arc<Fetch>,
    /// A handle has taken the bytes over.
    kept: bool,
}

impl Registered {
    /// Takes charge of `fetch`, which is in the lanes' table.
    pub fn new(image: Arc<Image>, fetch: Arc<Fetch>) -> Registered {
        let registered = Registered {
            image,
            fetch,
            kept: false,
        };
        let fetching = registered.image.fetching_bytes();
        fetching.fetch_add(registered.fetch.len_bytes(), Ordering::AcqRel);
        registered
    }

    /// Reads the store through `file` and does steps 2 to 5. Blocks.
    pub fn run(mut self, file: &dyn StoreFile, purpose: Purpose) -> Result<()> {
        let pages = self.fetch.pages.clone();
        let era = self.image.entry().map(|entry| entry.era());
        let len = self.fetch.len_bytes();
        let mut buffer = self.image.buffers().take(len);
        let bytes = &mut buffer.bytes_mut()[..len];
        let latencies = self.image.latencies();
        let read = latencies.time(Timed::StoreRead, || {
            file.read_at(bytes, pages.start * PAGE_BYTES)
        });
        add(&self.image.counters.store_read_requests, 1);
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                self.image.buffers().give(buffer);
                return Err(error);
            }
        };
        add(&self.image.counters.store_read_bytes, read as u64);
        bytes[read..].fill(0);
        let buffer = Arc::new(buffer);
        let waiters = {
            let mut state = self.fetch.state.lock();
            state.bytes = Some(buffer.clone());
            state.era = era;
            std::mem::take(&mut state.waiters)
        };
        for (miss, wanted) in waiters {
            miss.deliver(&wanted, pages.start, &buffer);
        }
        if let Some(era) = era {
            self.fill(era, &buffer, purpose.room.as_ref());
        }
        drop(buffer);
        self.kept = purpose.keep.is_some_and(|keep| {
            let handle = keep.handle.clone();
            handle.keep(&self.fetch, keep)
        });
        Ok(())
    }

    /// Step 4.
    fn fill(&self, era: u64, buffer: &Buffer, room: Option<&Room>) {
        let Some(entry) = self.image.entry() else {
            return;
        };
        if !self.fetch.fill.load(Ordering::Acquire) {
            return;
        }
        let pool = self.image.pool();
        let (_lane, granted) = self.image.lanes.fill(|| self.fetch.unpoisoned());
        for run in granted {
            for run in missing_runs(&run, |page| entry.state(&(page..page + 1))) {
                let begin = ((run.start - self.fetch.pages.start) * PAGE_BYTES) as usize;
                let end = ((run.end - self.fetch.pages.start) * PAGE_BYTES) as usize;
                let bytes = &buffer.bytes()[begin..end];
                match room {
                    Some(room) => pool.insert_into(room, &entry, era, run.start, bytes),
                    None => pool.insert(&entry, era, run.start, bytes),
                }
            }
        }
        self.image.changed();
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let fetching = self.image.fetching_bytes();
        fetching.fetch_sub(self.fetch.len_bytes(), Ordering::AcqRel);
        self.image.lanes.unregister(&self.fetch);
        for (miss, _) in self.fetch.end() {
            miss.fail(Error::from_errno(libc::EIO));
        }
        if !self.kept
            && let Some(Ok(buffer)) = self.fetch.take_bytes().map(Arc::try_unwrap)
        {
            self.image.buffers().give(buffer);
        }
    }
}

/// The runs of `pages` that are not resident.
pub fn missing_runs(pages: &Pages, state: impl Fn(u64) -> State) -> Vec<Pages> {
    let mut runs: Vec<Pages> = Vec::new();
    for page in pages.clone().filter(|page| state(*page) == State::Missing) {
        match runs.last_mut() {
            Some(run) if run.end == page => run.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}
