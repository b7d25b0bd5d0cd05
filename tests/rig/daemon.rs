//! The daemon as a child process with its servers: started in the foreground, stopped by a signal or
//! killed.
//! `FLASHSIDE_BIN` names another binary than the one just built, such as a release build.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::group::Group;
use super::scratch::mounts_below;
use super::{text, watchdog};

/// Longest wait for a mount to appear and for a daemon to end.
const DEADLINE: Duration = Duration::from_secs(60);

/// What to mount, and how.
#[derive(Clone)]
pub struct Launch {
    pub store: PathBuf,
    pub mountpoint: PathBuf,
    pub cache: PathBuf,
    /// Further flags of `flashside mount`.
    pub flags: Vec<String>,
    /// Where the daemon's messages go; they are appended.
    pub log: PathBuf,
}

/// A running daemon. Dropping it kills all its processes and unmounts.
pub struct Daemon {
    child: Child,
    group: Group,
    mountpoint: PathBuf,
    log: PathBuf,
}

impl Launch {
    /// Starts the daemon and waits for its mount.
    pub fn start(&self) -> Result<Daemon, String> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(|e| format!("{}: {e}", self.log.display()))?;
        let mut command = Command::new(program());
        command
            .args(["mount", text(&self.store), text(&self.mountpoint)])
            .args(["--cache", text(&self.cache), "--foreground"])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|e| e.to_string())?)
            .stderr(log);
        Group::lead(&mut command);
        let child = command.spawn().map_err(|e| format!("flashside: {e}"))?;
        watchdog::watch(child.id());
        let mut daemon = Daemon {
            group: Group::of(&child),
            child,
            mountpoint: self.mountpoint.clone(),
            log: self.log.clone(),
        };
        daemon.wait_for_mount()?;
        Ok(daemon)
    }
}

impl Daemon {
    /// The process that was started: the keeper.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All its processes.
    pub fn group(&self) -> &Group {
        &self.group
    }

    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    fn wait_for_mount(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        while !mounted(&self.mountpoint) {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("flashside ended ({status}): {}", self.last_words()));
            }
            if begin.elapsed() > DEADLINE {
                return Err(format!(
                    "no mount after {DEADLINE:?}: {}",
                    self.last_words()
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// SIGKILL to all its processes, and the dead mount is taken away lazily.
    pub fn kill(self) {
        drop(self);
    }

    /// SIGTERM, and waits until the daemon has ended and its mount is gone.
    pub fn stop(mut self) -> Result<(), String> {
        // SAFETY: a signal to our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let begin = Instant::now();
        while begin.elapsed() < DEADLINE {
            if let Ok(Some(status)) = self.child.try_wait() {
                let good = status.success() && !mounted(&self.mountpoint);
                let said = || format!("stopped badly ({status}): {}", self.last_words());
                return good.then_some(()).ok_or_else(said);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(format!(
            "still running after {DEADLINE:?}: {}",
            self.last_words()
        ))
    }

    /// The end of the daemon's messages, for a test's own message.
    pub fn last_words(&self) -> String {
        let all = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = all.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.group.kill();
        watchdog::forget(self.child.id());
        let _ = self.child.wait();
        if mounted(&self.mountpoint) {
            let _ = super::run("umount", &["-l", text(&self.mountpoint)]);
        }
    }
}

/// The binary under test.
pub fn program() -> OsString {
    let program = std::env::var_os("FLASHSIDE_BIN");
    program.unwrap_or_else(|| env!("CARGO_BIN_EXE_flashside").into())
}

/// True while something is mounted exactly there.
pub fn mounted(point: &Path) -> bool {
    mounts_below(point).iter().any(|at| at == point)
}
