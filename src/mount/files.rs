//! Operations on open files: each goes to the image that the file is.

use std::ffi::OsString;
use std::sync::Arc;

use fuser::{
    FileHandle, FopenFlags, INodeNo, OpenFlags, ReplyCreate, ReplyData, ReplyEmpty, ReplyLseek,
    ReplyOpen, ReplyWrite,
};

use super::attr::{TTL, open_mode};
use super::core::{Core, Refuse, generation, settle};
use super::nodes::Inode;
use crate::image::Handle;
use crate::store::{Attr, Caller, Error, Node, OpenMode, Result, SetAttr, StoreFile};

/// How every image is opened: past the kernel's page cache, as the guest has its own.
const OPENED: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
/// One copy_file_range copies at most this, in bytes; the caller goes on from there.
const COPY_BYTES_MAX: u64 = 1 << 30;

/// An open file.
pub struct OpenFile {
    pub handle: Arc<Handle>,
    pub inode: Arc<Inode>,
    pub write: bool,
}

impl Core {
    /// The open file of a number the kernel gave.
    fn file(&self, number: FileHandle) -> Result<Arc<OpenFile>> {
        let file = self.files.get(number.0);
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

    /// Joins a store file to its image.
    pub fn join(
        &self,
        inode: &Arc<Inode>,
        file: Arc<dyn StoreFile>,
        attr: &Attr,
        mode: OpenMode,
    ) -> Arc<Handle> {
        let path = self.nodes.path(inode.nodeid);
        let name = path.to_string_lossy();
        self.images.open(&name, file, attr, mode.write)
    }

    /// Makes a store file an open file with a number. EIO when the mount is ending.
    fn opened(
        &self,
        inode: Arc<Inode>,
        file: Arc<dyn StoreFile>,
        attr: &Attr,
        mode: OpenMode,
    ) -> Result<FileHandle> {
        let handle = self.join(&inode, file, attr, mode);
        inode.opened();
        let file = OpenFile {
            handle,
            inode,
            write: mode.write,
        };
        match self.files.insert(Arc::new(file)) {
            Ok(number) => Ok(FileHandle(number)),
            Err(file) => {
                close(&file);
                Err(Error::from_errno(libc::EIO))
            }
        }
    }

    pub fn open(
        self: &Arc<Self>,
        who: Caller,
        nodeid: INodeNo,
        flags: OpenFlags,
        reply: ReplyOpen,
    ) {
        let mode = open_mode(flags);
        if mode.write && self.read_only {
            return reply.error(fuser::Errno::EROFS);
        }
        settle(reply, self.inode(nodeid), |reply, inode| {
            let asked = inode.clone();
            self.ask(
                "open",
                reply,
                move |core| core.open_store(&who, &asked.node, mode),
                move |core, reply, (file, attr)| {
                    inode.remember(&attr);
                    let opened = core.opened(inode, file, &attr, mode);
                    settle(reply, opened, |reply, number| reply.opened(number, OPENED));
                },
            );
        });
    }

    pub fn create(
        self: &Arc<Self>,
        who: Caller,
        (parent, name): (INodeNo, OsString),
        (permissions, umask): (u32, u32),
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mode = open_mode(OpenFlags(flags));
        let exclusive = flags & libc::O_EXCL != 0;
        settle(reply, self.inode(parent), |reply, dir| {
            let (nodeid, told) = (dir.nodeid, name.clone());
            self.ask(
                "create",
                reply,
                move |core| {
                    let permissions = core.masked(&who, &dir, permissions, umask);
                    core.store
                        .create(&who, &dir.node, &name, permissions, mode)
                        .map_err(|error| found_meanwhile(error, exclusive))
                },
                move |core, reply, (node, attr, file)| {
                    let inode = core.nodes.enter(nodeid, &told, node, &attr);
                    let shown = core.file_attr(&inode, &attr);
                    let opened = core.opened(inode.clone(), file, &attr, mode);
                    settle(reply, opened, |reply, number| {
                        reply.created(&TTL, &shown, generation(&inode), number, OPENED);
                    });
                },
            );
        });
    }

    pub fn read(&self, number: FileHandle, offset: u64, length: u32, reply: ReplyData) {
        settle(reply, self.file(number), |reply, file| {
            let done =
                |result: Result<&[u8]>| settle(reply, result, |reply, data| reply.data(data));
            file.handle.read(offset, length as usize, Box::new(done));
        });
    }

    pub fn write(
        self: &Arc<Self>,
        number: FileHandle,
        offset: u64,
        data: &[u8],
        strips_set_id: bool,
        reply: ReplyWrite,
    ) {
        settle(reply, self.file(number), |reply, file| {
            let length = data.len() as u32; // a request is 1 MiB at most
            let strips = strips_set_id
                && file
                    .inode
                    .last_attr()
                    .is_some_and(|attr| stripped(attr.mode) != attr.mode);
            let (core, inode) = (self.clone(), file.inode.clone());
            let done = move |result: Result<()>| {
                settle(reply, result, |reply, ()| {
                    if strips {
                        core.strip_set_id(inode, reply, move |reply| reply.written(length));
                    } else {
                        reply.written(length);
                    }
                });
            };
            file.handle.write(offset, data, Box::new(done));
        });
    }

    /// A write by someone without the right to keep them clears set-uid and set-gid, as on any
    /// filesystem. The writer need not own the file, so the daemon does it. A store that refuses
    /// the daemon has done it itself, as the write ran as the opener.
    fn strip_set_id<R: Refuse>(
        self: &Arc<Self>,
        inode: Arc<Inode>,
        reply: R,
        ok: impl FnOnce(R) + Send + 'static,
    ) {
        self.ask(
            "chmod",
            reply,
            move |core| {
                if let Err(error) = core.strip(&inode) {
                    log::debug!("cannot strip set-uid: {error}");
                }
                core.attr_outdated(&inode);
                Ok(())
            },
            |_, reply, ()| ok(reply),
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

    pub fn flush(&self, number: FileHandle, reply: ReplyEmpty) {
        settle(reply, self.file(number), |reply, file| {
            file.handle.close(answer(reply));
        });
    }

    pub fn sync(&self, number: FileHandle, data_only: bool, reply: ReplyEmpty) {
        settle(reply, self.file(number), |reply, file| {
            file.handle.flush(data_only, answer(reply));
        });
    }

    pub fn release(&self, number: FileHandle, reply: ReplyEmpty) {
        if let Some(file) = self.files.remove(number.0) {
            close(&file);
        }
        reply.ok();
    }

    pub fn allocate(
        &self,
        number: FileHandle,
        mode: i32,
        (offset, length): (u64, u64),
        reply: ReplyEmpty,
    ) {
        settle(reply, self.file(number), |reply, file| {
            file.handle.allocate(mode, offset, length, answer(reply));
        });
    }

    pub fn seek(&self, number: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        if !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return reply.error(fuser::Errno::EINVAL); // the kernel does the others itself
        }
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(fuser::Errno::ENXIO);
        };
        settle(reply, self.file(number), |reply, file| {
            let done = |result: Result<u64>| {
                settle(reply, result, |reply, found| reply.offset(found as i64));
            };
            file.handle.seek(offset, whence, Box::new(done));
        });
    }

    pub fn copy(
        &self,
        (from, from_offset): (FileHandle, u64),
        (to, to_offset): (FileHandle, u64),
        length: u64,
        reply: ReplyWrite,
    ) {
        let files = self.file(from).and_then(|from| Ok((from, self.file(to)?)));
        settle(reply, files, |reply, (from, to)| {
            let done = |result: Result<u64>| {
                settle(reply, result, |reply, copied| reply.written(copied as u32));
            };
            let length = length.min(COPY_BYTES_MAX);
            from.handle
                .copy_to(from_offset, &to.handle, to_offset, length, Box::new(done));
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
}

/// An answer without content.
pub fn answer(reply: ReplyEmpty) -> crate::image::Done<()> {
    Box::new(|result| settle(reply, result, |reply, ()| reply.ok()))
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
