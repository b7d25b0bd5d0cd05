//! What the operations of a mount answer with, whichever session carries it to the kernel.
//!
//! *Invariant*: an answer is called once; a session has to see to a request whose answer is dropped
//! uncalled (EIO), because whoever waits for it would wait for ever.

use std::sync::Arc;
use std::time::Duration;

use crate::store::{Attr, DirEntry, Error, Kind, OpenMode, Result};

/// How long the kernel may use a name or attributes without asking again. Another host's change is
/// seen at most this much later.
pub const TTL: Duration = Duration::from_secs(1);

/// Takes the result of an operation to the kernel, from any thread.
pub type Answer<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// An object as the kernel is shown it.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    pub nodeid: u64,
    /// With the size that the image has, which the store may not know yet.
    pub attr: Attr,
}

/// What a name leads to.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub shown: Shown,
    /// Differs between two uses of one inode number.
    pub generation: u64,
}

/// An open file or directory.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// What the kernel calls it from now on.
    pub number: u64,
    /// The registered file that the kernel reads instead of asking, for FOPEN_PASSTHROUGH.
    pub backing: Option<u32>,
}

/// What getxattr(2) and listxattr(2) give.
#[derive(Debug)]
pub enum Value {
    /// How long the value is, for those who gave no room.
    Size(u32),
    Bytes(Vec<u8>),
}

/// Part of a directory listing, in the kernel's offsets.
pub struct Listed {
    /// `.` and `..`, as far as they are wanted: inode number and offset.
    pub dots: [Option<(u64, u64, &'static str)>; 2],
    /// The store's entries, of which those from index `from` on count.
    pub entries: Arc<Vec<DirEntry>>,
    pub from: usize,
}

/// One line of a listing.
pub struct ListedName<'a> {
    pub ino: u64,
    /// Where a listing goes on after this name.
    pub offset: u64,
    pub kind: Kind,
    pub name: &'a std::ffi::OsStr,
}

/// How an open(2) asks for a file.
pub fn open_mode(flags: i32) -> OpenMode {
    let access = flags & libc::O_ACCMODE;
    OpenMode {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        sync: flags & libc::O_DSYNC != 0, // O_SYNC contains it
    }
}

/// The errno that a failed operation shows at the mount. Errnos that would tell the kernel
/// something about this filesystem instead of about the store are replaced.
pub fn errno(error: &Error) -> i32 {
    match error {
        Error::Os(_) => match error.errno() {
            // "Not implemented" once means never asked again.
            libc::ENOSYS => libc::EOPNOTSUPP,
            // These would read as if this mount were dead.
            libc::ENOTCONN | libc::ESHUTDOWN | libc::ECONNABORTED => libc::EIO,
            other => other,
        },
        Error::Deadline(_) | Error::Overloaded => libc::EIO,
    }
}

/// Refuses with an errno.
pub fn refuse<T>(answer: Answer<T>, errno: i32) {
    answer(Err(Error::from_errno(errno)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stores_not_implemented_never_reaches_the_kernel() {
        let shown = |number| errno(&Error::from_errno(number));
        assert_eq!(shown(libc::ENOSYS), libc::EOPNOTSUPP);
        assert_eq!(shown(libc::ENOTCONN), libc::EIO);
        assert_eq!(errno(&Error::Overloaded), libc::EIO);
        assert_eq!(shown(libc::ENOSPC), libc::ENOSPC);
    }

    #[test]
    fn an_open_is_for_what_its_flags_say() {
        let mode = open_mode(libc::O_RDWR | libc::O_SYNC);
        assert!(mode.read && mode.write && mode.sync);
        let mode = open_mode(libc::O_RDONLY | libc::O_DIRECT);
        assert!(mode.read && !mode.write && !mode.sync);
    }
}
