//! `flashside mount`: from what was typed to a running daemon and back to nothing.
//!
//! # Order of steps
//! Check everything, clean away a dead mount, open the store, the cache (which takes its lock, so
//! that a second daemon ends here), the control socket, mount. At the end: unmounted, then flushed
//! and recorded as clean, then the socket goes, then the process ends even where threads hang in
//! the store.

use std::io;
use std::mem;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;

use super::{Error, background, logging, signals};
use crate::cache::Pool;
use crate::config::units::{Size, SizeOrOff, Span};
use crate::config::{CacheSpec, Config, Passthrough, Settings};
use crate::control::metrics::Port;
use crate::control::{Daemon, Server};
use crate::image::Images;
use crate::mount;
use crate::store::dir::DirStore;
use crate::store::executor::{Executor, Limits};
use crate::store::simulate::Simulated;
use crate::store::{self, Store};

/// Memory of this size and more is taken from the system and given back one by one.
const LARGE_BUFFER_BYTES: i32 = 128 * 1024;
/// Heaps that all threads share.
const HEAPS_MAX: i32 = 4;
/// Store operations waiting for a thread at most; past it they fail at once (rule 12).
const STORE_QUEUE_MAX: usize = 16384;
/// A store operation that takes longer is logged (rule 12).
const STORE_WARN_AFTER: Duration = Duration::from_secs(5);
/// A store that has answered nothing for this long is taken to hang.
const STORE_FALLBACK_AFTER: Duration = Duration::from_secs(2);
/// After the unmount, what is still on its way to the store gets this long.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(30);
/// Open files the daemon asks for; each open image takes a few.
const OPEN_FILES: libc::rlim_t = 1 << 20;

/// Mount a store through the cache
#[derive(Args)]
#[command(
    long_about = "Mount a store through the cache.\n\n\
        MOUNTPOINT then shows the tree of STORE. Blocks that are read are kept in the cache \
        directories and served from there; writes go to the store before they are acknowledged. \
        The command returns when the mount answers; umount MOUNTPOINT, fusermount3 -u MOUNTPOINT \
        or SIGTERM end it with everything flushed.",
    after_long_help = "\
Units:
  Sizes are powers of 1024: 512M, 200G, 2T. A limit is a size or a share of the
  cache's filesystem: 25%. Durations: 500us, 2ms, 5s, 10min, 1h.

Examples:
  One cache directory that may grow to 200 GiB:
    flashside mount /nfs/images /srv/vms --cache /flash0/cache@200G

  Two of them, each up to 80 % of its filesystem; watch it work:
    flashside mount /nfs/images /srv/vms --cache /flash0/c --cache /flash1/c --foreground

  See what a cache would do for a store that takes 2 ms per operation:
    flashside mount /tmp/store /srv/vms --cache /tmp/cache --simulate-latency 2ms

