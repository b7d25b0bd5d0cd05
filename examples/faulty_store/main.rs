//! A store that can fail: a directory passed through FUSE, for tests that need a store which is
//! slow, hangs (SIGSTOP it), answers EIO, turns read-only, squashes root or dies.
//!
//! Usage: `faulty_store DIR MOUNTPOINT FAULTS.json`; runs until unmounted. The switches are in
//! [`faults`]. Every read of content reaches this process: nothing is cached by the kernel.
//! Correct enough for disk images and trees; file locks and POSIX ACL checks are not its business.
//!
//! Touches: DIR, the mount point, the switch file and the log it names. Long because the FUSE
//! interface is wide: one short method per request.

mod faults;
mod nodes;

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};

use faults::{Act, Switch};
use nodes::{Node, Nodes, c_name, check, errno, kind};

/// Attributes and names are asked for anew each time: the strictest store.
const TTL: Duration = Duration::ZERO;

/// The most a getdents64 call returns at once, in bytes.
const LISTING_BYTES: usize = 16 << 10;

/// Nothing is cached by the kernel. And no request at close(2): the kernel waits for that one without
/// end, so that not even kill -9 ends a process whose files are on a store that hangs.
const FILE_MODE: FopenFlags = FopenFlags::FOPEN_DIRECT_IO
    .union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES)
    .union(FopenFlags::FOPEN_NOFLUSH);

struct Passthrough {
    nodes: Nodes,
    switch: Switch,
    open: Mutex<HashMap<u64, Arc<File>>>,
    next: AtomicU64,
}

fn main() {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [dir, mountpoint, switches] = args.as_slice() else {
        eprintln!("usage: faulty_store DIR MOUNTPOINT FAULTS.json");
        std::process::exit(2);
    };
    if let Err(error) = serve(dir, mountpoint, switches) {
        eprintln!("faulty_store: {error}");
        std::process::exit(1);
    }
}

fn serve(dir: &Path, mountpoint: &Path, switches: &Path) -> std::io::Result<()> {
    let nodes = Nodes::new(dir).map_err(std::io::Error::from_raw_os_error)?;
    let store = Passthrough {
        nodes,
        switch: Switch::new(switches.to_owned()),
        open: Mutex::new(HashMap::new()),
        next: AtomicU64::new(1),
    };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("faulty_store".into()),
        MountOption::DefaultPermissions,
        MountOption::Dev,
        MountOption::Suid,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(4);
    config.clone_fd = true;
    fuser::mount(store, mountpoint, &config)
}

/// Ends a handler early with the errno of a failed step.
macro_rules! ok {
    ($reply:ident, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(code) => return $reply.error(Errno::from_i32(code)),
        }
    };
}

impl Passthrough {
    fn keep(&self, file: File) -> FileHandle {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock().expect("nothing panics under this lock");
        open.insert(fh, Arc::new(file));
        FileHandle(fh)
    }

    fn file(&self, fh: FileHandle) -> Result<Arc<File>, i32> {
        let open = self.open.lock().expect("nothing panics under this lock");
        open.get(&fh.0).cloned().ok_or(libc::EBADF)
    }

    fn drop_handle(&self, fh: FileHandle) {
        let mut open = self.open.lock().expect("nothing panics under this lock");
        open.remove(&fh.0);
    }

    /// A node, after the switches had their say.
    fn node(&self, req: &Request, ino: INodeNo, act: Act) -> Result<Arc<Node>, i32> {
        self.switch.pass(req.uid(), act)?;
        self.nodes.get(ino)
    }

    /// Makes a new name with `make(directory, name)` and gives it to the caller.
    fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        make: impl FnOnce(RawFd, &CString) -> i32,
    ) -> Result<(Arc<Node>, FileAttr), i32> {
        let dir = self.node(req, parent, Act::Change)?;
        let name_c = c_name(name);
        check(make(dir.raw(), &name_c))?;
        self.give(req, &dir, &name_c)?;
        let made = self.nodes.lookup(&dir, name);
        self.switch.answer_late();
        made
    }

    fn give(&self, req: &Request, dir: &Node, name: &CString) -> Result<(), i32> {
        let inherit = dir.stat()?;
        let group = if inherit.st_mode & libc::S_ISGID != 0 {
            inherit.st_gid
        } else {
            req.gid()
        };
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: a valid C string.
        check(unsafe { libc::fchownat(dir.raw(), name.as_ptr(), req.uid(), group, flags) })?;
        Ok(())
    }

    fn attr_of(&self, node: &Node) -> Result<FileAttr, i32> {
        Ok(self.nodes.attr(&node.stat()?))
    }
}

