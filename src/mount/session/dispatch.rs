//! From the kernel's requests to the operations: everything but reads and writes, which the loop takes
//! itself.
//!
//! Long because it has one short function per operation. A request that is not well-formed drops its
//! [`Reply`], which says EIO. Locks (GETLK, SETLK) are not taken over: without FUSE_POSIX_LOCKS and
//! FUSE_FLOCK_LOCKS the kernel keeps them itself.

use std::ffi::OsStr;
use std::sync::Arc;

use super::reply::Reply;
use super::request::Request;
use super::wire::{
    BatchForgetIn, CopyFileRangeIn, CreateIn, FSYNC_FDATASYNC, FallocateIn, FlushIn, ForgetIn,
    ForgetOne, FsyncIn, GetxattrIn, LinkIn, LseekIn, MkdirIn, MknodIn, OpenIn, ReadIn, ReleaseIn,
    Rename2In, RenameIn, SetattrIn, SetxattrIn, fattr, opcode,
};
use crate::mount::again::Making;
use crate::mount::core::Core;
use crate::mount::nodes::Inode;
use crate::mount::once::Once;
use crate::store::dir::attr::kind;
use crate::store::{Caller, Kind, SetAttr, SetTime, Timestamp};

/// Hands a request to its operation.
pub fn dispatch(core: &Arc<Core>, request: Request<'_>, reply: Reply) {
    let mut call = Call {
        core,
        node: request.header.nodeid,
        once: Once::never_again(),
        request,
    };
    if call.forgets() {
        return reply.none();
    }
    call.once = call.once();
    let reply = reply.guarded(&call.once);
    if call.answered_by(reply).is_none() {
        log::error!("the kernel sent a request that is not well-formed; it gets EIO");
    }
}

struct Call<'a> {
    core: &'a Arc<Core>,
    node: u64,
    once: Once,
    request: Request<'a>,
}

/// Whether repeating it would show: in a reference to an inode, in an error because its effect is there.
fn must_not_repeat(operation: u32) -> bool {
    matches!(
        operation,
        opcode::LOOKUP
            | opcode::CREATE
            | opcode::MKDIR
            | opcode::MKNOD
            | opcode::SYMLINK
            | opcode::LINK
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::RENAME2
            | opcode::SETXATTR
            | opcode::REMOVEXATTR
    )
}

