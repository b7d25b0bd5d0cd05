//! What one backup costs the others: images that fill the cache are in use, then another one is read from its
//! first to its last byte.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use crate::arguments::Settings;
use crate::daemon::{Daemon, Options};
use crate::fio::Job;
use crate::report::{Fact, Report};
use crate::rows::MIB;
use crate::scratch::Scratch;
use crate::{image, interrupt, say, warm};

const OTHERS: u64 = 4;
/// Of what the others have on flash.
const EVICTED: f64 = 0.02;

pub fn measure(scratch: &Scratch, settings: &Settings, report: &mut Report) -> Result<()> {
    say("a backup beside images that fill the cache");
    let (bytes, backed_up) = (settings.image_bytes, settings.image_bytes * 2);
    let store = scratch.store("backup")?;
    for number in 0..OTHERS {
        image::write(&store.join(format!("other-{number}")), bytes)?;
    }
    image::write(&store.join("backed-up"), backed_up)?;
    interrupt::sleep(warm::YOUNG)?;
    // As much as the others have, and a little for what the cache writes down.
    let limit = format!("@{}M", OTHERS * bytes / MIB * 101 / 100 + 4);
    let options = Options {
        limit: &limit,
        ..Options::default()
    };
    let daemon = Daemon::start(scratch, "backup", &store, options)?;
    let others: Vec<PathBuf> = (0..OTHERS)
        .map(|n| daemon.path(&format!("other-{n}")))
        .collect();
    let output = scratch.flash("fio.json");
    for _ in 0..3 {
        for other in &others {
            Job::all_of(other, bytes).run(&output)?;
        }
        interrupt::sleep(std::time::Duration::from_millis(500))?;
    }
    let resident = || -> Result<u64> {
        others
            .iter()
            .map(|other| Ok(daemon.image(other)?.resident_bytes))
            .sum()
    };
    let before = resident()?;
    let read = Job {
        rw: "read",
        ..Job::all_of(&daemon.path("backed-up"), backed_up)
    };
    read.run(&output)?;
    interrupt::sleep(std::time::Duration::from_millis(500))?;
    let after = resident()?;
    report.facts.push(fact(before, after, backed_up));
    Ok(())
}

fn fact(before: u64, after: u64, read: u64) -> Fact {
    let evicted = before.saturating_sub(after) as f64 / before.max(1) as f64;
    Fact {
        name: format!("backup: {} MiB read once, from end to end", read / MIB),
        measured: format!(
            "{:.2} % of the {} MiB evicted that other images had on flash",
            evicted * 100.0,
            before / MIB
        ),
        target: Some(format!("< {} %", EVICTED * 100.0)),
        met: Some(evicted < EVICTED),
        values: json!({
            "evicted": evicted, "resident_before_bytes": before, "resident_after_bytes": after,
            "read_bytes": read,
        }),
    }
}
