//! One cache device: a directory on a flash filesystem, its limit, its health.
//!
//! # Bytes
//! `DIR/flashside/device.json`: `{"version", "uuid", "store"}`; `DIR/flashside/lock`: flock'ed while
//! in use, holds the mount point; `DIR/flashside/images/<image id>/`: see [`super::entry`].
//!
//! # Locking
//! Counters are atomics; `module` is held for queue operations only.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::Level;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::config::{CacheDevice, mountinfo};
use crate::io::{ALIGN_BYTES, Buffer, DirectFile, file};
use crate::logs;
use crate::module::s3fifo::S3Fifo;
use crate::module::{Heat, Module};

use super::status::DeviceStatus;
use super::witness::Witness;
use super::{BLOCK_BYTES, Error};

/// Version of everything below `DIR/flashside`.
const FORMAT_VERSION: u32 = 1;
const EXT4: i64 = 0xef53;
const XFS: i64 = 0x5846_5342;
/// After an error a device is left alone for this long.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// A daemon that is ending has its last images settled by then.
const ENDING_WAIT_MAX: Duration = Duration::from_secs(40);
const ENDING_POLL: Duration = Duration::from_millis(50);
/// Part of the limit that is never held, so that other images find room: one in this many bytes.
const UNHELD_SHARE: u64 = 10;
/// The same on small devices, in bytes.
const UNHELD_BYTES_MIN: u64 = 4 << 20;
/// Part of the filesystem that always stays free: one in this many bytes.
const FREE_SHARE: u64 = 10;

#[derive(Serialize, Deserialize)]
struct Membership {
    version: u32,
    uuid: String,
    store: String,
}

/// A cache device in use by this process.
pub struct Device {
    /// `DIR/flashside`.
    pub root: PathBuf,
    dir: PathBuf,
    limit_bytes: u64,
    /// Bytes that files of the cache occupy, as last counted by the filesystem plus changes since.
    allocated_bytes: AtomicI64,
    /// Bytes promised to inserts under way.
    reserved_bytes: AtomicU64,
    /// Bytes of images that are held.
    held_bytes: AtomicU64,
    /// All images on it are known, and so what it has room for.
    loaded: AtomicBool,
    health: Mutex<Health>,
    suspect: AtomicBool,
    pub(super) module: Mutex<Box<dyn Module>>,
    /// Blocks in the module's queues that are gone, as far as somebody said so.
    stale_blocks: AtomicU64,
    /// Proof that nothing was lost since the last run, if this system has one.
    pub witness: Option<Witness>,
    /// True when the witness of the last run still fits.
    pub unbroken: bool,
    _lock: Option<File>,
}

#[derive(Default)]
struct Health {
    retry_at: Option<Instant>,
    why: String,
}

impl Device {
    /// Takes a directory into use for the store `store`. A device that cannot be written now is
    /// taken as suspect: the mount works without it. Locked for `mountpoint`; without one, for a control
    /// of the tests, whoever else uses it is not looked for.
    pub fn open(
        config: &CacheDevice,
        store: &str,
        runtime_dir: &Path,
        mountpoint: Option<&Path>,
    ) -> Result<Device, Error> {
        let fail = |error| Error::Io(config.dir.clone(), error);
        check_filesystem(&config.dir)?;
        let root = config.dir.join("flashside");
        let mut device = Device {
            root: root.clone(),
            dir: config.dir.clone(),
            limit_bytes: config.limit_bytes,
            allocated_bytes: AtomicI64::new(0),
            reserved_bytes: AtomicU64::new(0),
            held_bytes: AtomicU64::new(0),
            loaded: AtomicBool::new(false),
            health: Mutex::default(),
            suspect: AtomicBool::new(false),
            module: Mutex::new(Box::new(S3Fifo::default())),
            stale_blocks: AtomicU64::new(0),
            witness: None,
            unbroken: false,
            _lock: None,
        };
        match device.prepare(store, runtime_dir, mountpoint) {
            Ok(()) => Ok(device),
            Err(Error::Io(_, error)) if is_passing(&error) => {
                device.report(&error);
                Ok(device)
            }
            Err(Error::Io(_, error)) => Err(fail(error)),
            Err(error) => Err(error),
        }
    }

    fn prepare(
        &mut self,
        store: &str,
        runtime_dir: &Path,
        mountpoint: Option<&Path>,
    ) -> Result<(), Error> {
        let fail = |error| Error::Io(self.dir.clone(), error);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(self.root.join("images")).map_err(fail)?;
        let lock = |mountpoint| lock(&self.root, &self.dir, mountpoint);
        self._lock = mountpoint.map(lock).transpose()?;
        let uuid = self.join(store)?;
        let (witness, unbroken) = Witness::open(runtime_dir, &uuid, &self.root);
        // The daemon that was killed has shown it for the very same mount of the filesystem.
        if !unbroken {
            self.probe()?;
        }
        self.witness = witness;
        self.unbroken = unbroken;
        Ok(())
    }

