//! The session as fuser runs it: its threads read requests, its replies carry the answers. fuser's types
//! stay here.

mod attr;
mod face;
mod replies;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use fuser::{INodeNo, Notifier};

pub use face::Face;

use super::kernel::Kernel;

/// A descriptor of the mount's connection. fuser keeps its own to itself, so it is found among those of this
/// process, which has one mount.
pub fn device() -> io::Result<OwnedFd> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let is_fuse = fs::read_link(&path).is_ok_and(|target| target == Path::new("/dev/fuse"));
        if let (Some(number), true) = (number, is_fuse) {
            // SAFETY: the session keeps its descriptors open for as long as it serves.
            return unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned();
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

impl Kernel for Notifier {
    fn attr_outdated(&self, nodeid: u64) -> io::Result<()> {
        const ATTRIBUTES_ONLY: i64 = -1;
        self.inval_inode(INodeNo(nodeid), ATTRIBUTES_ONLY, 0)
    }

    fn forget_name(&self, parent: u64, name: &OsStr) -> io::Result<()> {
        self.inval_entry(INodeNo(parent), name)
    }
}