impl Filesystem for Passthrough {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let _ = config.set_max_background(512);
        let _ = config.set_max_write(1 << 20);
        let _ = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let dir = ok!(reply, self.node(req, parent, Act::Look));
        let (node, attr) = ok!(reply, self.nodes.lookup(&dir, name));
        reply.entry(&TTL, &attr, Generation(node.generation));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, lookups: u64) {
        self.nodes.forget(ino, lookups);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let node = ok!(reply, self.node(req, ino, Act::Look));
        let attr = ok!(reply, self.attr_of(&node));
        reply.attr(&TTL, &attr);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let act = if size.is_some() {
            Act::Write
        } else {
            Act::Change
        };
        let node = ok!(reply, self.node(req, ino, act));
        ok!(reply, set_owner(&node, uid, gid));
        ok!(reply, set_mode(&node, mode));
        ok!(reply, set_size(&node, size));
        ok!(reply, set_times(&node, atime, mtime));
        let attr = ok!(reply, self.attr_of(&node));
        reply.attr(&TTL, &attr);
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let node = ok!(reply, self.node(req, ino, Act::Look));
        let mut target = vec![0u8; libc::PATH_MAX as usize];
        // SAFETY: the buffer's own length is passed.
        let len = check(unsafe {
            libc::readlinkat(
                node.raw(),
                c"".as_ptr(),
                target.as_mut_ptr().cast(),
                target.len(),
            )
        } as i64);
        let len = ok!(reply, len);
        reply.data(&target[..len as usize]);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        // SAFETY: a valid C string.
        let made = self.make(req, parent, name, |dir, name| unsafe {
            libc::mknodat(dir, name.as_ptr(), mode, rdev as libc::dev_t)
        });
        let (node, attr) = ok!(reply, made);
        reply.entry(&TTL, &attr, Generation(node.generation));
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        // SAFETY: a valid C string.
        let made = self.make(req, parent, name, |dir, name| unsafe {
            libc::mkdirat(dir, name.as_ptr(), mode)
        });
        let (node, attr) = ok!(reply, made);
        reply.entry(&TTL, &attr, Generation(node.generation));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = c_name(target.as_os_str());
        // SAFETY: two valid C strings.
        let made = self.make(req, parent, name, |dir, name| unsafe {
            libc::symlinkat(target.as_ptr(), dir, name.as_ptr())
        });
        let (node, attr) = ok!(reply, made);
        reply.entry(&TTL, &attr, Generation(node.generation));
    }

    fn link(&self, req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let node = ok!(reply, self.node(req, ino, Act::Change));
        let dir = ok!(reply, self.nodes.get(parent));
        let flags = libc::AT_SYMLINK_FOLLOW;
        let (from, to) = (node.path(), c_name(name));
        // SAFETY: two valid C strings.
        let linked = check(unsafe {
            libc::linkat(libc::AT_FDCWD, from.as_ptr(), dir.raw(), to.as_ptr(), flags)
        });
        ok!(reply, linked);
        self.switch.answer_late();
        let (node, attr) = ok!(reply, self.nodes.lookup(&dir, name));
        reply.entry(&TTL, &attr, Generation(node.generation));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = ok!(reply, self.node(req, parent, Act::Change));
        // SAFETY: a valid C string.
        ok!(
            reply,
            check(unsafe { libc::unlinkat(dir.raw(), c_name(name).as_ptr(), 0) })
        );
        self.switch.answer_late();
        reply.ok();
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = ok!(reply, self.node(req, parent, Act::Change));
        let flags = libc::AT_REMOVEDIR;
        // SAFETY: a valid C string.
        ok!(
            reply,
            check(unsafe { libc::unlinkat(dir.raw(), c_name(name).as_ptr(), flags) })
        );
        self.switch.answer_late();
        reply.ok();
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = ok!(reply, self.node(req, parent, Act::Change));
        let to = ok!(reply, self.nodes.get(newparent));
        let (name, newname) = (c_name(name), c_name(newname));
        // SAFETY: two valid C strings.
        let renamed = check(unsafe {
            libc::renameat2(
                from.raw(),
                name.as_ptr(),
                to.raw(),
                newname.as_ptr(),
                flags.bits(),
            )
        });
        ok!(reply, renamed);
        self.switch.answer_late();
        reply.ok();
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let access = flags.0 & libc::O_ACCMODE;
        let act = if access == libc::O_RDONLY {
            Act::Open
        } else {
            Act::Change
        };
        let node = ok!(reply, self.node(req, ino, act));
        let keep = libc::O_ACCMODE | libc::O_TRUNC | libc::O_SYNC | libc::O_DSYNC;
        let file = ok!(reply, node.open(flags.0 & keep));
        reply.opened(self.keep(file), FILE_MODE);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mut file = None;
        let made = self.make(req, parent, name, |dir, name| {
            let flags = (flags & libc::O_ACCMODE) | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
            // SAFETY: a valid C string; the descriptor is owned only if there is one.
            let fd = unsafe { libc::openat(dir, name.as_ptr(), flags, mode) };
            // SAFETY: openat(2) just returned this descriptor to us alone.
            file = (fd >= 0).then(|| unsafe { File::from_raw_fd(fd) });
            fd
        });
        let (node, attr) = ok!(reply, made);
        let file = ok!(reply, file.ok_or(libc::EIO));
        reply.created(
            &TTL,
            &attr,
            Generation(node.generation),
            self.keep(file),
            FILE_MODE,
        );
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        ok!(reply, self.switch.pass(req.uid(), Act::Read));
        let file = ok!(reply, self.file(fh));
        let mut data = vec![0; size as usize];
        let read = file.read_at(&mut data, offset);
        let len = ok!(
            reply,
            read.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
        );
        self.switch.note_read(ino.0, offset, len as u64);
        reply.data(&data[..len]);
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        ok!(reply, self.switch.pass(req.uid(), Act::Write));
        let file = ok!(reply, self.file(fh));
        let written = self.switch.write(offset, || file.write_at(data, offset));
        let len = written.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO));
        let len = ok!(reply, len);
        reply.written(len as u32);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.drop_handle(fh);
        reply.ok();
    }

    fn fsync(&self, req: &Request, _i: INodeNo, fh: FileHandle, data: bool, reply: ReplyEmpty) {
        ok!(reply, self.switch.pass(req.uid(), Act::Write));
        let file = ok!(reply, self.file(fh));
        let synced = if data {
            file.sync_data()
        } else {
            file.sync_all()
        };
        ok!(
            reply,
            synced.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
        );
        reply.ok();
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let node = ok!(reply, self.node(req, ino, Act::Open));
        let dir = ok!(reply, node.open(libc::O_RDONLY | libc::O_DIRECTORY));
        reply.opened(self.keep(dir), FopenFlags::empty());
    }

    fn readdir(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        ok!(reply, self.switch.pass(req.uid(), Act::Open));
        let dir = ok!(reply, self.file(fh));
        let mut listing = vec![0u8; LISTING_BYTES];
        let len = ok!(reply, list(&dir, offset, &mut listing));
        let mut at = 0;
        while at < len {
            let (ino, next, kind, name, record_len) = entry(&listing[at..]);
            if reply.add(INodeNo(ino), next, kind, name) {
                break;
            }
            at += record_len;
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.drop_handle(fh);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, _i: INodeNo, fh: FileHandle, _d: bool, reply: ReplyEmpty) {
        ok!(reply, self.switch.pass(req.uid(), Act::Write));
        let dir = ok!(reply, self.file(fh));
        ok!(
            reply,
            dir.sync_all()
                .map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
        );
        reply.ok();
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let node = ok!(reply, self.node(req, ino, Act::Look));
        // SAFETY: statfs is plain numbers, for which zero is a value.
        let mut st: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: an open descriptor and a buffer of the right type.
        ok!(reply, check(unsafe { libc::fstatfs(node.raw(), &mut st) }));
        reply.statfs(
            st.f_blocks,
            st.f_bfree,
            st.f_bavail,
            st.f_files,
            st.f_ffree,
            st.f_bsize as u32,
            st.f_namelen as u32,
            st.f_frsize as u32,
        );
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let node = ok!(reply, self.node(req, ino, Act::Change));
        let (path, name) = (node.path(), c_name(name));
        let data = value.as_ptr().cast();
        // SAFETY: two valid C strings and a buffer with its own length.
        let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), data, value.len(), flags) };
        ok!(reply, check(set));
        self.switch.answer_late();
        reply.ok();
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let node = ok!(reply, self.node(req, ino, Act::Look));
        let (path, name) = (node.path(), c_name(name));
        // SAFETY: two valid C strings and a buffer with its own length (0 asks for the size).
        answer_xattr(size, reply, |buf, len| unsafe {
            libc::getxattr(path.as_ptr(), name.as_ptr(), buf.cast(), len)
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let node = ok!(reply, self.node(req, ino, Act::Look));
        let path = node.path();
        // SAFETY: a valid C string and a buffer with its own length (0 asks for the size).
        answer_xattr(size, reply, |buf, len| unsafe {
            libc::listxattr(path.as_ptr(), buf.cast(), len)
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let node = ok!(reply, self.node(req, ino, Act::Change));
        let (path, name) = (node.path(), c_name(name));
        // SAFETY: two valid C strings.
        ok!(
            reply,
            check(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) })
        );
        self.switch.answer_late();
        reply.ok();
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        ok!(reply, self.switch.pass(req.uid(), Act::Write));
        let file = ok!(reply, self.file(fh));
        // SAFETY: an open descriptor.
        let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) };
        ok!(reply, check(done));
        reply.ok();
    }

    fn lseek(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        ok!(reply, self.switch.pass(req.uid(), Act::Look));
        let file = ok!(reply, self.file(fh));
        // SAFETY: an open descriptor.
        let at = ok!(
            reply,
            check(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
        );
        reply.offset(at);
    }
}

