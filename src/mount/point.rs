//! Mount points: what is mounted on a directory, and how it is taken away.
//!
//! May touch: the mount table; runs fusermount3 where mounting is not our right.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::config::mountinfo;

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
    let Some(mount) = mountinfo::mounted_at(dir)? else {
        return Ok(Occupant::Nobody);
    };
    if mount.fs_type == mountinfo::FLASHSIDE && is_dead(dir) {
        return Ok(Occupant::DeadMount);
    }
    Ok(Occupant::Filesystem(mount.fs_type))
}

/// Takes away what a killed daemon left on `dir`; true if there was something.
pub fn clear_dead_mount(dir: &Path) -> io::Result<bool> {
    if occupant(dir)? != Occupant::DeadMount {
        return Ok(false);
    }
    detach(dir)?;
    Ok(true)
}

/// Refuses in one sentence what an ordinary user cannot mount with. fusermount3 mounts for them, but they open
/// the device themselves.
pub fn check_rights() -> io::Result<()> {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return Ok(());
    }
    let mut device = OpenOptions::new();
    if let Err(error) = device.read(true).write(true).open("/dev/fuse") {
        let why = format!(
            "/dev/fuse is closed to this user ({error}): mount as root, or give it mode 0666"
        );
        return Err(io::Error::other(why));
    }
    match Command::new("fusermount3").arg("--version").output() {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::other(format!(
            "fusermount3 cannot be run ({error}): mount as root, or install fuse3"
        ))),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_occupant_is_named_by_its_type() {
        assert_eq!(
            occupant(Path::new("/proc")).ok(),
            Some(Occupant::Filesystem("proc".into()))
        );
    }
}
