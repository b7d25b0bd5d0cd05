//! The store: the shared storage that holds the images, behind one trait.
//!
//! Everything here blocks. Callers run it on an [`executor::Executor`], never on a FUSE thread, so
//! that a store that is slow or hangs stops nobody who does not need it. Nothing above this room
//! knows which store it talks to; what is added to one (latency, bandwidth, …) is a wrapper that
//! implements the same trait.
//!
//! May touch: the store's directory. Knows nothing of caches, images in use or FUSE.

pub mod dir;
pub mod error;
pub mod executor;
pub mod identity;
pub mod simulate;
pub mod walk;

use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use error::{Error, Result};

/// Who asks: the identity a store operation runs with (rule 15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Filesystem user id.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Arc<[u32]>,
}

impl Caller {
    /// The daemon itself, or the store user (uid, gid) where there is one: for what no caller of the
    /// mount asked for.
    pub fn daemon(store_user: Option<(u32, u32)>) -> Caller {
        // SAFETY: these two calls take nothing and cannot fail.
        let (uid, gid) =
            store_user.unwrap_or_else(|| unsafe { (libc::geteuid(), libc::getegid()) });
        Caller {
            uid,
            gid,
            groups: Arc::new([]),
        }
    }
}

/// What an image is, whatever it is called: the inode number and a tag that differs between two
/// uses of the same number (from the file handle, which holds the generation, or the birth time).
/// Stable across renames, remounts and hosts that see the same store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId {
    /// Inode number in the store.
    pub ino: u64,
    /// Distinguishes successive files with the same inode number.
    pub tag: u64,
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:016x}", self.ino, self.tag)
    }
}

impl std::str::FromStr for ImageId {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (ino, tag) = text.split_once('-').ok_or(())?;
        Ok(ImageId {
            ino: u64::from_str_radix(ino, 16).map_err(|_| ())?,
            tag: u64::from_str_radix(tag, 16).map_err(|_| ())?,
        })
    }
}

/// A point in time as the store tells it, nanosecond resolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970; negative before.
    pub secs: i64,
    /// Nanoseconds, 0..1_000_000_000.
    pub nanos: u32,
}

impl Timestamp {
    /// Nanoseconds since 1970, saturating.
    pub fn as_ns(&self) -> i64 {
        self.secs
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(self.nanos))
    }
}

/// What kind of object a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl Kind {
    const ALL: [Kind; 7] = [
        Kind::File,
        Kind::Dir,
        Kind::Symlink,
        Kind::Fifo,
        Kind::Socket,
        Kind::CharDevice,
        Kind::BlockDevice,
    ];

    /// A number for it that means the same to every build.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The kind of a number.
    pub fn of_number(number: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// Attributes of a store object, as stat(2) knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub id: ImageId,
    pub kind: Kind,
    /// Permission bits with set-uid, set-gid and sticky (0o7777).
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number in the kernel's 32-bit encoding (`st_rdev`).
    pub rdev: u64,
    pub size_bytes: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

/// Proof that a store image is still the version whose blocks are cached (rule 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validator {
    pub id: ImageId,
    pub size_bytes: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl Attr {
    /// The validator these attributes carry.
    pub fn validator(&self) -> Validator {
        Validator {
            id: self.id,
            size_bytes: self.size_bytes,
            mtime: self.mtime,
            ctime: self.ctime,
        }
    }
}

/// A time to set: the store's clock, or a given value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Timestamp),
}

/// Attributes to change; `None` leaves a field alone. Size is not here: a size change moves content
/// and goes through [`StoreFile::set_len`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

/// How a file is opened. `O_CREAT`, `O_EXCL`, `O_TRUNC` and `O_APPEND` never reach the store: the
/// kernel has done their work, and an appending descriptor would ignore offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMode {
    pub read: bool,
    pub write: bool,
    /// `O_DSYNC` or `O_SYNC`: every write is durable before it is acknowledged.
    pub sync: bool,
}

/// One entry of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    pub name: OsString,
    pub ino: u64,
    pub kind: Kind,
    /// Where a later [`Store::read_dir`] goes on after this entry; stable while the entry lives.
    pub cookie: u64,
}

/// What statfs(2) says of the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatFs {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    /// Block size in bytes; the unit of the three block counts.
    pub block_size: u32,
    pub name_max: u32,
}

/// A reference to an object of the store that survives renames; only the store that made it can
/// look inside. Cheap to clone.
#[derive(Clone)]
pub struct Node(pub Arc<dyn Any + Send + Sync>);

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Node")
    }
}

