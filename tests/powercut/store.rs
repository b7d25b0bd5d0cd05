//! The store on another machine: a FUSE filesystem in this process with one image in it, which the
//! power cut does not reach. It notes every change with the length of the device log, takes its
//! time over writes so that cuts fall into them, and can be set to what it was at a cut.
//!
//! *Locking.* One lock over the image and its history; no I/O and no delay under it but one fstat
//! of the log. Reads take it too, so nobody sees a change before its place in the history.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::history::{Change, Content, History, Step};
use crate::rig::Rng;

/// The image's name in the store.
pub const IMAGE: &str = "disk.img";
/// The image's inode; the same through all cuts.
const INODE: INodeNo = INodeNo(2);
const FRESH: Duration = Duration::ZERO;
/// A change takes up to this long to reach the image, and again to be answered.
const DELAY_MAX_US: u64 = 1500;

/// What the server and the test share.
struct Shared {
    image: Mutex<Image>,
    /// Counts arrivals and effects of changes.
    clock: AtomicU64,
    served_bytes: AtomicU64,
}

struct Image {
    content: Content,
    /// The log of the device, while a run is recorded.
    log: Option<File>,
    steps: Vec<Step>,
    /// Changes since the last [`Store::set`].
    changes: u64,
    delay: Option<Rng>,
}

/// The mounted store. Dropping it unmounts.
pub struct Store {
    shared: Arc<Shared>,
    session: Option<fuser::BackgroundSession>,
}

impl Store {
    /// Mounts a store at `point` whose image holds `bytes`, since an hour ago.
    pub fn mount(point: &Path, bytes: Vec<u8>) -> Result<Store, String> {
        let changed = SystemTime::now() - Duration::from_secs(3600);
        let content = Content { bytes, changed };
        let image = Image {
            content,
            log: None,
            steps: Vec::new(),
            changes: 0,
            delay: None,
        };
        let shared = Arc::new(Shared {
            image: Mutex::new(image),
            clock: AtomicU64::new(0),
            served_bytes: AtomicU64::new(0),
        });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("powercut-store".into())];
        config.acl = fuser::SessionACL::All;
        config.n_threads = Some(6);
        let server = Server {
            shared: Arc::clone(&shared),
        };
        let session = fuser::spawn_mount(server, point, &config);
        let session = session.map_err(|e| format!("the test's store: {e}"))?;
        Ok(Store {
            shared,
            session: Some(session),
        })
    }

    /// From now on every change is noted with the length of `log`, and is slow.
    pub fn record(&self, log: &Path, seed: u64) -> Result<Recording<'_>, String> {
        let mut image = self.shared.image();
        image.log = Some(File::open(log).map_err(|e| format!("{}: {e}", log.display()))?);
        image.delay = Some(Rng::new(seed));
        image.steps.clear();
        let first = image.content.clone();
        Ok(Recording { store: self, first })
    }

    /// Makes the image what it was at a cut, and counts what is read from now on.
    pub fn set(&self, content: Content) {
        let mut image = self.shared.image();
        image.content = content;
        image.changes = 0;
        self.shared.served_bytes.store(0, Ordering::Relaxed);
    }

    /// Bytes read from the image since it was set.
    pub fn served_bytes(&self) -> u64 {
        self.shared.served_bytes.load(Ordering::Relaxed)
    }

    /// Changes to the image since it was set.
    pub fn changes(&self) -> u64 {
        self.shared.image().changes
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

/// A recording under way.
pub struct Recording<'a> {
    store: &'a Store,
    first: Content,
}

impl Recording<'_> {
    /// Ends it; what happened meanwhile.
    pub fn finish(self) -> History {
        let mut image = self.store.shared.image();
        image.log = None;
        image.delay = None;
        History {
            first: self.first,
            steps: std::mem::take(&mut image.steps),
        }
    }
}

