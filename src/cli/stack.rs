//! What serves a mount, put together in its order: store and executor, then the cache, then images; and
//! taken apart again at the end. The same in the one process and in a server.
//!
//! # Order of steps
//! Open the store, open the cache (which takes its lock, so that a second daemon ends here), serve. At the
//! end: unmounted, then flushed and recorded as clean, then the process ends even where threads hang in the
//! store.

use std::mem;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::Error;
use crate::cache::Pool;
use crate::config::Config;
use crate::control::metrics::Port;
use crate::control::{Daemon, Server};
use crate::handover::{Inheritance, Kept};
use crate::image::Images;
use crate::mount;
use crate::store::Store;
use crate::store::dir::DirStore;
use crate::store::executor::{Executor, Limits};
use crate::store::simulate::Simulated;

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

/// A store that is open, and threads to work with it: all that takes nothing from another server.
pub struct Ground {
    store: Arc<dyn Store>,
    executor: Arc<Executor>,
}

/// Everything a mount is served with.
pub struct Stack {
    ground: Ground,
    pool: Arc<Pool>,
    images: Arc<Images>,
}

impl Ground {
    /// Opens the store.
    pub fn prepare(config: &Config) -> Result<Ground, Error> {
        Ok(Ground {
            store: open_store(config)?,
            executor: start_executor(config)?,
        })
    }

    /// Opens the cache. With `succeeds` guests wait meanwhile: only what is asked for is loaded until
    /// the mount is served.
    pub fn build(self, config: &Config, succeeds: bool) -> Result<Stack, Error> {
        let open = if succeeds {
            Pool::take_over
        } else {
            Pool::open
        };
        let pool = open(config, &self.store.identity())?;
        let local = self.store.is_local();
        let images = Images::new(config, self.executor.clone(), pool.clone(), local);
        Ok(Stack {
            images: images.map_err(Error::Start)?,
            pool,
            ground: self,
        })
    }
}

impl Stack {
    /// Serves until the mount is gone and everything is flushed. `ready` is called when it answers.
    pub fn serve(
        self,
        config: &Config,
        inheritance: Inheritance,
        listener: UnixListener,
        kept: &Arc<Kept>,
        ready: impl FnOnce(Option<mount::Brake>),
    ) -> Result<(), Error> {
        let (store, executor) = (self.ground.store, self.ground.executor);
        let (images, pool) = (self.images, self.pool);
        let daemon = Daemon::new(
            config,
            store.clone(),
            executor.clone(),
            pool.clone(),
            images.clone(),
            kept.clone(),
            inheritance.ledger.clone(),
        );
        let daemon = Arc::new(daemon);
        let server = Server::start(listener, daemon.clone()).map_err(Error::Start)?;
        let _metrics = config.metrics_listen.map(|at| Port::start(at, daemon));
        let rest = pool.clone();
        let ready = move |brake| {
            ready(brake);
            load_rest(rest);
        };
        // Closing files of a store that hangs may hang: these stay open until the process is gone.
        mem::forget((store.clone(), executor.clone(), pool, images.clone()));
        let socket = &config.control_socket;
        let served = mount::serve(
            config,
            store,
            images.clone(),
            executor,
            socket,
            inheritance,
            ready,
        );
        let flushed = images.shutdown(SHUTDOWN_DEADLINE);
        drop(server);
        let mountpoint = || config.mountpoint.clone();
        served.map_err(|error| Error::Mount {
            mountpoint: mountpoint(),
            error,
        })?;
        flushed.map_err(|error| Error::Shutdown {
            mountpoint: mountpoint(),
            error,
        })?;
        log::info!("unmounted and flushed");
        Ok(())
    }
}

/// Loads what nobody has asked for yet of the cache, in the background.
fn load_rest(pool: Arc<Pool>) {
    let load = thread::Builder::new().name("cache-load".into());
    let another = pool.clone();
    if let Err(error) = load.spawn(move || pool.load_all()) {
        log::debug!("no thread to load the cache: {error}");
        another.load_all();
    }
}

/// The kernel has applied the caller's umask; ours would be a second one. And a cache of many images
/// needs many descriptors.
pub fn prepare_process() {
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