Configuration file (TOML), by default /etc/flashside/NAME.toml where NAME is the
last component of MOUNTPOINT; flags win over it; unknown keys are refused:
    cache = [\"/flash0/cache@200G\"]
    store-deadline = \"10min\"     # then a store operation fails with EIO
    readahead = \"8M\"             # at most, per open file
    write-buffer = \"256M\"        # memory for writes on their way to the store
    store-threads = 64           # operations in flight towards the store
    fuse-threads = 8             # threads that take requests from the kernel
    io-uring = true              # false: read flash with pread
    portable-session = false     # true: fuser's session instead of our own
    store-user = \"qemu:kvm\"      # act on the store as this user, not as the caller
    control-uids = [64055]       # who may set user.flashside.* besides root
    read-only = false
    passthrough = \"auto\"         # off: immutable images are read through the daemon too
    log-level = \"info\"           # RUST_LOG wins
    simulate-latency = \"2ms\"     # and simulate-bandwidth, simulate-once
    [[rule]]                     # the first that matches an image counts
    match = \"golden/*.qcow2\"
    immutable = true             # nobody writes it"
)]
pub struct Mount {
    /// Directory that holds the images: NFS, CephFS, GFS2 or any other
    store: PathBuf,
    /// Empty directory where the images appear
    mountpoint: PathBuf,
    /// Keep blocks in this directory (ext4 or XFS on local flash), at most LIMIT: 200G or 25%
    /// [default limit: 80%]. 10 % of the filesystem always stay free. May be repeated
    #[arg(long, value_name = "DIR[@LIMIT]")]
    cache: Vec<CacheSpec>,
    /// Read settings from this file [default: /etc/flashside/NAME.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Stay in the foreground and log to stderr
    #[arg(long)]
    foreground: bool,
    /// Refuse all writes through the mount
    #[arg(long)]
    read_only: bool,
    /// Let the kernel read immutable images straight from flash, or never [default: auto]
    #[arg(long, value_name = "WHEN", value_enum)]
    passthrough: Option<Passthrough>,
    /// Let a store operation fail with EIO after this [default: 10min]
    #[arg(long, value_name = "TIME")]
    store_deadline: Option<Span>,
    /// Let sequential reads and writes longer than this go around the cache: 256M, or off
    /// [default: 64M]
    #[arg(long, value_name = "SIZE")]
    stream_bypass: Option<SizeOrOff>,
    /// Serve metrics here too, for Prometheus: a loopback address and a port, 127.0.0.1:9095
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<String>,
    /// Make the store slower: add this to every operation
    #[arg(long, value_name = "TIME")]
    simulate_latency: Option<Span>,
    /// Make the store slower: bytes per second each way
    #[arg(long, value_name = "SIZE")]
    simulate_bandwidth: Option<Size>,
    /// Let the store serve each 4 KiB page of an image once and then never again (EIO); FILE
    /// remembers what it served
    #[arg(long, value_name = "FILE")]
    simulate_once: Option<PathBuf>,
    /// For tests only: lose track of writes in a power cut, which can serve stale blocks
    #[arg(long, hide_short_help = true)]
    unsafe_no_in_doubt_marks: bool,
}

impl Mount {
    /// Runs the daemon, or starts it in the background and waits for the mount.
    pub fn run(self) -> Result<ExitCode, Error> {
        if !self.foreground && !background::is_daemon() {
            return background::start();
        }
        let config = self.config()?;
        logging::start(config.log_level);
        serve(config)
    }

    fn config(self) -> Result<Config, Error> {
        let flags = Settings {
            cache: self.cache,
            read_only: self.read_only.then_some(true),
            passthrough: self.passthrough,
            store_deadline: self.store_deadline,
            stream_bypass: self.stream_bypass,
            metrics_listen: self.metrics_listen,
            simulate_latency: self.simulate_latency,
            simulate_bandwidth: self.simulate_bandwidth,
            simulate_once: self.simulate_once,
            unsafe_no_in_doubt_marks: self.unsafe_no_in_doubt_marks,
            ..Settings::default()
        };
        let (store, mountpoint) = (&self.store, &self.mountpoint);
        Ok(Config::new(
            store,
            mountpoint,
            self.config.as_deref(),
            flags,
        )?)
    }
}

/// The daemon: returns when it is unmounted and everything is flushed.
fn serve(mut config: Config) -> Result<ExitCode, Error> {
    prepare_process();
    let mounted = Arc::new(AtomicBool::new(false));
    signals::watch(config.mountpoint.clone(), mounted.clone()).map_err(Error::Start)?;
    clean_dead_mount(&mut config)?;
    let store = open_store(&config)?;
    let executor = start_executor(&config)?;
    let pool = Pool::open(&config, &store.identity())?;
    let local = store.is_local();
    let images =
        Images::new(&config, executor.clone(), pool.clone(), local).map_err(Error::Start)?;
    let daemon = Daemon::new(
        &config,
        store.clone(),
        executor.clone(),
        pool.clone(),
        images.clone(),
    );
    let daemon = Arc::new(daemon);
    let server = Server::start(&config.control_socket, daemon.clone())?;
    let _metrics = config
        .metrics_listen
        .map(|place| Port::start(place, daemon));

    // Closing files of a store that hangs may hang: these stay open until the process is gone.
    mem::forget((store.clone(), executor.clone(), pool, images.clone()));
    let ready = announce(&config, mounted.clone());
    let socket = config.control_socket.clone();
    let served = mount::alone(&config).and_then(|alone| {
        mount::serve(
            &config,
            store,
            images.clone(),
            executor,
            &socket,
            alone,
            ready,
        )
    });
    mounted.store(false, Ordering::Release);
    let flushed = images.shutdown(SHUTDOWN_DEADLINE);
    drop(server);
    outcome(config.mountpoint, served, flushed)
}

