//! The adapter between fuser and the operations: unpacks requests, knows who asks, and nothing else.
//!
//! Longer than most files because fuser's trait is one block. Locks (getlk, setlk) are not taken
//! over: without FUSE_POSIX_LOCKS and FUSE_FLOCK_LOCKS the kernel keeps them itself.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use super::attr::set_time;
use super::{negotiate, replies};
use crate::mount::again::Making;
use crate::mount::core::Core;
use crate::mount::once::Once;
use crate::store::dir::attr::kind;
use crate::store::{Caller, Kind, SetAttr};

/// fuser's view of a mount.
pub struct Face {
    core: Arc<Core>,
    _ended: Sender<()>,
}

impl Face {
    /// `ended` is dropped when the last FUSE thread has ended.
    pub fn new(core: Arc<Core>, ended: Sender<()>) -> Face {
        Face {
            core,
            _ended: ended,
        }
    }

    fn who(&self, request: &Request) -> Caller {
        let callers = &self.core.callers;
        callers.of(request.uid(), request.gid(), request.pid())
    }
}

impl Filesystem for Face {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let agreed = negotiate::ask(config, self.core.planes.auto)?;
        self.core.planes.negotiated(agreed.passthrough);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let who = self.who(request);
        self.core
            .lookup(who, parent.0, name.into(), replies::entry(reply));
    }

    fn forget(&self, _request: &Request, nodeid: INodeNo, count: u64) {
        self.core.nodes.forget(nodeid.0, count);
    }

    fn getattr(
        &self,
        request: &Request,
        nodeid: INodeNo,
        _file: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let who = self.who(request);
        self.core.get_attr(who, nodeid.0, replies::attr(reply));
    }

    fn setattr(
        &self,
        request: &Request,
        nodeid: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        file: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let who = self.who(request);
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let file = file.map(|file| file.0);
        self.core
            .set_attr(who, nodeid.0, size, file, set, replies::attr(reply));
    }

    fn readlink(&self, request: &Request, nodeid: INodeNo, reply: ReplyData) {
        let who = self.who(request);
        self.core.read_link(who, nodeid.0, replies::data(reply));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let asked = (self.who(request), Once::never_again());
        let place = (parent.0, name.to_owned());
        let making = Making::Kind(kind(mode));
        let reply = replies::entry(reply);
        self.core
            .make(asked, making, place, reply, move |core, who, dir, name| {
                let mode = core.masked(who, dir, mode, umask);
                core.store.make_node(who, &dir.node, name, mode, rdev)
            });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let asked = (self.who(request), Once::never_again());
        let place = (parent.0, name.to_owned());
        let making = Making::Kind(Kind::Dir);
        let reply = replies::entry(reply);
        self.core
            .make(asked, making, place, reply, move |core, who, dir, name| {
                let permissions = core.masked(who, dir, mode & 0o7777, umask);
                core.store.make_dir(who, &dir.node, name, permissions)
            });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let who = self.who(request);
        self.core.unlink(
            who,
            parent.0,
            name.into(),
            Once::never_again(),
            replies::empty(reply),
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let who = self.who(request);
        self.core.remove_dir(
            who,
            parent.0,
            name.into(),
            Once::never_again(),
            replies::empty(reply),
        );
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let asked = (self.who(request), Once::never_again());
        let target = target.as_os_str().to_owned();
        let place = (parent.0, name.to_owned());
        let making = Making::Symlink(target.clone());
        let reply = replies::entry(reply);
        self.core
            .make(asked, making, place, reply, move |core, who, dir, name| {
                core.store.make_symlink(who, &dir.node, name, &target)
            });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let who = self.who(request);
        let (from, to) = ((parent.0, name.into()), (new_parent.0, new_name.into()));
        self.core.rename(
            who,
            from,
            to,
            flags.bits(),
            Once::never_again(),
            replies::empty(reply),
        );
    }

    fn link(
        &self,
        request: &Request,
        nodeid: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let who = self.who(request);
        self.core.link(
            who,
            nodeid.0,
            (new_parent.0, new_name.into()),
            Once::never_again(),
            replies::entry(reply),
        );
    }

    fn open(&self, request: &Request, nodeid: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let who = self.who(request);
        self.core.open(
            who,
            nodeid.0,
            flags.0,
            Once::never_again(),
            replies::file(reply),
        );
    }

    fn read(
        &self,
        _request: &Request,
        _nodeid: INodeNo,
        file: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.core.read(file.0, offset, size, replies::bytes(reply));
    }

    fn write(
        &self,
        request: &Request,
        _nodeid: INodeNo,
        file: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Without FUSE_HANDLE_KILLPRIV_V2 the flag does not come, and the kernel leaves set-uid
        // alone in direct writes.
        let strips_set_id =
            request.uid() != 0 || write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        self.core
            .write(file.0, offset, data, strips_set_id, replies::written(reply));
    }

    fn flush(
        &self,
        _request: &Request,
        _nodeid: INodeNo,
        file: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.core.flush(file.0, replies::empty(reply));
    }

    fn release(
        &self,
        _request: &Request,
        _nodeid: INodeNo,
        file: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.core.release(file.0, replies::empty(reply));
    }

    fn fsync(
        &self,
        _request: &Request,
        _nodeid: INodeNo,
        file: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.core.sync(file.0, data_only, replies::empty(reply));
    }

    fn opendir(&self, request: &Request, nodeid: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let who = self.who(request);
        self.core
            .open_dir(who, nodeid.0, Once::never_again(), replies::dir(reply));
    }

    fn readdir(
        &self,
        request: &Request,
        _nodeid: INodeNo,
        dir: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let who = self.who(request);
        self.core
            .read_dir(who, dir.0, offset, replies::listed(reply));
    }

    fn releasedir(
        &self,
        _request: &Request,
        _nodeid: INodeNo,
        dir: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.core.release_dir(dir.0, replies::empty(reply));
    }

    fn fsyncdir(
        &self,
        request: &Request,
        nodeid: INodeNo,
        _dir: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let who = self.who(request);
        self.core.sync_dir(who, nodeid.0, replies::empty(reply));
    }

    fn statfs(&self, request: &Request, _nodeid: INodeNo, reply: ReplyStatfs) {
        let who = self.who(request);
        self.core.stat_fs(who, replies::stat_fs(reply));
    }

    fn setxattr(
        &self,
        request: &Request,
        nodeid: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let who = self.who(request);
        let change = (name.to_owned(), value.to_vec(), flags);
        self.core.set_xattr(
            who,
            nodeid.0,
            change,
            Once::never_again(),
            replies::empty(reply),
        );
    }

    fn getxattr(
        &self,
        request: &Request,
        nodeid: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let who = self.who(request);
        self.core
            .get_xattr(who, nodeid.0, name.into(), size, replies::value(reply));
    }

    fn listxattr(&self, request: &Request, nodeid: INodeNo, size: u32, reply: ReplyXattr) {
        let who = self.who(request);
        self.core
            .list_xattr(who, nodeid.0, size, replies::value(reply));
    }

    fn removexattr(&self, request: &Request, nodeid: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let who = self.who(request);
        self.core.remove_xattr(
            who,
            nodeid.0,
            name.into(),
            Once::never_again(),
            replies::empty(reply),
        );
    }

    /// The kernel checks permissions itself (default_permissions) and does not ask.
    fn access(&self, _request: &Request, _nodeid: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let who = self.who(request);
        let permissions = (mode & 0o7777, umask);
        self.core.create(
            who,
            (parent.0, name.into()),
            permissions,
            flags,
            Once::never_again(),
            replies::created(reply),
        );
    }

    fn fallocate(
        &self,
        _request: &Request,
        _nodeid: INodeNo,
        file: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.core
            .allocate(file.0, mode, (offset, length), replies::empty(reply));
    }

    fn lseek(
        &self,
        _request: &Request,
        _nodeid: INodeNo,
        file: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.core
            .seek(file.0, offset, whence, replies::offset(reply));
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _nodeid_in: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _nodeid_out: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.core.copy(
            (from.0, from_offset),
            (to.0, to_offset),
            length,
            replies::copied(reply),
        );
    }

    /// No ioctls: what isatty(3) gets on any regular file.
    fn ioctl(
        &self,
        _request: &Request,
        _nodeid: INodeNo,
        _file: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// "Not implemented" once makes the kernel answer itself: always ready.
    fn poll(
        &self,
        _request: &Request,
        _nodeid: INodeNo,
        _file: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
