//! A power cut takes what the cache device was not asked to keep, in any order, and halves of
//! writes; the store, elsewhere, goes on. Whatever is left, the mount must read as the store does.
//!
//! The cache's filesystem lies on a device that records every write and flush. A guest's load runs
//! over it in write-through, with one kill of the daemon in the middle. Afterwards the device is
//! made again as cuts would have left it, the store as it was at the moment of each, and every byte
//! is compared. A daemon without durable in-doubt marks must fail this: the test's own test.
//!
//! `POWERCUT_IMAGES` (24), `POWERCUT_SECONDS` (10) a recording, `POWERCUT_SEED`, `POWERCUT_FS` (ext4
//! or xfs) change the run, `POWERCUT_VERBOSE` tells of every image.

mod check;
mod device_log;
mod history;
mod recorder;
#[path = "../rig/mod.rs"]
mod rig;
mod store;
mod workload;

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use check::{Bench, Verdict};
use device_log::{Device, DeviceLog, Loss};
use history::History;
use recorder::{Kind, Recorder};
use rig::{Launch, Rng, Scratch, rng, setting, watchdog};
use store::Store;

/// Images made from one recording, before another is made.
const IMAGES_PER_RECORDING: u64 = 50;
/// Share of all images' bytes that must still be on flash: dropping everything is no recovery. The
/// load leaves few regions out of doubt, and some cuts come before the first commit.
const KEPT_MIN_PERCENT: u64 = 10;
/// Images the control may take until it finds a stale one.
const CONTROL_IMAGES_MAX: u64 = 40;

#[test]
fn a_power_cut_leaves_nothing_stale_or_torn() {
    if let Some(why) = cannot_run() {
        eprintln!("skipped: {why}");
        return;
    }
    let images = setting("POWERCUT_IMAGES", 24);
    let seed = rng::seed("POWERCUT_SEED");
    watchdog::start(Duration::from_secs(240 + 5 * images));
    println!("power cuts: {images} images, seed {seed}");
    let mut total = Tally::default();
    let mut left = images;
    while left > 0 {
        let count = left.min(IMAGES_PER_RECORDING);
        let rig = Rig::new("powercut", seed + left);
        let tape = rig.record(&[]).expect("a recording");
        total.add(rig.play(&tape, count, false).expect("every cut recovers"));
        left -= count;
    }
    println!("power cuts: {total}");
    assert_eq!(
        total.bad, 0,
        "{} of {} images stale or torn",
        total.bad, total.images
    );
    let enough = total.kept_bytes >= total.size_bytes / 100 * KEPT_MIN_PERCENT;
    assert!(enough, "what was certain was not kept");

    let rig = Rig::new("powercut-control", seed);
    let tape = rig
        .record(&["--unsafe-no-in-doubt-marks"])
        .expect("a recording");
    let control = rig
        .play(&tape, CONTROL_IMAGES_MAX, true)
        .expect("every cut recovers");
    println!(
        "power cuts, marks off: {} of {} images stale",
        control.bad, control.images
    );
    assert!(
        control.bad > 0,
        "without marks nothing went stale: this test sees nothing"
    );
}

#[test]
fn the_recorded_device_can_be_made_again() {
    if let Some(why) = cannot_run() {
        eprintln!("skipped: {why}");
        return;
    }
    let scratch = Scratch::in_memory("powercut-recorder");
    let (dir, point) = (scratch.dir("recorder"), scratch.dir("flash"));
    let recorder = Recorder::new(kind(), &dir, &point).expect("a recorder");
    let mut bytes = vec![0; 3 << 20];
    rig::stamp::fill(&mut bytes, 0, 1);
    std::fs::write(point.join("a"), &bytes).expect("a write");
    rig::run("sync", &["-f", rig::text(&point)]).expect("a sync");
    std::fs::remove_file(point.join("a")).expect("a removal");
    let log = DeviceLog::read(&recorder.finish().expect("a log")).expect("a whole log");
    assert!(log.flushes() > 0, "no flush was recorded");

    let (mut device, mut rng) = (
        Device::new(&log, kind().device_bytes() as usize),
        Rng::new(1),
    );
    let cut = scratch.path("cut");
    let made = device.cut(log.len(), Loss::Nothing, &mut rng, &cut);
    made.expect("an image");
    let same =
        std::fs::read(&cut).expect("the image") == std::fs::read(dir.join("below")).expect("it");
    assert!(same, "the log and the device differ");
}

fn cannot_run() -> Option<String> {
    let mkfs = match kind() {
        Kind::Ext4 => "mkfs.ext4",
        Kind::Xfs => "mkfs.xfs",
    };
    rig::missing(&["qemu-storage-daemon", "losetup", mkfs])
}

fn kind() -> Kind {
    match std::env::var("POWERCUT_FS").as_deref() {
        Ok("xfs") => Kind::Xfs,
        _ => Kind::Ext4,
    }
}

/// Everything a recording and its cuts need.
struct Rig {
    // Dropped in this order: the store before the directory it is mounted in.
    store: Store,
    scratch: Scratch,
    launch: Launch,
    flash: PathBuf,
    seed: u64,
}

/// A recording: what the device and the store went through.
struct Tape {
    device: DeviceLog,
    store: History,
}

impl Rig {
    fn new(name: &str, seed: u64) -> Rig {
        let scratch = Scratch::in_memory(name);
        let point = scratch.dir("store");
        let store = Store::mount(&point, workload::first_content()).expect("the store mounts");
        let flash = scratch.dir("flash");
        let launch = Launch {
            store: point,
            mountpoint: scratch.dir("mount"),
            cache: flash.join("cache"),
            flags: Vec::new(),
            log: scratch.path("daemon.log"),
        };
        Rig {
            store,
            scratch,
            launch,
            flash,
            seed,
        }
    }

