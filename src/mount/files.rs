//! Operations on open files: each goes to the image that the file is.

use std::sync::Arc;

use parking_lot::Mutex;

use super::answer::{Answer, Opened, open_mode, refuse};
use super::core::{Core, with};
use super::nodes::Inode;
use super::once::Once;
use super::take_on::Lack;
use crate::handover::ledger::files::{CarriedFile, FileSlot};
use crate::image::plane::{Plane, Seat};
use crate::image::{Handle, Permit, ReadDone};
use crate::store::{Attr, Caller, Error, Node, OpenMode, Result, SetAttr, StoreFile};

/// One copy_file_range copies at most this, in bytes; the caller goes on from there.
const COPY_BYTES_MAX: u64 = 1 << 30;

/// An open file.
pub struct OpenFile {
    pub handle: Arc<Handle>,
    pub inode: Arc<Inode>,
    pub write: bool,
    /// Given back at the release.
    seat: Mutex<Option<Seat>>,
    /// Where it is in the ledger, if it is carried.
    slot: Option<FileSlot>,
}

/// Who opens a file, how, and by which request.
pub struct Opening {
    pub who: Caller,
    pub mode: OpenMode,
    pub once: Once,
}

impl OpenFile {
    pub fn new(
        handle: Arc<Handle>,
        inode: Arc<Inode>,
        seat: Seat,
        write: bool,
        slot: Option<FileSlot>,
    ) -> OpenFile {
        inode.opened();
        OpenFile {
            handle,
            inode,
            write,
            seat: Mutex::new(Some(seat)),
            slot,
        }
    }

    /// The backing id, while the kernel reads it itself.
    pub fn backing(&self) -> Option<u32> {
        self.seat.lock().as_ref().and_then(Seat::backing)
    }
}

impl Core {
    /// The open file of a number the kernel gave.
    pub fn file(&self, number: u64) -> Result<Arc<OpenFile>> {
        let file = self.files.get(number);
        file.ok_or_else(|| self.no_file(number))
    }

    #[cold]
    fn no_file(&self, number: u64) -> Error {
        let errno = self.missing.errno(number).unwrap_or(libc::EBADF);
        Error::from_errno(errno)
    }

    /// Opens a store file and reads its attributes through the new descriptor (rule 7).
    pub fn open_store(
        &self,
        who: &Caller,
        node: &Node,
        mode: OpenMode,
    ) -> Result<(Arc<dyn StoreFile>, Attr)> {
        let file = self.store.open(who, node, mode)?;
        let attr = file.attr()?;
        Ok((file, attr))
    }

    /// Joins a store file to its image. ESTALE where it has changed under those who read it directly.
    pub fn join(
        &self,
        inode: &Arc<Inode>,
        file: Arc<dyn StoreFile>,
        attr: &Attr,
        mode: OpenMode,
    ) -> Result<Arc<Handle>> {
        let path = self.nodes.path(inode.nodeid);
        let name = path.to_string_lossy();
        self.images.open(&name, file, attr, mode.write)
    }

    /// Joins a file that the kernel serves since an earlier server.
    pub fn go_on(
        &self,
        inode: &Arc<Inode>,
        file: Arc<dyn StoreFile>,
        attr: &Attr,
        mode: OpenMode,
    ) -> Arc<Handle> {
        let path = self.nodes.path(inode.nodeid);
        let name = path.to_string_lossy();
        self.images.go_on(&name, file, attr, mode.write)
    }

