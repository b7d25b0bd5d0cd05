//! The store that can fail, as tests use it: `examples/faulty_store` in a child process between
//! flashside and the store directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::janitor::die_with_parent;
use super::{PATIENCE, detach, is_mounted, wait_until};

/// A running faulty store. Dropping it kills it, also when it is stopped, and unmounts.
pub struct FaultyStore {
    child: Option<Child>,
    backing: PathBuf,
    mountpoint: PathBuf,
    switches: PathBuf,
    log: PathBuf,
}

impl FaultyStore {
    /// Serves `backing` on a directory of its own in `dir`.
    pub fn start(dir: &Path, backing: &Path) -> FaultyStore {
        let mut store = FaultyStore {
            child: None,
            backing: backing.to_owned(),
            mountpoint: dir.join("faulty"),
            switches: dir.join("faults.json"),
            log: dir.join("requests.log"),
        };
        fs::create_dir(&store.mountpoint).expect("the faulty store's mount point");
        store.run();
        store
    }

    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Starts the process; after [`FaultyStore::kill`] it serves the same tree at the same path.
    pub fn run(&mut self) {
        assert!(self.child.is_none(), "already runs");
        let mut command = Command::new(program());
        command
            .arg(&self.backing)
            .arg(&self.mountpoint)
            .arg(&self.switches)
            .stdin(Stdio::null());
        die_with_parent(&mut command);
        let child = command.spawn().expect("the faulty store runs");
        self.child = Some(child);
        let mountpoint = self.mountpoint.clone();
        wait_until(PATIENCE, "faulty store", || is_mounted(&mountpoint));
    }

    /// Sets the switches, e.g. `json!({"eio_reads": true})`; all others are off.
    pub fn set(&self, mut faults: Value) {
        faults["log_requests"] = self.log.to_string_lossy().into_owned().into();
        let new = self.switches.with_extension("new");
        fs::write(&new, faults.to_string()).expect("the switch file");
        fs::rename(&new, &self.switches).expect("the switch file");
    }

    /// All is well again.
    pub fn heal(&self) {
        self.set(Value::Object(Default::default()));
    }

    /// Requests since the last [`FaultyStore::clear_log`], one line each: what, and for reads
    /// inode, offset and length. Logging begins with the first `set` or `heal`.
    pub fn requests(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    pub fn clear_log(&self) {
        let _ = fs::remove_file(&self.log);
    }

    /// The store hangs: every request waits. Returns when the last of its threads has stopped.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        wait_until(PATIENCE, "the store stops", || self.all_threads_stopped());
    }

    fn all_threads_stopped(&self) -> bool {
        let child = self.child.as_ref().expect("the faulty store runs");
        let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).expect("it runs");
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
            state == Some(b'T')
        })
    }

    /// The store goes on where it stopped.
    pub fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    /// The store dies and its mount goes away.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        detach(&self.mountpoint);
    }

    fn signal(&self, signal: i32) {
        let child = self.child.as_ref().expect("the faulty store runs");
        // SAFETY: a child of ours, not waited for yet, so the pid is its own.
        unsafe { libc::kill(child.id() as i32, signal) };
    }
}

impl Drop for FaultyStore {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The example's binary, next to the test's; built now if only the tests were.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("our own path");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/test");
    let program = profile.join("examples/faulty_store");
    if !program.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--example", "faulty_store"]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().is_ok_and(|status| status.success()));
    }
    program
}