    /// Reads or founds the membership record; gives the device's uuid.
    fn join(&self, store: &str) -> Result<String, Error> {
        let fail = |error| Error::Io(self.dir.clone(), error);
        let path = self.root.join("device.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let known: Membership = serde_json::from_slice(&bytes)
                    .map_err(|error| Error::Version(self.dir.clone(), error.to_string()))?;
                if known.version != FORMAT_VERSION {
                    let version = format!("format {}", known.version);
                    return Err(Error::Version(self.dir.clone(), version));
                }
                if known.store != store {
                    return Err(Error::OtherStore {
                        dir: self.dir.clone(),
                        found: known.store,
                    });
                }
                Ok(known.uuid)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.found(&path, store).map_err(fail)
            }
            Err(error) => Err(fail(error)),
        }
    }

    fn found(&self, path: &Path, store: &str) -> io::Result<String> {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let membership = Membership {
            version: FORMAT_VERSION,
            uuid: uuid.trim().to_owned(),
            store: store.to_owned(),
        };
        let staged = path.with_extension("new");
        let mut text = serde_json::to_vec_pretty(&membership)?;
        text.push(b'\n');
        fs::write(&staged, text)?;
        File::open(&staged)?.sync_all()?;
        fs::rename(&staged, path)?;
        File::open(&self.root)?.sync_all()?;
        Ok(membership.uuid)
    }

    /// Shows that a punched hole frees space here and that direct I/O works.
    fn probe(&self) -> Result<(), Error> {
        let path = self.root.join("probe");
        let fail = |error| Error::Io(self.dir.clone(), error);
        let outcome = probe_file(&path);
        // The probe may not have been made; what matters is that none stays.
        let _ = fs::remove_file(&path);
        let (before, after, alignment_bytes) = outcome.map_err(fail)?;
        let unsupported = |why: &str| Err(Error::Unsupported(self.dir.clone(), why.to_owned()));
        if alignment_bytes > ALIGN_BYTES as u32 {
            return unsupported("a filesystem whose direct I/O needs more than 4 KiB alignment");
        }
        if after + BLOCK_BYTES > before {
            return unsupported("a filesystem where a punched hole frees no space");
        }
        Ok(())
    }

    /// Where the files of an image lie.
    pub fn image_dir(&self, id: crate::store::ImageId) -> PathBuf {
        self.root.join("images").join(id.to_string())
    }

    /// True when writing to the device makes sense now.
    pub fn usable(&self) -> bool {
        if !self.suspect.load(Ordering::Relaxed) {
            return true;
        }
        let health = self.health.lock();
        health.retry_at.is_none_or(|at| Instant::now() >= at)
    }

    /// Notes that an operation on the device failed.
    pub fn report(&self, error: &io::Error) {
        let mut health = self.health.lock();
        health.retry_at = Some(Instant::now() + RETRY_AFTER);
        let why = error.to_string();
        let new = !self.suspect.swap(true, Ordering::Relaxed) || health.why != why;
        health.why.clone_from(&why);
        drop(health);
        if new {
            self.say(Level::Warn, "device failed", &|dir| {
                let seconds = RETRY_AFTER.as_secs();
                format!(
                    "cache device {dir}: {why}; images go on without it, it is tried again every {seconds} s"
                )
            });
        }
    }

    /// Notes that an operation on the device worked.
    pub fn report_ok(&self) {
        if self.suspect.load(Ordering::Relaxed) {
            let mut health = self.health.lock();
            *health = Health::default();
            drop(health);
            if self.suspect.swap(false, Ordering::Relaxed) {
                self.say(Level::Info, "device works", &|dir| {
                    format!("cache device {dir} works again")
                });
            }
        }
    }

    fn say(&self, level: Level, kind: &'static str, line: &dyn Fn(&str) -> String) {
        let dir = self.dir.display().to_string();
        logs::say(level, kind, &dir, || line(&dir));
    }

    /// `blocks` blocks in the module's queues are gone: their image was deleted or evicted. They are swept
    /// out when a quarter of all is stale: they must not fill the queues, and walking them takes time.
    pub fn note_stale(&self, blocks: u64, heat: &dyn Heat) {
        let stale = self.stale_blocks.fetch_add(blocks, Ordering::Relaxed) + blocks;
        let mut module = self.module.lock();
        if stale > 0 && stale * 4 >= module.len() as u64 {
            module.sweep(heat);
            self.stale_blocks.store(0, Ordering::Relaxed);
        }
    }

    /// Changes the count of allocated bytes.
    pub fn charge(&self, bytes: i64) {
        self.allocated_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes in use, as the filesystem counts them.
    pub fn used_bytes(&self) -> u64 {
        u64::try_from(self.allocated_bytes.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// All its images are loaded: from now on there may be room.
    pub(super) fn set_loaded(&self) {
        self.loaded.store(true, Ordering::Release);
    }

    /// False while it is not known what lies on it; then nothing is inserted that needs room.
    pub(super) fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Promises `bytes` to an insert if limit and filesystem allow; [`Device::release`] ends it.
    pub fn try_reserve(&self, bytes: u64) -> bool {
        let reserved = self.reserved_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if self.fits(reserved) {
            return true;
        }
        self.release(bytes);
        false
    }

    /// Counts `bytes` as held that were held before this process came.
    pub(super) fn hold_anyway(&self, bytes: u64) {
        self.held_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Allows `bytes` to be held if others keep enough room; [`Device::end_hold`] ends it.
    pub(super) fn try_hold(&self, bytes: u64) -> bool {
        let unheld = (self.limit_bytes / UNHELD_SHARE).max(UNHELD_BYTES_MIN);
        let holdable = self.limit_bytes.saturating_sub(unheld);
        let more = |held: u64| Some(held + bytes).filter(|held| *held <= holdable);
        self.held_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .is_ok()
    }

    /// So many bytes are held no longer.
    pub(super) fn end_hold(&self, bytes: u64) {
        self.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Ends a promise: the bytes are now allocated and charged, or not needed.
    pub fn release(&self, bytes: u64) {
        self.reserved_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// True when nothing has to be evicted for what is there.
    pub fn within_limit(&self) -> bool {
        self.fits(0)
    }

    fn fits(&self, reserved: u64) -> bool {
        // Slack for metadata that shows only when the filesystem is asked again.
        let slack = (self.limit_bytes / 128).max(1 << 20);
        let wanted = self.used_bytes() + reserved + slack;
        let Ok((all, free, _)) = file::filesystem(&self.root) else {
            return false;
        };
        wanted <= self.limit_bytes && free >= all / FREE_SHARE + reserved
    }

    /// For `flashside status`.
    pub fn status(&self) -> DeviceStatus {
        let state = match self.suspect.load(Ordering::Relaxed) {
            true => "suspect",
            false => "healthy",
        };
        DeviceStatus {
            dir: self.dir.display().to_string(),
            state: state.to_owned(),
            limit_bytes: self.limit_bytes,
            used_bytes: self.used_bytes(),
        }
    }
}

/// True for conditions that may pass and never stop a mount: full, read-only, failing.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSPC | libc::EROFS | libc::EIO | libc::EDQUOT)
    )
}

fn check_filesystem(dir: &Path) -> Result<(), Error> {
    let (_, _, kind) = file::filesystem(dir).map_err(|error| Error::Io(dir.into(), error))?;
    match kind {
        EXT4 | XFS => Ok(()),
        other => Err(Error::Unsupported(dir.into(), filesystem_name(other))),
    }
}

fn filesystem_name(kind: i64) -> String {
    match kind {
        0x0102_1994 => "tmpfs".into(),
        0x9123_683e => "btrfs".into(),
        0x794c_7630 => "overlayfs".into(),
        0x6573_5546 => "a FUSE filesystem".into(),
        0x6969 => "NFS".into(),
        0x2fc1_2fc1 => "ZFS".into(),
        other => format!("a filesystem of type {other:#x}"),
    }
}

/// Locks the directory and writes down which mount uses it. A daemon whose mount is gone is about to end
/// and is waited for: umount and mount again is one step to users.
fn lock(root: &Path, dir: &Path, mountpoint: &Path) -> Result<File, Error> {
    let fail = |error| Error::Io(dir.into(), error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC)
        .open(root.join("lock"))
        .map_err(fail)?;
    let deadline = Instant::now() + ENDING_WAIT_MAX;
    while !try_lock(&file).map_err(fail)? {
        let mut holder = Vec::new();
        file.rewind().map_err(fail)?;
        file.read_to_end(&mut holder).map_err(fail)?;
        let holder = PathBuf::from(OsString::from_vec(holder));
        let mounts = mountinfo::flashside_mounts().map_err(fail)?;
        if mounts.iter().any(|mount| mount.mountpoint == holder) || Instant::now() >= deadline {
            return Err(Error::InUse(dir.into()));
        }
        std::thread::sleep(ENDING_POLL);
    }
    file.set_len(0).map_err(fail)?;
    file.rewind().map_err(fail)?;
    file.write_all(mountpoint.as_os_str().as_bytes())
        .map_err(fail)?;
    Ok(file)
}

/// False when somebody else has the lock.
fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open for the whole call; no memory is passed.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(false),
        error => Err(error),
    }
}

/// Allocated bytes before and after a punch, and the alignment direct I/O needs.
fn probe_file(path: &Path) -> io::Result<(u64, u64, u32)> {
    let file = DirectFile::open(path)?;
    let mut buffer = Buffer::new(2 * BLOCK_BYTES as usize);
    buffer.bytes_mut().fill(0x5a);
    file.write(buffer.bytes(), 0)?;
    file.sync()?;
    let before = file.allocated_bytes()?;
    file.punch(0, BLOCK_BYTES)?;
    file.sync()?;
    let after = file.allocated_bytes()?;
    Ok((before, after, file::direct_alignment_bytes(path)?))
}
