//! Mount points: what is mounted on a directory, and how it is taken away.
//!
//! May touch: the mount table; runs fusermount3 where mounting is not our right.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The filesystem type our mounts show in the mount table.
pub const TYPE: &str = "fuse.flashside";

/// What is mounted on a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Nothing.
    Nobody,
    /// A filesystem of this type.
    Filesystem(String),
    /// A flashside mount whose daemon is gone.
    DeadMount,
}

/// Looks what is mounted on `dir`, an absolute path.
pub fn occupant(dir: &Path) -> io::Result<Occupant> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let Some(kind) = type_mounted_on(&table, dir) else {
        return Ok(Occupant::Nobody);
    };
    if kind == TYPE && is_dead(dir) {
        return Ok(Occupant::DeadMount);
    }
    Ok(Occupant::Filesystem(kind))
}

/// Takes away what a killed daemon left on `dir`; true if there was something.
pub fn clear_dead_mount(dir: &Path) -> io::Result<bool> {
    if occupant(dir)? != Occupant::DeadMount {
        return Ok(false);
    }
    detach(dir)?;
    Ok(true)
}

/// How long users of a mount that shall end may take to leave.
const GRACE: Duration = Duration::from_secs(8);

/// Unmounts `dir`. While somebody uses it, it waits [`GRACE`] for them to leave; who is still there
/// then gets errors from then on, and so does what hangs in the store.
pub fn unmount(dir: &Path) -> io::Result<()> {
    let end = Instant::now() + GRACE;
    loop {
        match unmount_with(dir, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return fusermount(dir, "-u").or_else(|_| fusermount(dir, "-uz"));
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            result => return result,
        }
        if Instant::now() >= end {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    log::warn!("{} is still in use: its users get errors", dir.display());
    // Ends the connection; the mount itself stays busy.
    let _ = unmount_with(dir, libc::MNT_FORCE);
    detach(dir)
}

fn detach(dir: &Path) -> io::Result<()> {
    match unmount_with(dir, libc::MNT_DETACH) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => fusermount(dir, "-uz"),
        result => result,
    }
}

fn unmount_with(dir: &Path, flags: i32) -> io::Result<()> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string.
    if unsafe { libc::umount2(path.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

fn fusermount(dir: &Path, option: &str) -> io::Result<()> {
    let output = Command::new("fusermount3")
        .arg(option)
        .arg("--")
        .arg(dir)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(said.trim().to_owned()))
}

/// A dead mount answers ENOTCONN. A live daemon answers from memory even if its store hangs.
fn is_dead(dir: &Path) -> bool {
    let answer = std::fs::metadata(dir);
    answer.is_err_and(|error| {
        matches!(
            error.raw_os_error(),
            Some(libc::ENOTCONN | libc::ECONNABORTED)
        )
    })
}

/// The type of the topmost filesystem on `dir`, by the text of a mountinfo file.
fn type_mounted_on(table: &[u8], dir: &Path) -> Option<String> {
    let mut found = None;
    for line in table.split(|&byte| byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-");
        if let (Some(point), Some(dash)) = (fields.get(4), dash)
            && let Some(kind) = fields.get(dash + 1)
            && unescaped(point) == dir
        {
            found = Some(String::from_utf8_lossy(kind).into_owned());
        }
    }
    found
}

/// The table writes blanks, newlines and backslashes as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let code = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (byte, code) {
            (b'\\', Some(code)) => {
                path.push(code);
                rest = &after[3..];
            }
            _ => {
                path.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        40 22 0:50 / /mnt/a\\040b rw,nosuid shared:5 - fuse.flashside /srv rw,user_id=0\n\
        41 22 0:51 / /mnt/twice rw - tmpfs none rw\n\
        42 22 0:52 / /mnt/twice rw - xfs /dev/sdb rw\n";

    #[test]
    fn the_topmost_mount_on_a_directory_is_found_also_with_blanks_in_its_path() {
        let on = |path: &str| type_mounted_on(TABLE, Path::new(path));
        assert_eq!(on("/mnt/a b").as_deref(), Some(TYPE));
        assert_eq!(on("/mnt/twice").as_deref(), Some("xfs"));
        assert_eq!(on("/mnt"), None);
        assert_eq!(
            occupant(Path::new("/proc")).ok(),
            Some(Occupant::Filesystem("proc".into()))
        );
    }
}
