//! The load that a daemon is killed under: writers of 512 bytes to 256 KiB, half of them with
//! O_DIRECT, each staying near a place for a while as a guest's files do, and readers all over.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::ledger::Ledger;
use crate::rig::stamp::{self, Found, SECTOR};
use crate::rig::{Aligned, Rng};

/// A write has up to `1 << SECTORS_LOG_MAX` sectors: 256 KiB.
const SECTORS_LOG_MAX: u64 = 9;
/// A writer stays within this many sectors (1 MiB) …
const NEAR_SECTORS: u64 = 2048;
/// … and moves on with this chance, in percent, after each write.
const MOVE_PERCENT: u64 = 3;

/// Who works, and until when.
pub struct Crew {
    pub writers: u64,
    pub readers: u64,
    /// The daemon is dead, or will be at once: calls may fail.
    pub killed: AtomicBool,
    /// Everybody ends after the call that he is in.
    pub stop: AtomicBool,
}

impl Crew {
    pub fn new(writers: u64, readers: u64) -> Crew {
        Crew {
            writers,
            readers,
            killed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }
}

/// What a load did, and what it saw go wrong.
#[derive(Default)]
pub struct Outcome {
    pub writes: AtomicU64,
    pub reads: AtomicU64,
    /// Sectors that a reader found neither old nor new.
    pub wrong: AtomicU64,
    /// Calls that failed although the daemon was alive.
    pub failed: AtomicU64,
    /// The call that took longest, in µs.
    pub slowest_us: AtomicU64,
}

/// Runs the load on `image` until it is told to stop, or its calls fail. `meanwhile` runs beside it and
/// does the killing.
pub fn run(
    image: &Path,
    ledger: &Ledger,
    seed: u64,
    crew: &Crew,
    meanwhile: impl FnOnce(),
) -> Outcome {
    let outcome = Outcome::default();
    std::thread::scope(|scope| {
        for i in 0..crew.writers + crew.readers {
            let (outcome, rng) = (&outcome, Rng::new(seed + i));
            let flags = if i % 2 == 0 { libc::O_DIRECT } else { 0 };
            scope.spawn(move || {
                let mut hand = Hand {
                    ledger,
                    outcome,
                    rng,
                    near: 0,
                };
                let end = hand.work(image, flags, i < crew.writers, &crew.stop);
                if let Err(error) = end
                    && !crew.killed.load(Ordering::SeqCst)
                {
                    eprintln!("  a call failed while the daemon lived: {error}");
                    outcome.failed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        meanwhile();
    });
    outcome
}

/// One thread of the load.
struct Hand<'a> {
    ledger: &'a Ledger,
    outcome: &'a Outcome,
    rng: Rng,
    near: u64,
}

impl Hand<'_> {
    /// Works until it is told to stop or a call fails.
    fn work(
        &mut self,
        image: &Path,
        flags: i32,
        writes: bool,
        stop: &AtomicBool,
    ) -> std::io::Result<()> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(image)?;
        let mut buf = Aligned::new(SECTOR << SECTORS_LOG_MAX);
        while !stop.load(Ordering::SeqCst) {
            if writes {
                self.write(&file, &mut buf)?;
            } else {
                self.read(&file, &mut buf)?;
            }
        }
        Ok(())
    }

    /// One call, timed.
    fn call<T>(&self, call: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
        let begun = Instant::now();
        let result = call();
        let took_us = begun.elapsed().as_micros() as u64;
        self.outcome
            .slowest_us
            .fetch_max(took_us, Ordering::Relaxed);
        result
    }

    fn write(&mut self, file: &File, buf: &mut [u8]) -> std::io::Result<()> {
        if self.rng.chance(MOVE_PERCENT) {
            self.near = self.rng.below(self.ledger.sectors() - NEAR_SECTORS);
        }
        let scale = self.rng.below(SECTORS_LOG_MAX + 1);
        let count = 1 + self.rng.below(1 << scale);
        let first = self.near + self.rng.below(NEAR_SECTORS - count + 1);
        let Some(version) = self.ledger.claim(first..first + count) else {
            return Ok(());
        };
        let buf = &mut buf[..count as usize * SECTOR];
        stamp::fill(buf, first, version);
        self.call(|| file.write_all_at(buf, first * SECTOR as u64))?;
        self.ledger.acknowledge(first..first + count, version);
        self.outcome.writes.fetch_add(1, Ordering::Relaxed);
        if self.rng.chance(2) {
            self.call(|| file.sync_data())?;
        }
        Ok(())
    }

    fn read(&mut self, file: &File, buf: &mut [u8]) -> std::io::Result<()> {
        let count = 1 + self.rng.below(256);
        let first = self.rng.below(self.ledger.sectors() - count);
        let settled = |sector: u64| self.ledger.settled(sector);
        let before: Vec<Option<u64>> = (first..first + count).map(settled).collect();
        let buf = &mut buf[..count as usize * SECTOR];
        self.call(|| file.read_exact_at(buf, first * SECTOR as u64))?;
        for (i, sector) in buf.chunks(SECTOR).enumerate() {
            let index = first + i as u64;
            let known = before[i].filter(|_| before[i] == settled(index));
            let found = stamp::read(sector, index);
            if known.is_some_and(|version| found != Found::Version(version)) {
                eprintln!("  sector {index}: read {found:?}, written {known:?}");
                self.outcome.wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.outcome.reads.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(self.rng.below(2000)));
        Ok(())
    }
}