    /// Makes an open image an open file with a number. EIO when the mount is ending.
    pub fn opened(
        &self,
        inode: Arc<Inode>,
        handle: Arc<Handle>,
        seat: Seat,
        opening: &Opening,
    ) -> Result<Opened> {
        let (mode, who, backing) = (opening.mode, &opening.who, seat.backing());
        let carried = CarriedFile {
            number: self.legacy.ledger.next_handle(),
            nodeid: inode.nodeid,
            unique: opening.once.unique(),
            read: mode.read,
            write: mode.write,
            sync: mode.sync,
            why: match seat.plane() {
                Plane::Daemon(why) => why.number(),
                Plane::Passthrough => 0,
            },
            backing,
            uid: who.uid,
            gid: who.gid,
            groups: who.groups.to_vec(),
            closing: false,
        };
        let number = carried.number;
        let slot = (self.legacy).file_opened(&carried, handle.store_file().as_ref());
        let file = OpenFile::new(handle, inode, seat, mode.write, slot);
        match self.files.insert(number, Arc::new(file)) {
            Ok(()) => Ok(Opened { number, backing }),
            Err(file) => {
                self.close(number, &file);
                Err(Error::from_errno(libc::EIO))
            }
        }
    }

    pub fn open(
        self: &Arc<Self>,
        who: Caller,
        nodeid: u64,
        flags: i32,
        once: Once,
        answer: Answer<Opened>,
    ) {
        let mode = open_mode(flags);
        if let Some(number) = self.opened_before(&once) {
            self.close_file(number);
        }
        if mode.write && self.read_only {
            return refuse(answer, libc::EROFS);
        }
        with(answer, self.inode(nodeid), |answer, inode| {
            let (finder, core, asked) = (self.clone(), self.clone(), inode.clone());
            let opening = Opening { who, mode, once };
            let who = opening.who.clone();
            let find = move || finder.find(&who, &asked, mode);
            self.executor.submit("open", find, move |found| {
                with(answer, found, |answer, found| {
                    core.take_plane(inode, found, opening, answer);
                });
            });
        });
    }

    /// The file that this request opened when a server before carried it out, told once.
    pub fn opened_before(&self, once: &Once) -> Option<u64> {
        if !once.is_sent_again() {
            return None;
        }
        let mut requests = self.legacy.files_by_request.lock();
        requests.remove(&once.unique())
    }

    pub fn read(&self, number: u64, offset: u64, length: u32, done: ReadDone) {
        match self.file(number) {
            Ok(file) => file.handle.read(offset, length as usize, done),
            Err(error) => done(Err(error)),
        }
    }

    /// Writes to an open file; waits for memory where there is too little.
    pub fn write(
        self: &Arc<Self>,
        number: u64,
        offset: u64,
        data: &[u8],
        strips_set_id: bool,
        answer: Answer<u32>,
    ) {
        with(answer, self.file(number), |answer, file| {
            match file.handle.permit(data.len()) {
                Some(permit) => self.write_to(&file, offset, data, permit, strips_set_id, answer),
                None => answer(Err(Error::Overloaded)),
            }
        });
    }

    /// As [`Core::write`], with the file found and memory taken.
    pub fn write_to(
        self: &Arc<Self>,
        file: &OpenFile,
        offset: u64,
        data: &[u8],
        permit: Permit,
        strips_set_id: bool,
        answer: Answer<u32>,
    ) {
        let length = data.len() as u32; // a request is 1 MiB at most
        let set_id = |attr: Attr| stripped(attr.mode) != attr.mode;
        let strips = strips_set_id && file.inode.last_attr().is_some_and(set_id);
        let (core, inode) = (self.clone(), file.inode.clone());
        let done = move |result: Result<()>| {
            with(answer, result, |answer, ()| match strips {
                true => core.strip_set_id(inode, length, answer),
                false => answer(Ok(length)),
            });
        };
        file.handle.write(offset, data, permit, Box::new(done));
    }

