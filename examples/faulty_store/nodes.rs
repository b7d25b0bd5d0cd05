//! The backing tree as inodes: each node the kernel knows is an `O_PATH` descriptor, so renames and
//! unlinks of open files need no care. Node ids are the backing inode numbers and generations the
//! backing ones, both the same after a restart of the store, as on a real server.
//!
//! Touches: the backing directory, nothing above it.
//! Locking: one mutex around the table; no system call on a node is made under it except the stat
//! of a fresh lookup.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

/// The last OS error as an errno.
pub fn errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// The errno of a system call's result: negative means failed.
pub fn check(result: impl Into<i64>) -> Result<i64, i32> {
    let result = result.into();
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// A name as the kernel hands it over; never holds a NUL.
pub fn c_name(name: &OsStr) -> CString {
    CString::new(name.as_bytes()).expect("the kernel sends names without NUL")
}

/// One object of the tree.
pub struct Node {
    fd: OwnedFd,
    pub generation: u64,
}

impl Node {
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// A path that leads to this very object, whatever it is called by now.
    pub fn path(&self) -> CString {
        CString::new(format!("/proc/self/fd/{}", self.raw())).expect("digits hold no NUL")
    }

    pub fn open(&self, flags: i32) -> Result<File, i32> {
        // SAFETY: a valid C string; the result is checked before it is owned.
        let fd = check(unsafe { libc::open(self.path().as_ptr(), flags | libc::O_CLOEXEC) })?;
        // SAFETY: open(2) just returned this descriptor to us alone.
        Ok(unsafe { File::from_raw_fd(fd as RawFd) })
    }

    pub fn stat(&self) -> Result<libc::stat, i32> {
        stat_at(self.raw(), c"", libc::AT_EMPTY_PATH)
    }
}

fn stat_at(dir: RawFd, name: &std::ffi::CStr, flags: i32) -> Result<libc::stat, i32> {
    // SAFETY: stat is plain numbers, for which zero is a value.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: valid C string and a buffer of the right type.
    check(unsafe { libc::fstatat(dir, name.as_ptr(), &mut st, flags) })?;
    Ok(st)
}

/// The backing generation from the file handle of ext4 and XFS (inode, generation), else 0.
fn generation_of(fd: RawFd) -> u64 {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; 128],
    }
    let mut handle = Handle {
        bytes: 128,
        kind: 0,
        data: [0; 128],
    };
    let mut mount = 0i32;
    // SAFETY: the struct has file_handle's layout with room for `bytes` bytes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd,
            c"".as_ptr(),
            &mut handle,
            &mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    let at = match (result, handle.bytes) {
        (0, 8) => 4,
        (0, 12..) => 8,
        _ => return 0,
    };
    let bytes = handle.data[at..at + 4].try_into().expect("four bytes");
    u32::from_ne_bytes(bytes) as u64
}

/// All nodes the kernel knows, with how often it looked each up.
pub struct Nodes {
    table: Mutex<HashMap<u64, (Arc<Node>, u64)>>,
    root_ino: u64,
}

impl Nodes {
    pub fn new(backing: &Path) -> Result<Nodes, i32> {
        let fd = open_path(libc::AT_FDCWD, backing.as_os_str())?;
        let root = Node { generation: 0, fd };
        let root_ino = root.stat()?.st_ino;
        let table = Mutex::new(HashMap::from([(1, (Arc::new(root), 1))]));
        Ok(Nodes { table, root_ino })
    }

    pub fn get(&self, ino: INodeNo) -> Result<Arc<Node>, i32> {
        let table = self.table.lock().expect("nothing panics under this lock");
        table
            .get(&ino.0)
            .map(|(node, _)| node.clone())
            .ok_or(libc::ESTALE)
    }

    /// Finds `name` and counts one lookup for the kernel.
    pub fn lookup(&self, parent: &Node, name: &OsStr) -> Result<(Arc<Node>, FileAttr), i32> {
        let fd = open_path(parent.raw(), name)?;
        let generation = generation_of(fd.as_raw_fd());
        let node = Node { fd, generation };
        let attr = self.attr(&node.stat()?);
        let mut table = self.table.lock().expect("nothing panics under this lock");
        let entry = table
            .entry(attr.ino.0)
            .or_insert_with(|| (Arc::new(node), 0));
        entry.1 += 1;
        Ok((entry.0.clone(), attr))
    }

    pub fn forget(&self, ino: INodeNo, lookups: u64) {
        let mut table = self.table.lock().expect("nothing panics under this lock");
        if let Some(entry) = table.get_mut(&ino.0) {
            entry.1 = entry.1.saturating_sub(lookups);
            if entry.1 == 0 && ino.0 != 1 {
                table.remove(&ino.0);
            }
        }
    }

    /// Attributes as FUSE wants them.
    pub fn attr(&self, st: &libc::stat) -> FileAttr {
        let ino = if st.st_ino == self.root_ino {
            1
        } else {
            st.st_ino
        };
        FileAttr {
            ino: INodeNo(ino),
            size: st.st_size as u64,
            blocks: st.st_blocks as u64,
            atime: time(st.st_atime, st.st_atime_nsec),
            mtime: time(st.st_mtime, st.st_mtime_nsec),
            ctime: time(st.st_ctime, st.st_ctime_nsec),
            crtime: UNIX_EPOCH,
            kind: kind(st.st_mode),
            perm: (st.st_mode & 0o7777) as u16,
            nlink: st.st_nlink as u32,
            uid: st.st_uid,
            gid: st.st_gid,
            rdev: st.st_rdev as u32,
            blksize: st.st_blksize as u32,
            flags: 0,
        }
    }
}

fn open_path(dir: RawFd, name: &OsStr) -> Result<OwnedFd, i32> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a valid C string; the result is checked before it is owned.
    let fd = check(unsafe { libc::openat(dir, c_name(name).as_ptr(), flags) })?;
    // SAFETY: openat(2) just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn time(secs: i64, nanos: i64) -> SystemTime {
    let whole = Duration::from_secs(secs.unsigned_abs());
    let base = if secs < 0 {
        UNIX_EPOCH - whole
    } else {
        UNIX_EPOCH + whole
    };
    base + Duration::from_nanos(nanos as u64)
}

/// The kind of file a mode names.
pub fn kind(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}
