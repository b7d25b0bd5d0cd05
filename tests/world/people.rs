//! Other users: commands run with another uid, gid and groups, as libvirt runs QEMU.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// A user who is not root.
#[derive(Clone, Copy, Debug)]
pub struct Person {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'static [u32],
}

/// The user QEMU runs as, in these tests.
pub const QEMU: Person = Person {
    uid: 64055,
    gid: 64055,
    groups: &[],
};

/// Somebody who may read nothing.
pub const NOBODY: Person = Person {
    uid: 65534,
    gid: 65534,
    groups: &[],
};

impl Person {
    /// Runs a shell script as this person and returns how it ended.
    pub fn run(self, script: &str) -> Output {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir("/");
        // SAFETY: setgroups, setgid and setuid are async-signal-safe; the child has one thread.
        unsafe { command.pre_exec(move || self.become_it()) };
        command.output().expect("a shell runs")
    }

    /// True when the script ends with 0.
    pub fn can(self, script: &str) -> bool {
        let output = self.run(script);
        if !output.status.success() {
            println!(
                "uid {}: {script}: {}",
                self.uid,
                super::text(&output.stderr)
            );
        }
        output.status.success()
    }

    /// Runs `work` in a thread that alone has this person's credentials (glibc's wrappers would
    /// change the whole process).
    pub fn act<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                self.become_it_in_this_thread();
                work()
            });
            thread.join().expect("the work does not panic")
        })
    }

    fn become_it_in_this_thread(self) {
        let (uid, gid) = (self.uid, self.gid);
        // SAFETY: plain system calls with a slice's own length; only this thread changes.
        let ok = unsafe {
            libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()) == 0
                && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
                && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
        };
        assert!(ok, "{}", std::io::Error::last_os_error());
    }

    fn become_it(self) -> std::io::Result<()> {
        // SAFETY: plain system calls with a slice's own length.
        let ok = unsafe {
            libc::setgroups(self.groups.len(), self.groups.as_ptr()) == 0
                && libc::setgid(self.gid) == 0
                && libc::setuid(self.uid) == 0
        };
        match ok {
            true => Ok(()),
            false => Err(std::io::Error::last_os_error()),
        }
    }
}