/// What the end of the daemon is to its caller.
fn outcome(
    mountpoint: PathBuf,
    served: io::Result<()>,
    flushed: store::Result<()>,
) -> Result<ExitCode, Error> {
    if let Err(error) = served {
        return Err(Error::Mount { mountpoint, error });
    }
    if let Err(error) = flushed {
        return Err(Error::Shutdown { mountpoint, error });
    }
    log::info!("unmounted and flushed");
    Ok(ExitCode::SUCCESS)
}

/// The kernel has applied the caller's umask; ours would be a second one. And a cache of many images
/// needs many descriptors.
fn prepare_process() {
    let limit = |max| libc::rlimit {
        rlim_cur: max,
        rlim_max: max,
    };
    let mut now = limit(0);
    // SAFETY: umask cannot fail; mallopt takes plain numbers; the pointers are to live structs.
    unsafe {
        libc::umask(0);
        // Tells that a lease is wanted back; ours are given back at once (cache/orphan.rs).
        libc::signal(libc::SIGIO, libc::SIG_IGN);
        // Large buffers go back to the system when freed, and threads share few heaps: memory is
        // bounded by what is in use, not by what was (rule 13).
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BUFFER_BYTES);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX);
        if libc::setrlimit(libc::RLIMIT_NOFILE, &limit(OPEN_FILES)) != 0
            && libc::getrlimit(libc::RLIMIT_NOFILE, &mut now) == 0
        {
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit(now.rlim_max));
        }
    }
}

fn clean_dead_mount(config: &mut Config) -> Result<(), Error> {
    if !config.mountpoint_dead {
        return Ok(());
    }
    log::info!(
        "{} was left by a daemon that died: cleaning up",
        config.mountpoint.display()
    );
    mount::clear_dead_mount(&config.mountpoint).map_err(|error| Error::DeadMount {
        mountpoint: config.mountpoint.clone(),
        error,
    })?;
    Ok(config.recheck_mountpoint()?)
}

fn open_store(config: &Config) -> Result<Arc<dyn Store>, Error> {
    let failed = |error| Error::Store {
        path: config.store.clone(),
        error,
    };
    let dir = DirStore::open(&config.store).map_err(|error| failed(error.into()))?;
    let store: Arc<dyn Store> = Arc::new(dir);
    if !Simulated::is_wanted(&config.simulate) {
        return Ok(store);
    }
    let simulated = Simulated::new(store, &config.simulate);
    Ok(Arc::new(simulated.map_err(failed)?))
}

fn start_executor(config: &Config) -> Result<Arc<Executor>, Error> {
    let limits = Limits {
        threads_max: config.store_threads,
        queue_max: STORE_QUEUE_MAX,
        warn_after: STORE_WARN_AFTER,
        fallback_after: STORE_FALLBACK_AFTER,
        deadline: config.store_deadline,
    };
    let executor = Executor::new("store", limits);
    executor.start().map_err(Error::Start)?;
    Ok(Arc::new(executor))
}

/// What happens once, when the mount answers.
fn announce(config: &Config, mounted: Arc<AtomicBool>) -> impl FnOnce() + Send + use<> {
    let (store, mountpoint) = (config.store.clone(), config.mountpoint.clone());
    move || {
        mounted.store(true, Ordering::Release);
        if background::is_daemon() {
            background::ready();
        }
        log::info!("{} is mounted at {}", store.display(), mountpoint.display());
    }
}
