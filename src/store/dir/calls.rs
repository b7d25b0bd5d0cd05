//! The system calls of the directory store, one safe function each.
//!
//! Objects are named by an O_PATH descriptor; calls that do not take one go through
//! `/proc/self/fd/N`, whose last step leads to the object itself, symbolic links included.
//!
//! Longer than most files because it is one flat list.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::store::{SetTime, StatFs, Timestamp};

/// Longest symbolic link target the kernel gives, in bytes.
const LINK_BYTES_MAX: usize = 4096;
/// Largest extended attribute or list of names, in bytes.
const XATTR_BYTES_MAX: usize = 65536;

fn zero_or_error(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A C string; EINVAL where a NUL is inside.
pub fn c_name(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The path that leads to what `fd` refers to.
fn magic(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("digits hold no NUL")
}

/// open(2) of a path from the root of the namespace.
pub fn open_path(path: &CStr, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: `path` is a C string.
    owned(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })
}

/// openat(2).
pub fn open_at(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    // SAFETY: `dir` is open and `name` is a C string.
    owned(unsafe {
        libc::openat(
            dir.as_raw_fd(),
            name.as_ptr(),
            flags | libc::O_CLOEXEC,
            mode,
        )
    })
}

/// Opens what `fd` refers to anew, with `flags`.
pub fn reopen(fd: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
    open_path(&magic(fd), flags)
}

/// statx(2) of what `fd` refers to, basic attributes and birth time.
pub fn stat(fd: BorrowedFd<'_>, flags: i32) -> io::Result<libc::statx> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `fd` is open, the path is a C string, `stat` has room.
    zero_or_error(unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | flags,
            libc::STATX_BASIC_STATS | libc::STATX_BTIME,
            stat.as_mut_ptr(),
        )
    })?;
    // SAFETY: statx is plain data and was filled.
    Ok(unsafe { stat.assume_init() })
}

/// chmod(2).
pub fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: the path is a C string.
    zero_or_error(unsafe { libc::chmod(magic(fd).as_ptr(), mode) })
}

/// chown(2); `None` leaves an id alone.
pub fn set_owner(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
    let path = c"".as_ptr();
    // SAFETY: `fd` is open, the path is a C string.
    zero_or_error(unsafe { libc::fchownat(fd.as_raw_fd(), path, uid, gid, libc::AT_EMPTY_PATH) })
}

/// utimensat(2); `None` leaves a time alone.
pub fn set_times(
    fd: BorrowedFd<'_>,
    atime: Option<SetTime>,
    mtime: Option<SetTime>,
) -> io::Result<()> {
    let times = [time_spec(atime), time_spec(mtime)];
    // SAFETY: the path is a C string, `times` holds the two values the call reads.
    zero_or_error(unsafe { libc::utimensat(libc::AT_FDCWD, magic(fd).as_ptr(), times.as_ptr(), 0) })
}

fn time_spec(time: Option<SetTime>) -> libc::timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, libc::UTIME_OMIT),
        Some(SetTime::Now) => (0, libc::UTIME_NOW),
        Some(SetTime::At(Timestamp { secs, nanos })) => (secs, i64::from(nanos)),
    };
    libc::timespec { tv_sec, tv_nsec }
}

/// readlinkat(2) of the symbolic link itself.
pub fn read_link(fd: BorrowedFd<'_>) -> io::Result<OsString> {
    let mut target = vec![0u8; LINK_BYTES_MAX];
    // SAFETY: `fd` is open, `target` has the room stated.
    let length = unsafe {
        libc::readlinkat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            target.as_mut_ptr().cast(),
            target.len(),
        )
    };
    target.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
    Ok(OsString::from_vec(target))
}

/// mkdirat(2).
pub fn make_dir(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    // SAFETY: `dir` is open, `name` is a C string.
    zero_or_error(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) })
}

/// mknodat(2); `rdev` is in the kernel's 32-bit encoding.
pub fn make_node(dir: BorrowedFd<'_>, name: &CStr, mode: u32, rdev: u32) -> io::Result<()> {
    let rdev = libc::makedev(
        (rdev >> 8) & 0xfff,
        (rdev & 0xff) | ((rdev >> 12) & 0xfff00),
    );
    // SAFETY: `dir` is open, `name` is a C string.
    zero_or_error(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, rdev) })
}

/// symlinkat(2).
pub fn make_symlink(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: `dir` is open, both names are C strings.
    zero_or_error(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) })
}

/// linkat(2) of what `fd` refers to.
pub fn link(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: `dir` is open, both paths are C strings.
    zero_or_error(unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            magic(fd).as_ptr(),
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    })
}

/// unlinkat(2); `flags` may hold `AT_REMOVEDIR`.
pub fn unlink(dir: BorrowedFd<'_>, name: &CStr, flags: i32) -> io::Result<()> {
    // SAFETY: `dir` is open, `name` is a C string.
    zero_or_error(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) })
}

