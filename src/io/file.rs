//! A file on flash, read and written past the page cache, and the filesystem calls around it.
//!
//! Offsets and lengths given to [`DirectFile::read`] and [`DirectFile::write`] are multiples of the
//! alignment the filesystem asks for (512 bytes or more; [`super::ALIGN_BYTES`] always fits).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// A file opened with `O_DIRECT`.
pub struct DirectFile {
    file: File,
}

impl DirectFile {
    /// Opens or creates `path`, private to this user.
    pub fn open(path: &Path) -> io::Result<DirectFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(path)?;
        Ok(DirectFile { file })
    }

    /// Fills `buf` from `offset_bytes`. A file that ends within the last 4 KiB wanted is continued by
    /// zeros; one that ends earlier is an error.
    pub fn read(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let mut filled = 0;
        while filled < buf.len() {
            let at = offset_bytes + filled as u64;
            match self.file.read_at(&mut buf[filled..], at) {
                // The end of the file: where it is not aligned, asking on would be refused.
                Ok(read) if read == 0 || !read.is_multiple_of(512) => {
                    filled += read;
                    break;
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if buf.len() - filled >= super::ALIGN_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf[filled..].fill(0);
        Ok(())
    }

    /// A descriptor of its own on the same file, for reading only and through the page cache.
    pub fn reopen_for_reading(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Writes all of `data`.
    pub fn write(&self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset_bytes)
    }

    /// The descriptor, for an [`super::Engine`]; open as long as `self`.
    pub fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether somebody else has the file open, this process through another descriptor included.
    pub fn is_shared(&self) -> io::Result<bool> {
        match self.lease(libc::F_WRLCK) {
            Ok(()) => self.lease(libc::F_UNLCK).map(|()| false),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn lease(&self, kind: libc::c_int) -> io::Result<()> {
        // SAFETY: the descriptor is open for the whole call; no memory is passed.
        match unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, kind) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Makes all completed writes durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Sets the length; new bytes are a hole.
    pub fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)
    }

    /// Length in bytes.
    pub fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// True for a file without bytes.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Gives the space of a range back; it reads as zeros afterwards.
    pub fn punch(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        punch(&self.file, offset_bytes, len_bytes)
    }

    /// Bytes the filesystem has allocated for the file.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        allocated_bytes(&self.file)
    }
}

/// Opens or creates `path` for reading and writing through the page cache, private to this user.
pub fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(path)
}

/// Gives the space of a range of `file` back without changing its length.
pub fn punch(file: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = (to_off(offset_bytes)?, to_off(len_bytes)?);
    // SAFETY: the descriptor is open for the whole call; no memory is passed.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes the filesystem has allocated for `file`.
pub fn allocated_bytes(file: &File) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.blocks() * 512)
}

/// Where data lies at or after `offset_bytes`: its first and one past its last byte; `None` when
/// only a hole follows.
pub fn next_data(file: &File, offset_bytes: u64) -> io::Result<Option<(u64, u64)>> {
    let Some(begin) = seek(file, offset_bytes, libc::SEEK_DATA)? else {
        return Ok(None);
    };
    let end = seek(file, begin, libc::SEEK_HOLE)?.unwrap_or(begin);
    Ok(Some((begin, end)))
}

fn seek(file: &File, offset_bytes: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: the descriptor is open for the whole call; no memory is passed.
    let found = unsafe { libc::lseek(file.as_raw_fd(), to_off(offset_bytes)?, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

fn to_off(bytes: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// Which mount of which filesystem `path` lies on, in a form that is never used twice while the host
/// runs; `None` where the kernel does not tell (before Linux 6.8).
pub fn mount_identity(path: &Path) -> io::Result<Option<String>> {
    let stat = statx(path, libc::STATX_MNT_ID_UNIQUE)?;
    if stat.stx_mask & libc::STATX_MNT_ID_UNIQUE == 0 {
        return Ok(None);
    }
    Ok(Some(format!(
        "{}:{} {}",
        stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id
    )))
}

/// The alignment in bytes that direct I/O on `path` needs; 0 where it is not supported or not told.
pub fn direct_alignment_bytes(path: &Path) -> io::Result<u32> {
    let stat = statx(path, libc::STATX_DIOALIGN)?;
    Ok(stat.stx_dio_offset_align.max(stat.stx_dio_mem_align))
}

fn statx(path: &Path, mask: u32) -> io::Result<libc::statx> {
    let path = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: `statx` is plain numbers, for which all zeros is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a NUL-terminated string and `stat` is ours to write, both for the call.
    let done = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, mask, &mut stat) };
    match done {
        0 => Ok(stat),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Space of the filesystem that `path` lies on, in bytes: all, and free for us. And its type.
pub fn filesystem(path: &Path) -> io::Result<(u64, u64, i64)> {
    let path = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: `statfs` is plain numbers, for which all zeros is a value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a NUL-terminated string and `stat` is ours to write, both for the call.
    let done = unsafe { libc::statfs(path.as_ptr(), &mut stat) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let unit = u64::try_from(stat.f_bsize).unwrap_or(4096);
    Ok((stat.f_blocks * unit, stat.f_bavail * unit, stat.f_type))
}
