//! What fuser does: it mounts, negotiates with the kernel, and can serve the whole session with its own
//! threads, on any system it knows and with everything it can do. fuser's types stay here.

mod attr;
mod face;
mod negotiate;
mod replies;

use std::ffi::OsStr;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use fuser::{BackgroundSession, INodeNo, MountOption, Notifier, SessionACL};

use self::face::Face;
use self::negotiate::Negotiator;
use super::core::Core;
use super::kernel::Kernel;
use crate::config::Config;
use crate::handover::Negotiated;

/// How often the end of fuser's last thread is looked for, once it is due.
const END_POLL: Duration = Duration::from_millis(1);

/// A mount that the kernel has agreed to, for others to serve. What fuser keeps for unmounting is left
/// alone: it would unmount by path, and by then something else may be mounted there.
pub struct Connection {
    session: ManuallyDrop<fuser::Session<Negotiator>>,
    /// What INIT led to.
    pub negotiated: Negotiated,
}

impl Connection {
    /// Mounts and negotiates. Fails where the mount is refused.
    pub fn new(config: &Config) -> io::Result<Connection> {
        let agreed = Arc::new(OnceLock::new());
        let negotiator = Negotiator::new(config.passthrough, agreed.clone());
        let session = fuser::Session::new(negotiator, &config.mountpoint, &options(config))?;
        Ok(Connection {
            session: ManuallyDrop::new(session),
            negotiated: agreed.get().copied().unwrap_or_default(),
        })
    }

    /// A descriptor of the connection.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.session.as_fd()
    }
}

/// A mount that fuser serves with its own threads.
pub struct Portable {
    session: ManuallyDrop<BackgroundSession>,
    device: OwnedFd,
    ended: Receiver<()>,
}

impl Portable {
    /// Mounts, negotiates and serves. Fails where the mount is refused.
    pub fn start(config: &Config, core: &Arc<Core>) -> io::Result<Portable> {
        let (ending, ended) = channel();
        let face = Face::new(core.clone(), ending);
        let session = fuser::Session::new(face, &config.mountpoint, &options(config))?;
        Ok(Portable {
            device: session.as_fd().try_clone_to_owned()?,
            session: ManuallyDrop::new(session.spawn()?),
            ended,
        })
    }

    /// A descriptor of the connection.
    pub fn device(&self) -> io::Result<OwnedFd> {
        self.device.try_clone()
    }

    /// The way to tell the kernel something.
    pub fn kernel(&self) -> Arc<dyn Kernel> {
        Arc::new(self.session.notifier())
    }

    /// Waits until the mount is gone and its last thread has ended.
    pub fn wait(self) {
        let _ = self.ended.recv(); // an error: the sender was dropped with the last thread
        while !self.session.guard.is_finished() {
            thread::sleep(END_POLL);
        }
    }
}

fn options(config: &Config) -> fuser::Config {
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
    if config.no_exec {
        session.mount_options.push(MountOption::NoExec);
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

impl Kernel for Notifier {
    fn attr_outdated(&self, nodeid: u64) -> io::Result<()> {
        const ATTRIBUTES_ONLY: i64 = -1;
        self.inval_inode(INodeNo(nodeid), ATTRIBUTES_ONLY, 0)
    }

    fn forget_name(&self, parent: u64, name: &OsStr) -> io::Result<()> {
        self.inval_entry(INodeNo(parent), name)
    }
}
