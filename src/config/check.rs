//! Looks at the directories a mount is given and refuses what cannot work. Changes nothing.
//!
//! Whether one directory lies in another is told by device and inode number of its ancestors, so a
//! bind mount or a symbolic link does not hide it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Error, mountinfo};

/// A mount point that can be used, now or once its dead mount is cleaned away.
pub(super) struct MountPlace {
    pub path: PathBuf,
    /// A flashside daemon died here; the directory answers ENOTCONN.
    pub dead: bool,
}

/// A cache directory that can be used.
pub(super) struct CachePlace {
    pub path: PathBuf,
    pub device: u64,
    pub inode: u64,
    pub filesystem_bytes: u64,
}

/// The store's directory, absolute.
pub(super) fn store(path: &Path) -> Result<PathBuf, Error> {
    directory(path, Error::StoreMissing, Error::StoreNotDirectory)
}

/// The mount point, absolute. Does not look whether it is empty.
pub(super) fn mountpoint(path: &Path, store: &Path) -> Result<MountPlace, Error> {
    let named = without_touching_last(path)?;
    if let Some(place) = mounted(&named)? {
        return Ok(place);
    }
    let path = directory(
        path,
        Error::MountpointMissing,
        Error::MountpointNotDirectory,
    )?;
    if let Some(place) = mounted(&path)? {
        return Ok(place);
    }
    let (mountpoint, store) = (path.clone(), store.to_path_buf());
    if lies_in(&mountpoint, &store)? {
        return Err(Error::MountpointInStore { mountpoint, store });
    }
    if lies_in(&store, &mountpoint)? {
        return Err(Error::StoreUnderMountpoint { store, mountpoint });
    }
    Ok(MountPlace { path, dead: false })
}

pub(super) fn mountpoint_is_empty(path: &Path) -> Result<(), Error> {
    let mut entries = fs::read_dir(path).map_err(|error| unreadable(path, error))?;
    match entries.next() {
        Some(_) => Err(Error::MountpointNotEmpty(path.to_path_buf())),
        None => Ok(()),
    }
}

/// A cache directory and what is to be known about it.
pub(super) fn cache(
    path: &Path,
    store: &Path,
    mountpoint: Option<&Path>,
) -> Result<CachePlace, Error> {
    let path = directory(path, Error::CacheMissing, Error::CacheNotDirectory)?;
    let (cache, store) = (path.clone(), store.to_path_buf());
    if lies_in(&cache, &store)? {
        return Err(Error::CacheInStore { cache, store });
    }
    if lies_in(&store, &cache)? {
        return Err(Error::StoreInCache { store, cache });
    }
    let below = |outer: &Path| cache.starts_with(outer) || lies_in(&cache, outer).unwrap_or(false);
    if let Some(mountpoint) = mountpoint.filter(|outer| below(outer)) {
        let mountpoint = mountpoint.to_path_buf();
        return Err(Error::CacheUnderMountpoint { cache, mountpoint });
    }
    let about = fs::metadata(&path).map_err(|error| unreadable(&path, error))?;
    Ok(CachePlace {
        filesystem_bytes: filesystem_bytes(&path)?,
        device: about.dev(),
        inode: about.ino(),
        path,
    })
}

/// `path` absolute and without symbolic links; the two errors say what is wrong with it.
fn directory(
    path: &Path,
    missing: fn(PathBuf) -> Error,
    not_directory: fn(PathBuf) -> Error,
) -> Result<PathBuf, Error> {
    let real = fs::canonicalize(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => missing(path.to_path_buf()),
        io::ErrorKind::NotADirectory => not_directory(path.to_path_buf()),
        _ => unreadable(path, error),
    })?;
    let about = fs::metadata(&real).map_err(|error| unreadable(&real, error))?;
    if !about.is_dir() {
        return Err(not_directory(path.to_path_buf()));
    }
    Ok(real)
}

/// `path` absolute with only its parents looked up: the last component may be a mount that is dead
/// or hangs.
pub(super) fn without_touching_last(path: &Path) -> Result<PathBuf, Error> {
    let absolute = std::path::absolute(path).map_err(|error| unreadable(path, error))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Ok(absolute);
    };
    match fs::canonicalize(parent) {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::MountpointMissing(path.to_path_buf()))
        }
        Err(error) => Err(unreadable(path, error)),
    }
}

/// `None` where nothing is mounted, or only on demand; a dead mount of ours can be used; any other is refused.
fn mounted(path: &Path) -> Result<Option<MountPlace>, Error> {
    let mount = mountinfo::mounted_at(path).map_err(|error| unreadable(path, error))?;
    let Some(mount) = mount else {
        return Ok(None);
    };
    let path = path.to_path_buf();
    match mount.fs_type.as_str() {
        mountinfo::FLASHSIDE if is_dead(&path) => Ok(Some(MountPlace { path, dead: true })),
        // Who is in systemd's process group, as its mount(8) is, sees an empty directory there.
        mountinfo::ON_DEMAND => Ok(None),
        _ => Err(Error::MountpointMounted {
            path,
            fs_type: mount.fs_type,
        }),
    }
}

fn is_dead(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(_) => false,
        Err(error) => error.raw_os_error() == Some(libc::ENOTCONN),
    }
}

/// True where `inner` is `outer` or lies somewhere below it. Both are absolute.
fn lies_in(inner: &Path, outer: &Path) -> Result<bool, Error> {
    let about = fs::metadata(outer).map_err(|error| unreadable(outer, error))?;
    let same = |ancestor: &Path| {
        fs::metadata(ancestor)
            .is_ok_and(|other| (other.dev(), other.ino()) == (about.dev(), about.ino()))
    };
    Ok(inner.ancestors().any(same))
}

/// The size of the filesystem that holds `path`.
fn filesystem_bytes(path: &Path) -> Result<u64, Error> {
    let name = std::ffi::CString::new(OsStr::as_bytes(path.as_os_str()))
        .map_err(|error| unreadable(path, error.into()))?;
    let mut about = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` is a NUL-terminated string and `about` has room for the answer.
    let result = unsafe { libc::statvfs(name.as_ptr(), about.as_mut_ptr()) };
    if result != 0 {
        return Err(unreadable(path, io::Error::last_os_error()));
    }
    // SAFETY: statvfs returned success and so filled `about`.
    let about = unsafe { about.assume_init() };
    Ok(about.f_blocks.saturating_mul(about.f_frsize))
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::Unreadable {
        path: path.to_path_buf(),
        error,
    }
}
