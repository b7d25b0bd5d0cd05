//! Session loops beside each other: ours with io_uring, ours with pread, fuser's.

use anyhow::Result;

use crate::arguments::Settings;
use crate::compare::compare;
use crate::daemon::{Daemon, Options};
use crate::lane::{self, Lane, Way};
use crate::report::Report;
use crate::scratch::Scratch;
use crate::{image, interrupt, rows, say, warm};

/// Lane, directory, configuration.
const LOOPS: [(&str, &str, &str); 3] = [
    ("ours, io_uring", "ring", "io-uring = true\n"),
    ("ours, pread", "pread", "io-uring = false\n"),
    ("fuser's", "fuser", "portable-session = true\n"),
];
const IMAGE: &str = "disk.img";

pub fn measure(scratch: &Scratch, settings: &Settings, report: &mut Report) -> Result<()> {
    // There are three of it, each in a store and a cache.
    let settings = &Settings {
        image_bytes: (settings.image_bytes / 2).max(16 << 20),
        ..settings.clone()
    };
    say("writing images");
    let plain = scratch.flash("plain");
    image::write(&plain, settings.image_bytes)?;
    for (_, dir, _) in LOOPS {
        image::write(&scratch.store(dir)?.join(IMAGE), settings.image_bytes)?;
    }
    interrupt::sleep(std::time::Duration::from_secs(2))?;
    let daemons = start(scratch)?;
    let mut lanes = vec![lane::native(&plain)];
    for ((name, ..), daemon) in LOOPS.iter().zip(&daemons) {
        let file = daemon.path(IMAGE);
        warm::ensure(daemon, &file, scratch, settings)?;
        warm::verify(daemon, &file, scratch, settings)?;
        if name.contains("io_uring") && !daemon.has_ring() {
            say("the daemon has no io_uring here: its lane is pread too");
        }
        lanes.push(Lane {
            name,
            file,
            way: Way::Daemon(daemon),
            small_sectors: true,
        });
    }
    let compared = compare("sessions", &rows::sessions(), &lanes, scratch, settings)?;
    report.comparisons.push(compared);
    Ok(())
}

fn start(scratch: &Scratch) -> Result<Vec<Daemon>> {
    let mut daemons = Vec::new();
    for (_, dir, config) in LOOPS {
        let options = Options {
            config,
            ..Options::default()
        };
        daemons.push(Daemon::start(scratch, dir, &scratch.store(dir)?, options)?);
    }
    Ok(daemons)
}
