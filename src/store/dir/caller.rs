//! Borrowed identities: a store call runs with the caller's fsuid, fsgid and groups (rule 15).
//!
//! Linux keeps these per thread; the raw system calls change only the calling thread, while the C
//! library's setgroups would change all. A guard gives the thread its own identity back.
//!
//! *Invariant*: outside a guard every thread has the process's identity.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::store::Caller;

/// Tells setfsuid(2) and setfsgid(2) to change nothing and report.
const ASK: u32 = u32::MAX;

/// The identity the process has, and whether it may take another one.
#[derive(Debug)]
pub struct Process {
    own: Caller,
    may_switch: bool,
}

/// While this lives, the thread acts as somebody. Must be dropped on the same thread.
pub struct Guard<'a> {
    process: Option<&'a Process>,
    groups_changed: bool,
    _on_this_thread: PhantomData<*const ()>,
}

impl Process {
    /// Reads the identity of this process.
    pub fn current() -> io::Result<Process> {
        // SAFETY: these two calls take nothing and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        Ok(Process {
            own: Caller {
                uid,
                gid,
                groups: current_groups()?,
            },
            may_switch: uid == 0,
        })
    }

    /// The process as a caller.
    pub fn caller(&self) -> &Caller {
        &self.own
    }

    /// Makes this thread act as `who`. Root keeps its own groups: they add nothing to its rights.
    /// Without root there is nothing to switch: the kernel lets only the owner in. EPERM where the
    /// process may not change identities.
    pub fn act_as(&self, who: &Caller) -> io::Result<Guard<'_>> {
        let same = who.uid == self.own.uid && who.gid == self.own.gid;
        let groups_matter = who.uid != 0 && who.groups != self.own.groups;
        if !self.may_switch || (same && !groups_matter) {
            return Ok(Guard::nothing());
        }
        let guard = Guard {
            process: Some(self),
            groups_changed: groups_matter,
            _on_this_thread: PhantomData,
        };
        if groups_matter {
            set_groups(&who.groups)?;
        }
        set_fs_gid(who.gid)?;
        set_fs_uid(who.uid)?; // last: it takes the right to do the others
        Ok(guard)
    }
}

impl Guard<'_> {
    fn nothing() -> Guard<'static> {
        Guard {
            process: None,
            groups_changed: false,
            _on_this_thread: PhantomData,
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Some(process) = self.process else { return };
        let own = &process.own;
        let mut result = set_fs_uid(own.uid).and_then(|()| set_fs_gid(own.gid));
        if self.groups_changed {
            result = result.and_then(|()| set_groups(&own.groups));
        }
        if let Err(error) = result {
            // A thread that keeps a stranger's identity would serve the next caller with it.
            log::error!("cannot take back the daemon's identity ({error}); ending");
            std::process::abort();
        }
    }
}

fn current_groups() -> io::Result<Arc<[u32]>> {
    // SAFETY: with a size of 0 getgroups only counts.
    let count = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    let mut groups = vec![0u32; usize::try_from(count).map_err(|_| io::Error::last_os_error())?];
    // SAFETY: `groups` has room for `count` ids.
    let count = unsafe { libc::getgroups(count, groups.as_mut_ptr()) };
    groups.truncate(usize::try_from(count).map_err(|_| io::Error::last_os_error())?);
    Ok(groups.into())
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length describe `groups`; the raw call concerns this thread only.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn set_fs_gid(gid: u32) -> io::Result<()> {
    // SAFETY: setfsgid takes a plain number and concerns this thread only.
    let now = unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsgid, ASK)
    };
    taken(now, gid)
}

fn set_fs_uid(uid: u32) -> io::Result<()> {
    // SAFETY: setfsuid takes a plain number and concerns this thread only.
    let now = unsafe {
        libc::syscall(libc::SYS_setfsuid, uid);
        libc::syscall(libc::SYS_setfsuid, ASK)
    };
    taken(now, uid)
}

/// These two calls report no failure; only asking again tells.
fn taken(now: libc::c_long, wanted: u32) -> io::Result<()> {
    if now as u32 == wanted {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_guard_changes_who_owns_what_the_thread_creates_and_gives_it_back() {
        let process = Process::current().expect("identity");
        if !process.may_switch {
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::set_permissions(
            dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )
        .expect("chmod");
        let who = Caller {
            uid: 65534,
            gid: 65533,
            groups: Arc::from([4u32, 7]),
        };
        {
            let _guard = process.act_as(&who).expect("switch");
            std::fs::write(dir.path().join("theirs"), b"").expect("write");
            assert_eq!(&*current_groups().expect("groups"), &[4, 7]);
            assert!(std::fs::read_dir("/root").is_err());
        }
        std::fs::write(dir.path().join("ours"), b"").expect("write");
        let theirs = std::fs::metadata(dir.path().join("theirs")).expect("stat");
        let ours = std::fs::metadata(dir.path().join("ours")).expect("stat");
        assert_eq!((theirs.uid(), theirs.gid()), (65534, 65533));
        assert_eq!(ours.uid(), process.own.uid);
        assert_eq!(current_groups().expect("groups"), process.own.groups);
    }
}
