//! Where the control socket of a mount lies: one rule for the daemon that makes it and for the client
//! that looks for it, so that finding it needs no access to the mount.
//!
//! The name is the mount point without its first slash; `/` becomes `-`, and bytes other than
//! letters, digits, `.` and `_` become `=XX` (hexadecimal). Long ones are cut and end in a checksum.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Error;

/// Longer names are cut: the kernel takes 107 bytes for the whole path.
const NAME_BYTES_MAX: usize = 64;
/// What remains of a cut name before its checksum.
const NAME_BYTES_KEPT: usize = 44;
/// The kernel's limit for the path of a unix socket, without its final NUL.
const PATH_BYTES_MAX: usize = 107;

/// The control socket of the mount at this absolute path, for the user who runs this process.
pub fn path_for(mountpoint: &Path) -> Result<PathBuf, Error> {
    let name = format!("{}.sock", name_of(mountpoint));
    let path = super::runtime_dir().join(name);
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(Error::SocketPathTooLong(path));
    }
    Ok(path)
}

fn name_of(mountpoint: &Path) -> String {
    let bytes = mountpoint.as_os_str().as_bytes();
    let mut name = String::new();
    for &byte in bytes.strip_prefix(b"/").unwrap_or(bytes) {
        match byte {
            b'/' => name.push('-'),
            b'.' | b'_' => name.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => name.push(char::from(byte)),
            _ => name.push_str(&format!("={byte:02X}")),
        }
    }
    if name.len() > NAME_BYTES_MAX {
        name.truncate(NAME_BYTES_KEPT);
        name.push_str(&format!("-{:016x}", xxhash_rust::xxh3::xxh3_64(bytes)));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_and_differ() {
        assert_eq!(name_of(Path::new("/srv/vms")), "srv-vms");
        assert_eq!(name_of(Path::new("/srv-vms")), "srv=2Dvms");
        assert_eq!(name_of(Path::new("/srv/my vms")), "srv-my=20vms");
        assert_eq!(name_of(Path::new("/é")), "=C3=A9");
    }

    #[test]
    fn long_names_are_cut_and_still_differ() {
        let long = |end: &str| name_of(Path::new(&format!("/{}{end}", "a".repeat(200))));
        assert!(long("b").len() <= NAME_BYTES_MAX);
        assert_ne!(long("b"), long("c"));
    }
}
