//! Going on where a server before has ended: its inodes, open directories and open files, from the ledger
//! and the descriptors that were held, before the first request is read.
//!
//! # Order of steps
//! 1. Inodes are entered, none looked for ([`super::nodes::Nodes::take_on`]).
//! 2. Directories are opened: the kernel says itself where a listing goes on.
//! 3. Files join their images as at any open, several at once, on the executor: their versions are
//!    compared, and they sit down where they sat. A file that cannot be taken on is *missing*: requests
//!    for it get an error, and its release is a release.
//!
//! # Waiting
//! A store that hangs is not waited for: what this host last heard of a file stands in for its attributes,
//! as its server before would have gone on with them. What is late all the same comes when it comes, and
//! the others are served meanwhile.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::core::Core;
use super::files::OpenFile;
use super::listing::OpenDir;
use crate::handover::ledger::files::{CarriedFile, FileSlot};
use crate::image::plane::Why;
use crate::store::{Attr, Caller, OpenMode, Result, StoreFile};

/// How long files that are late keep the others waiting; long enough to see that a store hangs.
const PATIENCE: Duration = Duration::from_secs(3);

/// A file of the store, and its attributes.
type StoreOpened = (Arc<dyn StoreFile>, Attr);

/// Files that servers before have opened and that are not taken on, by number.
#[derive(Default)]
pub struct Missing(Mutex<HashMap<u64, Lack>>);

/// Why a file is missing.
#[derive(Clone, Copy, Debug)]
struct Lack {
    slot: FileSlot,
    /// What requests get.
    errno: i32,
}

impl Missing {
    /// What requests for a file get that is missing.
    pub fn errno(&self, number: u64) -> Option<i32> {
        self.0.lock().get(&number).map(|lack| lack.errno)
    }

    /// It is taken on, or closed; gives its slot unless it was not missing any more.
    pub fn remove(&self, number: u64) -> Option<FileSlot> {
        self.0.lock().remove(&number).map(|lack| lack.slot)
    }

    fn is_missing(&self, number: u64, slot: FileSlot, errno: i32) {
        self.0.lock().insert(number, Lack { slot, errno });
    }

    /// Takes out everything.
    pub fn clear(&self) -> Vec<(u64, FileSlot)> {
        let all = std::mem::take(&mut *self.0.lock());
        let slots = all.into_iter();
        slots.map(|(number, lack)| (number, lack.slot)).collect()
    }
}

impl Core {
    /// Takes on what servers before have left in the ledger; `held` are the store's files by number.
    /// Returns after a bounded time.
    pub fn take_on(self: &Arc<Self>, held: HashMap<u64, OwnedFd>) {
        let began = Instant::now();
        self.nodes.take_on(self.store.as_ref());
        self.take_on_dirs();
        let files = self.take_on_files(held);
        self.legacy.ledger.restarted();
        log::info!(
            "took over {} inodes and {files} open files in {} ms",
            self.nodes.count(),
            began.elapsed().as_millis()
        );
    }

    fn take_on_dirs(&self) {
        for (slot, carried) in self.legacy.ledger.dirs.all() {
            let Ok(inode) = self.inode(carried.nodeid) else {
                self.legacy.dir_closed(Some(slot));
                continue;
            };
            let dir = OpenDir::new(inode, Some(slot));
            if self.dirs.insert(carried.number, Arc::new(dir)).is_ok() {
                let mut requests = self.legacy.dirs_by_request.lock();
                requests.insert(carried.unique, carried.number);
            }
        }
    }

