//! A thread that closes descriptors: close(2) of a file on a hanging store blocks, and the last user
//! of a descriptor may be a thread that must not (a FUSE thread that handles a forget or a release).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// A way to the closing thread. The thread ends with the last of these.
#[derive(Clone, Debug)]
pub struct Closer {
    sender: Sender<Arc<OwnedFd>>,
    nothing: Arc<OwnedFd>,
}

impl Closer {
    /// Starts the thread.
    pub fn start() -> io::Result<Closer> {
        let (sender, receiver) = channel::<Arc<OwnedFd>>();
        thread::Builder::new()
            .name("store-close".into())
            .stack_size(64 * 1024)
            .spawn(move || receiver.into_iter().for_each(drop))?;
        let nothing = Arc::new(File::open("/dev/null")?.into());
        Ok(Closer { sender, nothing })
    }

    /// Takes `fd` out of its place and drops it there, so that the place's own end closes nothing.
    pub fn take(&self, fd: &mut Arc<OwnedFd>) {
        self.close(std::mem::replace(fd, self.nothing.clone()));
    }

    /// A descriptor of nothing in particular, for a place that has none yet.
    pub fn nothing(&self) -> Arc<OwnedFd> {
        self.nothing.clone()
    }

    /// Drops `fd` there; does not wait.
    pub fn close(&self, fd: Arc<OwnedFd>) {
        // The thread only ends when nobody can call this any more.
        let _ = self.sender.send(fd);
    }
}
