//! Going on where a server before has ended: its inodes, open directories and open files, from the ledger
//! and the descriptors that were held, before the first request is read.
//!
//! # Order of steps
//! 1. Inodes are entered, none looked for ([`super::nodes::Nodes::take_on`]).
//! 2. Directories are opened: the kernel says itself where a listing goes on.
//! 3. Backing ids that nobody uses are taken back, and files that the kernel serves by the others sit down: it
//!    goes on with them, so no open may come to anything else ([`crate::image::plane`]).
//! 4. Files join their images as at any open, several at once, on the executor: their versions are
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
use crate::image::plane::{Seat, Why};
use crate::store::{Attr, Caller, Error, OpenMode, Result, StoreFile};

/// How long files that are late keep the others waiting; long enough to see that a store hangs.
const PATIENCE: Duration = Duration::from_secs(3);

/// A file of the store, and its attributes.
type StoreOpened = (Arc<dyn StoreFile>, Attr);

/// Files that servers before have opened and that are not taken on, by number.
#[derive(Default)]
pub struct Missing(Mutex<HashMap<u64, Lack>>);

/// A file that is missing.
pub struct Lack {
    pub slot: FileSlot,
    /// Where the kernel serves it, whatever we miss of it.
    pub seat: Option<Seat>,
    /// What requests get.
    errno: i32,
}

impl Missing {
    /// What requests for a file get that is missing.
    pub fn errno(&self, number: u64) -> Option<i32> {
        self.0.lock().get(&number).map(|lack| lack.errno)
    }

    /// It is taken on, or closed; unless it was not missing any more.
    pub fn remove(&self, number: u64) -> Option<Lack> {
        self.0.lock().remove(&number)
    }

    fn add(&self, number: u64, lack: Lack) {
        self.0.lock().insert(number, lack);
    }

    /// From now on requests get this; false if it is not missing any more.
    fn set_errno(&self, number: u64, errno: i32) -> bool {
        let mut all = self.0.lock();
        let lack = all.get_mut(&number).map(|lack| lack.errno = errno);
        lack.is_some()
    }

    /// The seat that it has already.
    fn take_seat(&self, number: u64) -> Option<Seat> {
        self.0.lock().get_mut(&number)?.seat.take()
    }

    /// Takes out everything.
    pub fn clear(&self) -> Vec<(u64, Lack)> {
        let all = std::mem::take(&mut *self.0.lock());
        all.into_iter().collect()
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
        let all = self.files_left(&mut held);
        let (told, tells) = channel();
        for (slot, carried) in &all {
            let number = carried.number;
            let lack = Lack {
                slot: *slot,
                seat: self.direct_seat(carried),
                errno: libc::EIO,
            };
            self.missing.add(number, lack);
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

    /// The files that are open; gives back what is left of those that are being closed.
    fn files_left(&self, held: &mut HashMap<u64, OwnedFd>) -> Vec<(FileSlot, CarriedFile)> {
        let all = self.legacy.ledger.files.all();
        let (closing, open): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, file)| file.closing);
        let backings = |files: &[(FileSlot, CarriedFile)]| {
            let backings = files.iter().filter_map(|(_, file)| file.backing);
            backings.collect::<Vec<u32>>()
        };
        self.planes.take_back(&backings(&closing), &backings(&open));
        for (slot, file) in closing {
            held.remove(&file.number);
            self.legacy.file_closed(file.number, Some(slot));
        }
        open
    }

    /// The seat of a file that the kernel serves: it does so however long the store lets us wait for the rest.
    fn direct_seat(&self, carried: &CarriedFile) -> Option<Seat> {
        let inode = self.inode(carried.nodeid).ok()?;
        Some(self.carried_direct_seat(&inode, carried.backing?))
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
            core.taken_on(carried.number, file);
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
        let seat = || match carried.backing {
            // Gone if the kernel has closed it meanwhile.
            Some(_) => (self.missing.take_seat(carried.number))
                .ok_or_else(|| Error::from_errno(libc::EBADF)),
            None => {
                let why = Why::of_number(carried.why).unwrap_or(Why::Failed);
                self.carried_seat(&inode, mode, why)
            }
        };
        let handle = match carried.backing {
            Some(_) => self.go_on(&inode, file, &attr, mode),
            None => self.join(&inode, file, &attr, mode)?,
        };
        match seat() {
            Ok(seat) => Ok(OpenFile::new(handle, inode, seat, mode.write, Some(slot))),
            Err(error) => {
                handle.release();
                Err(error)
            }
        }
    }

    /// A file is there, or is not to be had.
    fn taken_on(&self, number: u64, file: Result<OpenFile>) {
        match file {
            Ok(file) => {
                // Entered first, so that it is never neither here nor missing.
                let entered = self.files.insert(number, Arc::new(file)).is_ok();
                if self.missing.remove(number).is_none() && entered {
                    self.close_file(number); // the kernel has closed it meanwhile
                }
            }
            Err(error) => {
                if self.missing.set_errno(number, super::answer::errno(&error)) {
                    log::warn!("an open file cannot be taken on: {error}");
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
