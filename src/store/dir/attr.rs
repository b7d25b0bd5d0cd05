//! From statx(2) to the store's own words.

use crate::store::{Attr, ImageId, Kind, Timestamp};

/// Bits of `st_mode` that hold permissions, set-uid, set-gid and sticky.
const PERMISSION_BITS: u32 = 0o7777;

/// The attributes of the object `id`.
pub fn attr(id: ImageId, stat: &libc::statx) -> Attr {
    let mode = u32::from(stat.stx_mode);
    Attr {
        id,
        kind: kind(mode),
        mode: mode & PERMISSION_BITS,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: rdev(stat.stx_rdev_major, stat.stx_rdev_minor),
        size_bytes: stat.stx_size,
        blocks: stat.stx_blocks,
        blksize: stat.stx_blksize,
        atime: timestamp(stat.stx_atime),
        mtime: timestamp(stat.stx_mtime),
        ctime: timestamp(stat.stx_ctime),
    }
}

/// The kind that an `st_mode` tells.
pub fn kind(mode: u32) -> Kind {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => Kind::Dir,
        libc::S_IFLNK => Kind::Symlink,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFCHR => Kind::CharDevice,
        libc::S_IFBLK => Kind::BlockDevice,
        _ => Kind::File,
    }
}

/// The kernel's 32-bit encoding of a device number.
fn rdev(major: u32, minor: u32) -> u64 {
    u64::from((minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12))
}

fn timestamp(time: libc::statx_timestamp) -> Timestamp {
    Timestamp {
        secs: time.tv_sec,
        nanos: time.tv_nsec,
    }
}
