//! Ctrl-C and SIGTERM: a flag that every wait looks at, so that the run unwinds and cleans up behind itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a wait looks.
const LOOK: Duration = Duration::from_millis(10);

static CAME: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on signals do not end this process.
pub fn listen() -> Result<()> {
    let flag = CAME.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, flag.clone())?;
    }
    Ok(())
}

pub fn came() -> bool {
    CAME.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Sleeps; an error when a signal came.
pub fn sleep(time: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        if came() {
            bail!("interrupted");
        }
        std::thread::sleep(LOOK.min(time.saturating_sub(begun.elapsed())));
    }
    Ok(())
}

/// Looks every few milliseconds until `done` answers something; an error after `deadline`.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut done: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        if begun.elapsed() > deadline {
            bail!("{what}: not after {deadline:?}");
        }
        sleep(LOOK)?;
    }
}