/// The shared storage. All calls block; errors are the store's errnos.
///
/// Names are single components. `.` and `..`, names with a slash or a NUL, and the reserved name
/// `.flashside` at the root are refused by the store (EINVAL, ENOENT), so nothing escapes it.
pub trait Store: Send + Sync {
    /// The root directory. Does not touch the store.
    fn root(&self) -> Node;
    /// True where timestamps come from this host's own clock and a stat costs no request (a local
    /// filesystem): the cache then records a validator after every write instead of every flush.
    fn is_local(&self) -> bool;
    /// What this store is, for the cache's membership record: the same text for the same store
    /// after a remount, another text for another store.
    fn identity(&self) -> String;
    fn lookup(&self, who: &Caller, parent: &Node, name: &OsStr) -> Result<(Node, Attr)>;
    fn attr(&self, who: &Caller, node: &Node) -> Result<Attr>;
    fn set_attr(&self, who: &Caller, node: &Node, set: &SetAttr) -> Result<Attr>;
    fn read_link(&self, who: &Caller, node: &Node) -> Result<OsString>;
    /// Entries after `cookie` (0 = from the start), without `.`, `..` and the reserved name, at
    /// most `max_entries`; an empty answer is the end.
    fn read_dir(
        &self,
        who: &Caller,
        node: &Node,
        cookie: u64,
        max_entries: usize,
    ) -> Result<Vec<DirEntry>>;
    fn open(&self, who: &Caller, node: &Node, mode: OpenMode) -> Result<Arc<dyn StoreFile>>;
    /// By what [`Store::node_of`] finds an object again in another process, at most 128 bytes; `None` where
    /// there is nothing like that. Does not touch the store.
    fn token(&self, node: &Node) -> Option<Arc<[u8]>>;
    /// The node of an object that another process has known, whose token may be empty; `place` is the
    /// parent and name by which it was last seen. Does not touch the store: the object is looked for when
    /// it is first used, and is ESTALE then if it is neither found by its token nor still in its place.
    fn node_of(
        &self,
        id: ImageId,
        kind: Kind,
        token: &[u8],
        place: Option<(&Node, &OsStr)>,
    ) -> Result<Node>;
    /// Goes on with a file that another process opened as `who`: [`StoreFile::descriptor`], carried. ESTALE
    /// where it is not a file of `node`.
    fn adopt_file(
        &self,
        who: &Caller,
        node: &Node,
        mode: OpenMode,
        file: OwnedFd,
    ) -> Result<Arc<dyn StoreFile>>;
    /// Creates a regular file that must not exist (EEXIST) and opens it. `permissions` already has
    /// the umask applied.
    fn create(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<(Node, Attr, Arc<dyn StoreFile>)>;
    fn make_dir(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        permissions: u32,
    ) -> Result<(Node, Attr)>;
    /// mknod(2); `mode` holds type and permissions.
    fn make_node(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<(Node, Attr)>;
    fn make_symlink(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<(Node, Attr)>;
    fn link(&self, who: &Caller, node: &Node, parent: &Node, name: &OsStr) -> Result<Attr>;
    fn unlink(&self, who: &Caller, parent: &Node, name: &OsStr) -> Result<()>;
    fn remove_dir(&self, who: &Caller, parent: &Node, name: &OsStr) -> Result<()>;
    /// renameat2(2) with its `flags`.
    fn rename(
        &self,
        who: &Caller,
        from: (&Node, &OsStr),
        to: (&Node, &OsStr),
        flags: u32,
    ) -> Result<()>;
    fn get_xattr(&self, who: &Caller, node: &Node, name: &OsStr) -> Result<Vec<u8>>;
    fn set_xattr(
        &self,
        who: &Caller,
        node: &Node,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()>;
    /// The names, each ended by a NUL, as listxattr(2) gives them.
    fn list_xattr(&self, who: &Caller, node: &Node) -> Result<Vec<u8>>;
    fn remove_xattr(&self, who: &Caller, node: &Node, name: &OsStr) -> Result<()>;
    fn sync_dir(&self, who: &Caller, node: &Node) -> Result<()>;
    fn stat_fs(&self, who: &Caller) -> Result<StatFs>;
    /// What flashside keeps in the store about an image under `name`; ENOENT where there is nothing. It
    /// goes by the image's id and is not seen through the mount.
    fn read_side(&self, who: &Caller, id: ImageId, name: &str) -> Result<Vec<u8>>;
    /// Replaces it, in one step that is durable when this returns.
    fn write_side(&self, who: &Caller, id: ImageId, name: &str, bytes: &[u8]) -> Result<()>;
    /// Removes everything kept about an image, with its last link; nothing there is no error.
    fn remove_sides(&self, who: &Caller, id: ImageId) -> Result<()>;
}

/// An open file of the store. Dropping it closes it.
pub trait StoreFile: Send + Sync {
    /// Reads at `offset_bytes` until `buf` is full or the file ends; returns the bytes read.
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<usize>;
    /// Writes all of `data` at `offset_bytes`. After an error the range holds old or new bytes.
    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<()>;
    /// Makes every completed write of this file durable; with `data_only` as fdatasync(2).
    fn sync(&self, data_only: bool) -> Result<()>;
    fn set_len(&self, size_bytes: u64) -> Result<()>;
    /// fallocate(2) with its `mode`.
    fn allocate(&self, mode: i32, offset_bytes: u64, len_bytes: u64) -> Result<()>;
    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`; ENXIO past the end.
    fn seek(&self, offset_bytes: u64, whence: i32) -> Result<u64>;
    /// Fresh attributes, read through this descriptor.
    fn attr(&self) -> Result<Attr>;
    /// Attributes as this host last heard of them. Does not ask a store that hangs.
    fn known_attr(&self) -> Result<Attr>;
    /// copy_file_range(2) into `target`, a file of the same store; returns the bytes copied.
    /// EXDEV or EOPNOTSUPP where the store cannot: the kernel then copies by read and write.
    fn copy_range(
        &self,
        offset_bytes: u64,
        target: &dyn StoreFile,
        target_offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<u64>;
    /// What can be carried to another process, for [`Store::adopt_file`]; `None` where there is none.
    fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        None
    }
    /// For [`StoreFile::copy_range`]: the implementation behind a trait object.
    fn as_any(&self) -> &dyn Any;
}
