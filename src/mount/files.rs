//! Operations on open files: each goes to the image that the file is.

use std::ffi::OsString;
use std::sync::Arc;

use parking_lot::Mutex;

use super::answer::{Answer, Entry, Opened, open_mode, refuse};
use super::core::{Core, with};
use super::nodes::Inode;
use crate::image::plane::{Seat, Why};
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
}

impl Core {
    /// The open file of a number the kernel gave.
    pub fn file(&self, number: u64) -> Result<Arc<OpenFile>> {
        let file = self.files.get(number);
        file.ok_or_else(|| Error::from_errno(libc::EBADF))
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

    /// Makes an open image an open file with a number. EIO when the mount is ending.
    pub fn opened(
        &self,
        inode: Arc<Inode>,
        handle: Arc<Handle>,
        seat: Seat,
        mode: OpenMode,
    ) -> Result<Opened> {
        inode.opened();
        let backing = seat.backing();
        let file = OpenFile {
            handle,
            inode,
            write: mode.write,
            seat: Mutex::new(Some(seat)),
        };
        match self.files.insert(Arc::new(file)) {
            Ok(number) => Ok(Opened { number, backing }),
            Err(file) => {
                close(&file);
                Err(Error::from_errno(libc::EIO))
            }
        }
    }

    pub fn open(self: &Arc<Self>, who: Caller, nodeid: u64, flags: i32, answer: Answer<Opened>) {
        let mode = open_mode(flags);
        if mode.write && self.read_only {
            return refuse(answer, libc::EROFS);
        }
        with(answer, self.inode(nodeid), |answer, inode| {
            let (finder, core, asked) = (self.clone(), self.clone(), inode.clone());
            let find = move || finder.find(&who, &asked, mode);
            self.executor.submit("open", find, move |found| {
                with(answer, found, |answer, found| {
                    core.take_plane(inode, found, mode, answer);
                });
            });
        });
    }

    pub fn create(
        self: &Arc<Self>,
        who: Caller,
        (parent, name): (u64, OsString),
        (permissions, umask): (u32, u32),
        flags: i32,
        answer: Answer<(Entry, Opened)>,
    ) {
        let mode = open_mode(flags);
        let exclusive = flags & libc::O_EXCL != 0;
        with(answer, self.inode(parent), |answer, dir| {
            let (nodeid, told) = (dir.nodeid, name.clone());
            self.ask(
                "create",
                answer,
                move |core| {
                    let permissions = core.masked(&who, &dir, permissions, umask);
                    core.store
                        .create(&who, &dir.node, &name, permissions, mode)
                        .map_err(|error| found_meanwhile(error, exclusive))
                },
                move |core, (node, attr, file)| {
                    let inode = core.nodes.enter(nodeid, &told, node, &attr);
                    let entry = core.entry(&inode, &attr);
                    Ok((entry, core.opened_new(inode, file, &attr, mode)?))
                },
            );
        });
    }

    /// Opens an image that has just been made. Nobody can have said yet that it is immutable, and a rule that
    /// says so must let it come into being.
    fn opened_new(
        &self,
        inode: Arc<Inode>,
        file: Arc<dyn StoreFile>,
        attr: &Attr,
        mode: OpenMode,
    ) -> Result<Opened> {
        let seats = &self.images.seats;
        let seat = match mode.write {
            true => Some(seats.sit_to_write(inode.id)?),
            false => seats.sit_to_read(inode.id, Some(Why::NotImmutable))?,
        };
        let seat = seat.ok_or_else(|| Error::from_errno(libc::EIO))?;
        let handle = self.join(&inode, file, attr, mode)?;
        self.opened(inode, handle, seat, mode)
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
        if let Some(file) = self.files.remove(number) {
            close(&file);
        }
        answer(Ok(()));
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
        for file in self.files.close() {
            close(&file);
        }
        self.dirs.close();
    }
}

fn close(file: &OpenFile) {
    file.handle.release();
    file.inode.closed();
    let seat = file.seat.lock().take();
    drop(seat);
}

/// The kernel asks for a creation because it saw no such name. If one has come up meanwhile (another
/// host made it) and that is no error to the caller, ESTALE makes the kernel look again.
fn found_meanwhile(error: Error, exclusive: bool) -> Error {
    if error.errno() == libc::EEXIST && !exclusive {
        return Error::from_errno(libc::ESTALE);
    }
    error
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
