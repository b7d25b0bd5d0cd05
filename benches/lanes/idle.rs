//! What a daemon costs that has nothing to do: 100 images open, each read once.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::arguments::Settings;
use crate::daemon::{Daemon, Options};
use crate::report::{Fact, Report};
use crate::rows::{KIB, MIB};
use crate::scratch::Scratch;
use crate::{image, interrupt, say};

const IMAGES: usize = 100;
/// Longer than anything takes that follows the last read.
const SETTLED: Duration = Duration::from_secs(10);

pub fn measure(scratch: &Scratch, settings: &Settings, report: &mut Report) -> Result<()> {
    say(&format!(
        "idle with {IMAGES} images open, {:?}",
        settings.idle
    ));
    let store = scratch.store("idle")?;
    for number in 0..IMAGES {
        image::write(&store.join(number.to_string()), MIB)?;
    }
    let daemon = Daemon::start(scratch, "idle", &store, Options::default())?;
    let mut open = Vec::new();
    for number in 0..IMAGES {
        let mut file = File::open(daemon.path(&number.to_string()))?;
        file.read_exact(&mut [0; 64 * KIB as usize])?;
        open.push(file);
    }
    interrupt::sleep(SETTLED.min(settings.idle))?;
    let look = || -> Result<(f64, u64, usize)> {
        let images = daemon.images()?;
        let requests = images.iter().map(|image| image.store_read_requests).sum();
        Ok((daemon.cpu_us(), requests, daemon.log_lines()))
    };
    let before = look()?;
    interrupt::sleep(settings.idle)?;
    let busy = daemon.cpu_us() - before.0; // before status is asked again
    let after = look()?;
    let percent = 100.0 * busy / settings.idle.as_micros() as f64;
    let (requests, lines) = (after.1 - before.1, after.2 - before.2);
    let seconds = settings.idle.as_secs();
    report.facts.push(Fact {
        name: format!("{IMAGES} images open, idle for {seconds} s"),
        measured: format!("{percent:.2} % of a core, {requests} store reads, {lines} log lines"),
        target: None,
        met: None,
        values: json!({
            "cpu_percent": percent, "store_reads": requests, "log_lines": lines, "seconds": seconds,
        }),
    });
    Ok(())
}
