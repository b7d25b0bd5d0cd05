//! Directory listings by getdents64(2), whose positions serve as cookies: a listing can go on in
//! another call, through another descriptor.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use super::attr::kind;
use super::calls;
use crate::store::{DirEntry, Kind};

/// Bytes of entries asked of the kernel at once.
const BUFFER_BYTES: usize = 32 * 1024;
/// Bytes of a `linux_dirent64` before its name: inode, position, length, type.
const HEADER_BYTES: usize = 19;

/// Entries of the directory open as `dir` after `cookie` (0 = all), `.`, `..` and what `hide` says
/// left out, at most `max`; none is the end.
pub fn read(
    dir: BorrowedFd<'_>,
    cookie: u64,
    max: usize,
    hide: impl Fn(&OsStr) -> bool,
) -> io::Result<Vec<DirEntry>> {
    if cookie != 0 {
        calls::seek(dir, cookie, libc::SEEK_SET)?;
    }
    let mut buffer = vec![0u8; BUFFER_BYTES];
    let mut entries = Vec::new();
    while entries.len() < max {
        let length = calls::get_dents(dir, &mut buffer)?;
        if length == 0 {
            break;
        }
        let mut rest = &buffer[..length];
        while let Some((entry, next)) = first(rest) {
            rest = next;
            if entries.len() < max && !is_dot(entry.name) && !hide(entry.name) {
                entries.push(entry.resolve(dir));
            }
        }
    }
    Ok(entries)
}

/// An entry as the kernel wrote it.
struct Raw<'a> {
    ino: u64,
    next_position: u64,
    file_type: u8,
    name: &'a OsStr,
}

/// The first entry of a buffer, and the rest. None at the end.
fn first(buffer: &[u8]) -> Option<(Raw<'_>, &[u8])> {
    let header = buffer.get(..HEADER_BYTES)?;
    let length = usize::from(u16::from_ne_bytes(header[16..18].try_into().ok()?));
    let name = CStr::from_bytes_until_nul(buffer.get(HEADER_BYTES..length)?).ok()?;
    let entry = Raw {
        ino: u64::from_ne_bytes(header[..8].try_into().ok()?),
        next_position: u64::from_ne_bytes(header[8..16].try_into().ok()?),
        file_type: header[18],
        name: OsStr::from_bytes(name.to_bytes()),
    };
    Some((entry, &buffer[length..]))
}

impl Raw<'_> {
    fn resolve(&self, dir: BorrowedFd<'_>) -> DirEntry {
        DirEntry {
            name: self.name.to_owned(),
            ino: self.ino,
            kind: self.kind(dir),
            cookie: self.next_position,
        }
    }

    /// The kind; some filesystems do not tell it in listings and have to be asked.
    fn kind(&self, dir: BorrowedFd<'_>) -> Kind {
        if self.file_type != libc::DT_UNKNOWN {
            return kind(u32::from(self.file_type) << 12);
        }
        calls::c_name(self.name)
            .and_then(|name| calls::open_at(dir, &name, libc::O_PATH | libc::O_NOFOLLOW, 0))
            .and_then(|fd| calls::stat(fd.as_fd(), 0))
            .map_or(Kind::File, |stat| kind(u32::from(stat.stx_mode)))
    }
}

fn is_dot(name: &OsStr) -> bool {
    name == "." || name == ".."
}
