//! The scene of a run: images in a store, a daemon over them, everybody who works on the mount, and at the
//! end the comparison of what was written with what the mount and the store hold.
//!
//! Touches its scratch directory, the mount in it and the daemon it started.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::events::Hand;
use crate::ledger::Ledger;
use crate::load::{self, Crew};
use crate::pauses::Pauses;
use crate::prober::{self, Probes};
use crate::rig::daemon::Daemon;
use crate::rig::stamp::{self, SECTOR};
use crate::rig::{Launch, Rng, Scratch, xattr};
use crate::serving::{Serving, State};
use crate::tally::Tally;
use crate::{fio, golden, names};

/// Bytes written and compared at once.
const CHUNK: usize = 1 << 20;
/// The image of the stamped load.
const DISK_BYTES: u64 = 48 << 20;
const WRITERS: u64 = 2;
const READERS: u64 = 1;
const NAME_WORKERS: u64 = 2;
/// An image that was changed less than 2 s ago is not trusted yet.
const AGE: Duration = Duration::from_millis(2500);

/// How often what happens.
#[derive(Clone, Copy)]
pub struct Plan {
    pub kills: u64,
    pub upgrades: u64,
    pub seed: u64,
    /// The first error or mismatch is enough.
    pub until_wrong: bool,
}

/// What came of it.
pub struct Outcome {
    pub tally: Tally,
    pub kills: Pauses,
    pub upgrades: Pauses,
    /// Before the first event and after the last.
    pub states: [Option<State>; 2],
    /// What an immutable image is read on.
    pub planes: String,
    /// What each read and each write of the probers took.
    pub probes: [Vec<Duration>; 2],
}

/// The store and the daemon.
pub struct Scene {
    launch: Launch,
    daemon: Daemon,
    serving: Serving,
    ledger: Ledger,
    scratch: Scratch,
}

impl Scene {
    /// Makes the images and mounts them with these further flags.
    pub fn new(name: &str, flags: &[&str]) -> Result<Scene, String> {
        let scratch = Scratch::on_disk(name);
        let store = scratch.dir("store");
        stamped(&store.join("disk.img"), DISK_BYTES)?;
        stamped(&store.join("probe.img"), 2 * prober::PART_BYTES)?;
        stamped(&store.join("golden.img"), golden::IMAGE_BYTES)?;
        let report = scratch.path("fio.json");
        for image in ["fio-write.img", "fio-read.img"] {
            fio::make(&store.join(image), &report)?;
        }
        std::thread::sleep(AGE);
        let launch = Launch {
            store,
            mountpoint: scratch.dir("mount"),
            cache: PathBuf::from(format!("{}@1G", scratch.dir("cache").display())),
            flags: flags.iter().map(|flag| flag.to_string()).collect(),
            log: scratch.path("daemon.log"),
        };
        let daemon = launch.start()?;
        let serving = Serving::of(&launch.mountpoint)?;
        Ok(Scene {
            launch,
            daemon,
            serving,
            ledger: Ledger::new(DISK_BYTES / SECTOR as u64),
            scratch,
        })
    }

    /// Everybody works while the events come.
    pub fn run(&self, plan: Plan) -> Outcome {
        let (tally, crew) = (Tally::default(), Crew::new(WRITERS, READERS));
        let (reads, writes) = (Probes::default(), Probes::default());
        let mut pauses = Default::default();
        let mut states = [None, None];
        let mut planes = String::new();
        self.warm_golden(&tally);
        let image = |name: &str| self.launch.mountpoint.join(name);
        std::thread::scope(|scope| {
            let tally = &tally;
            scope.spawn(|| prober::read(&image("probe.img"), &reads, tally));
            scope.spawn(|| prober::write(&image("probe.img"), &writes, tally));
            scope.spawn(|| golden::keep(&image("golden.img"), tally));
            scope.spawn(|| golden::reopen(&image("golden.img"), tally));
            scope
                .spawn(|| fio::write(&image("fio-write.img"), &self.scratch.path("w.json"), tally));
            scope.spawn(|| fio::read(&image("fio-read.img"), &self.scratch.path("r.json"), tally));
            for worker in 0..NAME_WORKERS {
                let dir = image(&format!("names-{worker}"));
                scope.spawn(move || names::work(&dir, plan.seed + worker, tally));
            }
            let hand = Hand {
                daemon: &self.daemon,
                serving: &self.serving,
                reads: &reads,
                writes: &writes,
                tally,
            };
            let outcome = load::run(&image("disk.img"), &self.ledger, plan.seed, &crew, || {
                std::thread::sleep(Duration::from_secs(1));
                states[0] = self.serving.state();
                pauses = hand.run(&plan, &mut Rng::new(plan.seed));
                states[1] = self.serving.state();
                planes = self.serving.planes("golden.img").to_string();
                tally.stop();
                crew.stop.store(true, Ordering::SeqCst);
                // A hang would keep us here: without a daemon every call ends.
                if tally.wrong()[2] > 0 {
                    println!("{}", self.daemon.last_words());
                    self.daemon.group().kill();
                }
            });
            count(outcome, tally);
        });
        let [kills, upgrades] = pauses;
        Outcome {
            tally,
            kills,
            upgrades,
            states,
            planes,
            probes: [reads.durations(), writes.durations()],
        }
    }

