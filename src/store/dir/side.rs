//! Side files: what flashside keeps in the store about an image, in `.flashside/<image id>/`. They go
//! by the image's id, so they follow it through renames; the mount does not show them.
//!
//! # Order of steps
//! A side file is written whole under a name of its own, made durable, renamed over the old one, and
//! the directory is made durable: after a crash it is the old one or the new one.
//!
//! Directories are 0700 and files 0600: they are flashside's, not the image owner's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::RESERVED_NAME;
use super::calls;
use super::tree::Tree;
use crate::store::{Caller, ImageId, Result};

/// A longer side file is not ours and is refused (EFBIG).
const SIDE_BYTES_MAX: u64 = 64 * 1024;

/// Reads the side file `name` of an image; ENOENT where it has none.
pub fn read(tree: &Tree, who: &Caller, id: ImageId, name: &str) -> Result<Vec<u8>> {
    let root = tree.root().clone();
    tree.run(who, &[&root], || {
        // Asked for at every open, and most images have none: three steps only where there is one.
        let base = open_dir(&magic(&*root.fd()), RESERVED_NAME)?;
        let dir = open_dir(&magic(&base), &id.to_string())?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(magic(&dir).join(name))?;
        let mut bytes = Vec::new();
        file.take(SIDE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > SIDE_BYTES_MAX {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        Ok(bytes)
    })
}

/// Replaces the side file `name` of an image; durable when it returns.
pub fn write(tree: &Tree, who: &Caller, id: ImageId, name: &str, bytes: &[u8]) -> Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let root = tree.root().clone();
    tree.run(who, &[&root], || {
        let base = ensure_dir(&magic(&*root.fd()), RESERVED_NAME)?;
        let dir = ensure_dir(&magic(&base), &id.to_string())?;
        let (pid, next) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let staged = magic(&dir).join(format!("{name}.{pid}.{next}.new"));
        let done = stage(&staged, bytes).and_then(|()| {
            fs::rename(&staged, magic(&dir).join(name))?;
            sync_dir(&magic(&dir))
        });
        if done.is_err() {
            let _ = fs::remove_file(&staged); // what matters is the first error
        }
        done
    })
}

/// Removes everything kept about an image; nothing there is no error.
pub fn remove_all(tree: &Tree, who: &Caller, id: ImageId) -> Result<()> {
    let root = tree.root().clone();
    tree.run(who, &[&root], || {
        let removed = open_dir(&magic(&*root.fd()), RESERVED_NAME)
            .and_then(|base| fs::remove_dir_all(magic(&base).join(id.to_string())));
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    })
}

fn stage(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A directory of ours, never through a symbolic link.
fn open_dir(parent: &Path, name: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(parent.join(name))
}

/// As [`open_dir`]; makes the directory if need be.
fn ensure_dir(parent: &Path, name: &str) -> io::Result<File> {
    match DirBuilder::new().mode(0o700).create(parent.join(name)) {
        Ok(()) => sync_dir(parent)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    open_dir(parent, name)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    calls::sync(dir.as_fd(), false)
}

/// The path that leads to what a descriptor refers to.
fn magic(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
