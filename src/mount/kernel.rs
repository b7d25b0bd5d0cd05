//! What the kernel is told unasked.

use std::ffi::OsStr;
use std::io;

/// The way to the kernel, as a session has it. Calls may wait for requests that are under way, so no
/// thread that serves those may make them, except [`Kernel::attr_outdated`], which waits for none.
pub trait Kernel: Send + Sync {
    /// The kernel's copy of an inode's attributes is out of date.
    fn attr_outdated(&self, nodeid: u64) -> io::Result<()>;
    /// The kernel should forget a name, and with it the inode if that is not in use.
    fn forget_name(&self, parent: u64, name: &OsStr) -> io::Result<()>;
}