impl Call<'_> {
    /// Does what wants no reply; false for everything else.
    fn forgets(&mut self) -> bool {
        let request = &mut self.request;
        match request.header.opcode {
            opcode::FORGET => {
                if let Some(ForgetIn { nlookup }) = request.take() {
                    self.core.nodes.forget(self.node, nlookup);
                }
            }
            opcode::BATCH_FORGET => {
                let count = request.take().map_or(0, |batch: BatchForgetIn| batch.count);
                for _ in 0..count {
                    if let Some(ForgetOne { nodeid, nlookup }) = request.take() {
                        self.core.nodes.forget(nodeid, nlookup);
                    }
                }
            }
            // Operations are short or bounded by the store's deadline; they are not given up.
            opcode::INTERRUPT => {}
            _ => return false,
        }
        true
    }

    /// `None` is a request that is not well-formed; its reply has been dropped.
    fn answered_by(&mut self, reply: Reply) -> Option<()> {
        match self.request.header.opcode {
            opcode::LOOKUP => self.lookup(reply),
            opcode::GETATTR => {
                self.core.get_attr(self.who(), self.node, reply.attr());
                Some(())
            }
            opcode::SETATTR => self.set_attr(reply),
            opcode::READLINK => {
                self.core.read_link(self.who(), self.node, reply.data());
                Some(())
            }
            opcode::SYMLINK => self.symlink(reply),
            opcode::MKNOD => self.mknod(reply),
            opcode::MKDIR => self.mkdir(reply),
            opcode::UNLINK => self.unlink(reply),
            opcode::RMDIR => self.rmdir(reply),
            opcode::RENAME | opcode::RENAME2 => self.rename(reply),
            opcode::LINK => self.link(reply),
            opcode::OPEN => self.open(reply),
            opcode::STATFS => {
                self.core.stat_fs(self.who(), reply.stat_fs());
                Some(())
            }
            opcode::RELEASE => self.release(reply),
            opcode::FSYNC => self.fsync(reply),
            opcode::SETXATTR => self.setxattr(reply),
            opcode::GETXATTR | opcode::LISTXATTR => self.getxattr(reply),
            opcode::REMOVEXATTR => self.removexattr(reply),
            opcode::FLUSH => self.flush(reply),
            opcode::OPENDIR => {
                let (who, once) = self.asked();
                self.core.open_dir(who, self.node, once, reply.dir());
                Some(())
            }
            opcode::READDIR => self.readdir(reply),
            opcode::RELEASEDIR => self.releasedir(reply),
            opcode::FSYNCDIR => {
                self.core.sync_dir(self.who(), self.node, reply.empty());
                Some(())
            }
            opcode::CREATE => self.create(reply),
            opcode::FALLOCATE => self.fallocate(reply),
            opcode::LSEEK => self.lseek(reply),
            opcode::COPY_FILE_RANGE => self.copy(reply),
            // The kernel checks permissions itself (default_permissions) and does not ask.
            opcode::ACCESS | opcode::DESTROY => {
                reply.bytes(&[]);
                Some(())
            }
            // What isatty(3) gets on any regular file.
            opcode::IOCTL => {
                reply.refuse(libc::ENOTTY);
                Some(())
            }
            // Said once, the kernel does without or answers itself.
            _ => {
                reply.refuse(libc::ENOSYS);
                Some(())
            }
        }
    }

    /// What is known of the request; a reference that an earlier server took for it and did not tell of is
    /// given back.
    fn once(&self) -> Once {
        if !self.core.exactly_once {
            return Once::never_again();
        }
        let header = &self.request.header;
        let guarded = must_not_repeat(header.opcode);
        let once = Once::new(&self.core.legacy.ledger, header.unique, guarded);
        if let Some(nodeid) = once.given_before() {
            self.core.nodes.forget(nodeid, 1);
        }
        once
    }

    /// Who asks, and what is known of the request.
    fn asked(&self) -> (Caller, Once) {
        (self.who(), self.once.clone())
    }

    /// Who asks.
    fn who(&self) -> Caller {
        let header = &self.request.header;
        self.core.callers.of(header.uid, header.gid, header.pid)
    }

    fn lookup(&mut self, reply: Reply) -> Option<()> {
        let name = self.request.name()?;
        self.core.lookup(self.who(), self.node, name, reply.entry());
        Some(())
    }

    fn set_attr(&mut self, reply: Reply) -> Option<()> {
        let asked: SetattrIn = self.request.take()?;
        let given = |bit: u32| asked.valid & bit != 0;
        let time = |bit, now, secs, nanos| {
            given(bit).then(|| match given(now) {
                true => SetTime::Now,
                false => SetTime::At(Timestamp { secs, nanos }),
            })
        };
        let (atime, mtime) = (asked.atime, asked.mtime);
        let set = SetAttr {
            mode: given(fattr::MODE).then_some(asked.mode & 0o7777),
            uid: given(fattr::UID).then_some(asked.uid),
            gid: given(fattr::GID).then_some(asked.gid),
            atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, asked.atimensec),
            mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, asked.mtimensec),
        };
        let size = given(fattr::SIZE).then_some(asked.size);
        let file = given(fattr::FH).then_some(asked.fh);
        self.core
            .set_attr(self.who(), self.node, size, file, set, reply.attr());
        Some(())
    }

    fn symlink(&mut self, reply: Reply) -> Option<()> {
        let (name, target) = (self.request.name()?, self.request.name()?);
        let making = Making::Symlink(target.clone());
        let make = move |core: &Core, who: &Caller, dir: &Inode, name: &OsStr| {
            core.store.make_symlink(who, &dir.node, name, &target)
        };
        let place = (self.node, name);
        self.core
            .make(self.asked(), making, place, reply.entry(), make);
        Some(())
    }

    fn mknod(&mut self, reply: Reply) -> Option<()> {
        let asked: MknodIn = self.request.take()?;
        let place = (self.node, self.request.name()?);
        let making = Making::Kind(kind(asked.mode));
        let make = move |core: &Core, who: &Caller, dir: &Inode, name: &OsStr| {
            let mode = core.masked(who, dir, asked.mode, asked.umask);
            core.store.make_node(who, &dir.node, name, mode, asked.rdev)
        };
        self.core
            .make(self.asked(), making, place, reply.entry(), make);
        Some(())
    }

    fn mkdir(&mut self, reply: Reply) -> Option<()> {
        let asked: MkdirIn = self.request.take()?;
        let place = (self.node, self.request.name()?);
        let make = move |core: &Core, who: &Caller, dir: &Inode, name: &OsStr| {
            let permissions = core.masked(who, dir, asked.mode & 0o7777, asked.umask);
            core.store.make_dir(who, &dir.node, name, permissions)
        };
        let making = Making::Kind(Kind::Dir);
        self.core
            .make(self.asked(), making, place, reply.entry(), make);
        Some(())
    }

    fn unlink(&mut self, reply: Reply) -> Option<()> {
        let name = self.request.name()?;
        let (who, once) = self.asked();
        self.core.unlink(who, self.node, name, once, reply.empty());
        Some(())
    }

    fn rmdir(&mut self, reply: Reply) -> Option<()> {
        let name = self.request.name()?;
        let (who, once) = self.asked();
        self.core
            .remove_dir(who, self.node, name, once, reply.empty());
        Some(())
    }

    fn rename(&mut self, reply: Reply) -> Option<()> {
        let (target, flags) = match self.request.header.opcode {
            opcode::RENAME => (self.request.take::<RenameIn>()?.newdir, 0),
            _ => {
                let asked: Rename2In = self.request.take()?;
                (asked.newdir, asked.flags)
            }
        };
        let from = (self.node, self.request.name()?);
        let to = (target, self.request.name()?);
        let (who, once) = self.asked();
        self.core.rename(who, from, to, flags, once, reply.empty());
        Some(())
    }

    fn link(&mut self, reply: Reply) -> Option<()> {
        let LinkIn { oldnodeid } = self.request.take()?;
        let place = (self.node, self.request.name()?);
        let (who, once) = self.asked();
        self.core.link(who, oldnodeid, place, once, reply.entry());
        Some(())
    }

    fn open(&mut self, reply: Reply) -> Option<()> {
        let asked: OpenIn = self.request.take()?;
        let (who, once) = self.asked();
        self.core
            .open(who, self.node, asked.flags, once, reply.file());
        Some(())
    }

    fn create(&mut self, reply: Reply) -> Option<()> {
        let asked: CreateIn = self.request.take()?;
        let place = (self.node, self.request.name()?);
        let permissions = (asked.mode & 0o7777, asked.umask);
        let (who, once) = self.asked();
        let flags = asked.flags;
        self.core
            .create(who, place, permissions, flags, once, reply.created());
        Some(())
    }

    fn release(&mut self, reply: Reply) -> Option<()> {
        let ReleaseIn { fh, .. } = self.request.take()?;
        self.core.release(fh, reply.empty());
        Some(())
    }

    fn flush(&mut self, reply: Reply) -> Option<()> {
        let FlushIn { fh, .. } = self.request.take()?;
        self.core.flush(fh, reply.empty());
        Some(())
    }

    fn fsync(&mut self, reply: Reply) -> Option<()> {
        let FsyncIn {
            fh, fsync_flags, ..
        } = self.request.take()?;
        let data_only = fsync_flags & FSYNC_FDATASYNC != 0;
        self.core.sync(fh, data_only, reply.empty());
        Some(())
    }

    fn setxattr(&mut self, reply: Reply) -> Option<()> {
        let SetxattrIn { size, flags } = self.request.take()?;
        let name = self.request.name()?;
        let value = self.request.bytes(size as usize)?.to_vec();
        let (who, once) = self.asked();
        let change = (name, value, flags);
        self.core
            .set_xattr(who, self.node, change, once, reply.empty());
        Some(())
    }

    /// And listxattr, which asks for no name.
    fn getxattr(&mut self, reply: Reply) -> Option<()> {
        let GetxattrIn { size, .. } = self.request.take()?;
        let (who, node) = (self.who(), self.node);
        if self.request.header.opcode == opcode::LISTXATTR {
            self.core.list_xattr(who, node, size, reply.value());
        } else {
            let name = self.request.name()?;
            self.core.get_xattr(who, node, name, size, reply.value());
        }
        Some(())
    }

    fn removexattr(&mut self, reply: Reply) -> Option<()> {
        let name = self.request.name()?;
        let (who, once) = self.asked();
        self.core
            .remove_xattr(who, self.node, name, once, reply.empty());
        Some(())
    }

    fn readdir(&mut self, reply: Reply) -> Option<()> {
        let ReadIn {
            fh, offset, size, ..
        } = self.request.take()?;
        self.core
            .read_dir(self.who(), fh, offset, reply.listed(size));
        Some(())
    }

    fn releasedir(&mut self, reply: Reply) -> Option<()> {
        let ReleaseIn { fh, .. } = self.request.take()?;
        self.core.release_dir(fh, reply.empty());
        Some(())
    }

    fn fallocate(&mut self, reply: Reply) -> Option<()> {
        let asked: FallocateIn = self.request.take()?;
        let range = (asked.offset, asked.length);
        self.core
            .allocate(asked.fh, asked.mode, range, reply.empty());
        Some(())
    }

    fn lseek(&mut self, reply: Reply) -> Option<()> {
        let asked: LseekIn = self.request.take()?;
        self.core
            .seek(asked.fh, asked.offset, asked.whence, reply.offset());
        Some(())
    }

    fn copy(&mut self, reply: Reply) -> Option<()> {
        let asked: CopyFileRangeIn = self.request.take()?;
        let (from, to) = ((asked.fh_in, asked.off_in), (asked.fh_out, asked.off_out));
        self.core.copy(from, to, asked.len, reply.copied());
        Some(())
    }
}
