//! Operations on directories: listing, with offsets that stay valid.
//!
//! An open directory reads the store in batches and serves the kernel's small requests from the
//! batch; a listing from the start (rewinddir) reads anew. What was listed to its end is remembered,
//! within bounds, and served when the store hangs.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::answer::{Answer, Listed, ListedName, Opened, refuse};
use super::core::{Core, with};
use super::nodes::Inode;
use super::once::Once;
use crate::handover::ledger::dirs::{CarriedDir, DirSlot};
use crate::store::{Caller, DirEntry, Error, Kind, Result};

/// Entries read from the store at once.
const BATCH_ENTRIES: usize = 1024;
/// A directory with more entries is not remembered.
const REMEMBERED_ENTRIES_MAX: usize = 16 * 1024;
/// Entries remembered of all directories together (some 100 bytes each); past it the directory
/// listed longest ago is forgotten.
const REMEMBERED_ENTRIES_TOTAL: usize = 64 * 1024;

/// Offsets of `.` and `..`, which the store does not list.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
/// Cookies this high are not shifted: the last cookie of an ext4 directory is the highest number.
const COOKIE_UNSHIFTED: u64 = i64::MAX as u64 - 2;

/// An open directory.
pub struct OpenDir {
    inode: Arc<Inode>,
    batch: Mutex<Batch>,
    /// Where it is in the ledger, if it is carried.
    pub slot: Option<DirSlot>,
}

/// What was read ahead of the kernel.
#[derive(Default)]
struct Batch {
    /// Where in the directory `entries` begin.
    after_cookie: u64,
    entries: Arc<Vec<DirEntry>>,
    /// Nobody has listed from it yet: a first request at its start need not read again.
    unused: bool,
    /// Everything from the start until here, as long as it can be remembered.
    so_far: Option<Vec<DirEntry>>,
}

/// Listings of directories, remembered for when the store hangs.
#[derive(Default)]
pub struct Listings(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    by_dir: HashMap<u64, Arc<Vec<DirEntry>>>,
    oldest_first: VecDeque<u64>,
    entries: usize,
}

impl Core {
    pub fn open_dir(
        self: &Arc<Self>,
        who: Caller,
        nodeid: u64,
        once: Once,
        answer: Answer<Opened>,
    ) {
        self.close_dir_opened_before(&once);
        with(answer, self.inode(nodeid), |answer, inode| {
            let (asked, known) = (inode.clone(), inode.nodeid);
            self.ask_or(
                "opendir",
                answer,
                move |core| core.store.read_dir(&who, &asked.node, 0, BATCH_ENTRIES),
                move |core, entries| core.dir_opened(inode, entries, &once),
                move |core| Some(core.listings.get(known)?.to_vec()),
            );
        });
    }

    fn dir_opened(&self, inode: Arc<Inode>, entries: Vec<DirEntry>, once: &Once) -> Result<Opened> {
        let number = self.legacy.ledger.next_handle();
        let slot = self.legacy.dir_opened(&CarriedDir {
            number,
            nodeid: inode.nodeid,
            unique: once.unique(),
        });
        let dir = OpenDir::new(inode, slot);
        dir.take_batch(self, 0, entries, true);
        match self.dirs.insert(number, Arc::new(dir)) {
            Ok(()) => Ok(Opened {
                number,
                backing: None,
            }),
            Err(dir) => {
                self.legacy.dir_closed(dir.slot);
                Err(Error::from_errno(libc::EIO)) // the mount is ending
            }
        }
    }

    /// The kernel never heard of a directory that this request opened when a server before carried it out.
    fn close_dir_opened_before(&self, once: &Once) {
        if !once.is_sent_again() {
            return;
        }
        let before = self.legacy.dirs_by_request.lock().remove(&once.unique());
        if let Some(number) = before {
            self.close_dir(number);
        }
    }

    fn close_dir(&self, number: u64) {
        if let Some(dir) = self.dirs.remove(number) {
            self.legacy.dir_closed(dir.slot);
        }
    }