    /// Onto flash as a whole, and immutable: from now on opens get passthrough where there is one.
    fn warm_golden(&self, tally: &Tally) {
        let path = self.launch.mountpoint.join("golden.img");
        tally.call("reading the golden image", || std::fs::read(&path));
        let whole = || {
            let file = File::open(&path).ok()?;
            let resident = xattr::number(&file, "resident").ok()?;
            (resident == golden::IMAGE_BYTES).then_some(())
        };
        for _ in 0..200 {
            if whole().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let set = xattr::set(&path, "immutable", "1");
        if let Err(error) = set {
            tally.error("declaring the golden image immutable", &error);
        }
    }

    /// After a run: the mount and the store hold what was written last, before and after a clean end.
    pub fn compare(self, tally: &Tally) -> Result<(), String> {
        let images = [
            "disk.img",
            "probe.img",
            "golden.img",
            "fio-write.img",
            "fio-read.img",
        ];
        for image in images {
            let (is, should) = (
                self.launch.mountpoint.join(image),
                self.launch.store.join(image),
            );
            same(&is, &should, tally)?;
        }
        let disk = self.launch.store.join("disk.img");
        self.daemon.stop()?;
        let store = File::open(&disk).map_err(|error| error.to_string())?;
        let mut chunk = vec![0; CHUNK];
        for at in (0..DISK_BYTES).step_by(CHUNK) {
            let read = store.read_exact_at(&mut chunk, at);
            read.map_err(|error| format!("the store at {at}: {error}"))?;
            for (sector, index) in chunk.chunks(SECTOR).zip(at / SECTOR as u64..) {
                if !self.ledger.settle(index, stamp::read(sector, index)) {
                    tally.mismatch(&format!(
                        "sector {index} of the store was never written last"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// What the stamped load counted, added to the rest.
fn count(outcome: load::Outcome, tally: &Tally) {
    let calls = outcome.writes.into_inner() + outcome.reads.into_inner();
    tally.calls.fetch_add(calls, Ordering::Relaxed);
    tally
        .errors
        .fetch_add(outcome.failed.into_inner(), Ordering::Relaxed);
    tally
        .mismatches
        .fetch_add(outcome.wrong.into_inner(), Ordering::Relaxed);
    let slowest = Duration::from_micros(outcome.slowest_us.into_inner());
    tally.took("a call of the stamped load", slowest);
}

/// Writes an image, every sector at version 0.
fn stamped(path: &Path, size_bytes: u64) -> Result<(), String> {
    let write = || -> std::io::Result<()> {
        let file = File::create(path)?;
        let mut buf = vec![0; CHUNK];
        for at in (0..size_bytes).step_by(CHUNK) {
            stamp::fill(&mut buf, at / SECTOR as u64, 0);
            file.write_all_at(&buf, at)?;
        }
        file.sync_all()
    };
    write().map_err(|error| format!("{}: {error}", path.display()))
}

fn same(is: &Path, should: &Path, tally: &Tally) -> Result<(), String> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let (left, right) = (read(is)?, read(should)?);
    let differs = |(a, b): (&[u8], &[u8])| a != b;
    let sectors = left.chunks(SECTOR).zip(right.chunks(SECTOR));
    let wrong = sectors.filter(|pair| differs(*pair)).count();
    if wrong > 0 || left.len() != right.len() {
        tally.mismatch(&format!(
            "{}: {wrong} sectors differ from the store's",
            is.display()
        ));
    }
    Ok(())
}
