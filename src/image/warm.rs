//! Warming: bringing an image's blocks onto flash because an operator says so, behind everybody's back.
//!
//! # Order of steps
//! 1. What is missing is fetched, [`WINDOWS_MAX`] MiB at once, in the lowest class. Room is made before:
//!    nothing is fetched that has no place. Where the caching module would give up a block of this very
//!    warming, the image does not fit, and warming ends.
//! 2. What was found on flash at the mount and not verified since is verified; what is damaged is dropped.
//! 3. If something is missing again (dropped, written by a guest meanwhile, fetched by somebody else), once
//!    more from 1.
//!
//! Resident blocks are skipped, so warming that was interrupted goes on where it was.
//!
//! # Locking
//! `under_way` is held for bookkeeping only; the warming thread waits on it, in short steps.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::cache::pagemap::State;
use crate::cache::{BLOCK_BYTES, Entry, PAGE_BYTES, PAGES_PER_BLOCK, Pages, Room, blocks_of};
use crate::store::Result;
use crate::store::executor::Class;

use super::fetch::{FETCH_BLOCKS_MAX, Fetch, Purpose};
use super::handle::Handle;
use super::plan::Wish;
use super::status::{WarmEnd, WarmStatus};

/// Windows of 1 MiB under way at once.
const WINDOWS_MAX: usize = 4;
/// Rounds over an image that guests write to meanwhile.
const ROUNDS_MAX: usize = 8;
/// How often the caller is told how far it is.
const TELL_INTERVAL: Duration = Duration::from_millis(200);
/// Steps in which the warming thread waits, so that it notices an end soon.
const WAIT_STEP: Duration = Duration::from_millis(50);
/// Blocks that somebody else fetches are waited for so long.
const OTHERS_DEADLINE: Duration = Duration::from_secs(60);

/// What is on its way for one warming.
#[derive(Default)]
struct UnderWay {
    state: Mutex<UnderWayState>,
    ended: Condvar,
}

#[derive(Default)]
struct UnderWayState {
    fetches: usize,
    fetched_bytes: u64,
    error: Option<String>,
}

struct Warming<'a, T> {
    handle: &'a Arc<Handle>,
    entry: Arc<Entry>,
    pages: Pages,
    under_way: Arc<UnderWay>,
    /// Bytes resident and verified when it began, and verified by it.
    ready_bytes: u64,
    tell: T,
    told: Instant,
}

impl Handle {
    /// Warms the whole blocks that `bytes` of the image touch. `tell` hears how far it is, several times a
    /// second, and answers false to end it. Blocks.
    pub fn warm(
        self: &Arc<Self>,
        bytes: Range<u64>,
        tell: impl FnMut(&WarmStatus) -> bool,
    ) -> WarmStatus {
        let end = bytes.end.min(self.image.size_bytes());
        let end_of_image = self.image.size_bytes().div_ceil(PAGE_BYTES);
        let first = bytes.start.min(end) / BLOCK_BYTES * PAGES_PER_BLOCK;
        let last = end.div_ceil(BLOCK_BYTES) * PAGES_PER_BLOCK;
        let pages = first..last.min(end_of_image).max(first);
        let Some(entry) = self.image.entry() else {
            return WarmStatus {
                total_bytes: (pages.end - pages.start) * PAGE_BYTES,
                end: Some(WarmEnd::Flash),
                error: Some("no cache device can be used".into()),
                ..WarmStatus::default()
            };
        };
        let (_, ready_bytes) = entry.resident_of(&pages);
        let warming = Warming {
            handle: self,
            entry,
            pages,
            under_way: Arc::default(),
            ready_bytes,
            tell,
            told: Instant::now(),
        };
        warming.run()
    }
}

