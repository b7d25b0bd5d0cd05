//! `flashside mount`: from what was typed to a running daemon and back to nothing.
//!
//! # Order of steps
//! Check everything and clean away a dead mount. Where the mount can be handed over, this process becomes
//! its keeper ([`crate::keeper`]), which starts servers. Else it serves by itself: store, cache, control
//! socket, mount; and at the end unmounted, then flushed and recorded as clean, then the socket goes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;

use super::stack::{self, Ground};
use super::{Error, background, logging, signals};
use crate::config::units::{Size, SizeOrOff, Span};
use crate::config::{CacheSpec, Config, FileText, Handover, Passthrough, Settings};
use crate::handover::Kept;
use crate::handover::message::Begin;
use crate::keeper::{self, ControlSocket, Typed, systemd};
use crate::mount;

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
    store = \"/nfs/images\"       # then `flashside mount --config FILE` is enough
    mountpoint = \"/srv/vms\"
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
    handover = \"auto\"            # off: the mount ends with the process that serves it
    log-level = \"info\"           # RUST_LOG wins
    simulate-latency = \"2ms\"     # and simulate-bandwidth, simulate-once
    [[rule]]                     # the first that matches an image counts
    match = \"golden/*.qcow2\"
    immutable = true             # nobody writes it"
)]
pub struct Mount {
    /// Directory that holds the images: NFS, CephFS, GFS2 or any other [default: what the file of
    /// --config says]
    #[arg(required_unless_present = "config", requires = "mountpoint")]
    store: Option<PathBuf>,
    /// Empty directory where the images appear
    #[arg(required_unless_present = "config")]
    mountpoint: Option<PathBuf>,
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
    /// Refuse to run programs from the mount
    #[arg(long)]
    no_exec: bool,
    /// Let the kernel read immutable images straight from flash, or never [default: auto]
    #[arg(long, value_name = "WHEN", value_enum)]
    passthrough: Option<Passthrough>,
    /// Let another process take the mount over when the one that serves it dies or is upgraded, or never
    /// [default: auto]
    #[arg(long, value_name = "WHEN", value_enum)]
    handover: Option<Handover>,
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
    /// For tests only: after a restart of the server, carry out again what it had done and not answered
    #[arg(long, hide_short_help = true)]
    unsafe_no_exactly_once: bool,
    /// For tests only: let the next server begin while calls of a dead one still run
    #[arg(long, hide = true)]
    unsafe_no_fence: bool,
    /// For tests only: have servers make the descriptors they serve through
    #[arg(long, hide = true)]
    unsafe_server_clones: bool,
}

impl Mount {
    /// Runs the daemon, or starts it in the background and waits for the mount.
    pub fn run(self) -> Result<ExitCode, Error> {
        if !self.foreground && !background::is_daemon() {
            return background::start();
        }
        let left = systemd::Left::take();
        let directory = self.has_relative_paths().then_some(".");
        let file = FileText::find(self.mountpoint.as_deref(), self.config.as_deref())?;
        let flags = self.flags();
        let mut config = match &left {
            Some(_) => Config::of_mounted(file.as_ref(), flags)?,
            None => Config::new(file.as_ref(), flags)?,
        };
        if background::is_daemon() && !config.mounts_on_demand() {
            background::begin_session();
        }
        logging::start(config.log_level);
        stack::prepare_process();
        clean_dead_mount(&mut config)?;
        match keeper::why_not(&config) {
            Some(why) => serve_alone(&config, why),
            None => {
                let typed = Typed::by_this_process(directory, file).map_err(Error::Start)?;
                keep(&config, typed, left)
            }
        }
    }

    /// The configuration of a server, from what its keeper was given and what it says.
    pub fn as_server(self, begin: &Begin, file: Option<&FileText>) -> Result<Config, Error> {
        let (store, mountpoint) = (&begin.store, &begin.mountpoint);
        Ok(Config::of_server(store, mountpoint, file, self.flags())?)
    }

    fn has_relative_paths(&self) -> bool {
        let named = [self.store.as_ref(), self.mountpoint.as_ref()];
        let named = named.into_iter().chain([self.config.as_ref()]);
        let named = named.chain([self.simulate_once.as_ref()]).flatten();
        let caches = self.cache.iter().map(|cache| &cache.dir);
        named.chain(caches).any(|path| path.is_relative())
    }

    fn flags(&self) -> Settings {
        Settings {
            store: self.store.clone(),
            mountpoint: self.mountpoint.clone(),
            cache: self.cache.clone(),
            read_only: self.read_only.then_some(true),
            no_exec: self.no_exec,
            passthrough: self.passthrough,
            handover: self.handover,
            store_deadline: self.store_deadline,
            stream_bypass: self.stream_bypass,
            metrics_listen: self.metrics_listen.clone(),
            simulate_latency: self.simulate_latency,
            simulate_bandwidth: self.simulate_bandwidth,
            simulate_once: self.simulate_once.clone(),
            unsafe_no_in_doubt_marks: self.unsafe_no_in_doubt_marks,
            unsafe_no_exactly_once: self.unsafe_no_exactly_once,
            unsafe_no_fence: self.unsafe_no_fence,
            unsafe_server_clones: self.unsafe_server_clones,
            ..Settings::default()
        }
    }
}

/// Keeps the mount: returns when it is gone.
fn keep(config: &Config, typed: Typed, left: Option<systemd::Left>) -> Result<ExitCode, Error> {
    let mountpoint = config.mountpoint.display();
    let ready = || {
        if background::is_daemon() {
            background::ready();
        }
        log::info!("{} is mounted at {mountpoint}", config.store.display());
    };
    let background = background::is_daemon();
    Ok(keeper::run(config, typed, background, left, ready)?)
}

/// The daemon that nobody replaces: returns when it is unmounted and everything is flushed.
fn serve_alone(config: &Config, why: &str) -> Result<ExitCode, Error> {
    let mounted = Arc::new(AtomicBool::new(false));
    signals::watch(config.mountpoint.clone(), mounted.clone()).map_err(Error::Start)?;
    systemd::live().map_err(Error::Start)?;
    let stack = Ground::prepare(config)?.build(config, false)?;
    let socket = ControlSocket::make(&config.control_socket)?;
    let listener = socket.listener().map_err(Error::Start)?;
    let alone = mount::alone(config).map_err(|error| Error::Mount {
        mountpoint: config.mountpoint.clone(),
        error,
    })?;
    let ready = {
        let mounted = mounted.clone();
        let (store, mountpoint) = (config.store.display(), config.mountpoint.display());
        move |_| {
            mounted.store(true, Ordering::Release);
            log::info!("no hand-over ({why}): the mount ends with this process");
            if background::is_daemon() {
                background::ready();
            }
            log::info!("{store} is mounted at {mountpoint}");
            systemd::ready();
        }
    };
    let served = stack.serve(config, alone, listener, &Kept::alone(why), ready);
    mounted.store(false, Ordering::Release);
    drop(socket);
    served.map(|()| ExitCode::SUCCESS)
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
