//! A flashside that serves one mount, and what it says of itself.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::group::Group;
use crate::interrupt;
use crate::running::Running;
use crate::scratch::Scratch;

/// For the mount to answer.
const START: Duration = Duration::from_secs(30);
/// For a clean end: flush, record as clean.
const STOP: Duration = Duration::from_secs(30);
/// For an answer of the command line.
const ANSWER: Duration = Duration::from_secs(10);

/// A running `flashside mount --foreground`. Dropping it unmounts; the cache stays.
pub struct Daemon {
    child: Option<Running>,
    mountpoint: PathBuf,
    log: PathBuf,
}

/// What status says of an image; counters since the daemon's start.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ImageCounters {
    pub resident_bytes: u64,
    pub plane: String,
    pub planes: Vec<Handles>,
    pub reads: u64,
    pub read_hits: u64,
    pub store_read_bytes: u64,
    pub store_read_requests: u64,
}

/// Its handles on one plane, and why they are not on passthrough.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Handles {
    pub plane: String,
    pub reason: String,
}

#[derive(Deserialize)]
struct MountCounters {
    images: Vec<ImageCounters>,
}

/// What a daemon is started with.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Behind the cache directory: `@64M`.
    pub limit: &'a str,
    pub flags: &'a [&'a str],
    /// The configuration file.
    pub config: &'a str,
}

impl Daemon {
    /// Mounts `store`; `name` is the directory for mount point, cache and log.
    pub fn start(scratch: &Scratch, name: &str, store: &Path, options: Options) -> Result<Daemon> {
        let dir = scratch.flash(name);
        let (mountpoint, cache) = (dir.join("mount"), dir.join("cache"));
        fs::create_dir_all(&mountpoint)?;
        fs::create_dir_all(&cache)?;
        let config = dir.join("config.toml");
        fs::write(&config, options.config)?;
        let log = dir.join("log");
        let outside = fs::metadata(&dir)?.dev();

        let mut command = Command::new(program());
        command.arg("mount").args([store, &mountpoint]);
        command.arg("--cache");
        command.arg(format!("{}{}", cache.display(), options.limit));
        command.arg("--config").arg(config).arg("--foreground");
        command.args(options.flags).env_remove("RUST_LOG");
        let said = OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdout(Stdio::null()).stderr(said);
        let mut daemon = Daemon {
            child: Some(Running::spawn(command)?),
            mountpoint,
            log,
        };
        interrupt::wait_for("the mount", START, || daemon.answers(outside))?;
        Ok(daemon)
    }

    fn answers(&mut self, outside: u64) -> Result<Option<()>> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.ended()?
        {
            bail!("flashside ended {status}: {}", last_line(&self.log));
        }
        let mounted = fs::metadata(&self.mountpoint).is_ok_and(|meta| meta.dev() != outside);
        Ok(mounted.then_some(()))
    }

    /// An image of the mount.
    pub fn path(&self, image: &str) -> PathBuf {
        self.mountpoint.join(image)
    }

    /// All its processes: the keeper, who serves, and who stands by.
    pub fn group(&self) -> Option<&Group> {
        self.child.as_ref().map(Running::group)
    }

    /// User and system time of all of them, in µs; a clock tick is as fine as it gets.
    pub fn cpu_us(&self) -> f64 {
        // SAFETY: asks for a constant of the system.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        let ticks = self.group().map_or(0, Group::cpu_ticks);
        ticks as f64 * 1e6 / per_second
    }

    /// Lines it has logged.
    pub fn log_lines(&self) -> usize {
        fs::read_to_string(&self.log).map_or(0, |text| text.lines().count())
    }

    /// Counters of one image; nothing where it is not known yet.
    pub fn image(&self, image: &Path) -> Result<ImageCounters> {
        let output = self.ask(&["status".as_ref(), "--json".as_ref(), image.as_os_str()])?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("flashside status: {}", said.trim());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Counters of all images.
    pub fn images(&self) -> Result<Vec<ImageCounters>> {
        let mount = self.mountpoint.as_os_str();
        let output = self.ask(&[
            "status".as_ref(),
            "--json".as_ref(),
            "--mountpoint".as_ref(),
            mount,
        ])?;
        let mount: MountCounters = serde_json::from_slice(&output.stdout)?;
        Ok(mount.images)
    }

    fn ask(&self, arguments: &[&std::ffi::OsStr]) -> Result<Output> {
        let paths = ["answer", "error"].map(|name| self.log.with_file_name(name));
        let mut command = Command::new(program());
        command.args(arguments);
        command.stdout(File::create(&paths[0])?);
        command.stderr(File::create(&paths[1])?);
        let status = Running::spawn(command)?.wait("flashside status", ANSWER)?;
        Ok(Output {
            status,
            stdout: fs::read(&paths[0])?,
            stderr: fs::read(&paths[1])?,
        })
    }

    /// Whether it has an io_uring.
    pub fn has_ring(&self) -> bool {
        let members = self.group().map_or(Vec::new(), Group::members);
        let fds = |pid| fs::read_dir(format!("/proc/{pid}/fd"));
        let links = members.into_iter().flat_map(fds).flatten().flatten();
        links
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|link| link.as_os_str() == "anon_inode:[io_uring]")
    }

    fn unmount(&self) {
        let mut command = Command::new("umount");
        command.arg("-l").arg(&self.mountpoint);
        let _ = command.stderr(Stdio::null()).status(); // lazy: it does not wait for anybody
    }
}

impl Drop for Daemon {
    /// A signal unmounts and ends it. Waits without looking at Ctrl-C: this is what Ctrl-C leads to.
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        child.signal(libc::SIGTERM);
        let begun = std::time::Instant::now();
        while begun.elapsed() < STOP && matches!(child.ended(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let ended = matches!(child.ended(), Ok(Some(_)));
        drop(child);
        if !ended {
            self.unmount();
        }
    }
}

/// The binary: built together with this one, or `FLASHSIDE`.
fn program() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_flashside"));
    std::env::var_os("FLASHSIDE").map_or_else(built, PathBuf::from)
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log)
        .context("its log")
        .unwrap_or_default();
    text.lines().last().unwrap_or("it said nothing").to_owned()
}
