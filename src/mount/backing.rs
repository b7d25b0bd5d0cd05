//! Files that the kernel reads by itself: registering them with the FUSE device and taking them back.
//!
//! A registered file has a number, which belongs to the connection. The kernel keeps its own reference
//! for handles that are open, so taking a number back only ends its use for further opens.
//!
//! Numbers outlive the server: its successor goes on with those of handles that are open. One that a server
//! had just been given when it died is in nobody's books; the kernel counts numbers up, so it is among the latest
//! ([`Backings::take_back_lost`]).

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

/// A server that dies has registered fewer files than this without having noted what for: one for each
/// thread that registers. Those not found keep their file open until the unmount.
const LOST_MAX: u32 = 256;

/// The FUSE device of a mount that has passthrough.
pub struct Backings {
    device: OwnedFd,
    /// The first number given to this process.
    first: u32,
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
        let first = register(&device, &some_file()?)?;
        take_back(&device, first)?;
        Ok(Arc::new(Backings { device, first }))
    }

    /// Registers a file. ELOOP where it lies on a filesystem that is itself stacked.
    pub fn open(self: &Arc<Self>, file: &File) -> io::Result<Box<dyn Backing>> {
        let id = register(&self.device, file)?;
        Ok(self.carried(id))
    }

    /// A file that a server before has registered.
    pub fn carried(self: &Arc<Self>, id: u32) -> Box<dyn Backing> {
        Box::new(Registered {
            backings: self.clone(),
            id,
        })
    }

    /// Takes back what a server before has registered for nobody: `used` are the numbers that handles
    /// read by. Not when requests are served already.
    pub fn take_back_lost(&self, used: &[u32]) {
        for id in self.first.saturating_sub(LOST_MAX)..self.first {
            // Most of them are nobody's, which is an error here.
            if !used.contains(&id) && take_back(&self.device, id).is_ok() {
                log::debug!("the server before had registered a file for passthrough: taken back");
            }
        }
    }
}

/// Registers a file with the connection of `device`; gives its number.
fn register(device: &OwnedFd, file: &File) -> io::Result<u32> {
    let map = BackingMap {
        fd: file.as_raw_fd(),
        flags: 0,
        padding: 0,
    };
    // SAFETY: the device is open and `map` is what this request reads.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), OPEN, &map) };
    u32::try_from(id).map_err(|_| io::Error::last_os_error())
}

fn take_back(device: &OwnedFd, id: u32) -> io::Result<()> {
    // SAFETY: the device is open and the number is what this request reads.
    match unsafe { libc::ioctl(device.as_raw_fd(), CLOSE, &id) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Backing for Registered {
    fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Err(error) = take_back(&self.backings.device, self.id) {
            // The mount has ended, and with it all numbers.
            log::debug!("a backing file stays registered: {error}");
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
