//! The daemon is killed with SIGKILL in the middle of writes, again and again. After each remount
//! the mount and the store's file are equal byte for byte, every acknowledged write is there, and
//! nearly all of what was on flash still is.
//!
//! A kill loses no page cache: what only a power cut loses is the power-cut test's business.
//!
//! `KILL9_CYCLES` (10), `KILL9_IMAGE_MIB` (128), `KILL9_SEED` change the run.

mod ledger;
mod load;
#[path = "../rig/mod.rs"]
mod rig;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use ledger::Ledger;
use load::Crew;
use rig::daemon::Daemon;
use rig::stamp::{self, SECTOR};
use rig::{Launch, Rng, Scratch, rng, setting, watchdog, xattr};

/// Bytes compared at once.
const CHUNK: usize = 1 << 20;
const WRITERS: u64 = 6;
const READERS: u64 = 2;
/// Share of the resident bytes that a kill may not fall below, in tenths of a percent.
const KEPT_MIN_PERMILLE: u64 = 950;

#[test]
fn a_killed_daemon_loses_no_write_and_keeps_its_cache() {
    if let Some(why) = rig::missing(&[]) {
        eprintln!("skipped: {why}");
        return;
    }
    let cycles = setting("KILL9_CYCLES", 10);
    let seed = rng::seed("KILL9_SEED");
    watchdog::start(Duration::from_secs(180 + 15 * cycles));
    println!("kill -9: {cycles} cycles, seed {seed}");
    let mut rig = Rig::new(seed);
    let mut daemon = rig.launch.start().expect("the first mount");
    rig.compare().expect("the first reading");
    for cycle in 0..cycles {
        let before = rig.load_and_kill(daemon);
        daemon = rig.launch.start().expect("a mount after the kill");
        let after = rig.resident().expect("the resident bytes after the kill");
        rig.kept.push(after * 1000 / before.max(1));
        rig.look_at_all = cycle + 1 == cycles;
        let compared = rig.compare();
        compared.unwrap_or_else(|e| panic!("cycle {cycle}: {e}: {}", daemon.last_words()));
    }
    daemon.stop().expect("a clean end");
    rig.report();
}

/// The image, what is known of it, and what was counted.
struct Rig {
    launch: Launch,
    store_file: PathBuf,
    image: PathBuf,
    ledger: Ledger,
    rng: Rng,
    /// Tenths of a percent of the resident bytes kept, one a cycle.
    kept: Vec<u64>,
    writes: u64,
    reads: u64,
    wrong: u64,
    failed: u64,
    mismatches: u64,
    /// Decode every sector, not only those that were written since the last time.
    look_at_all: bool,
    _scratch: Scratch,
}

impl Rig {
    fn new(seed: u64) -> Rig {
        let scratch = Scratch::on_disk("kill9");
        let image_bytes = setting("KILL9_IMAGE_MIB", 128) << 20;
        let store_file = scratch.dir("store").join("disk.img");
        write_first(&store_file, image_bytes).expect("the image can be written");
        let launch = Launch {
            store: scratch.dir("store"),
            mountpoint: scratch.dir("mount"),
            cache: scratch.dir("cache"),
            flags: Vec::new(),
            log: scratch.path("daemon.log"),
        };
        Rig {
            image: launch.mountpoint.join("disk.img"),
            launch,
            store_file,
            ledger: Ledger::new(image_bytes / SECTOR as u64),
            rng: Rng::new(seed),
            kept: Vec::new(),
            writes: 0,
            reads: 0,
            wrong: 0,
            failed: 0,
            mismatches: 0,
            look_at_all: true,
            _scratch: scratch,
        }
    }