    /// Gives how many files there are.
    fn take_on_files(self: &Arc<Self>, mut held: HashMap<u64, OwnedFd>) -> usize {
        let all = self.legacy.ledger.files.all();
        let (told, tells) = channel();
        for (slot, carried) in &all {
            let number = carried.number;
            self.missing.is_missing(number, *slot, libc::EIO);
            let mut requests = self.legacy.files_by_request.lock();
            requests.insert(carried.unique, number);
            drop(requests);
            self.begin_to_take_on(*slot, carried.clone(), held.remove(&number), told.clone());
        }
        // Closed just before its server died.
        held.keys().for_each(|number| self.legacy.let_go(*number));
        drop(told);
        let deadline = Instant::now() + PATIENCE;
        let mut pending = all.len();
        while pending > 0 {
            let patience = deadline.saturating_duration_since(Instant::now());
            match tells.recv_timeout(patience) {
                Ok(()) => pending -= 1,
                Err(_) => break,
            }
        }
        if pending > 0 {
            log::warn!(
                "{pending} open files wait for the store: their requests fail until it answers"
            );
        }
        all.len()
    }

    fn begin_to_take_on(
        self: &Arc<Self>,
        slot: FileSlot,
        carried: CarriedFile,
        held: Option<OwnedFd>,
        told: Sender<()>,
    ) {
        let (worker, knower, core) = (self.clone(), self.clone(), self.clone());
        let (carried, held) = (Arc::new(carried), held.map(Arc::new));
        let (asked, known) = (carried.clone(), (carried.clone(), held.clone()));
        let work = move || {
            let file = worker.carried_file(&asked, held.as_deref())?;
            let attr = file.attr()?;
            Ok((file, attr))
        };
        let fallback = move || {
            let file = knower
                .carried_file(&known.0, Some(known.1.as_deref()?))
                .ok()?;
            let attr = file.known_attr().ok()?;
            Some((file, attr))
        };
        let done = move |found: Result<StoreOpened>| {
            let file = found.and_then(|found| core.joined(slot, &carried, found));
            core.taken_on(carried.number, slot, file);
            let _ = told.send(()); // nobody waits any more for what comes late
        };
        self.executor.submit_or("take on", work, done, fallback);
    }

    /// The store's file; asks the store only where none was held.
    fn carried_file(
        &self,
        carried: &CarriedFile,
        held: Option<&OwnedFd>,
    ) -> Result<Arc<dyn StoreFile>> {
        let (inode, mode) = (self.inode(carried.nodeid)?, mode_of(carried));
        let Some(held) = held else {
            return self.store.open(&self.callers.own(), &inode.node, mode);
        };
        let who = Caller {
            uid: carried.uid,
            gid: carried.gid,
            groups: carried.groups.as_slice().into(),
        };
        let held = held.try_clone()?;
        self.store.adopt_file(&who, &inode.node, mode, held)
    }

    /// The file joins its image and sits down. Blocks on flash.
    fn joined(
        &self,
        slot: FileSlot,
        carried: &CarriedFile,
        (file, attr): StoreOpened,
    ) -> Result<OpenFile> {
        let (inode, mode) = (self.inode(carried.nodeid)?, mode_of(carried));
        inode.remember(&attr);
        let handle = self.join(&inode, file, &attr, mode)?;
        let why = Why::of_number(carried.why).unwrap_or(Why::Failed);
        match self.carried_seat(&inode, &handle, mode, carried.backing, why) {
            Ok(seat) => Ok(OpenFile::new(handle, inode, seat, mode.write, Some(slot))),
            Err(error) => {
                handle.release();
                Err(error)
            }
        }
    }

    /// A file is there, or is not to be had.
    fn taken_on(&self, number: u64, slot: FileSlot, file: Result<OpenFile>) {
        match file {
            Ok(file) => {
                // Entered first, so that it is never neither here nor missing.
                let entered = self.files.insert(number, Arc::new(file)).is_ok();
                if self.missing.remove(number).is_none() && entered {
                    self.close_file(number); // the kernel has closed it meanwhile
                }
            }
            Err(error) => {
                if self.missing.errno(number).is_some() {
                    log::warn!("an open file cannot be taken on: {error}");
                    let errno = super::answer::errno(&error);
                    self.missing.is_missing(number, slot, errno);
                }
            }
        }
    }
}

fn mode_of(carried: &CarriedFile) -> OpenMode {
    OpenMode {
        read: carried.read,
        write: carried.write,
        sync: carried.sync,
    }
}
