//! Holding an image: while somebody outside reads its cache file directly (kernel passthrough), nobody
//! touches the file.
//!
//! # Invariants
//! - A held image is wholly resident and verified when the hold begins, and its file is exactly as long
//!   as the image: a direct reader sees its end there.
//! - While it is held nothing is evicted, inserted, punched or truncated. What becomes void meanwhile
//!   (the version changed, a flash error) leaves the map and the records at once and the file when the
//!   hold ends.
//! - The caching module does not know held blocks: it forgets them when it meets them, and gets them
//!   back when the hold ends. So eviction never spins over them.
//! - Bytes held on a device are bounded ([`super::device`]), so that other images find room.
//! - A hold goes over to the successor of a server that died: the file is found in use and frozen
//!   before anything touches it, and its readers' hold takes that over.
//! - A reader may map the file and close its handle. So the last hold looks whether somebody still has
//!   the file before it ends, and is left to an orphan ([`super::orphan`]) if so.
//!
//! # Order of steps
//! Hold: the flag, then evictions and inserts that had begun before end, then the pages are looked at,
//! then the file gets its exact length. Release: the file gets whole pages again, what became void is
//! punched, then the flag goes together with the return of the blocks to the module.
//!
//! # Locking
//! `state` is not held across I/O; whoever changes the file has `changing` and others wait for
//! `changed`, for a truncation or a punch.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::entry::{Entry, Files, data_len, punch_pages};
use super::pagemap::State;
use super::{PAGE_BYTES, Pages};

/// Why an image cannot be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHeld {
    /// Some of it is not on flash.
    NotWhole,
    /// So much is held already that other images would find no room.
    NoRoom,
    /// A reader of an earlier mount still has the file.
    Frozen,
    /// Flash failed.
    Failed,
}

/// The holds of one entry.
#[derive(Default)]
pub(super) struct Holds {
    state: Mutex<HoldState>,
    changed: Condvar,
    held: AtomicBool,
    /// The hold is that of a reader of an earlier mount ([`super::orphan`]).
    pub(super) frozen: AtomicBool,
}

#[derive(Default)]
struct HoldState {
    count: u64,
    changing: bool,
    reserved_bytes: u64,
    /// Became void while held; leaves the file at the end.
    void: Vec<Pages>,
    /// When it was frozen, until that is worth telling.
    frozen_since: Option<Instant>,
    told_frozen: bool,
    /// The orphan has its hold from a reader of this mount.
    lingering: bool,
}

/// An image that is held until this is dropped.
pub struct Held {
    entry: Arc<Entry>,
    /// Its cache file, for reading only; none where the kernel has it from an earlier server.
    pub file: Option<File>,
}

impl Entry {
    /// Keeps everybody away from the cache file, if the image is wholly on it and verified. Blocks on
    /// flash.
    pub fn hold(self: &Arc<Self>) -> Result<Held, NotHeld> {
        self.begin_hold()?;
        // From here a drop ends the hold, so that every way out does.
        let ended = EndsHold(self);
        let files = self.files().ok_or(NotHeld::NotWhole)?;
        let file = files.data.reopen_for_reading().map_err(|error| {
            self.report(&error);
            NotHeld::Failed
        })?;
        std::mem::forget(ended);
        Ok(Held {
            entry: self.clone(),
            file: Some(file),
        })
    }

    /// Goes on with the hold of a server that died: the kernel still reads the file for handles that are
    /// ours now. Nothing is verified and nothing refused, as they read on in any case. The second part
    /// is false where what they read is not this entry's file.
    pub fn hold_carried(self: &Arc<Self>) -> (Held, bool) {
        let mut state = self.holds.turn();
        // The reader of an earlier mount that was found in its file: it counts already.
        let found = self.holds.frozen.swap(false, Ordering::AcqRel);
        state.frozen_since = None;
        if !found {
            state.count += 1;
        }
        if state.reserved_bytes == 0 {
            state.reserved_bytes = self.version.head().validator.size_bytes;
            self.device.hold_anyway(state.reserved_bytes);
        }
        self.holds.held.store(true, Ordering::SeqCst);
        drop(state);
        self.claims.wait_until_idle();
        let held = Held {
            entry: self.clone(),
            file: None,
        };
        (held, found)
    }