/// renameat2(2).
pub fn rename(
    (from_dir, from): (BorrowedFd<'_>, &CStr),
    (to_dir, to): (BorrowedFd<'_>, &CStr),
    flags: u32,
) -> io::Result<()> {
    // SAFETY: both directories are open, both names are C strings.
    zero_or_error(unsafe {
        libc::renameat2(
            from_dir.as_raw_fd(),
            from.as_ptr(),
            to_dir.as_raw_fd(),
            to.as_ptr(),
            flags,
        )
    })
}

/// getxattr(2).
pub fn get_xattr(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
    let path = magic(fd);
    with_growing_buffer(|buffer, size| {
        // SAFETY: both names are C strings, `buffer` has `size` bytes.
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer, size) }
    })
}

/// listxattr(2).
pub fn list_xattr(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let path = magic(fd);
    with_growing_buffer(|buffer, size| {
        // SAFETY: the path is a C string, `buffer` has `size` bytes.
        unsafe { libc::listxattr(path.as_ptr(), buffer.cast(), size) }
    })
}

/// Small values are the rule, so a small buffer goes first.
fn with_growing_buffer(
    call: impl Fn(*mut libc::c_void, usize) -> libc::ssize_t,
) -> io::Result<Vec<u8>> {
    for size in [512, XATTR_BYTES_MAX] {
        let mut value = vec![0u8; size];
        match usize::try_from(call(value.as_mut_ptr().cast(), size)) {
            Ok(length) => {
                value.truncate(length);
                return Ok(value);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::ERANGE) {
                    return Err(error);
                }
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::E2BIG))
}

/// setxattr(2).
pub fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: i32) -> io::Result<()> {
    // SAFETY: both names are C strings, pointer and length describe `value`.
    zero_or_error(unsafe {
        libc::setxattr(
            magic(fd).as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            flags,
        )
    })
}

/// removexattr(2).
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: both names are C strings.
    zero_or_error(unsafe { libc::removexattr(magic(fd).as_ptr(), name.as_ptr()) })
}

/// fsync(2), or fdatasync(2) with `data_only`.
pub fn sync(fd: BorrowedFd<'_>, data_only: bool) -> io::Result<()> {
    // SAFETY: `fd` is open.
    zero_or_error(unsafe {
        if data_only {
            libc::fdatasync(fd.as_raw_fd())
        } else {
            libc::fsync(fd.as_raw_fd())
        }
    })
}

/// fstatvfs(3).
pub fn stat_fs(fd: BorrowedFd<'_>) -> io::Result<StatFs> {
    let mut stat = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `fd` is open, `stat` has room.
    zero_or_error(unsafe { libc::fstatvfs(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: statvfs is plain data and was filled.
    let stat = unsafe { stat.assume_init() };
    Ok(StatFs {
        blocks: stat.f_blocks,
        blocks_free: stat.f_bfree,
        blocks_available: stat.f_bavail,
        files: stat.f_files,
        files_free: stat.f_ffree,
        block_size: u32::try_from(stat.f_frsize).unwrap_or(4096),
        name_max: u32::try_from(stat.f_namemax).unwrap_or(255),
    })
}

/// lseek(2).
pub fn seek(fd: BorrowedFd<'_>, offset: u64, whence: i32) -> io::Result<u64> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: `fd` is open.
    let found = unsafe { libc::lseek64(fd.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// One round of getdents64(2); 0 bytes is the end.
pub fn get_dents(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `fd` is open, pointer and length describe `buffer`.
    let length = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            fd.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// pread(2), once.
pub fn read_at(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: i64) -> io::Result<usize> {
    // SAFETY: `fd` is open, pointer and length describe `buffer`.
    let length = unsafe {
        libc::pread64(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            offset,
        )
    };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// pwrite(2), once.
pub fn write_at(fd: BorrowedFd<'_>, data: &[u8], offset: i64) -> io::Result<usize> {
    // SAFETY: `fd` is open, pointer and length describe `data`.
    let length =
        unsafe { libc::pwrite64(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), offset) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// ftruncate(2).
pub fn set_len(fd: BorrowedFd<'_>, size: i64) -> io::Result<()> {
    // SAFETY: `fd` is open.
    zero_or_error(unsafe { libc::ftruncate64(fd.as_raw_fd(), size) })
}

/// fallocate(2).
pub fn allocate(fd: BorrowedFd<'_>, mode: i32, offset: i64, length: i64) -> io::Result<()> {
    // SAFETY: `fd` is open.
    zero_or_error(unsafe { libc::fallocate64(fd.as_raw_fd(), mode, offset, length) })
}

/// copy_file_range(2), once.
pub fn copy_range(
    (from, mut from_offset): (BorrowedFd<'_>, i64),
    (to, mut to_offset): (BorrowedFd<'_>, i64),
    length: usize,
) -> io::Result<u64> {
    // SAFETY: both descriptors are open, both offsets are ours to update.
    let copied = unsafe {
        libc::copy_file_range(
            from.as_raw_fd(),
            &mut from_offset,
            to.as_raw_fd(),
            &mut to_offset,
            length,
            0,
        )
    };
    u64::try_from(copied).map_err(|_| io::Error::last_os_error())
}