    /// A write by someone without the right to keep them clears set-uid and set-gid, as on any
    /// filesystem. The writer need not own the file, so the daemon does it. A store that refuses
    /// the daemon has done it itself, as the write ran as the opener.
    fn strip_set_id<A: Send + 'static>(
        self: &Arc<Self>,
        inode: Arc<Inode>,
        value: A,
        answer: Answer<A>,
    ) {
        self.ask(
            "chmod",
            answer,
            move |core| {
                if let Err(error) = core.strip(&inode) {
                    log::debug!("cannot strip set-uid: {error}");
                }
                core.attr_outdated(&inode);
                Ok(())
            },
            |_, ()| Ok(value),
        );
    }

    /// Clears set-uid and set-gid as the daemon.
    pub fn strip(&self, inode: &Inode) -> Result<()> {
        let own = self.callers.own();
        let mode = self.store.attr(&own, &inode.node)?.mode;
        let set = SetAttr {
            mode: Some(stripped(mode)),
            ..SetAttr::default()
        };
        if stripped(mode) != mode {
            let change = || self.store.set_attr(&own, &inode.node, &set);
            self.keeping_version(&own, inode, change)?;
        }
        if let Some(attr) = inode.last_attr() {
            inode.remember(&Attr {
                mode: stripped(mode),
                ..attr
            });
        }
        Ok(())
    }

    pub fn flush(&self, number: u64, answer: Answer<()>) {
        with(answer, self.file(number), |answer, file| {
            file.handle.close(answer);
        });
    }

    pub fn sync(&self, number: u64, data_only: bool, answer: Answer<()>) {
        with(answer, self.file(number), |answer, file| {
            file.handle.flush(data_only, answer);
        });
    }

    pub fn release(&self, number: u64, answer: Answer<()>) {
        self.close_file(number);
        answer(Ok(()));
    }

    /// Closes a file, if it is there.
    pub fn close_file(&self, number: u64) {
        if let Some(lack) = self.missing.remove(number) {
            self.close_missing(number, lack);
        } else if let Some(file) = self.files.remove(number) {
            self.close(number, &file);
        }
    }

    fn close(&self, number: u64, file: &OpenFile) {
        file.handle.release();
        file.inode.closed();
        self.legacy.file_closing(file.slot);
        let seat = file.seat.lock().take();
        drop(seat);
        self.legacy.file_closed(number, file.slot);
    }

    fn close_missing(&self, number: u64, lack: Lack) {
        self.legacy.file_closing(Some(lack.slot));
        drop(lack.seat);
        self.legacy.file_closed(number, Some(lack.slot));
    }

    pub fn allocate(
        &self,
        number: u64,
        mode: i32,
        (offset, length): (u64, u64),
        answer: Answer<()>,
    ) {
        with(answer, self.file(number), |answer, file| {
            file.handle.allocate(mode, offset, length, answer);
        });
    }

    pub fn seek(&self, number: u64, offset: i64, whence: i32, answer: Answer<u64>) {
        if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return refuse(answer, libc::EINVAL); // the kernel does the others itself
        }
        let Ok(offset) = u64::try_from(offset) else {
            return refuse(answer, libc::ENXIO);
        };
        with(answer, self.file(number), |answer, file| {
            file.handle.seek(offset, whence, answer);
        });
    }

    pub fn copy(
        &self,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        length: u64,
        answer: Answer<u64>,
    ) {
        let files = self.file(from).and_then(|from| Ok((from, self.file(to)?)));
        with(answer, files, |answer, (from, to)| {
            let length = length.min(COPY_BYTES_MAX);
            from.handle
                .copy_to(from_offset, &to.handle, to_offset, length, answer);
        });
    }

    /// Closes every file that the kernel did not, as it ends without saying so.
    pub fn release_all(&self) {
        for (number, file) in self.files.close() {
            self.close(number, &file);
        }
        for (number, lack) in self.missing.clear() {
            self.close_missing(number, lack);
        }
        for (_, dir) in self.dirs.close() {
            self.legacy.dir_closed(dir.slot);
        }
    }
}

/// A mode without set-uid, and without set-gid where that is not the old mark of mandatory locking.
fn stripped(mode: u32) -> u32 {
    let set_gid = if mode & libc::S_IXGRP != 0 {
        libc::S_ISGID
    } else {
        0
    };
    mode & !(libc::S_ISUID | set_gid)
}
