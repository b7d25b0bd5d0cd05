//! A mount's life as an operator sees it: it starts in the background, tells its status, dies, comes
//! back, and ends on a signal leaving nothing behind.

#[path = "world/group.rs"]
mod group;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// What should happen at once and has not after this long will not.
const DEADLINE: Duration = Duration::from_secs(30);

/// A store, a mount point and a cache. Dropping it ends the daemon by its pid and takes the mount away.
struct Life {
    root: tempfile::TempDir,
    pid: Option<i32>,
}

impl Life {
    /// `None`, after saying why, where tests through a mount cannot run.
    fn new() -> Option<Life> {
        // SAFETY: geteuid has no preconditions.
        if unsafe { libc::geteuid() } != 0 || !Path::new("/dev/fuse").exists() {
            println!("skipped: needs root and /dev/fuse");
            return None;
        }
        let root = tempfile::tempdir().expect("a temporary directory");
        for name in ["store", "mnt", "cache"] {
            fs::create_dir(root.path().join(name)).expect("a directory");
        }
        fs::write(root.path().join("store/web.img"), vec![7u8; 1 << 20]).expect("an image");
        Some(Life { root, pid: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        let root = fs::canonicalize(self.root.path()).expect("there");
        root.join(name)
    }

    /// Mounts in the background; returns when the mount answers.
    fn mount(&mut self) {
        let cache = format!("{}@64M", self.path("cache").display());
        let mut command = flashside("mount");
        command.args([self.path("store"), self.path("mnt")]);
        let output = run(command.args(["--cache", &cache]));
        assert!(output.status.success(), "{}", said(&output));
        let pid = self.status()["pid"].as_i64().expect("a process id");
        self.pid = i32::try_from(pid).ok();
    }

    fn status_call(&self) -> Output {
        let mut command = flashside("status");
        run(command
            .args(["--json", "--mountpoint"])
            .arg(self.path("mnt")))
    }

    fn status(&self) -> Value {
        let output = self.status_call();
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Sends `signal` and waits until the daemon is gone, with all its processes.
    fn signal(&mut self, signal: i32) {
        let pid = self.pid.take().expect("a daemon that runs");
        kill(pid, signal);
        assert!(soon(|| is_gone(pid)), "the daemon outlived signal {signal}");
    }

    /// kill -9 of all its processes.
    fn kill9(&mut self) {
        group::kill(self.pid.take().expect("a daemon that runs"));
    }

    fn is_mounted(&self) -> bool {
        let text = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
        text.contains(&*self.path("mnt").to_string_lossy())
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            group::send(pid, libc::SIGCONT);
            kill(pid, libc::SIGTERM);
            if !soon(|| is_gone(pid)) {
                group::kill(pid);
            }
        }
        if self.is_mounted() {
            let mut umount = Command::new("umount");
            let _ = umount.arg("-l").arg(self.path("mnt")).output();
        }
        if let Ok(socket) = flashside::config::socket::path_for(&self.path("mnt")) {
            let _ = fs::remove_file(socket); // what a killed daemon leaves
        }
    }
}

/// Neither it nor a server of it is left, but for what waits to be reaped.
fn is_gone(pid: i32) -> bool {
    group::members(pid).is_empty()
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: the process is the daemon this test started; nothing else is signalled.
    unsafe { libc::kill(pid, signal) };
}

fn soon(mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < DEADLINE {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

fn flashside(subcommand: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flashside"));
    command.arg(subcommand).env_remove("RUST_LOG");
    command
}

/// Runs to the end with a deadline: a daemon that kept the pipes open would hang this.
fn run(command: &mut Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let waiting = thread::spawn(move || child.wait_with_output().expect("a child of ours"));
    assert!(soon(|| waiting.is_finished()), "the call did not end");
    waiting.join().expect("waited")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_mount_in_the_background_tells_its_status() {
    let Some(mut life) = Life::new() else { return };
    life.mount();
    let status = life.status();
    assert_eq!(status["store"], *life.path("store").to_string_lossy());
    assert_eq!(status["mountpoint"], *life.path("mnt").to_string_lossy());
    assert_eq!(status["store_state"], "responding");
    assert_eq!(status["pool"]["limit_bytes"], 64 << 20);
}

#[test]
fn status_knows_an_image_by_its_path() {
    let Some(mut life) = Life::new() else { return };
    life.mount();
    let image = life.path("mnt/web.img");
    assert_eq!(fs::read(&image).expect("readable").len(), 1 << 20);
    let output = run(flashside("status").arg(&image).arg("--json"));
    assert!(output.status.success(), "{}", said(&output));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told["name"], "web.img");
    assert_eq!(told["size_bytes"], 1 << 20);
    let unknown = run(flashside("status").arg(life.path("mnt/other.img")));
    assert_eq!(unknown.status.code(), Some(1));
    assert!(said(&unknown).contains("not in use"), "{}", said(&unknown));
}

#[test]
fn the_control_socket_is_told_by_the_mount_and_closed_to_others() {
    let Some(mut life) = Life::new() else { return };
    life.mount();
    let mut command = Command::new("getfattr");
    command.args(["--only-values", "-n", "user.flashside.control"]);
    let Ok(output) = command.arg(life.path("mnt")).output() else {
        println!("skipped: needs getfattr");
        return;
    };
    let socket = PathBuf::from(String::from_utf8_lossy(&output.stdout).into_owned());
    let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
    assert_eq!(mode(&socket), 0o600, "{}", socket.display());
    assert_eq!(mode(socket.parent().expect("a directory")), 0o700);
}

#[test]
fn a_daemon_that_was_killed_is_named_and_its_mount_used_again() {
    let Some(mut life) = Life::new() else { return };
    life.mount();
    life.kill9();
    assert!(life.is_mounted());
    let dead = life.status_call();
    assert_eq!(dead.status.code(), Some(1));
    assert!(
        said(&dead).contains("does not run any more"),
        "{}",
        said(&dead)
    );
    life.mount();
    assert_eq!(life.status()["store_state"], "responding");
    assert!(life.path("mnt/web.img").exists());
}

#[test]
fn a_daemon_that_is_stopped_is_named_in_good_time() {
    let Some(mut life) = Life::new() else { return };
    life.mount();
    group::send(life.pid.expect("a daemon that runs"), libc::SIGSTOP);
    let begun = Instant::now();
    let silent = life.status_call();
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(silent.status.code(), Some(1));
    let said = said(&silent);
    assert!(said.contains("did not answer within 5 s"), "{said}");
}

#[test]
fn a_living_mount_is_not_mounted_over() {
    let Some(mut life) = Life::new() else { return };
    life.mount();
    let mut command = flashside("mount");
    let output = run(command.args([life.path("store"), life.path("mnt")]));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("already a mount"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_signal_ends_the_mount_and_leaves_nothing_behind() {
    let Some(mut life) = Life::new() else { return };
    for signal in [libc::SIGTERM, libc::SIGINT] {
        life.mount();
        life.signal(signal);
        assert!(!life.is_mounted());
        let socket = flashside::config::socket::path_for(&life.path("mnt"));
        assert!(!socket.expect("a path").exists());
        assert!(life.path("store/web.img").exists());
        let mut entries = fs::read_dir(life.path("mnt")).expect("the directory below");
        assert!(entries.next().is_none());
    }
}
