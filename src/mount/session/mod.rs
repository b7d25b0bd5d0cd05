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
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

pub use self::device::Device;
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
    /// Serves the connection of `devices`: a thread takes requests from each but the last, which is there
    /// to tell the kernel something. With `resend` the kernel is asked first to send again what a server
    /// before has not answered. With `ring` flash is read through io_uring where the system allows it.
    pub fn start(
        core: &Arc<Core>,
        devices: Vec<OwnedFd>,
        ring: bool,
        resend: bool,
    ) -> io::Result<Session> {
        let mut devices: Vec<Device> = devices.into_iter().map(Device::from).collect();
        let kernel = devices.pop().ok_or(io::ErrorKind::InvalidInput)?;
        if resend {
            kernel.resend()?;
        }
        let overlaps = ring && crate::io::engine::ring_works();
        let helpers = match overlaps {
            true => HELPERS_WITH_RING,
            false => devices.len().saturating_sub(1),
        };
        let turns = Arc::new(Turns::new(helpers));
        let mut workers = Vec::new();
        for (number, device) in devices.into_iter().enumerate() {
            let (core, turns) = (core.clone(), turns.clone());
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
            kernel: Arc::new(kernel),
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
