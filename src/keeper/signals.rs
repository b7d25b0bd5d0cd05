//! Signals, as something to wait for beside descriptors.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// One byte for each signal: its number. Never blocks.
pub fn watch() -> io::Result<UnixStream> {
    let (ours, mut theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut signals = Signals::new([SIGUSR1, SIGTERM, SIGINT, SIGHUP])?;
    let forward = move || {
        for signal in signals.forever() {
            let _ = theirs.write_all(&[signal as u8]); // an error: the keeper has ended
        }
    };
    let thread = thread::Builder::new().name("signals".into());
    thread.stack_size(64 * 1024).spawn(forward)?;
    Ok(ours)
}
