//! The test world: a store, a cache and a mount in a temp directory, with flashside as a child
//! process between them. Everything a test changes outside itself is here, and `Drop` takes all of
//! it away again, also when the test panics: children by their pid, mounts, loop devices, files.
//!
//! ```text
//! let Some(mut w) = World::new() else { return };   // prints why when it cannot run here
//! w.limit("16M");
//! w.start();
//! fs::write(w.mnt("disk"), …)        w.store("disk") is the same file as the store has it
//! ```
//!
//! Worlds share nothing, so tests run in parallel; a test whose load would disturb the clock of
//! others takes [`alone`].
//!
//! Order of steps in `Drop`: the store first (its death ends every call that hangs in it), then the
//! daemon, then the mounts from the top down, then the files.
#![allow(dead_code)] // every test binary uses another part of it

pub mod daemon;
pub mod faulty;
pub mod files;
pub mod group;
pub mod janitor;
pub mod loopfs;
pub mod people;
pub mod rng;

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use daemon::Daemon;
pub use faulty::FaultyStore;
use janitor::Janitor;
pub use loopfs::{LoopFs, Type};

/// A mount, an unmount or an exit that takes longer than this is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One store, one cache, one mount. Fields are set before [`World::start`].
pub struct World {
    /// The daemon, while it runs.
    pub daemon: Option<Daemon>,
    /// The store that can fail, when asked for.
    pub faulty: Option<FaultyStore>,
    /// The small filesystem the cache is on, when asked for.
    pub loop_fs: Option<LoopFs>,
    store_fs: Option<LoopFs>,
    limit: Option<String>,
    flags: Vec<String>,
    cache: PathBuf,
    store: PathBuf,
    dir: tempfile::TempDir,
    _janitor: Janitor, // after the directory: dropped last
}