    /// Runs the load over a recording device: two spells of it, a kill between them, a clean end.
    fn record(&self, flags: &[&str]) -> Result<Tape, String> {
        let half = Duration::from_millis(setting("POWERCUT_SECONDS", 10) * 500);
        let recorder = Recorder::new(kind(), &self.scratch.dir("recorder"), &self.flash)?;
        std::fs::create_dir(&self.launch.cache).map_err(|e| e.to_string())?;
        let history = self.store.record(recorder.log(), self.seed)?;
        let mut launch = self.launch.clone();
        launch
            .flags
            .extend(flags.iter().map(|flag| flag.to_string()));
        let image = launch.mountpoint.join(store::IMAGE);
        let versions = AtomicU64::new(1);

        let daemon = launch.start()?;
        workload::read_all(&image)?;
        workload::run(&image, half, self.seed, &versions)?;
        daemon.kill();
        let daemon = launch.start()?;
        workload::run(&image, half, self.seed + 100, &versions)?;
        daemon.stop()?;

        let store = history.finish();
        let device = DeviceLog::read(&recorder.finish()?)?;
        let (entries, flushes, steps) = (device.len(), device.flushes(), store.steps.len());
        println!("recorded: {entries} device writes, {flushes} flushes, {steps} store changes");
        Ok(Tape { device, store })
    }

    /// Makes `count` cuts of the tape and checks them; may stop at the first bad one.
    fn play(&self, tape: &Tape, count: u64, until_bad: bool) -> Result<Tally, String> {
        let mut rng = Rng::new(self.seed ^ 0xc07);
        let mut device = Device::new(&tape.device, kind().device_bytes() as usize);
        let bench = Bench {
            store: &self.store,
            device: self.scratch.path("cut"),
            flash: self.flash.clone(),
            launch: self.launch.clone(),
        };
        let mut tally = Tally::default();
        for cut in cuts(tape, count, &mut rng) {
            let begin = Instant::now();
            let loss = [
                Loss::Nothing,
                Loss::Some,
                Loss::Some,
                Loss::TornLast,
                Loss::All,
            ];
            let loss = loss[rng.below(loss.len() as u64) as usize];
            let open = device.cut(cut, loss, &mut rng, &bench.device);
            let open = open.map_err(|e| format!("writing the image: {e}"))?;
            let content = tape.store.at(tape.device.position(cut), &mut rng);
            let verdict = bench.check(content, rng.chance(30));
            let verdict = verdict.map_err(|e| format!("cut at {cut}, {loss:?}: {e}"))?;
            if std::env::var_os("POWERCUT_VERBOSE").is_some() {
                let (kept, fetched) = (verdict.kept_bytes >> 10, verdict.fetched_bytes >> 10);
                println!("cut at {cut}, {open} open, {loss:?}: kept {kept}K, fetched {fetched}K");
            }
            tally.count(&verdict, begin.elapsed());
            if !verdict.good() {
                let (stale, torn) = (verdict.stale, verdict.torn);
                println!("cut at {cut}, {open} open, {loss:?}: {stale} stale, {torn} torn");
            }
            if until_bad && tally.bad >= 3 {
                break;
            }
        }
        Ok(tally)
    }
}

/// Where to cut, rising: half behind a flush, half anywhere, all after the cache was filled.
fn cuts(tape: &Tape, count: u64, rng: &mut Rng) -> Vec<usize> {
    let log = &tape.device;
    let begin = tape
        .store
        .steps
        .first()
        .map_or(0, |step| log.count_at(step.arrived_log));
    let span = (log.len() - begin) as u64;
    let mut cut = || {
        let cut = begin + rng.below(span + 1) as usize;
        if rng.chance(50) {
            log.count_at_flush(cut)
        } else {
            cut
        }
    };
    let mut cuts: Vec<usize> = (0..count).map(|_| cut()).collect();
    cuts.sort_unstable();
    cuts
}

/// What all checks found together.
#[derive(Default)]
struct Tally {
    images: u64,
    bad: u64,
    size_bytes: u64,
    kept_bytes: u64,
    fetched_bytes: u64,
    kept_percent_min: Option<u64>,
    time: Duration,
}

impl Tally {
    fn count(&mut self, verdict: &Verdict, time: Duration) {
        let percent = verdict.kept_bytes * 100 / verdict.size_bytes.max(1);
        self.add(Tally {
            images: 1,
            bad: u64::from(!verdict.good()),
            size_bytes: verdict.size_bytes,
            kept_bytes: verdict.kept_bytes,
            fetched_bytes: verdict.fetched_bytes,
            kept_percent_min: Some(percent),
            time,
        });
    }

    fn add(&mut self, other: Tally) {
        self.images += other.images;
        self.bad += other.bad;
        self.size_bytes += other.size_bytes;
        self.kept_bytes += other.kept_bytes;
        self.fetched_bytes += other.fetched_bytes;
        self.time += other.time;
        let least = [self.kept_percent_min, other.kept_percent_min];
        self.kept_percent_min = least.into_iter().flatten().min();
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let share = |bytes: u64| bytes * 100 / self.size_bytes.max(1);
        write!(
            f,
            "{} of {} images stale or torn; {} % of the bytes kept (least {} %), {} % fetched \
             again; {:.2} s an image",
            self.bad,
            self.images,
            share(self.kept_bytes),
            self.kept_percent_min.unwrap_or(0),
            share(self.fetched_bytes),
            self.time.as_secs_f64() / self.images.max(1) as f64,
        )
    }
}