fn set_owner(node: &Node, uid: Option<u32>, gid: Option<u32>) -> Result<(), i32> {
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: a valid C string.
    check(unsafe { libc::fchownat(node.raw(), c"".as_ptr(), uid, gid, flags) }).map(drop)
}

fn set_mode(node: &Node, mode: Option<u32>) -> Result<(), i32> {
    let Some(mode) = mode else { return Ok(()) };
    // SAFETY: a valid C string.
    check(unsafe { libc::chmod(node.path().as_ptr(), mode & 0o7777) }).map(drop)
}

fn set_size(node: &Node, size: Option<u64>) -> Result<(), i32> {
    let Some(size) = size else { return Ok(()) };
    // SAFETY: a valid C string.
    check(unsafe { libc::truncate(node.path().as_ptr(), size as i64) }).map(drop)
}

fn set_times(node: &Node, atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>) -> Result<(), i32> {
    if atime.is_none() && mtime.is_none() {
        return Ok(());
    }
    let times = [time_spec(atime), time_spec(mtime)];
    // SAFETY: a valid C string and two timespecs.
    check(unsafe { libc::utimensat(libc::AT_FDCWD, node.path().as_ptr(), times.as_ptr(), 0) })
        .map(drop)
}

fn time_spec(time: Option<TimeOrNow>) -> libc::timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, libc::UTIME_OMIT),
        Some(TimeOrNow::Now) => (0, libc::UTIME_NOW),
        Some(TimeOrNow::SpecificTime(at)) => {
            let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
            (since.as_secs() as i64, since.subsec_nanos() as i64)
        }
    };
    libc::timespec { tv_sec, tv_nsec }
}