    /// True while somebody reads the cache file directly.
    pub fn is_held(&self) -> bool {
        self.holds.held.load(Ordering::Acquire)
    }

    /// Bytes that are not evicted.
    pub fn held_bytes(&self) -> u64 {
        match self.is_held() {
            true => self.resident_bytes(),
            false => 0,
        }
    }

    /// Gives the cache file the length for an image of `size_bytes`; while held, when the hold ends.
    pub(super) fn set_data_len(&self, files: &Files, size_bytes: u64) -> io::Result<()> {
        self.change_file(|| files.data.set_len(data_len(size_bytes)))
            .unwrap_or(Ok(()))
    }

    /// A file that was held when the daemon died ends with the image: it gets whole pages again.
    pub(super) fn whole_pages_again(&self) -> io::Result<()> {
        let Some(files) = self.files() else {
            return Ok(());
        };
        let len_bytes = files.data.len()?;
        match len_bytes.is_multiple_of(PAGE_BYTES) {
            true => Ok(()),
            false => self.set_data_len(&files, len_bytes),
        }
    }

    /// Gives the space of the whole cache file back; while held, when the hold ends.
    pub(super) fn empty_data(&self, files: &Files) -> io::Result<()> {
        let empty = || {
            let len_bytes = files.data.len()?;
            files.data.set_len(0)?;
            files.data.set_len(len_bytes)
        };
        self.change_file(empty).unwrap_or_else(|| {
            self.void_when_released(&(0..u64::MAX));
            Ok(())
        })
    }

    /// Does `change` to the length of the cache file in turn with holds; `None` while it is held.
    fn change_file<T>(&self, change: impl FnOnce() -> T) -> Option<T> {
        let mut state = self.holds.turn();
        if state.count > 0 {
            return None;
        }
        state.changing = true;
        drop(state);
        let changed = change();
        self.holds.turn_over();
        Some(changed)
    }

    /// Notes that `pages` became void while held; false if the image is not held and the caller must
    /// punch.
    pub(super) fn void_when_released(&self, pages: &Pages) -> bool {
        let mut state = self.holds.state.lock();
        if state.count == 0 {
            return false;
        }
        state.void.push(pages.clone());
        true
    }

    fn begin_hold(&self) -> Result<(), NotHeld> {
        if self.stays_frozen() && !self.holds.is_lingering() && self.stays_frozen_for_long() {
            return Err(NotHeld::Frozen);
        }
        let mut state = self.holds.turn();
        if state.count > 0 {
            return match self.is_whole() {
                true => {
                    state.count += 1;
                    Ok(())
                }
                false => Err(NotHeld::NotWhole),
            };
        }
        let size_bytes = self.version.head().validator.size_bytes;
        if !self.device.try_hold(size_bytes) {
            return Err(NotHeld::NoRoom);
        }
        state.changing = true;
        state.count = 1;
        state.reserved_bytes = size_bytes;
        self.holds.held.store(true, Ordering::SeqCst);
        drop(state);
        let begun = self.prepare_file(size_bytes);
        self.holds.turn_over();
        if begun.is_err() {
            self.end_hold();
        }
        begun
    }

    /// Waits for those who had begun before, looks at the pages, and cuts the file to the image's size.
    fn prepare_file(&self, size_bytes: u64) -> Result<(), NotHeld> {
        self.claims.wait_until_idle();
        let files = self.files().ok_or(NotHeld::NotWhole)?;
        if !self.is_whole() || self.version.head().validator.size_bytes != size_bytes {
            return Err(NotHeld::NotWhole);
        }
        files.data.set_len(size_bytes).map_err(|error| {
            self.report(&error);
            NotHeld::Failed
        })
    }

