//! What fuser does: it mounts, negotiates with the kernel, and can serve the whole session with its own
//! threads, on any system it knows and with everything it can do. fuser's types stay here.

mod attr;
mod face;
mod replies;

use std::ffi::OsStr;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use fuser::{BackgroundSession, INodeNo, MountOption, Notifier, SessionACL};

use self::face::Face;
use super::core::Core;
use super::kernel::Kernel;
use super::session::Session;
use crate::config::Config;

/// How often the end of fuser's last thread is looked for, once it is due.
const END_POLL: Duration = Duration::from_millis(1);

/// A mount that the kernel has agreed to and nobody serves yet.
pub struct Mounted {
    session: fuser::Session<Face>,
    ended: Receiver<()>,
}

/// A mount that is served.
pub enum Serving {
    /// By our own session. What fuser keeps for unmounting is left alone: it would unmount by path, and
    /// by then something else may be mounted there.
    Own(Session, ManuallyDrop<fuser::Session<Face>>),
    /// By fuser's.
    Portable(ManuallyDrop<BackgroundSession>, Receiver<()>),
}

impl Mounted {
    /// Mounts and negotiates. Fails where the mount is refused.
    pub fn new(config: &Config, core: Arc<Core>) -> io::Result<Mounted> {
        let (ending, ended) = channel();
        let face = Face::new(core, ending);
        let session = fuser::Session::new(face, &config.mountpoint, &session_config(config))?;
        Ok(Mounted { session, ended })
    }

    /// A descriptor of the connection.
    pub fn device(&self) -> io::Result<OwnedFd> {
        self.session.as_fd().try_clone_to_owned()
    }

    /// Begins to serve, as the configuration asks.
    pub fn serve(self, config: &Config, core: &Arc<Core>) -> io::Result<Serving> {
        if config.portable_session {
            let session = ManuallyDrop::new(self.session.spawn()?);
            return Ok(Serving::Portable(session, self.ended));
        }
        let threads = config.fuse_threads.max(1);
        let own = Session::start(core, self.session.as_fd(), threads, config.io_uring)?;
        Ok(Serving::Own(own, ManuallyDrop::new(self.session)))
    }
}

impl Serving {
    /// The way to tell the kernel something.
    pub fn kernel(&self) -> Arc<dyn Kernel> {
        match self {
            Serving::Own(session, _) => session.kernel(),
            Serving::Portable(session, _) => Arc::new(session.notifier()),
        }
    }

    /// Waits until the mount is gone and its last thread has ended.
    pub fn wait(self) {
        match self {
            Serving::Own(session, _fusers) => session.wait(),
            Serving::Portable(session, ended) => {
                let _ = ended.recv(); // an error: the sender was dropped with the last thread
                while !session.guard.is_finished() {
                    thread::sleep(END_POLL);
                }
            }
        }
    }
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
