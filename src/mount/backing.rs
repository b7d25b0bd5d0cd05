//! Files that the kernel reads by itself: registering them with the FUSE device and taking them back.
//!
//! A registered file has a number, which belongs to the connection. The kernel keeps its own reference
//! for handles that are open, so taking a number back only ends its use for further opens.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::image::plane::Backing;

/// `struct fuse_backing_map` of <linux/fuse.h>.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// `FUSE_DEV_IOC_BACKING_OPEN`: _IOW(229, 1, struct fuse_backing_map).
const OPEN: libc::Ioctl = 0x4010_e501;
/// `FUSE_DEV_IOC_BACKING_CLOSE`: _IOW(229, 2, uint32_t).
const CLOSE: libc::Ioctl = 0x4004_e502;

/// The FUSE device of a mount that has passthrough.
pub struct Backings {
    device: OwnedFd,
}

/// A registered file; taken back when dropped.
struct Registered {
    backings: Arc<Backings>,
    id: u32,
}

impl Backings {
    /// `device` is a descriptor of the mount's connection. Fails where this process may not register
    /// files (EPERM: it takes CAP_SYS_ADMIN) or the kernel cannot.
    pub fn new(device: OwnedFd) -> io::Result<Arc<Backings>> {
        let backings = Arc::new(Backings { device });
        backings.open(&some_file()?)?;
        Ok(backings)
    }

    /// Registers a file. ELOOP where it lies on a filesystem that is itself stacked.
    pub fn open(self: &Arc<Self>, file: &File) -> io::Result<Box<dyn Backing>> {
        let map = BackingMap {
            fd: file.as_raw_fd(),
            flags: 0,
            padding: 0,
        };
        // SAFETY: the device is open and `map` is what this request reads.
        let id = unsafe { libc::ioctl(self.device.as_raw_fd(), OPEN, &map) };
        let id = u32::try_from(id).map_err(|_| io::Error::last_os_error())?;
        Ok(Box::new(Registered {
            backings: self.clone(),
            id,
        }))
    }
}

impl Backing for Registered {
    fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let device = self.backings.device.as_raw_fd();
        // SAFETY: the device is open and the number is what this request reads.
        if unsafe { libc::ioctl(device, CLOSE, &self.id) } < 0 {
            // The mount has ended, and with it all numbers.
            log::debug!(
                "a backing file stays registered: {}",
                io::Error::last_os_error()
            );
        }
    }
}

/// A file to try with.
fn some_file() -> io::Result<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"flashside".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
