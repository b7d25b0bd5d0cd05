//! What was typed, made into one validated [`Config`]. Reads the configuration file and looks at the
//! directories it names; changes nothing, uses no other room.
//!
//! # Order of steps
//! Flags and file become [`Settings`]; flags win; [`check`] looks at the directories; the result is
//! a [`Config`] whose paths are absolute and free of symbolic links.

pub mod cache_device;
pub mod check;
pub mod error;
pub mod mountinfo;
pub mod places;
pub mod rules;
pub mod settings;
pub mod socket;
pub mod store_user;
pub mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cache_device::{CacheDevice, CacheSpec};
pub use error::Error;
pub use rules::Rules;
pub use settings::{FileText, Handover, Passthrough, Settings};

/// A store operation fails after this unless configured.
pub const STORE_DEADLINE_DEFAULT: Duration = Duration::from_secs(600);
/// Readahead window of one handle unless configured.
const READAHEAD_DEFAULT: u64 = 8 << 20;
/// A stream goes around the cache after this unless configured.
const STREAM_BYPASS_DEFAULT: u64 = 64 << 20;
/// Memory for writes on their way to the store unless configured.
const WRITE_BUFFER_DEFAULT: u64 = 256 << 20;
/// Less would not hold one request of the largest size per thread.
const WRITE_BUFFER_MIN: u64 = 16 << 20;
/// Threads inside store calls unless configured: the requests in flight towards a slow store.
const STORE_THREADS_DEFAULT: usize = 64;
/// Threads reading from the kernel unless configured; each has a request buffer of its own.
const FUSE_THREADS_DEFAULT: usize = 8;
/// Threads of one kind at most; past it a host runs out of memory before it gets faster.
const THREADS_MAX: usize = 1024;

/// Everything a mount needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store's directory, absolute.
    pub store: PathBuf,
    /// Where the images appear, absolute.
    pub mountpoint: PathBuf,
    /// A daemon died here and left its mount: clean it away, then [`Config::recheck_mountpoint`].
    pub mountpoint_dead: bool,
    /// The control socket, absolute; its directory may not exist yet.
    pub control_socket: PathBuf,
    /// The cache devices; empty means no cache.
    pub caches: Vec<CacheDevice>,
    pub read_only: bool,
    /// Programs cannot be run from the mount.
    pub no_exec: bool,
    /// A store operation fails after this (rule 12).
    pub store_deadline: Duration,
    /// Readahead window of one handle at most, in bytes.
    pub readahead_max_bytes: u64,
    /// A sequential stream longer than this goes around the cache, in bytes; `None` for never.
    pub stream_bypass_bytes: Option<u64>,
    /// Memory for writes on their way to the store, in bytes.
    pub write_buffer_bytes: usize,
    /// Threads that may be inside a store call.
    pub store_threads: usize,
    /// Threads that read requests from the kernel.
    pub fuse_threads: usize,
    /// Serve with fuser's session instead of our own.
    pub portable_session: bool,
    /// Read flash through io_uring where the system allows it.
    pub io_uring: bool,
    /// Who may set `user.flashside.*` besides root.
    pub control_uids: Vec<u32>,
    /// Run store operations as this user and group instead of the caller.
    pub store_user: Option<(u32, u32)>,
    /// False: no image is opened on the passthrough plane.
    pub passthrough: bool,
    /// Settings of images by name.
    pub rules: Rules,
    /// Where metrics are served besides the control socket; a loopback address.
    pub metrics_listen: Option<SocketAddr>,
    /// What is logged where RUST_LOG does not say.
    pub log_level: log::LevelFilter,
    pub simulate: Simulate,
    /// For tests: false makes in-doubt marks volatile, which breaks rule 3a on purpose.
    pub in_doubt_marks: bool,
    /// For tests: false lets requests that a dead server has begun be carried out twice.
    pub exactly_once: bool,
    /// A keeper holds the mount and replaces the process that serves it, where the system allows that.
    pub handover: bool,
    /// For tests: false lets the next server begin while calls of the one before still run.
    pub fence: bool,
    /// For tests: true has the servers make the descriptors they serve through.
    pub server_clones: bool,
}

