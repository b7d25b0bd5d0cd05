//! A running flashside: the child process and its servers, what they say, what they cost. Dropping it
//! kills them all.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::group::Group;
use super::{PATIENCE, is_mounted};

/// A `flashside mount --foreground` in a child process.
pub struct Daemon {
    child: Child,
    group: Group,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Daemon {
    /// Starts `command` and waits until `mountpoint` answers; the error is what it wrote to stderr.
    pub fn start(mut command: Command, mountpoint: &Path) -> Result<Daemon, String> {
        let parent = mountpoint.parent().expect("a mount point has a parent");
        let outside = fs::metadata(parent).expect("the parent exists").dev();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Group::lead(&mut command);
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("flashside runs");
        let said = listen(&mut child);
        let group = Group::of(&child);
        let mut daemon = Daemon { child, group, said };
        let start = Instant::now();
        let answers = || fs::metadata(mountpoint).is_ok_and(|meta| meta.dev() != outside);
        while !(is_mounted(mountpoint) && answers()) {
            if daemon.exit_status().is_some() {
                std::thread::sleep(Duration::from_millis(50)); // the listener reads the rest
                return Err(daemon.said());
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("not mounted after {PATIENCE:?}; {}", daemon.said()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    /// The process that was started: the keeper.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Everything it wrote to stderr so far.
    pub fn said(&self) -> String {
        let said = self.said.lock().expect("the listener does not panic");
        String::from_utf8_lossy(&said).into_owned()
    }

    /// All its processes.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Sends a signal to the process that was started.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a child of ours, not waited for yet, so the pid is its own.
        unsafe { libc::kill(self.pid(), signal) };
    }

    /// kill -9 of all its processes, and wait for their end.
    pub fn kill9(mut self) {
        self.group.kill();
        self.child.wait().expect("a killed child can be waited for");
    }

    /// Its exit status, once it has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for it to end by itself; panics if that takes too long or it fails.
    pub fn expect_clean_exit(mut self) {
        let start = Instant::now();
        while self.exit_status().is_none() {
            let said = self.said();
            assert!(start.elapsed() < PATIENCE, "flashside does not end: {said}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = self.exit_status().expect("it has ended");
        assert!(
            status.success(),
            "flashside ended {status}: {}",
            self.said()
        );
        let left = self.group.members();
        assert!(left.is_empty(), "processes {left:?} outlive it");
    }

    /// Threads that all its processes have now.
    pub fn threads(&self) -> usize {
        self.group.threads()
    }

    /// CPU time that all its processes used, user and system, in clock ticks.
    pub fn cpu_ticks(&self) -> u64 {
        self.group.cpu_ticks()
    }

    /// Resident memory of all its processes, in bytes; shared pages count for each.
    pub fn rss_bytes(&self) -> u64 {
        self.group.sum_of("VmRSS") << 10
    }
}

impl Drop for Daemon {
    /// Also where the child has ended by itself: a server may outlive it.
    fn drop(&mut self) {
        self.group.kill();
        let _ = self.child.wait();
    }
}

/// Collects what the child writes to stderr.
fn listen(child: &mut Child) -> Arc<Mutex<Vec<u8>>> {
    let said = Arc::new(Mutex::new(Vec::new()));
    let mut pipe = child.stderr.take().expect("stderr is piped");
    let sink = said.clone();
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(len @ 1..) = pipe.read(&mut chunk) {
            let mut said = sink.lock().expect("nobody panics under this lock");
            said.extend_from_slice(&chunk[..len]);
        }
    });
    said
}
