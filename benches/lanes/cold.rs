//! Cold reads through a store that takes 2 ms for everything: one after the other through the image, and at
//! random. Each with a new cache and nothing of the store's image in memory.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::arguments::Settings;
use crate::daemon::{Daemon, ImageCounters, Options};
use crate::fio::{Job, Outcome};
use crate::report::{Fact, Report};
use crate::rows::MIB;
use crate::scratch::Scratch;
use crate::spread::Spread;
use crate::{image, interrupt, say, warm};

const SLOW: Options = Options {
    limit: "",
    flags: &["--simulate-latency", "2ms"],
    config: "",
};
const IMAGE: &str = "disk.img";
/// What the reader asks for at a time.
const CLIENT_DEPTH: u32 = 4;
/// What the daemon's readahead of 8 MiB asks the store for at a time.
const STORE_DEPTH: u32 = 8;
/// Of min(store read, flash written).
const RATIO: f64 = 0.8;
/// Bytes fetched to bytes read.
const FETCHED: f64 = 1.05;

#[derive(Default)]
struct Rounds {
    store: Vec<f64>,
    flash: Vec<f64>,
    mount: Vec<f64>,
    fetched: Vec<f64>,
    random: Vec<Outcome>,
    random_fetched: Vec<f64>,
}

pub fn measure(scratch: &Scratch, settings: &Settings, report: &mut Report) -> Result<()> {
    let store = scratch.store("cold")?;
    say("writing the image");
    image::write(&store.join(IMAGE), settings.image_bytes)?;
    interrupt::sleep(warm::YOUNG)?;
    let mut rounds = Rounds::default();
    for round in 0..settings.rounds {
        say(&format!("cold: round {} of {}", round + 1, settings.rounds));
        let load = crate::report::Load::now();
        one_round(scratch, settings, &store, &mut rounds)?;
        report.cold_load.push(load.until_now());
    }
    report.facts.push(sequential(&rounds));
    report.facts.push(random(&rounds));
    Ok(())
}

fn one_round(
    scratch: &Scratch,
    settings: &Settings,
    store: &Path,
    rounds: &mut Rounds,
) -> Result<()> {
    let bytes = settings.image_bytes;
    let written = scratch.flash("written");
    let output = scratch.flash("fio.json");
    let native = |file: &Path, rw| sequentially(file, rw, STORE_DEPTH, bytes).run(&output);
    rounds
        .store
        .push(native(&store.join(IMAGE), "read")?.bytes_per_second);
    rounds
        .flash
        .push(native(&written, "write")?.bytes_per_second);
    fs::remove_file(&written)?;

    let file = |daemon: &Daemon| daemon.path(IMAGE);
    let (outcome, seen) = once(scratch, store, |daemon| {
        sequentially(&file(daemon), "read", CLIENT_DEPTH, bytes)
    })?;
    rounds.mount.push(outcome.bytes_per_second);
    rounds
        .fetched
        .push(seen.store_read_bytes as f64 / outcome.bytes);
    let (outcome, seen) = once(scratch, store, |daemon| Job {
        rw: "randread",
        block: 4096,
        depth: 32,
        runtime: Some(settings.runtime),
        ..sequentially(&file(daemon), "read", 1, bytes)
    })?;
    rounds.random.push(outcome);
    rounds
        .random_fetched
        .push(seen.store_read_bytes as f64 / outcome.bytes);
    Ok(())
}

/// One job on a cold mount, and what the daemon counted.
fn once(
    scratch: &Scratch,
    store: &Path,
    job: impl FnOnce(&Daemon) -> Job,
) -> Result<(Outcome, ImageCounters)> {
    image::forget(&store.join(IMAGE))?;
    let daemon = Daemon::start(scratch, "cold", store, SLOW)?;
    let outcome = job(&daemon).run(&scratch.flash("fio.json"))?;
    let seen = daemon.image(&daemon.path(IMAGE))?;
    drop(daemon);
    fs::remove_dir_all(scratch.flash("cold"))?;
    Ok((outcome, seen))
}

/// All of a file from the first to the last byte.
fn sequentially(file: &Path, rw: &'static str, depth: u32, bytes: u64) -> Job {
    Job {
        rw,
        depth,
        block: MIB,
        ..Job::all_of(file, bytes)
    }
}

fn sequential(rounds: &Rounds) -> Fact {
    let slower = |(store, flash): (&f64, &f64)| store.min(*flash);
    let bounds = rounds.store.iter().zip(&rounds.flash).map(slower);
    let ratios: Vec<f64> = rounds
        .mount
        .iter()
        .zip(bounds)
        .map(|(own, bound)| own / bound)
        .collect();
    let megabytes = |values: &[f64]| Spread::of(values.iter().map(|value| value / 1e6));
    let (mount, store, flash) = (
        megabytes(&rounds.mount),
        megabytes(&rounds.store),
        megabytes(&rounds.flash),
    );
    let (ratio, fetched) = (
        Spread::of(ratios),
        Spread::of(rounds.fetched.iter().copied()),
    );
    let median = |spread: Option<Spread>| spread.map_or(f64::NAN, |spread| spread.median);
    let most = fetched.map_or(f64::NAN, |fetched| fetched.max);
    let measured = format!(
        "{:.0} MB/s; store read natively {:.0}, flash written natively {:.0}; ratio to the lesser {}; \
         {most:.3} of the bytes fetched",
        median(mount),
        median(store),
        median(flash),
        crate::table::spread(ratio, 2),
    );
    Fact {
        name: format!("cold sequential read 1 MiB, QD {CLIENT_DEPTH}, 2 ms store"),
        measured,
        target: Some(format!("ratio ≥ {RATIO:.2}, ≤ {FETCHED} of the bytes")),
        met: Some(median(ratio) >= RATIO && most <= FETCHED),
        values: json!({
            "mb_per_second": mount, "store_mb_per_second": store, "flash_mb_per_second": flash,
            "ratio": ratio, "fetched_per_byte_read": fetched,
        }),
    }
}

fn random(rounds: &Rounds) -> Fact {
    let of = |of: fn(&Outcome) -> f64| Spread::of(rounds.random.iter().map(of));
    let (iops, p50) = (of(|outcome| outcome.iops), of(|outcome| outcome.p50_us));
    let p99 = of(|outcome| outcome.p99_us);
    let fetched = Spread::of(rounds.random_fetched.iter().copied());
    let median = |spread: Option<Spread>| spread.map_or(f64::NAN, |spread| spread.median);
    Fact {
        name: "cold random read 4 KiB, QD 32, 2 ms store".into(),
        measured: format!(
            "{} IOPS; p50 {:.1} ms, p99 {:.1} ms; {:.1} bytes fetched for a byte read",
            crate::table::spread(iops, 0),
            median(p50) / 1e3,
            median(p99) / 1e3,
            median(fetched),
        ),
        target: None,
        met: None,
        values: json!({
            "iops": iops, "p50_us": p50, "p99_us": p99, "fetched_per_byte_read": fetched,
        }),
    }
}