/// A made-up store: what a slower one would be like, and one that refuses to serve a page twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Simulate {
    /// Added to every store operation.
    pub latency: Duration,
    /// Bytes per second each way; `None` is unlimited.
    pub bandwidth: Option<u64>,
    /// A file that records which pages were read; reading one again is EIO.
    pub once: Option<PathBuf>,
}

impl Simulate {
    /// True when the store needs the simulating wrapper.
    pub fn is_set(&self) -> bool {
        *self != Simulate::default()
    }
}

impl Config {
    /// Checks what was asked for, for a new mount; `flags` win over the `file`, but a file that is for
    /// another store or mount point is refused.
    pub fn new(file: Option<&FileText>, flags: Settings) -> Result<Config, Error> {
        let settings = agreeing(flags, file)?;
        let path = file.map_or(Path::new(""), |file| &file.path);
        let (store, mountpoint) = places::of(&settings, path)?;
        let store = check::store(store)?;
        let place = check::mountpoint(mountpoint, &store)?;
        let caches = cache_device::resolve(&settings.cache, &store, Some(&place.path))?;
        if !place.dead {
            check::mountpoint_is_empty(&place.path)?;
        }
        let mut config = Config::checked(settings, store, place.path, caches)?;
        config.mountpoint_dead = place.dead;
        Ok(config)
    }

    /// As [`Config::new`] for a keeper that goes on with a mount that is there.
    pub fn of_mounted(file: Option<&FileText>, flags: Settings) -> Result<Config, Error> {
        let settings = agreeing(flags.clone(), file)?;
        let path = file.map_or(Path::new(""), |file| &file.path);
        let (store, mountpoint) = places::of(&settings, path)?;
        let mountpoint = check::without_touching_last(mountpoint)?;
        Config::of_server(store, &mountpoint, file, flags)
    }

    /// As [`Config::new`] for one of the servers of a mount, whose absolute `mountpoint` was checked by who
    /// made it and is not touched: while no server answers there, a look at it would not end.
    pub fn of_server(
        store: &Path,
        mountpoint: &Path,
        file: Option<&FileText>,
        flags: Settings,
    ) -> Result<Config, Error> {
        let settings = merged(flags, file)?;
        let store = check::store(store)?;
        let caches = cache_device::resolve(&settings.cache, &store, None)?;
        Config::checked(settings, store, mountpoint.to_path_buf(), caches)
    }

    fn checked(
        settings: Settings,
        store: PathBuf,
        mountpoint: PathBuf,
        caches: Vec<CacheDevice>,
    ) -> Result<Config, Error> {
        Ok(Config {
            control_socket: socket::path_for(&mountpoint)?,
            mountpoint,
            mountpoint_dead: false,
            store,
            caches,
            read_only: settings.read_only.unwrap_or(false),
            no_exec: settings.no_exec,
            store_deadline: store_deadline(&settings)?,
            readahead_max_bytes: settings.readahead.map_or(READAHEAD_DEFAULT, |size| size.0),
            stream_bypass_bytes: settings
                .stream_bypass
                .map_or(Some(STREAM_BYPASS_DEFAULT), |bypass| bypass.0),
            write_buffer_bytes: write_buffer(&settings)?,
            store_threads: threads(
                "store-threads",
                settings.store_threads,
                STORE_THREADS_DEFAULT,
            )?,
            fuse_threads: threads("fuse-threads", settings.fuse_threads, FUSE_THREADS_DEFAULT)?,
            portable_session: settings.portable_session.unwrap_or(false),
            io_uring: settings.io_uring.unwrap_or(true),
            control_uids: settings.control_uids.clone().unwrap_or_default(),
            store_user: settings.store_user.map(|user| (user.uid, user.gid)),
            passthrough: settings.passthrough != Some(Passthrough::Off),
            rules: Rules::new(settings.rule.clone()),
            metrics_listen: metrics_listen(&settings)?,
            log_level: settings
                .log_level
                .map_or(log::LevelFilter::Info, |level| level.0),
            simulate: simulate(&settings)?,
            in_doubt_marks: !settings.unsafe_no_in_doubt_marks,
            exactly_once: !settings.unsafe_no_exactly_once,
            handover: settings.handover != Some(Handover::Off),
            fence: !settings.unsafe_no_fence,
            server_clones: settings.unsafe_server_clones,
        })
    }

