//! What is mounted where, from `/proc/self/mountinfo`. Reading it asks no filesystem anything, so it
//! answers while a store or a daemon hangs.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The type that our mounts have there.
pub const FLASHSIDE: &str = "fuse.flashside";

/// The type of a directory where systemd or an automounter mounts on demand.
pub const ON_DEMAND: &str = "autofs";

/// One mount of this process's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub mountpoint: PathBuf,
    pub fs_type: String,
    pub source: OsString,
}

/// Every mount, in the order they were made: of two at one place the later hides the earlier.
pub fn mounts() -> io::Result<Vec<Mount>> {
    let bytes = fs::read("/proc/self/mountinfo")?;
    let lines = bytes.split(|&byte| byte == b'\n');
    Ok(lines.filter_map(parse).collect())
}

/// What is seen at `path` itself, if it is a mount point.
pub fn mounted_at(path: &Path) -> io::Result<Option<Mount>> {
    let all = mounts()?;
    Ok(all.into_iter().rfind(|mount| mount.mountpoint == path))
}

/// Our mounts, without those hidden by a later mount at the same place.
pub fn flashside_mounts() -> io::Result<Vec<Mount>> {
    Ok(visible(mounts()?))
}

fn visible(all: Vec<Mount>) -> Vec<Mount> {
    let mut seen: Vec<Mount> = Vec::new();
    for mount in all {
        seen.retain(|other| other.mountpoint != mount.mountpoint);
        seen.push(mount);
    }
    seen.retain(|mount| mount.fs_type == FLASHSIDE);
    seen
}

/// A line: id, parent, device, root, mount point, options, optional fields, `-`, type, source, …
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mountpoint = fields.nth(4)?;
    fields.find(|field| *field == b"-")?;
    let fs_type = fields.next()?;
    let source = fields.next()?;
    Some(Mount {
        mountpoint: PathBuf::from(unescape(mountpoint)),
        fs_type: OsStr::from_bytes(fs_type).to_string_lossy().into_owned(),
        source: unescape(source),
    })
}

/// The kernel writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, octal(tail)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(digits.get(..3)?).ok()?;
    u8::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] =
        b"36 35 0:52 / /srv/my\\040vms rw,nosuid shared:1 - fuse.flashside flashside rw,user_id=0";

    #[test]
    fn a_line_is_read_with_its_escapes() {
        let mount = parse(LINE).expect("a mount");
        assert_eq!(mount.mountpoint, Path::new("/srv/my vms"));
        assert_eq!(mount.fs_type, FLASHSIDE);
        assert_eq!(mount.source, "flashside");
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_hidden_mount_is_not_seen() {
        let ours = parse(LINE).expect("a mount");
        let mut other = ours.clone();
        other.fs_type = "ext4".into();
        assert_eq!(
            visible(vec![other.clone(), ours.clone()]),
            vec![ours.clone()]
        );
        assert_eq!(visible(vec![ours, other]), vec![]);
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(mounted_at(Path::new("/")).expect("readable").is_some());
    }
}