impl<T: FnMut(&WarmStatus) -> bool> Warming<'_, T> {
    fn run(mut self) -> WarmStatus {
        let mut end = self.rounds();
        if end != Err(WarmEnd::Interrupted)
            && let Err(interrupted) = self.wait_until(|state| state.fetches == 0)
        {
            end = end.and(Err(interrupted));
        }
        let end = end.err().unwrap_or(WarmEnd::Complete);
        let (resident_bytes, ready_bytes) = self.entry.resident_of(&self.pages);
        let state = self.under_way.state.lock();
        WarmStatus {
            total_bytes: self.total_bytes(),
            ready_bytes,
            resident_bytes,
            fetched_bytes: state.fetched_bytes,
            end: Some(end),
            error: state.error.clone(),
        }
    }

    /// Steps 1 to 3; the error is why it ended early.
    fn rounds(&mut self) -> std::result::Result<(), WarmEnd> {
        let mut others_since = None;
        let mut round = 0;
        while round < ROUNDS_MAX {
            let before = self.bytes_there_and_fetched();
            let others = self.fetch_missing()?;
            self.wait_until(|state| state.fetches == 0)?;
            let after = self.bytes_there_and_fetched();
            self.verify()?;
            if self.entry.state(&self.pages) == State::Ready {
                return Ok(());
            } else if !self.entry.is_usable() {
                return Err(WarmEnd::Flash);
            } else if others {
                let since = *others_since.get_or_insert_with(Instant::now);
                if since.elapsed() > OTHERS_DEADLINE {
                    self.under_way.fail("the store does not answer");
                    return Err(WarmEnd::Store);
                }
                std::thread::sleep(WAIT_STEP);
            } else if after.1 > before.1 && after.0 <= before.0 {
                return Err(WarmEnd::Busy); // fetched in vain
            } else {
                others_since = None;
                round += 1;
            }
        }
        Err(WarmEnd::Busy)
    }

    fn bytes_there_and_fetched(&self) -> (u64, u64) {
        let (resident, _) = self.entry.resident_of(&self.pages);
        (resident, self.under_way.state.lock().fetched_bytes)
    }

    /// Step 1; true if somebody else is fetching a part of it.
    fn fetch_missing(&mut self) -> std::result::Result<bool, WarmEnd> {
        let mut others = false;
        let blocks = blocks_of(&self.pages);
        for block in blocks.clone().step_by(FETCH_BLOCKS_MAX as usize) {
            let end = (block + FETCH_BLOCKS_MAX).min(blocks.end);
            let window = block * PAGES_PER_BLOCK..(end * PAGES_PER_BLOCK).min(self.pages.end);
            if self.entry.state(&window) != State::Missing {
                self.may_go_on()?;
                continue;
            }
            self.wait_until(|state| state.fetches < WINDOWS_MAX)?;
            others |= self.fetch_window(&window)?;
        }
        Ok(others)
    }

    fn fetch_window(&mut self, window: &Pages) -> std::result::Result<bool, WarmEnd> {
        let (resident, _) = self.entry.resident_of(window);
        let missing = (window.end - window.start) * PAGE_BYTES - resident;
        let image = &self.handle.image;
        let Some(mut room) = image.pool().room_beside(&self.entry, &self.pages, missing) else {
            return Err(match self.entry.is_usable() {
                true => WarmEnd::Full,
                false => WarmEnd::Flash,
            });
        };
        let wish = Wish {
            begin_max: usize::MAX,
            fill: true,
            whole_blocks: true,
            use_kept: false,
        };
        let plan = image.plan(window, &wish);
        for fetch in plan.begin {
            let (there, _) = self.entry.resident_of(&fetch.pages);
            let room = room.split(fetch.len_bytes() as u64 - there);
            self.fetch(fetch, room);
        }
        plan.join.iter().for_each(|(fetch, _)| fetch.want_fill());
        Ok(!plan.join.is_empty())
    }

    fn fetch(&self, fetch: Arc<Fetch>, room: Room) {
        let under_way = self.under_way.clone();
        under_way.state.lock().fetches += 1;
        let len = fetch.len_bytes() as u64;
        let purpose = Purpose {
            keep: None,
            room: Some(room),
        };
        self.handle.start(Class::Warm, fetch, purpose, move |done| {
            under_way.end(len, done);
        });
    }

    /// Step 2.
    fn verify(&mut self) -> std::result::Result<(), WarmEnd> {
        for block in blocks_of(&self.pages) {
            if !self.entry.has_unverified(block) {
                continue;
            }
            self.may_go_on()?;
            let first = block * PAGES_PER_BLOCK;
            let pages = first..first + PAGES_PER_BLOCK;
            if let Err(error) = self.entry.verify(&pages) {
                self.under_way.fail(&error.to_string());
                return Err(WarmEnd::Flash);
            }
            self.ready_bytes += self.entry.resident_of(&pages).1;
        }
        Ok(())
    }

    /// Waits until `enough` holds of what is on its way.
    fn wait_until(
        &mut self,
        enough: impl Fn(&UnderWayState) -> bool,
    ) -> std::result::Result<(), WarmEnd> {
        let under_way = self.under_way.clone();
        loop {
            {
                let mut state = under_way.state.lock();
                if !enough(&state) {
                    under_way.ended.wait_for(&mut state, WAIT_STEP);
                }
                if state.error.is_some() {
                    return Err(WarmEnd::Store);
                }
            }
            self.may_go_on()?;
            if enough(&under_way.state.lock()) {
                return Ok(());
            }
        }
    }

    /// Tells how far it is, now and then; the error is that nobody wants to hear more.
    fn may_go_on(&mut self) -> std::result::Result<(), WarmEnd> {
        if self.handle.image.shared.ending.load(Ordering::Acquire) {
            return Err(WarmEnd::Interrupted);
        }
        if self.told.elapsed() < TELL_INTERVAL {
            return Ok(());
        }
        self.told = Instant::now();
        let fetched_bytes = self.under_way.state.lock().fetched_bytes;
        let ready_bytes = (self.ready_bytes + fetched_bytes).min(self.total_bytes());
        let status = WarmStatus {
            total_bytes: self.total_bytes(),
            ready_bytes,
            resident_bytes: ready_bytes,
            fetched_bytes,
            ..WarmStatus::default()
        };
        match (self.tell)(&status) {
            true => Ok(()),
            false => Err(WarmEnd::Interrupted),
        }
    }

    fn total_bytes(&self) -> u64 {
        (self.pages.end - self.pages.start) * PAGE_BYTES
    }
}

impl UnderWay {
    fn end(&self, len_bytes: u64, done: Result<()>) {
        let mut state = self.state.lock();
        state.fetches -= 1;
        match done {
            Ok(()) => state.fetched_bytes += len_bytes,
            Err(error) => state.error = Some(error.to_string()),
        }
        drop(state);
        self.ended.notify_all();
    }

    fn fail(&self, error: &str) {
        self.state.lock().error = Some(error.to_owned());
    }
}