    /// Lets the load run for a random while and kills the daemon in it; the resident bytes before.
    fn load_and_kill(&mut self, daemon: Daemon) -> u64 {
        let crew = Crew::new(WRITERS, READERS);
        let length = Duration::from_millis(60 + self.rng.below(500));
        let mut before = 0;
        let seed = self.rng.next() >> 8;
        let outcome = load::run(&self.image, &self.ledger, seed, &crew, || {
            std::thread::sleep(length);
            before = self.resident().unwrap_or(0);
            std::thread::sleep(Duration::from_micros(seed % 3000));
            crew.killed.store(true, Ordering::SeqCst);
            daemon.kill();
        });
        self.writes += outcome.writes.into_inner();
        self.reads += outcome.reads.into_inner();
        self.wrong += outcome.wrong.into_inner();
        self.failed += outcome.failed.into_inner();
        before
    }

    fn resident(&self) -> Result<u64, String> {
        let file = File::open(&self.image).map_err(|e| format!("open: {e}"))?;
        xattr::number(&file, "resident")
    }

    /// Reads the whole image through the mount: equal to the store's file, and nothing lost.
    fn compare(&mut self) -> Result<(), String> {
        let open = |path: &Path| File::open(path).map_err(|e| format!("{}: {e}", path.display()));
        let (mount, store) = (open(&self.image)?, open(&self.store_file)?);
        let (mut is, mut should) = (vec![0; CHUNK], vec![0; CHUNK]);
        let size = self.ledger.sectors() * SECTOR as u64;
        for offset in (0..size).step_by(CHUNK) {
            let read = mount.read_exact_at(&mut is, offset);
            read.map_err(|e| format!("reading the mount at {offset}: {e}"))?;
            let read = store.read_exact_at(&mut should, offset);
            read.map_err(|e| format!("reading the store at {offset}: {e}"))?;
            self.compare_chunk(&is, &should, offset / SECTOR as u64);
        }
        Ok(())
    }

    fn compare_chunk(&mut self, is: &[u8], should: &[u8], first: u64) {
        let differ = is != should;
        for (i, sector) in should.chunks(SECTOR).enumerate() {
            let index = first + i as u64;
            let touched = self.ledger.take_touched(index);
            if !(touched || differ || self.look_at_all) {
                continue;
            }
            let found = stamp::read(sector, index);
            if !self.ledger.settle(index, found) {
                println!("sector {index} of the store: {found:?} was never acknowledged last");
                self.mismatches += 1;
            }
            let seen = &is[i * SECTOR..(i + 1) * SECTOR];
            if seen != sector {
                let seen = stamp::read(seen, index);
                println!("sector {index}: the mount has {seen:?}, the store {found:?}");
                self.mismatches += 1;
            }
        }
    }

    fn report(&mut self) {
        self.kept.sort_unstable();
        let percent = |permille: u64| permille as f64 / 10.0;
        let least = self.kept.first().copied().unwrap_or(1000);
        let median = self.kept.get(self.kept.len() / 2).copied().unwrap_or(1000);
        println!(
            "kill -9: {} cycles, {} writes, {} reads; {} mismatches; kept of the resident bytes: \
             least {} %, median {} %",
            self.kept.len(),
            self.writes,
            self.reads,
            self.mismatches,
            percent(least),
            percent(median),
        );
        assert_eq!(self.mismatches, 0, "the mount and the store differ");
        assert_eq!(self.wrong, 0, "a reader saw what nobody wrote last");
        assert_eq!(self.failed, 0, "calls failed while the daemon lived");
        assert!(
            least >= KEPT_MIN_PERMILLE,
            "a kill cost too much of the cache"
        );
    }
}

/// Writes the image's first content, every sector at version 0.
fn write_first(path: &Path, size_bytes: u64) -> std::io::Result<()> {
    let file = File::create(path)?;
    let mut buf = vec![0; CHUNK];
    for offset in (0..size_bytes).step_by(CHUNK) {
        stamp::fill(&mut buf, offset / SECTOR as u64, 0);
        file.write_all_at(&buf, offset)?;
    }
    file.sync_all()
}
