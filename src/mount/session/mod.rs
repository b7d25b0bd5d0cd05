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
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use self::device::Device;
use self::turns::Turns;
pub use self::wire::{notify, opcode};
use self::worker::Worker;
use super::core::Core;
use super::kernel::Kernel;

/// Helpers of the leader where reads overlap on an io_uring: one thread collects better batches than
/// several, a second goes on while the first is in a system call.
const HELPERS_WITH_RING: usize = 1;

/// How long after a take-over a wake-up may go to a dead server's poll, which the kernel takes back late.
const WARY: Duration = Duration::from_secs(2);
/// How often the end of what is in hand is looked for.
const BRAKE_POLL: Duration = Duration::from_micros(200);

/// Threads that serve a mount.
pub struct Session {
    threads: Vec<JoinHandle<()>>,
    kernel: Arc<Device>,
    brake: Brake,
}

/// Stops a session so that another server can go on with it.
#[derive(Clone)]
pub struct Brake {
    turns: Arc<Turns>,
    devices: Vec<Arc<Device>>,
}

impl Brake {
    /// No request is taken from now on. Waits until those in hand are answered, at most `patience`: the
    /// rest are sent again to who comes next.
    pub fn stop(&self, patience: Duration) {
        self.turns.stop();
        let end = Instant::now() + patience;
        let in_hand = |device: &Arc<Device>| device.in_hand.load(Ordering::Acquire);
        while self.devices.iter().any(|device| in_hand(device) > 0) && Instant::now() < end {
            thread::sleep(BRAKE_POLL);
        }
    }
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
        let wary = if resend { WARY } else { Duration::ZERO };
        let turns = Arc::new(Turns::new(helpers, Instant::now() + wary));
        let devices: Vec<Arc<Device>> = devices.into_iter().map(Arc::new).collect();
        let mut workers = Vec::new();
        for (number, device) in devices.iter().cloned().enumerate() {
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
            brake: Brake { turns, devices },
        })
    }

    /// The way to stop it for another server.
    pub fn brake(&self) -> Brake {
        self.brake.clone()
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
