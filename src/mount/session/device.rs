//! One descriptor of /dev/fuse: a way for requests to come in and for replies to go out.
//!
//! Every thread that reads has a clone of its own, so that threads do not wake each other; a reply may
//! go out through any of them. A reply is one write; the kernel takes it whole or not at all.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::AtomicUsize;

use zerocopy::IntoBytes;

use super::wire::{InvalEntryOut, InvalInodeOut, OutHeader, notify};
use crate::mount::kernel::Kernel;

/// `FUSE_DEV_IOC_CLONE`: makes a freshly opened /dev/fuse another descriptor of a connection.
const CLONE: libc::Ioctl = 0x8004_e500u32 as libc::Ioctl;

/// A descriptor of the connection. Closed with the last use.
pub struct Device {
    file: File,
    /// Requests that were taken through it and are not answered.
    pub in_hand: AtomicUsize,
}

/// What came of looking for a request.
pub enum Received {
    /// This many bytes.
    Request(usize),
    /// None is waiting.
    Nothing,
    /// The mount is gone.
    Ended,
}

impl Device {
    /// Another descriptor of the connection that `original` belongs to; it never blocks.
    pub fn clone_of(original: BorrowedFd<'_>) -> io::Result<Device> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open("/dev/fuse")?;
        let mut source = original.as_raw_fd() as u32;
        // SAFETY: the ioctl reads one u32, the descriptor to clone; both descriptors are open.
        let cloned = unsafe { libc::ioctl(file.as_raw_fd(), CLONE, &mut source) };
        match cloned {
            0 => Ok(Device::from(OwnedFd::from(file))),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes the next request into `buffer`, which has room for the largest.
    pub fn receive(&self, buffer: &mut [u8]) -> Received {
        loop {
            // SAFETY: the buffer is ours to fill, and as long as said.
            let read = unsafe {
                let at = buffer.as_mut_ptr().cast();
                libc::read(self.file.as_raw_fd(), at, buffer.len())
            };
            if let Ok(read) = usize::try_from(read) {
                return Received::Request(read);
            }
            match io::Error::last_os_error().raw_os_error() {
                // ENOENT: the request was given up between its wake-up and our reading.
                Some(libc::EINTR | libc::ENOENT) => {}
                Some(libc::EAGAIN) => return Received::Nothing,
                _ => return Received::Ended,
            }
        }
    }

    /// Sends a reply that lies in one piece.
    pub fn send(&self, reply: &[u8]) {
        note((&self.file).write(reply));
    }

    /// Sends a reply of two pieces.
    pub fn send_two(&self, head: &[u8], body: &[u8]) {
        let pieces = [IoSlice::new(head), IoSlice::new(body)];
        note((&self.file).write_vectored(&pieces));
    }

    pub fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Asks the kernel to send again every request that was taken and not answered.
    pub fn resend(&self) -> io::Result<()> {
        self.notify(notify::RESEND, [&[], &[], &[]])
    }

    /// To be held or handed on.
    pub fn into_fd(self) -> OwnedFd {
        self.file.into()
    }

    fn notify(&self, number: i32, pieces: [&[u8]; 3]) -> io::Result<()> {
        let body: usize = pieces.iter().map(|piece| piece.len()).sum();
        let head = OutHeader {
            len: (size_of::<OutHeader>() + body) as u32,
            error: number,
            unique: 0,
        };
        let [first, second, third] = pieces.map(IoSlice::new);
        let message = [IoSlice::new(head.as_bytes()), first, second, third];
        (&self.file).write_vectored(&message).map(drop)
    }
}

/// A reply that is not taken is for a request that was given up, or for a mount that is gone.
fn note(sent: io::Result<usize>) {
    if let Err(error) = sent {
        log::debug!("the kernel does not take a reply: {error}");
    }
}

impl From<OwnedFd> for Device {
    /// A descriptor of the connection that never blocks.
    fn from(descriptor: OwnedFd) -> Device {
        Device {
            file: descriptor.into(),
            in_hand: AtomicUsize::new(0),
        }
    }
}

impl Kernel for Device {
    fn attr_outdated(&self, nodeid: u64) -> io::Result<()> {
        const ATTRIBUTES_ONLY: i64 = -1;
        let what = InvalInodeOut {
            ino: nodeid,
            off: ATTRIBUTES_ONLY,
            len: 0,
        };
        known(self.notify(notify::INVAL_INODE, [what.as_bytes(), &[], &[]]))
    }

    fn forget_name(&self, parent: u64, name: &OsStr) -> io::Result<()> {
        let what = InvalEntryOut {
            parent,
            namelen: name.len() as u32,
            flags: 0,
        };
        let pieces = [what.as_bytes(), name.as_bytes(), &[0]];
        known(self.notify(notify::INVAL_ENTRY, pieces))
    }
}

/// That the kernel does not know the inode or the name is as good.
fn known(told: io::Result<()>) -> io::Result<()> {
    match told {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        told => told,
    }
}