impl World {
    /// An empty world, not started, with a cache limit of 1 GiB. `None`, after printing
    /// `skipped: why`, where tests through a mount cannot run.
    pub fn new() -> Option<World> {
        if let Some(why) = cannot_mount() {
            println!("skipped: {why}");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("flashside-test-")
            .tempdir()
            .expect("a temp directory");
        let janitor = Janitor::watch(dir.path());
        for part in ["", "store", "cache", "mnt"] {
            let path = dir.path().join(part);
            fs::create_dir_all(&path).expect("a directory of the world");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        Some(World {
            daemon: None,
            faulty: None,
            loop_fs: None,
            store_fs: None,
            limit: Some("1G".into()),
            flags: Vec::new(),
            cache: dir.path().join("cache"),
            store: dir.path().join("store"),
            dir,
            _janitor: janitor,
        })
    }

    /// A started world whose store holds images of these names and sizes, aged; the first is pattern 1.
    /// `prepare` comes before the start.
    pub fn with_images(images: &[(&str, u64)], prepare: impl FnOnce(&mut World)) -> Option<World> {
        let mut world = World::new()?;
        for ((name, len), tag) in images.iter().zip(1..) {
            files::make_image(&world.store(name), tag, *len);
        }
        for (name, _) in images {
            files::age(&[&world.store(name)]);
        }
        prepare(&mut world);
        world.start();
        Some(world)
    }

    /// Sets the cache limit as typed after `@`.
    pub fn limit(&mut self, limit: &str) -> &mut World {
        self.limit = Some(limit.into());
        self
    }

    /// Leaves the cache limit to flashside.
    pub fn no_limit(&mut self) -> &mut World {
        self.limit = None;
        self
    }

    /// Adds words to the command line of `flashside mount`.
    pub fn flags(&mut self, flags: &[&str]) -> &mut World {
        self.flags.extend(flags.iter().map(|flag| flag.to_string()));
        self
    }

    /// Forgets what [`World::flags`] added.
    pub fn clear_flags(&mut self) -> &mut World {
        self.flags.clear();
        self
    }

    /// Puts the cache on a filesystem of its own, `mib` MiB large. False where there is no loop
    /// device or no mkfs for it; says so.
    pub fn loop_cache(&mut self, kind: Type, mib: u64) -> bool {
        match LoopFs::make(self.dir.path(), "cachefs", kind, mib) {
            Ok(fs) => {
                self.cache = fs.path().join("cache");
                fs::create_dir(&self.cache).expect("the cache directory");
                self.loop_fs = Some(fs);
                true
            }
            Err(why) => {
                println!("skipped: {why}");
                false
            }
        }
    }

    /// Puts the store on a filesystem of its own; as [`World::loop_cache`].
    pub fn loop_store(&mut self, kind: Type, mib: u64) -> bool {
        match LoopFs::make(self.dir.path(), "store", kind, mib) {
            Ok(fs) => {
                self.store_fs = Some(fs);
                true
            }
            Err(why) => {
                println!("skipped: {why}");
                false
            }
        }
    }

    /// Puts a [`FaultyStore`] between flashside and the store directory.
    pub fn faulty_store(&mut self) -> &mut World {
        self.faulty = Some(FaultyStore::start(self.dir.path(), &self.store));
        self
    }

    /// The store that can fail; panics without [`World::faulty_store`].
    pub fn faults(&mut self) -> &mut FaultyStore {
        self.faulty.as_mut().expect("faulty_store() was called")
    }

    /// An image as the real store directory has it.
    pub fn store(&self, name: impl AsRef<Path>) -> PathBuf {
        self.store.join(name)
    }

    /// An image as the mount shows it.
    pub fn mnt(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mountpoint().join(name)
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A path of this world's own, gone with it.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory given to `--cache`.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The STORE given to flashside: the faulty store where there is one.
    pub fn store_as_given(&self) -> PathBuf {
        match &self.faulty {
            Some(faulty) => faulty.mountpoint().to_owned(),
            None => self.store.clone(),
        }
    }

    /// `flashside mount …` as this world would run it.
    pub fn mount_command(&self) -> Command {
        let mut cache = self.cache.clone().into_os_string();
        if let Some(limit) = &self.limit {
            cache.push("@");
            cache.push(limit);
        }
        let mut command = flashside();
        command
            .arg("mount")
            .arg(self.store_as_given())
            .arg(self.mountpoint())
            .arg("--cache")
            .arg(cache)
            .args(&self.flags);
        command
    }

    /// Mounts, in a child that runs in the foreground; panics with what it said if it does not.
    pub fn start(&mut self) {
        if let Err(said) = self.try_start() {
            panic!("flashside did not mount: {said}");
        }
    }

    /// As [`World::start`]; the error is what the daemon wrote to stderr.
    pub fn try_start(&mut self) -> Result<(), String> {
        assert!(self.daemon.is_none(), "already started");
        let mut command = self.mount_command();
        command.arg("--foreground");
        let daemon = Daemon::start(command, &self.mountpoint())?;
        self.daemon = Some(daemon);
        Ok(())
    }

    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("started")
    }

    /// kill -9 of the daemon with all its processes, and the dead mount taken away.
    pub fn kill9(&mut self) {
        self.daemon.take().expect("started").kill9();
        detach(&self.mountpoint());
    }

    /// umount(8), then waits for the daemon to end with exit status 0.
    pub fn unmount(&mut self) {
        let daemon = self.daemon.take().expect("started");
        let done = unmount_by(&["umount"], &self.mountpoint());
        assert!(done.status.success(), "umount: {}", text(&done.stderr));
        daemon.expect_clean_exit();
    }

    /// A clean stop and a new start.
    pub fn remount(&mut self) {
        self.unmount();
        self.start();
    }

    /// `flashside status --json` of this mount.
    pub fn status(&self) -> Value {
        let mut command = flashside();
        command.args(["status", "--json", "--mountpoint"]);
        command.arg(self.mountpoint());
        let output = within(PATIENCE, "status", move || command.output());
        let output = output.expect("flashside runs");
        assert!(output.status.success(), "status: {}", text(&output.stderr));
        let value: Value = serde_json::from_slice(&output.stdout).expect("status is JSON");
        match value {
            Value::Array(mut mounts) if mounts.len() == 1 => mounts.remove(0),
            other => other,
        }
    }

    /// The entry of one image in [`World::status`].
    pub fn image_status(&self, name: &str) -> Value {
        let status = self.status();
        let images = status["images"].as_array().expect("images is a list");
        let found = images.iter().find(|image| image["name"] == name);
        found
            .unwrap_or_else(|| panic!("no image {name} in {status:#}"))
            .clone()
    }

    /// Waits until a standby is ready, where there will be one: from then on memory and threads are
    /// what they will be.
    pub fn wait_for_standby(&self) {
        wait_until(PATIENCE, "a standby is ready", || {
            self.status()["handover"] != "starting"
        });
    }

    /// The process that serves; `None` without a keeper.
    pub fn server(&self) -> Option<i32> {
        let pid = self.status()["serving_pid"].as_i64()?;
        let pid = i32::try_from(pid).ok()?;
        (pid != self.daemon().pid()).then_some(pid)
    }

    /// kill -9 of `pid`, which serves as [`World::server`] said; returns at once, and asks nobody. Its
    /// keeper starts another one.
    pub fn kill_known_server(&self, pid: i32) {
        let members = self.daemon().group().members();
        assert!(members.contains(&pid), "{pid} is of the daemon's group");
        // SAFETY: a plain system call; the process is of a group that this test started.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }

    /// kill -9 of the process that serves; its keeper starts another one.
    pub fn kill_server(&self) {
        let server = self.server().expect("a keeper and its server");
        self.kill_known_server(server);
    }

    /// One counter of one image.
    pub fn count(&self, name: &str, counter: &str) -> u64 {
        let image = self.image_status(name);
        image[counter]
            .as_u64()
            .unwrap_or_else(|| panic!("no counter {counter} in {image:#}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let daemon = self.daemon.as_ref().filter(|_| std::thread::panicking());
        if let Some(daemon) = daemon {
            eprintln!("--- flashside said:\n{}", daemon.said());
        }
        drop(self.faulty.take());
        drop(self.daemon.take());
        detach(&self.mountpoint());
        drop(self.loop_fs.take());
        drop(self.store_fs.take());
    }
}

/// The flashside binary under test, or the one `FLASHSIDE` names. It logs as by default, whatever
/// RUST_LOG the tests have, unless `FLASHSIDE_TEST_LOG` says otherwise.
pub fn flashside() -> Command {
    let program = std::env::var_os("FLASHSIDE");
    let mut command = Command::new(program.unwrap_or(env!("CARGO_BIN_EXE_flashside").into()));
    command.env_remove("RUST_LOG");
    if let Some(level) = std::env::var_os("FLASHSIDE_TEST_LOG") {
        command.env("RUST_LOG", level);
    }
    command
}

/// Why tests through a mount cannot run here, if so.
pub fn cannot_mount() -> Option<&'static str> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root");
    }
    let fuse = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    fuse.is_err().then_some("needs /dev/fuse")
}

/// Runs a program that unmounts `path`. Tries again for a while when the mount is busy: another
/// test's child holds our descriptors between its fork and its exec.
pub fn unmount_by(program: &'static [&'static str], path: &Path) -> std::process::Output {
    let start = Instant::now();
    loop {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(path);
        let output = within(PATIENCE, program[0], move || command.output());
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", program[0]));
        let busy = text(&output.stderr).contains("busy");
        if !busy || start.elapsed() > PATIENCE / 4 {
            return output;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Takes every mount away from `path`, busy or not.
pub fn detach(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("paths hold no NUL");
    for _ in 0..8 {
        // SAFETY: a valid C string.
        if unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) } != 0 {
            return;
        }
    }
}

/// True when a filesystem is mounted on `path` by name; asks nobody who could hang.
pub fn is_mounted(path: &Path) -> bool {
    let table = fs::read("/proc/self/mountinfo").expect("mountinfo");
    let wanted = path.as_os_str();
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .any(|mounted| OsStr::from_bytes(mounted) == wanted)
}

/// Space the tree under `path` takes, in bytes as the filesystem counts it (du).
pub fn disk_usage(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return 0;
    };
    let children = match fs::read_dir(path) {
        Ok(dir) if meta.is_dir() => dir.flatten().map(|e| disk_usage(&e.path())).sum(),
        _ => 0,
    };
    meta.blocks() * 512 + children
}

/// Runs `work` in a thread and returns its result; panics if it takes longer than `limit`. A thread
/// that hangs in a mount is freed when the world is dropped.
pub fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    match result.recv_timeout(limit) {
        Ok(value) => value,
        Err(_) => panic!("{what}: failed or not done within {limit:?}"),
    }
}

/// Waits until `holds` is true; panics after `limit`.
pub fn wait_until(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Held by tests that measure time or load the machine: one at a time in this process.
pub fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// True when the long versions of the tests are wanted.
pub fn long() -> bool {
    std::env::var_os("FLASHSIDE_LONG").is_some_and(|value| value == "1")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
