//! Two guards for what `Drop` cannot reach. The watchdog aborts the mounts of a world that lives
//! too long, so that threads which hang in them fail and the test ends. The janitor is a shell that
//! waits for the end of this process and takes mounts and files away if `Drop` never ran (^C,
//! kill -9 of the tests); the children themselves die with us by [`die_with_parent`], a daemon's
//! servers by the guard of its [`super::group::Group`].

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

/// The mounts of a world, below its directory, from the top down.
pub const MOUNTS: [&str; 4] = ["mnt", "faulty", "cachefs", "store"];

/// No test takes as long as this.
const LIFETIME: Duration = Duration::from_secs(240);
const LIFETIME_LONG: Duration = Duration::from_secs(1200);

/// Reads until the tests close its standard input, which their end does too.
const SCRIPT: &str = r#"
cat >/dev/null
[ -d "$0" ] || exit 0
for mount in mnt faulty cachefs store tmpfs; do
    while umount -l "$0/$mount"; do :; done
done
rm -rf --one-file-system "$0"
"#;

/// Guards one world's directory until it is dropped.
pub struct Janitor {
    shell: Child,
    alive: Option<Sender<()>>,
}

impl Janitor {
    pub fn watch(dir: &Path) -> Janitor {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", SCRIPT])
            .arg(dir)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0); // ^C is not for it
        let (alive, ended) = mpsc::channel();
        let dir = dir.to_owned();
        std::thread::spawn(move || {
            let limit = if super::long() {
                LIFETIME_LONG
            } else {
                LIFETIME
            };
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("a test takes more than {limit:?}: its mounts are aborted");
                MOUNTS[..2].iter().for_each(|name| abort(&dir.join(name)));
            }
        });
        Janitor {
            shell: shell.spawn().expect("a shell runs"),
            alive: Some(alive),
        }
    }
}

impl Drop for Janitor {
    /// After the directory is gone: the shell then finds nothing to do.
    fn drop(&mut self) {
        drop(self.alive.take());
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// Ends every request of the FUSE mount at `path` with an error, however stuck it is.
fn abort(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("paths hold no NUL");
    // SAFETY: a valid C string.
    unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE) };
}

/// The child is killed when the thread that starts it ends without having ended it.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches nothing of ours.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}
