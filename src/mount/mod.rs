//! The FUSE face: a mount's session, from mounting to the last FUSE thread's end. fuser's types
//! stay in this room.
//!
//! No FUSE thread waits for the store: what needs it goes to the executor with its reply. Reads and
//! writes go straight to the image, which answers from flash on the same thread if it can.
//!
//! May touch: the mount table, process-wide the umask (0: permissions come from callers) and the
//! limit of open files (raised to what is allowed).
//!
//! *Order of steps* at the end: the FUSE threads end, then every file still open is released, then
//! [`serve`] returns; after that nothing of the mount is used any more.

mod answer;
mod caller;
mod core;
mod files;
mod handles;
mod kernel;
mod listing;
mod names;
mod nodes;
mod point;
mod portable;
mod stat;
mod xattr;

use std::io;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use fuser::{BackgroundSession, MountOption, Session, SessionACL};

pub use point::{Occupant, clear_dead_mount, occupant, unmount};

use self::core::Core;
use self::kernel::Kernel;
use self::portable::Face;
use crate::config::Config;
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
/// How often the end of fuser's last thread is looked for, once it is due.
const END_POLL: Duration = Duration::from_millis(1);

/// Mounts, calls `ready` once requests are answered, and serves until unmounted. All FUSE threads
/// have ended and all files are released when this returns.
///
/// `control_socket` is what `user.flashside.control` shows on the root. Fails where the mount is
/// refused.
pub fn serve(
    config: &Config,
    store: Arc<dyn Store>,
    images: Arc<Images>,
    executor: Arc<Executor>,
    control_socket: &Path,
    ready: impl FnOnce(),
) -> io::Result<()> {
    // SAFETY: umask takes a plain number and cannot fail.
    unsafe { libc::umask(0) };
    let inodes_max = INODES_MAX.min(raise_file_limit() / 2);
    let core = Core::new(config, store, images, executor, control_socket, inodes_max);
    let core = Arc::new(core);
    let (ended, end) = channel();
    let face = Face::new(core.clone(), ended);
    let session = Session::new(face, &config.mountpoint, &session_config(config))?.spawn()?;
    let notifier = || Arc::new(session.notifier()) as Arc<dyn Kernel>;
    let kernel = core.kernel.get_or_init(notifier).clone();
    let forgetter = start_forgetter(core.clone(), kernel);
    core.learn_root();
    ready();
    let _ = end.recv(); // an error: the sender was dropped with the last FUSE thread
    finish(session);
    core.nodes.close();
    core.release_all();
    if let Err(error) = clear_dead_mount(&config.mountpoint) {
        log::warn!("{} stays mounted: {error}", config.mountpoint.display());
    }
    forgetter.map(|thread| drop(thread.join()))
}

fn session_config(config: &Config) -> fuser::Config {
    // SAFETY: geteuid takes nothing and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let mut session = fuser::Config::default();
    session.mount_options = vec![
        MountOption::FSName(source_name(&config.store, is_root)),
        // As a kernel option: fuser's own is lost when root mounts without fusermount3.
        MountOption::CUSTOM("subtype=flashside".into()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    if config.read_only {
        session.mount_options.push(MountOption::RO);
    }
    session.acl = if is_root {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    session.n_threads = Some(config.fuse_threads.max(1));
    session.clone_fd = true;
    session
}

/// The source in the mount table. fusermount3 takes it in a list, where commas must be escaped.
fn source_name(store: &Path, is_root: bool) -> String {
    let name = store.to_string_lossy();
    if is_root {
        return name.into_owned();
    }
    name.replace('\\', "\\\\").replace(',', "\\,")
}

/// Waits until fuser's thread is gone, which it is about to be. What fuser keeps for unmounting is
/// left alone: it would unmount by path, and by now something else may be mounted there.
fn finish(session: BackgroundSession) {
    while !session.guard.is_finished() {
        thread::sleep(END_POLL);
    }
    let _ = ManuallyDrop::new(session);
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
