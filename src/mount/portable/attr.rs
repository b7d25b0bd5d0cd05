//! Between the store's words and fuser's: attributes and times.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::mount::answer::Shown;
use crate::store::{Kind, SetTime, Timestamp};

/// Attributes as the kernel gets them.
pub fn file_attr(shown: &Shown) -> FileAttr {
    let attr = &shown.attr;
    FileAttr {
        ino: INodeNo(shown.nodeid),
        size: attr.size_bytes,
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
}
