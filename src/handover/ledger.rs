//! The ledger: what one server of a mount leaves to the next, in memory that both map.
//!
//! A memfd, made with the mount and held by the keeper. Whoever serves writes; nobody else does, so a
//! plain store is enough, and what a server wrote before it was killed is there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// The layout below; a server of another build may take on a ledger of the same version only.
pub const VERSION: u32 = 1;

/// The shared memory of one mount.
pub struct Ledger {
    file: File,
}

impl Ledger {
    /// An empty one.
    pub fn new() -> io::Result<Ledger> {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"flashside-ledger".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Ledger { file })
    }

    /// The one that another process has made.
    pub fn open(memory: OwnedFd) -> io::Result<Ledger> {
        Ok(Ledger {
            file: memory.into(),
        })
    }

    /// How many servers have taken over from one before.
    pub fn restarts(&self) -> u64 {
        0
    }

    /// How many requests the kernel has sent again.
    pub fn resent_requests(&self) -> u64 {
        0
    }

    /// To hand it on.
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
