//! An open file of the directory store: pread, pwrite and their kin on one descriptor.
//!
//! When the filesystem below went away and came back, the file opens itself again as its opener.
//! Writes that no fsync had covered by then may be lost, so the next fsync of every file of that
//! object fails once with EIO, as after a failed write-back.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::node::DirNode;
use super::tree::{Tree, went_away};
use super::{attr::attr, calls};
use crate::store::{Attr, Caller, OpenMode, Result, StoreFile};

/// An open file and what it takes to open it again.
pub struct DirFile {
    tree: Arc<Tree>,
    node: Arc<DirNode>,
    who: Caller,
    mode: OpenMode,
    fd: Mutex<Arc<OwnedFd>>,
    /// Losses of the node that an fsync of this file has reported.
    losses_told: AtomicU64,
}

/// The open(2) flags of a mode.
pub fn open_flags(mode: OpenMode) -> i32 {
    let access = match (mode.read, mode.write) {
        (true, true) => libc::O_RDWR,
        (false, true) => libc::O_WRONLY,
        (_, false) => libc::O_RDONLY,
    };
    let sync = if mode.sync { libc::O_DSYNC } else { 0 };
    access | sync | libc::O_NOCTTY
}

impl DirFile {
    pub fn new(
        tree: Arc<Tree>,
        node: Arc<DirNode>,
        who: Caller,
        mode: OpenMode,
        fd: OwnedFd,
    ) -> DirFile {
        DirFile {
            losses_told: AtomicU64::new(node.losses()),
            fd: Mutex::new(Arc::new(fd)),
            tree,
            node,
            who,
            mode,
        }
    }

    /// Runs `call` on the descriptor, as the opener: a store may check every request. If the
    /// filesystem went away, opens it again and runs `call` once more.
    fn run<T>(&self, mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<T>) -> Result<T> {
        let fd = self.fd.lock().clone();
        match self.as_opener(&fd, &mut call) {
            Err(error) if went_away(&error) => match self.open_again() {
                Ok(fd) => Ok(self.as_opener(&fd, &mut call)?),
                Err(_) => Err(error.into()),
            },
            result => Ok(result?),
        }
    }

    fn as_opener<T>(
        &self,
        fd: &OwnedFd,
        call: &mut impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let _as_opener = self.tree.process().act_as(&self.who)?;
        call(fd.as_fd())
    }

    fn open_again(&self) -> Result<Arc<OwnedFd>> {
        let fd = self.tree.run(&self.who, &[&self.node], || {
            calls::reopen(self.node.fd().as_fd(), open_flags(self.mode))
        })?;
        let fd = Arc::new(fd);
        let before = std::mem::replace(&mut *self.fd.lock(), fd.clone());
        self.node.closer().close(before);
        Ok(fd)
    }

    /// With `flags` of statx(2).
    fn stat(&self, flags: i32) -> Result<Attr> {
        let id = self.node.id();
        self.run(|fd| {
            let stat = calls::stat(fd, flags)?;
            match id {
                Some(id) => Ok(attr(id, &stat)),
                None => self.tree.attr(&self.node, &stat),
            }
        })
    }

    /// EIO once for every time that unsynced data may have been lost.
    fn tell_losses(&self) -> Result<()> {
        let losses = self.node.losses();
        if self.losses_told.swap(losses, Ordering::AcqRel) == losses {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(libc::EIO).into())
    }
}

impl StoreFile for DirFile {
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<usize> {
        self.run(|fd| {
            let mut done = 0;
            while done < buf.len() {
                let at = position(offset_bytes, done)?;
                match uninterrupted(|| calls::read_at(fd, &mut buf[done..], at))? {
                    0 => break,
                    length => done += length,
                }
            }
            Ok(done)
        })
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<()> {
        self.node.note_write();
        self.run(|fd| {
            let mut done = 0;
            while done < data.len() {
                let at = position(offset_bytes, done)?;
                match uninterrupted(|| calls::write_at(fd, &data[done..], at))? {
                    0 => return Err(io::Error::from_raw_os_error(libc::EIO)),
                    length => done += length,
                }
            }
            Ok(())
        })
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        let covered = self.node.writes();
        self.run(|fd| uninterrupted(|| calls::sync(fd, data_only)))?;
        self.tell_losses()?;
        self.node.synced(covered);
        Ok(())
    }

    fn set_len(&self, size_bytes: u64) -> Result<()> {
        self.node.note_write();
        let size = position(size_bytes, 0)?;
        self.run(|fd| uninterrupted(|| calls::set_len(fd, size)))
    }

    fn allocate(&self, mode: i32, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.node.note_write();
        let (offset, length) = (position(offset_bytes, 0)?, position(len_bytes, 0)?);
        self.run(|fd| uninterrupted(|| calls::allocate(fd, mode, offset, length)))
    }

    fn seek(&self, offset_bytes: u64, whence: i32) -> Result<u64> {
        self.run(|fd| calls::seek(fd, offset_bytes, whence))
    }

    fn attr(&self) -> Result<Attr> {
        self.stat(libc::AT_STATX_FORCE_SYNC)
    }

    fn known_attr(&self) -> Result<Attr> {
        self.stat(libc::AT_STATX_DONT_SYNC)
    }

    fn copy_range(
        &self,
        offset_bytes: u64,
        target: &dyn StoreFile,
        target_offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<u64> {
        let target: &DirFile = target
            .as_any()
            .downcast_ref()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EXDEV))?;
        let from_offset = position(offset_bytes, 0)?;
        let to_offset = position(target_offset_bytes, 0)?;
        let length = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        target.node.note_write();
        let to = target.fd.lock().clone();
        self.run(|from| calls::copy_range((from, from_offset), (to.as_fd(), to_offset), length))
    }

    fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        Some(self.fd.lock().clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for DirFile {
    fn drop(&mut self) {
        self.node.closer().take(self.fd.get_mut());
    }
}

/// `offset` + `done` as the kernel counts; EFBIG past its end.
fn position(offset: u64, done: usize) -> io::Result<i64> {
    i64::try_from(offset.saturating_add(done as u64))
        .map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => return result,
        }
    }
}
