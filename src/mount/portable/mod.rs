//! The session as fuser runs it: its threads read requests, its replies carry the answers. Serves
//! everything on the daemon plane. fuser's types stay here.

mod attr;
mod face;
mod replies;

use std::ffi::OsStr;
use std::io;

use fuser::{INodeNo, Notifier};

pub use face::Face;

use super::kernel::Kernel;

impl Kernel for Notifier {
    fn attr_outdated(&self, nodeid: u64) -> io::Result<()> {
        const ATTRIBUTES_ONLY: i64 = -1;
        self.inval_inode(INodeNo(nodeid), ATTRIBUTES_ONLY, 0)
    }

    fn forget_name(&self, parent: u64, name: &OsStr) -> io::Result<()> {
        self.inval_entry(INodeNo(parent), name)
    }
}
