//! The session: our own threads between the kernel and the operations.
//!
//! fuser mounts and negotiates; from then on requests are taken by workers ([`worker`]), each with a
//! descriptor of its own, and answered by the operations, or right here when the bytes lie on flash.
//! What a request and a reply look like is in [`wire`].
//!
//! *Order of steps* at the end: the kernel says that the mount is gone to whoever asks it; all workers
//! end; then [`Session::wait`] returns. Answers that come later go nowhere.

mod device;
mod dispatch;
mod reply;
mod request;
mod slots;
mod turns;
mod wire;
mod worker;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use self::device::Device;
use self::turns::Turns;
use self::worker::Worker;
use super::core::Core;
use super::kernel::Kernel;

/// Helpers of the leader where reads overlap on an io_uring: one thread collects better batches than
/// several, a second goes on while the first is in a system call.
const HELPERS_WITH_RING: usize = 1;

/// Threads that serve a mount.
pub struct Session {
    threads: Vec<JoinHandle<()>>,
    kernel: Arc<Device>,
}

impl Session {
    /// Serves the connection that `mounted` belongs to, on `threads` threads. With `ring` flash is read
    /// through io_uring where the system allows it.
    pub fn start(
        core: &Arc<Core>,
        mounted: BorrowedFd<'_>,
        threads: usize,
        ring: bool,
    ) -> io::Result<Session> {
        let overlaps = ring && crate::io::engine::ring_works();
        let helpers = match overlaps {
            true => HELPERS_WITH_RING,
            false => threads - 1,
        };
        let turns = Arc::new(Turns::new(helpers));
        let kernel = Arc::new(Device::clone_of(mounted)?);
        let mut workers = Vec::new();
        for number in 0..threads {
            let (core, turns) = (core.clone(), turns.clone());
            let device = Device::clone_of(mounted)?;
            let worker = thread::Builder::new()
                .name(format!("fuse-{number}"))
                .spawn(move || match Worker::new(core, device, turns, overlaps) {
                    Ok(worker) => worker.run(),
                    Err(error) => log::error!("a thread for requests cannot start: {error}"),
                })?;
            workers.push(worker);
        }
        Ok(Session {
            threads: workers,
            kernel,
        })
    }

    /// The way to tell the kernel something.
    pub fn kernel(&self) -> Arc<dyn Kernel> {
        self.kernel.clone()
    }

    /// Waits until the mount is gone and the last worker has ended.
    pub fn wait(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                log::error!("a thread that serves the mount panicked");
            }
        }
    }
}
