//! Between the store's words and fuser's: attributes, times, modes, errors.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, OpenAccMode, OpenFlags, TimeOrNow};

use crate::store::{Attr, Error, Kind, OpenMode, SetTime, Timestamp};

/// How long the kernel may use a name or attributes without asking again. Another host's change is
/// seen at most this much later.
pub const TTL: Duration = Duration::from_secs(1);

/// Attributes as the kernel gets them; `size_bytes` is given apart, as an open image knows better.
pub fn file_attr(nodeid: u64, attr: &Attr, size_bytes: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(nodeid),
        size: size_bytes,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH, // only other systems have a field for it
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev as u32, // the kernel's 32-bit encoding
        blksize: attr.blksize,
        flags: 0,
    }
}

/// The kernel's word for a kind.
pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// The errno that a failed operation shows at the mount. Errnos that would tell the kernel
/// something about this filesystem instead of about the store are replaced.
pub fn errno(error: &Error) -> Errno {
    match error {
        Error::Os(_) => match error.errno() {
            // "Not implemented" once means never asked again.
            libc::ENOSYS => Errno::EOPNOTSUPP,
            // These would read as if this mount were dead.
            libc::ENOTCONN | libc::ESHUTDOWN | libc::ECONNABORTED => Errno::EIO,
            other => Errno::from_i32(other),
        },
        Error::Deadline(_) | Error::Overloaded => Errno::EIO,
    }
}

/// How an open(2) asks for a file.
pub fn open_mode(flags: OpenFlags) -> OpenMode {
    let (read, write) = match flags.acc_mode() {
        OpenAccMode::O_RDONLY => (true, false),
        OpenAccMode::O_WRONLY => (false, true),
        OpenAccMode::O_RDWR => (true, true),
    };
    OpenMode {
        read,
        write,
        sync: flags.0 & libc::O_DSYNC != 0, // O_SYNC contains it
    }
}

/// A time to set.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(requested_timestamp(time)),
    }
}

/// fuser makes a time before 1970 by subtracting seconds and nanoseconds alike from the epoch,
/// though the nanoseconds count forward; this undoes it.
fn requested_timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            secs: after.as_secs() as i64,
            nanos: after.subsec_nanos(),
        },
        Err(before) => Timestamp {
            secs: -(before.duration().as_secs() as i64),
            nanos: before.duration().subsec_nanos(),
        },
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let seconds = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs >= 0 {
        UNIX_EPOCH.checked_add(seconds)
    } else {
        UNIX_EPOCH.checked_sub(seconds)
    };
    whole
        .and_then(|whole| whole.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let stored = Timestamp {
            secs: -2,
            nanos: 250_000_000,
        };
        let shown = UNIX_EPOCH - Duration::from_millis(1750);
        assert_eq!(system_time(stored), shown);
        let fusers = UNIX_EPOCH - Duration::new(2, 250_000_000);
        assert_eq!(requested_timestamp(fusers), stored);
    }

    #[test]
    fn the_stores_not_implemented_never_reaches_the_kernel() {
        assert_eq!(
            errno(&Error::from_errno(libc::ENOSYS)).code(),
            libc::EOPNOTSUPP
        );
        assert_eq!(errno(&Error::from_errno(libc::ENOTCONN)).code(), libc::EIO);
        assert_eq!(errno(&Error::Overloaded).code(), libc::EIO);
        assert_eq!(errno(&Error::from_errno(libc::ENOSPC)).code(), libc::ENOSPC);
    }
}
