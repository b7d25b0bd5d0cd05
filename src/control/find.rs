//! Which mount holds a path, and where its daemon listens. Answers from the mount table; touches a
//! mount only where the socket is not at its usual place, and then with a deadline.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::config::{mountinfo, socket};

/// The attribute of a mount's root that names its control socket.
const SOCKET_XATTR: &std::ffi::CStr = c"user.flashside.control";
/// A mount that has not answered then is taken not to.
const XATTR_DEADLINE: Duration = Duration::from_secs(2);
/// Longer than any path of a unix socket.
const XATTR_BYTES_MAX: usize = 256;

/// A place in a mount of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub mountpoint: PathBuf,
    /// The path below the mount point; empty for its root.
    pub below: PathBuf,
}

/// Every mount of ours that can be seen.
pub fn mountpoints() -> io::Result<Vec<PathBuf>> {
    let mounts = mountinfo::flashside_mounts()?;
    Ok(mounts.into_iter().map(|mount| mount.mountpoint).collect())
}

/// The mount that holds `path`. Looks the path up as written first, so that nothing below a mount is
/// touched; only a path outside every mount, or one with `..`, is followed through its symbolic links.
pub fn place_of(path: &Path) -> io::Result<Option<Place>> {
    let mountpoints = mountpoints()?;
    let absolute = std::path::absolute(path)?;
    let goes_up = absolute
        .components()
        .any(|part| part == Component::ParentDir);
    if !goes_up && let Some(place) = longest_prefix(&mountpoints, &absolute) {
        return Ok(Some(place));
    }
    Ok(match fs::canonicalize(&absolute) {
        Ok(real) => longest_prefix(&mountpoints, &real),
        Err(_) => None,
    })
}

fn longest_prefix(mountpoints: &[PathBuf], path: &Path) -> Option<Place> {
    let holding = mountpoints.iter().filter_map(|mountpoint| {
        let below = path.strip_prefix(mountpoint).ok()?;
        Some(Place {
            mountpoint: mountpoint.clone(),
            below: below.to_path_buf(),
        })
    });
    holding.max_by_key(|place| place.mountpoint.as_os_str().len())
}

/// Where the daemon of this mount listens: the usual place, or what the mount's root says (another
/// user's mount, or one made in another mount namespace). `None` where neither is known.
pub fn socket_of(mountpoint: &Path) -> Option<PathBuf> {
    let usual = socket::path_for(mountpoint).ok();
    if usual.as_ref().is_some_and(|path| path.exists()) {
        return usual;
    }
    told_by_mount(mountpoint).or(usual)
}

fn told_by_mount(mountpoint: &Path) -> Option<PathBuf> {
    let name = CString::new(mountpoint.as_os_str().as_bytes()).ok()?;
    let (tell, told) = mpsc::channel();
    let asking = thread::Builder::new().spawn(move || tell.send(socket_xattr(&name)));
    asking.ok()?;
    told.recv_timeout(XATTR_DEADLINE).ok()?
}

fn socket_xattr(mountpoint: &CString) -> Option<PathBuf> {
    let mut value = [0u8; XATTR_BYTES_MAX];
    // SAFETY: both names end in a NUL and `value` is as long as said.
    let length = unsafe {
        libc::getxattr(
            mountpoint.as_ptr(),
            SOCKET_XATTR.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let value = value.get(..usize::try_from(length).ok()?)?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_holds_a_path() {
        let mountpoints = [PathBuf::from("/srv/vms"), PathBuf::from("/srv/vms/fast")];
        let place = |path: &str| longest_prefix(&mountpoints, Path::new(path));
        let below = |path: &str| place(path).map(|place| place.below.display().to_string());
        assert_eq!(below("/srv/vms/web.img"), Some("web.img".into()));
        assert_eq!(below("/srv/vms/fast/a/b.img"), Some("a/b.img".into()));
        assert_eq!(below("/srv/vms"), Some(String::new()));
        assert_eq!(below("/srv/vms2/web.img"), None);
    }
}
