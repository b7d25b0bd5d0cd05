//! The FUSE face: a mount's session, from mounting to the last FUSE thread's end. fuser mounts and
//! negotiates ([`portable`]), here or in the keeper; then our own session serves ([`session`]), or fuser's
//! where that is asked for. Both call the same operations.
//!
//! No FUSE thread waits for the store: what needs it goes to the executor with its reply. Reads and
//! writes go straight to the image, which answers from flash on the same thread if it can.
//!
//! May touch: the mount table, process-wide the umask (0: permissions come from callers) and the
//! limit of open files (raised to what is allowed).
//!
//! *Order of steps* at the end: the FUSE threads end, then every file still open is released, then
//! [`serve`] returns; after that nothing of the mount is used any more.

mod again;
mod answer;
mod backing;
mod caller;
mod core;
mod create;
mod files;
mod handles;
mod kernel;
mod legacy;
mod listing;
mod names;
mod nodes;
mod once;
mod plane;
mod point;
mod portable;
mod session;
mod stat;
mod take_on;
mod xattr;

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

pub use self::portable::Connection;
pub use self::session::{Brake, notify, opcode};
pub use point::{Occupant, clear_dead_mount, occupant, unmount};

use self::core::Core;
use self::kernel::Kernel;
use self::legacy::Legacy;
use self::portable::Portable;
use self::session::{Device, Session};
use crate::config::Config;
use crate::handover::{Inheritance, Ledger, Negotiated, NoHolder};
use crate::image::Images;
use crate::store::Store;
use crate::store::executor::Executor;

/// Inodes kept at most: each costs some hundred bytes and a descriptor. Past it the kernel is asked
/// to forget those longest unused.
const INODES_MAX: usize = 65_536;
/// How long the kernel gets to forget before more names are given up; doubled up to the second while
/// it forgets nothing, because everything is in use.
const FORGET_PAUSE: Duration = Duration::from_millis(1);
const FORGET_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Serves the mount that `inheritance` belongs to until it is unmounted, and calls `ready` once requests
/// are answered, with the brake for a hand-over. All FUSE threads have ended and all files are released when
/// this returns.
///
/// An inheritance without descriptors ([`portable_session`]) is of no mount yet: fuser makes it and serves
/// it. `control_socket` is what `user.flashside.control` shows on the root. Fails where the mount is refused.
pub fn serve(
    config: &Config,
    store: Arc<dyn Store>,
    images: Arc<Images>,
    executor: Arc<Executor>,
    control_socket: &Path,
    mut inheritance: Inheritance,
    ready: impl FnOnce(Option<Brake>),
) -> io::Result<()> {
    // SAFETY: umask takes a plain number and cannot fail.
    unsafe { libc::umask(0) };
    let inodes_max = INODES_MAX.min(raise_file_limit() / 2);
    let legacy = Legacy::new(inheritance.ledger.clone(), inheritance.holder.clone());
    let core = Core::new(
        config,
        store,
        images,
        executor,
        control_socket,
        inodes_max,
        legacy,
    );
    let core = Arc::new(core);
    if let Some(last) = inheritance.devices.last() {
        core.planes.negotiated(inheritance.negotiated.passthrough);
        core.planes.begin(last.try_clone());
    }
    if inheritance.succeeds {
        core.take_on(std::mem::take(&mut inheritance.files));
    }
    let serving = Serving::start(config, &core, inheritance)?;
    let kernel = core.kernel.get_or_init(|| serving.kernel()).clone();
    let forgetter = start_forgetter(core.clone(), kernel);
    core.learn_root();
    ready(serving.brake());
    serving.wait();
    core.nodes.close();
    core.release_all();
    if let Err(error) = clear_dead_mount(&config.mountpoint) {
        log::warn!("{} stays mounted: {error}", config.mountpoint.display());
    }
    forgetter.map(|thread| drop(thread.join()))
}

/// A new mount that no server served before, for this process to serve.
pub fn alone(config: &Config) -> io::Result<Inheritance> {
    point::check_rights()?;
    let mut inheritance = portable_session()?;
    if !config.portable_session {
        let connection = Connection::new(config)?;
        inheritance.devices = devices(connection.device(), config.fuse_threads)?;
        inheritance.negotiated = connection.negotiated;
    }
    Ok(inheritance)
}

/// What fuser's session begins with: nothing.
fn portable_session() -> io::Result<Inheritance> {
    Ok(Inheritance {
        ledger: Arc::new(Ledger::new()?),
        devices: Vec::new(),
        files: HashMap::new(),
        holder: Arc::new(NoHolder),
        negotiated: Negotiated::default(),
        succeeds: false,
    })
}

/// Descriptors of the connection that `mounted` belongs to, as an [`Inheritance`] has them: one for each
/// of `threads` and one more. Requests that are taken through one of them end with ECONNABORTED when it is
/// closed for good, so whoever makes them keeps them.
pub fn devices(mounted: BorrowedFd<'_>, threads: usize) -> io::Result<Vec<OwnedFd>> {
    let clones = (0..=threads).map(|_| Device::clone_of(mounted).map(Device::into_fd));
    clones.collect()
}

/// A mount that is served.
enum Serving {
    Own(Session),
    Portable(Portable),
}

impl Serving {
    /// Begins to serve, as the configuration asks.
    fn start(config: &Config, core: &Arc<Core>, inheritance: Inheritance) -> io::Result<Serving> {
        if inheritance.devices.is_empty() {
            let portable = Portable::start(config, core)?;
            core.planes.begin(portable.device());
            return Ok(Serving::Portable(portable));
        }
        let resend = inheritance.succeeds && inheritance.negotiated.resend;
        let session = Session::start(core, inheritance.devices, config.io_uring, resend)?;
        Ok(Serving::Own(session))
    }

    fn kernel(&self) -> Arc<dyn Kernel> {
        match self {
            Serving::Own(session) => session.kernel(),
            Serving::Portable(portable) => portable.kernel(),
        }
    }

    fn brake(&self) -> Option<Brake> {
        match self {
            Serving::Own(session) => Some(session.brake()),
            Serving::Portable(_) => None,
        }
    }

    fn wait(self) {
        match self {
            Serving::Own(session) => session.wait(),
            Serving::Portable(portable) => portable.wait(),
        }
    }
}

/// Starts the thread that asks the kernel to forget names when there are too many inodes. A thread
/// of its own, because the kernel may make it wait for a request that is under way.
fn start_forgetter(core: Arc<Core>, kernel: Arc<dyn Kernel>) -> io::Result<thread::JoinHandle<()>> {
    let forget = move || {
        let mut pause = FORGET_PAUSE;
        while core.nodes.wait_until_crowded() {
            let before = core.nodes.count();
            for (parent, name) in core.nodes.oldest_names() {
                if let Err(error) = kernel.forget_name(parent, &name) {
                    log::debug!("the kernel does not forget a name: {error}");
                }
            }
            thread::sleep(pause);
            let fewer = core.nodes.count() < before;
            pause = if fewer {
                FORGET_PAUSE
            } else {
                (pause * 2).min(FORGET_PAUSE_MAX)
            };
        }
    };
    thread::Builder::new()
        .name("mount-forget".into())
        .stack_size(128 * 1024)
        .spawn(forget)
}

/// Raises the soft limit of open files to the hard one; returns what it is then.
fn raise_file_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is ours to fill.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return 1024;
    }
    let raised = libc::rlimit {
        rlim_cur: limit.rlim_max,
        ..limit
    };
    // SAFETY: `raised` is a whole value.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
        limit = raised;
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}
