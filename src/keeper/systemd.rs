//! systemd, where it started this process: it is told when the mount answers and that the keeper is alive, and
//! it holds what another keeper needs to go on with the mount (its descriptor store).
//!
//! It holds the descriptors of the connection, the ledger and the control socket, which are the same from mount to
//! unmount. It does not get the store's open files: process 1 must never close a file of a storage that hangs. A
//! server that finds none opens the images again by what the ledger says.
//!
//! Without systemd every function here does nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use sd_notify::NotifyState::{Custom, FdName, FdStore, FdStoreRemove, Ready, Status, Watchdog};
use sd_notify::{NotifyState, notify, notify_with_fds};

/// The names under which systemd holds things; what is negotiated is part of the ledger's.
const DEVICE: &str = "device";
const LISTENER: &str = "listener";
const LEDGER: &str = "ledger";
const LEDGER_PASSTHROUGH: &str = "ledger-passthrough";
const NAMES: [&str; 4] = [DEVICE, LISTENER, LEDGER, LEDGER_PASSTHROUGH];
/// Signs of life in the time after which systemd misses them.
const SIGNS_PER_WATCH: u32 = 4;

/// What an earlier keeper has left with systemd.
pub struct Left {
    pub(super) devices: Vec<OwnedFd>,
    pub(super) ledger: OwnedFd,
    pub(super) listener: UnixListener,
    pub(super) passthrough: bool,
}

impl Left {
    /// Takes what there is; `None` where it is nothing, or not enough to go on. To be called once, before
    /// anything else opens descriptors.
    pub fn take() -> Option<Left> {
        let mut found = Found::default();
        for (raw, name) in sd_notify::listen_fds_with_names().ok()? {
            // SAFETY: systemd has opened this descriptor for us; this is called once and nobody else knows it.
            found.add(&name, unsafe { OwnedFd::from_raw_fd(raw) });
        }
        let left = found.complete();
        if left.is_none() {
            forget();
        }
        left
    }
}

#[derive(Default)]
struct Found {
    devices: Vec<OwnedFd>,
    ledger: Option<(OwnedFd, bool)>,
    listener: Option<OwnedFd>,
}

impl Found {
    fn add(&mut self, name: &str, descriptor: OwnedFd) {
        match name {
            DEVICE => self.devices.push(descriptor),
            LISTENER => self.listener = Some(descriptor),
            LEDGER => self.ledger = Some((descriptor, false)),
            LEDGER_PASSTHROUGH => self.ledger = Some((descriptor, true)),
            _ => {} // a later version's; closed
        }
    }

    /// Everything, and the kernel has not given the mount up.
    fn complete(self) -> Option<Left> {
        let (ledger, passthrough) = self.ledger?;
        let device = self.devices.first()?;
        let over = super::holdings::is_over(device.as_raw_fd());
        (!over).then_some(Left {
            devices: self.devices,
            ledger,
            listener: self.listener?.into(),
            passthrough,
        })
    }
}

/// Gives systemd what the next keeper needs. False where it does not take it.
pub fn store(
    devices: &[OwnedFd],
    ledger: BorrowedFd<'_>,
    listener: BorrowedFd<'_>,
    passthrough: bool,
) -> bool {
    let devices: Vec<BorrowedFd<'_>> = devices.iter().map(AsFd::as_fd).collect();
    let ledger_name = match passthrough {
        true => LEDGER_PASSTHROUGH,
        false => LEDGER,
    };
    forget();
    hold(DEVICE, &devices) && hold(LISTENER, &[listener]) && hold(ledger_name, &[ledger])
}

/// Not polled: systemd would wake up for every request of the kernel.
fn hold(name: &str, descriptors: &[BorrowedFd<'_>]) -> bool {
    if !is_there() {
        return false;
    }
    let words = [FdStore, FdName(name), Custom("FDPOLL=0")];
    let held = notify_with_fds(&words, descriptors);
    if let Err(error) = &held {
        log::warn!("systemd does not hold the mount for another keeper: {error}");
    }
    held.is_ok()
}

fn forget() {
    for name in NAMES {
        tell(&[FdStoreRemove, FdName(name)]);
    }
}

/// The mount answers.
pub fn ready() {
    tell(&[Ready]);
}

/// What `systemctl status` shows.
pub fn says(status: &str) {
    tell(&[Status(status)]);
}

fn tell(words: &[NotifyState<'_>]) {
    if !is_there() {
        return;
    }
    if let Err(error) = notify(words) {
        log::debug!("systemd cannot be told: {error}");
    }
}

fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Signs of life, as often as systemd wants them.
pub struct Life {
    interval: Option<Duration>,
    last: Instant,
}

impl Life {
    pub fn begin() -> Life {
        Life {
            interval: sd_notify::watchdog_enabled().map(|watch| watch / SIGNS_PER_WATCH),
            last: Instant::now(),
        }
    }

    /// How long until a sign is due; `None` where nobody waits for one.
    pub fn due(&self) -> Option<Duration> {
        let interval = self.interval?;
        Some(interval.saturating_sub(self.last.elapsed()))
    }

    /// True once for every sign that is due.
    pub fn is_due(&mut self) -> bool {
        let due = self.due().is_some_and(|due| due.is_zero());
        if due {
            self.last = Instant::now();
        }
        due
    }
}

/// A sign of life.
pub fn alive() {
    tell(&[Watchdog]);
}

/// Gives signs of life for a process that has no loop of its own to do so.
pub fn live() -> io::Result<()> {
    let Some(interval) = Life::begin().interval else {
        return Ok(());
    };
    let sign = move || {
        loop {
            tell(&[Watchdog]);
            thread::sleep(interval);
        }
    };
    let thread = thread::Builder::new().name("watchdog".into());
    thread.stack_size(64 * 1024).spawn(sign).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("opened").into()
    }

    #[test]
    fn only_a_whole_mount_is_taken_on() {
        let mut found = Found::default();
        found.add(DEVICE, descriptor());
        found.add(LEDGER_PASSTHROUGH, descriptor());
        found.add("from-the-future", descriptor());
        assert!(found.complete().is_none());

        let mut found = Found::default();
        found.add(DEVICE, descriptor());
        found.add(DEVICE, descriptor());
        found.add(LEDGER_PASSTHROUGH, descriptor());
        found.add(LISTENER, descriptor());
        let left = found.complete().expect("whole");
        assert!(left.passthrough && left.devices.len() == 2);
    }
}