    pub fn read_dir(
        self: &Arc<Self>,
        who: Caller,
        number: u64,
        offset: u64,
        answer: Answer<Listed>,
    ) {
        let Some(dir) = self.dirs.get(number) else {
            return refuse(answer, libc::EBADF);
        };
        let (dots, cookie) = (self.dots(&dir, offset), cookie(offset));
        if let Some((entries, from)) = dir.batched(cookie, offset == 0) {
            return answer(Ok(Listed {
                dots,
                entries,
                from,
            }));
        }
        let (asked, known) = (dir.clone(), dir.inode.nodeid);
        self.ask_or(
            "readdir",
            answer,
            move |core| {
                core.store
                    .read_dir(&who, &asked.inode.node, cookie, BATCH_ENTRIES)
            },
            move |core, entries| {
                Ok(Listed {
                    dots,
                    entries: dir.take_batch(core, cookie, entries, false),
                    from: 0,
                })
            },
            move |core| after(&core.listings.get(known)?, cookie).map(|rest| rest.to_vec()),
        );
    }

    /// `.` and `..`, where the offset is before them.
    fn dots(&self, dir: &OpenDir, offset: u64) -> [Option<(u64, u64, &'static str)>; 2] {
        let own = dir.inode.nodeid;
        [
            (offset < DOT).then_some((own, DOT, ".")),
            (offset < DOT_DOT).then(|| (self.nodes.parent(own), DOT_DOT, "..")),
        ]
    }

    pub fn release_dir(&self, number: u64, answer: Answer<()>) {
        self.close_dir(number);
        answer(Ok(()));
    }

    pub fn sync_dir(self: &Arc<Self>, who: Caller, nodeid: u64, answer: Answer<()>) {
        with(answer, self.inode(nodeid), |answer, inode| {
            self.ask(
                "fsyncdir",
                answer,
                move |core| core.store.sync_dir(&who, &inode.node),
                |_, ()| Ok(()),
            );
        });
    }
}

impl OpenDir {
    /// One that nothing is read of yet.
    pub fn new(inode: Arc<Inode>, slot: Option<DirSlot>) -> OpenDir {
        OpenDir {
            inode,
            batch: Mutex::default(),
            slot,
        }
    }

    /// Entries after `cookie` that are at hand. None: ask the store.
    fn batched(&self, cookie: u64, from_start: bool) -> Option<(Arc<Vec<DirEntry>>, usize)> {
        let mut batch = self.batch.lock();
        let all = batch.entries.clone();
        if cookie == batch.after_cookie && !all.is_empty() {
            let fresh = std::mem::take(&mut batch.unused);
            return (fresh || !from_start).then_some((all, 0));
        }
        let index = all.iter().position(|entry| entry.cookie == cookie)?;
        (index + 1 < all.len()).then_some((all, index + 1))
    }