    /// True when every page of the image is resident and verified.
    fn is_whole(&self) -> bool {
        let size_bytes = self.version.head().validator.size_bytes;
        let pages = 0..size_bytes.div_ceil(PAGE_BYTES);
        let usable = !self.disowned.load(Ordering::Acquire) && !self.version.is_dropping();
        usable && self.map.state(&pages) == State::Ready
    }

    pub(super) fn end_hold(&self) {
        let mut state = self.holds.turn();
        if state.count > 1 {
            state.count -= 1;
            return;
        }
        state.changing = true;
        drop(state);
        if let Err(error) = self.restore_file() {
            self.report(&error);
        }
        self.device
            .end_hold(std::mem::take(&mut self.holds.state.lock().reserved_bytes));
        self.return_blocks();
        self.holds.turn_over();
        self.recount();
    }

    /// Gives the file whole pages again and punches what became void.
    fn restore_file(&self) -> io::Result<()> {
        let Some(files) = self.files() else {
            return Ok(());
        };
        let len_bytes = data_len(self.version.head().validator.size_bytes);
        files.data.set_len(len_bytes)?;
        loop {
            let void = {
                let mut state = self.holds.state.lock();
                if state.void.is_empty() {
                    // The flag still keeps inserts away; from now on droppers punch for themselves.
                    state.count = 0;
                    return Ok(());
                }
                std::mem::take(&mut state.void)
            };
            for pages in void {
                punch_pages(&files.data, &pages)?;
            }
        }
    }

    /// The hold is over: the module gets the blocks back. Under its lock, because it forgets held
    /// blocks when it meets them.
    fn return_blocks(&self) {
        let mut module = self.device.module.lock();
        let mut state = self.holds.state.lock();
        state.count = 0;
        // What flash would not punch stays: left-overs without a record, which inserts overwrite. It
        // must not be punched later, when something valid may lie there.
        state.void.clear();
        drop(state);
        self.holds.held.store(false, Ordering::SeqCst);
        self.map.queue_all(|block| module.inserted(self.key(block)));
    }
}

impl Holds {
    /// True once, when an orphan has kept the file for so long.
    pub(super) fn is_frozen_news(&self, after: Duration) -> bool {
        let mut state = self.state.lock();
        let is_news = state
            .frozen_since
            .is_some_and(|since| since.elapsed() >= after);
        if is_news {
            state.frozen_since = None;
            state.told_frozen = true;
        }
        is_news
    }

    /// Thaws; true where it was told that it is frozen.
    pub(super) fn thaw(&self) -> bool {
        let mut state = self.state.lock();
        state.frozen_since = None;
        state.lingering = false;
        std::mem::take(&mut state.told_frozen)
    }

    /// The last hold becomes that of an orphan.
    pub(super) fn linger(&self) {
        self.state.lock().lingering = true;
        self.frozen.store(true, Ordering::Release);
    }

    fn is_lingering(&self) -> bool {
        self.state.lock().lingering
    }

    /// Begins the hold of a reader that was there before us. Nobody else knows the entry yet.
    pub(super) fn freeze(&self) {
        let mut state = self.state.lock();
        state.count = 1;
        state.frozen_since = Some(Instant::now());
        drop(state);
        self.held.store(true, Ordering::SeqCst);
        self.frozen.store(true, Ordering::Release);
    }

    fn is_last(&self) -> bool {
        self.state.lock().count == 1
    }

    /// The state, when nobody is changing the file.
    fn turn(&self) -> parking_lot::MutexGuard<'_, HoldState> {
        let mut state = self.state.lock();
        while state.changing {
            self.changed.wait(&mut state);
        }
        state
    }

    fn turn_over(&self) {
        self.state.lock().changing = false;
        self.changed.notify_all();
    }
}

/// Ends a hold when dropped.
struct EndsHold<'a>(&'a Entry);

impl Drop for EndsHold<'_> {
    fn drop(&mut self) {
        self.0.end_hold();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.file = None;
        if !(self.entry.holds.is_last() && self.entry.lingers_if_shared()) {
            self.entry.end_hold();
        }
    }
}
