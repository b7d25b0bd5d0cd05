//! A thread that closes descriptors: close(2) of a file on a hanging store blocks, and the last user
//! of a descriptor may be a thread that must not (a FUSE thread that handles a forget or a release).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// A way to the closing thread. The thread ends with the last of these.
#[derive(Clone, Debug)]
pub struct Closer(Sender<Arc<OwnedFd>>);

impl Closer {
    /// Starts the thread.
    pub fn start() -> io::Result<Closer> {
        let (sender, receiver) = channel::<Arc<OwnedFd>>();
        thread::Builder::new()
            .name("store-close".into())
            .stack_size(64 * 1024)
            .spawn(move || receiver.into_iter().for_each(drop))?;
        Ok(Closer(sender))
    }

    /// Drops `fd` there; does not wait.
    pub fn close(&self, fd: Arc<OwnedFd>) {
        // The thread only ends when nobody can call this any more.
        let _ = self.0.send(fd);
    }
}
