//! SIGTERM and SIGINT unmount; the daemon then ends the way it does after umount(8).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::mount;

/// Starts the thread that waits for signals. Until `mounted` is set a signal ends the process at
/// once: nothing was promised to anybody yet.
pub fn watch(mountpoint: PathBuf, mounted: Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if !mounted.load(Ordering::Acquire) {
                    std::process::exit(128 + signal);
                }
                log::info!("signal {signal}: unmounting {}", mountpoint.display());
                if let Err(error) = mount::unmount(&mountpoint) {
                    log::error!("cannot unmount {}: {error}", mountpoint.display());
                }
            }
        })?;
    Ok(())
}