/// Reads directory records after the backing cookie `offset`; returns the bytes filled.
fn list(dir: &File, offset: u64, into: &mut [u8]) -> Result<usize, i32> {
    // SAFETY: an open descriptor.
    check(unsafe { libc::lseek(dir.as_raw_fd(), offset as i64, libc::SEEK_SET) })?;
    // SAFETY: the buffer's own length is passed.
    let len = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            dir.as_raw_fd(),
            into.as_mut_ptr(),
            into.len(),
        )
    };
    check(len).map(|len| len as usize)
}

/// One linux_dirent64: inode, cookie of the next, kind, name, length of the record.
fn entry(record: &[u8]) -> (u64, u64, fuser::FileType, &OsStr, usize) {
    use std::os::unix::ffi::OsStrExt;
    let number = |at: usize| u64::from_ne_bytes(record[at..at + 8].try_into().expect("8 bytes"));
    let len = u16::from_ne_bytes(record[16..18].try_into().expect("2 bytes")) as usize;
    let mode = (record[18] as u32) << 12;
    let name = &record[19..len];
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    let name = OsStr::from_bytes(&name[..end]);
    (number(0), number(8), kind(mode), name, len)
}

/// Answers a getxattr or listxattr with `call(buffer, length)`.
fn answer_xattr(size: u32, reply: ReplyXattr, call: impl FnOnce(*mut u8, usize) -> isize) {
    let mut value = vec![0u8; size as usize];
    let len = call(value.as_mut_ptr(), value.len());
    match (len, size) {
        (..0, _) => reply.error(Errno::from_i32(errno())),
        (_, 0) => reply.size(len as u32),
        _ => reply.data(&value[..len as usize]),
    }
}