impl Shared {
    fn image(&self) -> MutexGuard<'_, Image> {
        self.image.lock().expect("no panic while held")
    }

    /// A change arrives, takes effect after a while, and is answered after another.
    fn change(&self, change: Change) {
        let arrived = self.clock.fetch_add(1, Ordering::SeqCst);
        let (arrived_log, pauses) = {
            let mut image = self.image();
            let mut pause = || {
                image
                    .delay
                    .as_mut()
                    .map_or(0, |rng| rng.below(DELAY_MAX_US))
            };
            let pauses = [pause(), pause()];
            (image.log_bytes(), pauses)
        };
        std::thread::sleep(Duration::from_micros(pauses[0]));
        self.take_effect(change, arrived, arrived_log);
        std::thread::sleep(Duration::from_micros(pauses[1]));
    }

    fn take_effect(&self, change: Change, arrived: u64, arrived_log: u64) {
        let mut image = self.image();
        let (done_log, time) = (image.log_bytes(), SystemTime::now());
        image.content.apply(&change);
        image.content.changed = time;
        image.changes += 1;
        if image.log.is_some() {
            let done = self.clock.fetch_add(1, Ordering::SeqCst);
            image.steps.push(Step {
                change,
                arrived_log,
                done_log,
                arrived,
                done,
                time,
            });
        }
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let image = self.image();
        let size = image.content.bytes.len() as u64;
        match ino {
            INodeNo::ROOT => Some(attr_of(ino, FileType::Directory, 0, SystemTime::UNIX_EPOCH)),
            INODE => Some(attr_of(
                ino,
                FileType::RegularFile,
                size,
                image.content.changed,
            )),
            _ => None,
        }
    }
}

impl Image {
    fn log_bytes(&self) -> u64 {
        let length = |log: &File| log.metadata().map_or(0, |meta| meta.len());
        self.log.as_ref().map_or(0, length)
    }
}

fn attr_of(ino: INodeNo, kind: FileType, size: u64, changed: SystemTime) -> FileAttr {
    let directory = kind == FileType::Directory;
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: changed,
        mtime: changed,
        ctime: changed,
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm: if directory { 0o755 } else { 0o644 },
        nlink: if directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The FUSE side.
struct Server {
    shared: Arc<Shared>,
}

impl Filesystem for Server {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // File handles outlive the kernel's inode cache, as an NFS server's do.
        let _ = config.add_capabilities(InitFlags::FUSE_EXPORT_SUPPORT);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = match name.to_str() {
            Some(".") => parent,
            Some("..") => INodeNo::ROOT,
            Some(IMAGE) if parent == INodeNo::ROOT => INODE,
            _ => return reply.error(Errno::ENOENT),
        };
        match self.shared.attr(ino) {
            Some(attr) => reply.entry(&FRESH, &attr, Generation(7)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.shared.attr(ino) {
            Some(attr) => reply.attr(&FRESH, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let (INODE, Some(size)) = (ino, size) {
            self.shared.change(Change::Resize(size));
        }
        self.getattr(_req, ino, None, reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let parallel = FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | parallel);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let data = {
            let image = self.shared.image();
            let bytes = &image.content.bytes;
            let start = bytes.len().min(offset as usize);
            bytes[start..bytes.len().min(start + size as usize)].to_vec()
        };
        let served = &self.shared.served_bytes;
        served.fetch_add(data.len() as u64, Ordering::Relaxed);
        reply.data(&data);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.shared.change(Change::Write(offset, data.to_vec()));
        reply.written(data.len() as u32);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.shared.change(Change::Zero(offset, length));
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        std::thread::sleep(Duration::from_micros(DELAY_MAX_US / 2));
        reply.ok();
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (INODE, FileType::RegularFile, IMAGE),
        ];
        for (i, (ino, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
            if reply.add(ino, i as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 19, 1 << 19, 100, 90, 4096, 255, 4096);
    }

    fn getxattr(&self, _req: &Request, _: INodeNo, _: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, size: u32, reply: ReplyXattr) {
        match size {
            0 => reply.size(0),
            _ => reply.data(&[]),
        }
    }
}
