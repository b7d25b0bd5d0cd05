//! The way of a mount to its mount point. Where systemd mounts on demand (autofs), everybody who looks at the
//! directory waits until something is mounted there, and fuser looks before it mounts. So there the mount is made
//! at a directory of our own and then moved.
//!
//! May touch: the mount table, and one directory beside the control socket, gone when the mount has arrived.
//!
//! # Order of steps
//! Directory, mount, bound to the mount point, taken away from the directory, directory gone. Binding, because
//! the kernel moves no mount whose parent is shared, as it is under systemd.

use std::ffi::CString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::ptr;

use crate::config::{Config, mountinfo};

pub(super) struct Way {
    mountpoint: PathBuf,
    detour: Option<Detour>,
}

impl Way {
    /// The way to the mount point of `config`. Fails where a detour is needed and cannot be made.
    pub fn to(config: &Config) -> io::Result<Way> {
        let there = mountinfo::mounted_at(&config.mountpoint)?;
        let on_demand = there.is_some_and(|mount| mount.fs_type == mountinfo::ON_DEMAND);
        Ok(Way {
            mountpoint: config.mountpoint.clone(),
            detour: on_demand.then(|| Detour::by(config)).transpose()?,
        })
    }

    /// Where to mount.
    pub fn begin(&self) -> &Path {
        self.detour
            .as_ref()
            .map_or(&self.mountpoint, |detour| &detour.path)
    }

    /// Brings the mount to its mount point.
    pub fn arrive(self) -> io::Result<()> {
        let Some(detour) = &self.detour else {
            return Ok(());
        };
        let (from, to) = (c_path(&detour.path)?, c_path(&self.mountpoint)?);
        // SAFETY: both are C strings; the other pointers may be null for a bind mount.
        let bound = unsafe {
            libc::mount(
                from.as_ptr(),
                to.as_ptr(),
                ptr::null(),
                libc::MS_BIND,
                ptr::null(),
            )
        };
        match bound {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// A directory of our own. Dropping it takes away what is mounted there and the directory.
struct Detour {
    path: PathBuf,
}

impl Detour {
    fn by(config: &Config) -> io::Result<Detour> {
        let mut path = config.control_socket.clone();
        path.set_extension(format!("{}.mounting", std::process::id()));
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&path)?;
        Ok(Detour { path })
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        if let Ok(path) = c_path(&self.path) {
            // SAFETY: a C string. An error: nothing is mounted there.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
        }
        if let Err(error) = std::fs::remove_dir(&self.path) {
            log::warn!("{} stays: {error}", self.path.display());
        }
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