    /// True where somebody else waits at the mount point until it is mounted (autofs).
    pub fn mounts_on_demand(&self) -> bool {
        let there = mountinfo::mounted_at(&self.mountpoint).ok().flatten();
        there.is_some_and(|mount| mount.fs_type == mountinfo::ON_DEMAND)
    }

    /// Looks at the mount point again after a dead mount was cleaned away.
    pub fn recheck_mountpoint(&mut self) -> Result<(), Error> {
        let place = check::mountpoint(&self.mountpoint, &self.store)?;
        check::mountpoint_is_empty(&place.path)?;
        self.mountpoint_dead = place.dead;
        Ok(())
    }
}

/// Where control sockets and other traces of a running daemon lie: gone after a reboot, closed to
/// other users. It may not exist yet.
pub fn runtime_dir() -> PathBuf {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let uid = unsafe { libc::geteuid() };
    match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if uid == 0 => PathBuf::from("/run/flashside"),
        Some(dir) if !dir.is_empty() => Path::new(&dir).join("flashside"),
        _ => PathBuf::from(format!("/run/user/{uid}/flashside")),
    }
}

/// Flags and file, which must be for the same store and mount point.
fn agreeing(flags: Settings, file: Option<&FileText>) -> Result<Settings, Error> {
    if let Some(file) = file {
        places::check(&flags, &file.settings()?, &file.path)?;
    }
    merged(flags, file)
}

fn merged(flags: Settings, file: Option<&FileText>) -> Result<Settings, Error> {
    let file = file.map_or(Ok(Settings::default()), FileText::settings)?;
    Ok(flags.over(file))
}

fn store_deadline(settings: &Settings) -> Result<Duration, Error> {
    let deadline = settings
        .store_deadline
        .map_or(STORE_DEADLINE_DEFAULT, |span| span.0);
    if deadline < Duration::from_secs(1) {
        return Err(Error::value(
            "store-deadline",
            "at least 1s, for example 10min",
        ));
    }
    Ok(deadline)
}

fn write_buffer(settings: &Settings) -> Result<usize, Error> {
    let bytes = settings
        .write_buffer
        .map_or(WRITE_BUFFER_DEFAULT, |size| size.0);
    match usize::try_from(bytes) {
        Ok(bytes_usize) if bytes >= WRITE_BUFFER_MIN => Ok(bytes_usize),
        _ => Err(Error::value(
            "write-buffer",
            "at least 16M, for example 256M",
        )),
    }
}

/// Whoever may look at metrics is not asked for a password, so nobody outside the host may.
fn metrics_listen(settings: &Settings) -> Result<Option<SocketAddr>, Error> {
    let Some(text) = &settings.metrics_listen else {
        return Ok(None);
    };
    match text.parse::<SocketAddr>() {
        Ok(place) if place.ip().is_loopback() && place.port() != 0 => Ok(Some(place)),
        _ => Err(Error::value(
            "metrics-listen",
            "a loopback address and a port, for example 127.0.0.1:9095",
        )),
    }
}

fn threads(key: &'static str, asked: Option<usize>, default: usize) -> Result<usize, Error> {
    let count = asked.unwrap_or(default);
    if !(1..=THREADS_MAX).contains(&count) {
        return Err(Error::value(key, "between 1 and 1024"));
    }
    Ok(count)
}

fn simulate(settings: &Settings) -> Result<Simulate, Error> {
    let bandwidth = settings.simulate_bandwidth.map(|size| size.0);
    if bandwidth == Some(0) {
        return Err(Error::value(
            "simulate-bandwidth",
            "above zero, for example 100M",
        ));
    }
    let once = match &settings.simulate_once {
        Some(file) => Some(
            std::path::absolute(file).map_err(|error| Error::Unreadable {
                path: file.clone(),
                error,
            })?,
        ),
        None => None,
    };
    Ok(Simulate {
        latency: settings
            .simulate_latency
            .map_or(Duration::ZERO, |span| span.0),
        bandwidth,
        once,
    })
}