    /// Keeps what was read after `cookie`. At the end of the directory the whole is remembered.
    fn take_batch(
        &self,
        core: &Core,
        cookie: u64,
        entries: Vec<DirEntry>,
        unused: bool,
    ) -> Arc<Vec<DirEntry>> {
        let mut batch = self.batch.lock();
        let goes_on = batch
            .entries
            .last()
            .is_some_and(|last| last.cookie == cookie);
        let so_far = match (cookie, goes_on) {
            (0, _) => Some(Vec::new()),
            (_, true) => batch.so_far.take(),
            (_, false) => None,
        };
        if entries.is_empty() {
            if let Some(whole) = so_far {
                core.listings.remember(self.inode.nodeid, whole);
            }
            return Arc::default();
        }
        batch.so_far = so_far.and_then(|listed| extended(listed, &entries));
        batch.after_cookie = cookie;
        batch.unused = unused;
        batch.entries = Arc::new(entries);
        batch.entries.clone()
    }
}

/// `listed` and then `entries`, unless that is too much to remember.
fn extended(mut listed: Vec<DirEntry>, entries: &[DirEntry]) -> Option<Vec<DirEntry>> {
    listed.extend_from_slice(entries);
    (listed.len() <= REMEMBERED_ENTRIES_MAX).then_some(listed)
}

/// The entries after `cookie`.
fn after(entries: &[DirEntry], cookie: u64) -> Option<&[DirEntry]> {
    if cookie == 0 {
        return Some(entries);
    }
    let index = entries.iter().position(|entry| entry.cookie == cookie)?;
    Some(&entries[index + 1..])
}

impl Listed {
    /// Gives name after name to `add` until that says that it is full.
    pub fn fill(&self, add: impl FnMut(ListedName<'_>) -> bool) {
        let dots = self.dots.iter().flatten().map(|dot| ListedName {
            ino: dot.0,
            offset: dot.1,
            kind: Kind::Dir,
            name: OsStr::new(dot.2),
        });
        let entries = self.entries[self.from..].iter().map(|entry| ListedName {
            ino: entry.ino,
            offset: offset(entry.cookie),
            kind: entry.kind,
            name: &entry.name,
        });
        let _full = dots.chain(entries).any(add);
    }
}

/// A store's cookie as the kernel's offset, leaving room for `.` and `..`.
fn offset(cookie: u64) -> u64 {
    if cookie >= COOKIE_UNSHIFTED {
        cookie
    } else {
        cookie + DOT_DOT
    }
}

/// The store's cookie of an offset.
fn cookie(offset: u64) -> u64 {
    if offset >= COOKIE_UNSHIFTED {
        offset
    } else {
        offset.saturating_sub(DOT_DOT)
    }
}

impl Listings {
    /// The listing of a directory, if it is remembered.
    pub fn get(&self, dir: u64) -> Option<Arc<Vec<DirEntry>>> {
        self.0.lock().by_dir.get(&dir).cloned()
    }

    /// This is all there is in a directory.
    fn remember(&self, dir: u64, entries: Vec<DirEntry>) {
        let mut remembered = self.0.lock();
        remembered.forget(dir);
        remembered.entries += entries.len();
        remembered.by_dir.insert(dir, Arc::new(entries));
        remembered.oldest_first.push_back(dir);
        while remembered.entries > REMEMBERED_ENTRIES_TOTAL
            || remembered.by_dir.len() > REMEMBERED_ENTRIES_MAX
        {
            let Some(oldest) = remembered.oldest_first.front().copied() else {
                break;
            };
            remembered.forget(oldest);
        }
    }

    /// The directory is gone.
    pub fn forget(&self, dir: u64) {
        self.0.lock().forget(dir);
    }
}

impl Remembered {
    fn forget(&mut self, dir: u64) {
        if let Some(entries) = self.by_dir.remove(&dir) {
            self.entries -= entries.len();
            self.oldest_first.retain(|other| *other != dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: u64) -> Vec<DirEntry> {
        let entry = |number: u64| DirEntry {
            name: format!("f{number}").into(),
            ino: number,
            kind: Kind::File,
            cookie: number * 10,
        };
        (1..=count).map(entry).collect()
    }

    #[test]
    fn offsets_and_cookies_match_and_leave_room_for_the_dots() {
        for number in [0, 1, 2, 77, 1 << 40, i64::MAX as u64] {
            assert_eq!(cookie(offset(number)), number);
            assert!(offset(number) >= DOT_DOT);
            assert!(i64::try_from(offset(number)).is_ok());
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let listings = Listings::default();
        for dir in 0..10 {
            listings.remember(dir, entries(10_000));
        }
        assert!(listings.0.lock().entries <= REMEMBERED_ENTRIES_TOTAL);
        assert!(listings.get(0).is_none());
        assert_eq!(listings.get(9).expect("newest").len(), 10_000);
        listings.forget(9);
        assert!(listings.get(9).is_none());
    }

    #[test]
    fn a_listing_goes_on_after_any_entry() {
        let all = entries(3);
        assert_eq!(after(&all, 0).expect("all").len(), 3);
        assert_eq!(after(&all, 20).expect("rest")[0].name, "f3");
        assert!(after(&all, 30).expect("end").is_empty());
        assert!(after(&all, 15).is_none());
    }
}
