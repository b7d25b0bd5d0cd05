//! What an object of a directory store is, whatever it is called, and what the store itself is.
//!
//! The inode number alone is not enough: filesystems use it again. The file handle holds the
//! generation; where there is none that lasts, the birth time tells two files apart; where there is
//! no birth time either, the tag is 0 and only the validator (rule 7) protects.
//!
//! May touch: attributes and handles of what it is given; opens only what a handle names.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::ImageId;

/// `AT_HANDLE_FID`: a handle that identifies but cannot be opened; more filesystems have one.
const AT_HANDLE_FID: i32 = 0x200;
/// `MAX_HANDLE_SZ` of the kernel, in bytes.
const HANDLE_BYTES_MAX: usize = 128;

/// Local filesystems by their statfs(2) magic: ext2/3/4, XFS, btrfs, tmpfs, f2fs.
const LOCAL: [i64; 5] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0xF2F5_2010];
/// A FUSE filesystem numbers its files anew whenever it is mounted; its handles hold that number.
const FUSE: i64 = 0x6573_5546;

/// The filesystem below a directory, as far as identity depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filesystem {
    magic: i64,
    id: u64,
}

impl Filesystem {
    /// Asks the filesystem that `fd` is on.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Filesystem> {
        // SAFETY: statfs is plain data, all zeroes is a value of it.
        let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: `fd` is open and `stat` is ours to fill.
        if unsafe { libc::fstatfs(fd.as_raw_fd(), &mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Filesystem {
            magic: stat.f_type,
            id: xxh3_64(&fsid_bytes(&stat.f_fsid)),
        })
    }

    /// True where timestamps come from this host's clock and a stat costs no request.
    pub fn is_local(&self) -> bool {
        LOCAL.contains(&self.magic)
    }

    fn has_lasting_handles(&self) -> bool {
        self.magic != FUSE
    }
}

/// What an object is, and its file handle where [`open_handle`] finds it again by that.
pub struct Identity {
    pub id: ImageId,
    pub handle: Option<Arc<[u8]>>,
}

/// The identity of the object behind `fd`, whose statx(2) answer is `stat`. `root` is the filesystem of
/// the store's root and its device number: what lies on another filesystem mounted inside the
/// store gets that one's id mixed in, as inode numbers repeat there.
pub fn identity(
    fd: BorrowedFd<'_>,
    stat: &libc::statx,
    root: Option<(Filesystem, (u32, u32))>,
) -> io::Result<Identity> {
    let device = (stat.stx_dev_major, stat.stx_dev_minor);
    let foreign = root.is_none_or(|(_, root_device)| device != root_device);
    let filesystem = match root {
        Some((filesystem, _)) if !foreign => filesystem,
        _ => Filesystem::of(fd)?,
    };
    let lasting = filesystem.has_lasting_handles();
    let handle = lasting.then(|| handle(fd, 0)).flatten();
    let mut tag = match &handle {
        Some(handle) => xxh3_64(handle),
        None => tag(fd, stat, lasting),
    };
    if foreign && root.is_some() {
        tag ^= filesystem.id;
    }
    let id = ImageId {
        ino: stat.stx_ino,
        tag,
    };
    let handle = handle.filter(|_| !foreign).map(Arc::from);
    Ok(Identity { id, handle })
}

/// As [`identity`], for those who look for no handle.
pub fn image_id(
    fd: BorrowedFd<'_>,
    stat: &libc::statx,
    root: Option<(Filesystem, (u32, u32))>,
) -> io::Result<ImageId> {
    Ok(identity(fd, stat, root)?.id)
}

/// The tag of what has no handle that can be opened.
fn tag(fd: BorrowedFd<'_>, stat: &libc::statx, has_lasting_handles: bool) -> u64 {
    if has_lasting_handles && let Some(handle) = handle(fd, AT_HANDLE_FID) {
        return xxh3_64(&handle);
    }
    if stat.stx_mask & libc::STATX_BTIME != 0 {
        let seconds = stat.stx_btime.tv_sec as u64;
        return seconds
            .wrapping_mul(1_000_000_000)
            .wrapping_add(u64::from(stat.stx_btime.tv_nsec));
    }
    0
}

/// `struct file_handle` with the most room it can need.
#[repr(C)]
struct FileHandle {
    handle_bytes: u32,
    handle_type: i32,
    bytes: [u8; HANDLE_BYTES_MAX],
}

/// An O_PATH descriptor of the object that has `handle`, on the filesystem of `root`, which is open for
/// reading. ESTALE where it is gone, EPERM without CAP_DAC_READ_SEARCH.
pub fn open_handle(root: BorrowedFd<'_>, handle: &[u8]) -> io::Result<OwnedFd> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let (kind, bytes) = handle.split_first_chunk().ok_or_else(invalid)?;
    if bytes.len() > HANDLE_BYTES_MAX {
        return Err(invalid());
    }
    let mut handle = FileHandle {
        handle_bytes: bytes.len() as u32,
        handle_type: i32::from_le_bytes(*kind),
        bytes: [0; HANDLE_BYTES_MAX],
    };
    handle.bytes[..bytes.len()].copy_from_slice(bytes);
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `root` is open; `handle` has the kernel's layout and the length it states.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            root.as_raw_fd(),
            &raw const handle,
            flags,
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The file handle's type and bytes, if the filesystem has handles.
fn handle(fd: BorrowedFd<'_>, flags: i32) -> Option<Vec<u8>> {
    let mut handle = FileHandle {
        handle_bytes: HANDLE_BYTES_MAX as u32,
        handle_type: 0,
        bytes: [0; HANDLE_BYTES_MAX],
    };
    let mut mount_id = 0i32;
    // SAFETY: the path is a C string; `handle` has the kernel's layout and the room it states.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            libc::AT_EMPTY_PATH | flags,
        )
    };
    let length = (handle.handle_bytes as usize).min(HANDLE_BYTES_MAX);
    (result == 0).then(|| {
        let mut bytes = handle.handle_type.to_le_bytes().to_vec();
        bytes.extend_from_slice(&handle.bytes[..length]);
        bytes
    })
}

/// What a store is, for the cache's membership record: the filesystem's id and the root's identity
/// where these last; the path besides where they do not (a FUSE store) or cannot be asked for (a
/// store that refuses the daemon).
pub fn store_identity(path: &Path, root: impl AsFd, id: Option<ImageId>) -> String {
    let filesystem = Filesystem::of(root.as_fd()).ok();
    match (filesystem, id) {
        (Some(filesystem), Some(id)) if filesystem.has_lasting_handles() => {
            format!("dir:{:016x}:{id}", filesystem.id)
        }
        _ => format!("dir:{}", path.display()),
    }
}

fn fsid_bytes(fsid: &libc::fsid_t) -> [u8; 8] {
    // SAFETY: fsid_t is two plain ints, whose fields the C library keeps private.
    unsafe { std::mem::transmute_copy(fsid) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn id_of(path: &Path) -> ImageId {
        let file = File::open(path).expect("open");
        let stat = crate::store::dir::calls::stat(file.as_fd(), 0).expect("statx");
        image_id(file.as_fd(), &stat, None).expect("id")
    }

    #[test]
    fn a_rename_keeps_the_id_and_a_new_file_of_the_same_name_has_another() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, b"1").expect("write");
        let before = id_of(&a);
        std::fs::rename(&a, &b).expect("rename");
        assert_eq!(before, id_of(&b));
        std::fs::remove_file(&b).expect("remove");
        std::fs::write(&b, b"1").expect("write");
        assert_ne!(before, id_of(&b));
    }
}
