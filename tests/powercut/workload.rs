//! What guests do to a disk while the recorder runs: small and large writes, many into the same
//! blocks, fsyncs, punches, truncates, and readers that cause fills. They come in sessions: the image
//! is opened, worked on and closed, and in the pause the daemon does what it does lazily.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::rig::stamp::{self, SECTOR};
use crate::rig::{Aligned, Rng};

/// Size of the image in bytes.
pub const IMAGE_BYTES: u64 = 24 << 20;
/// Where the image is cut off and grown again: its last MiB.
const TAIL_BYTES: u64 = 1 << 20;
/// Part of the image that most writes go to.
const HOT_BYTES: u64 = 3 << 20;
/// Most others go here, somewhere else in each session.
const NEAR_BYTES: u64 = 1 << 20;
const WRITE_MAX_BYTES: u64 = 256 << 10;
const WRITERS: u64 = 3;
/// Length of a session and of the pause after it, in milliseconds: at least, and more at most.
const SESSION_MS: (u64, u64) = (400, 1600);
const PAUSE_MS: (u64, u64) = (200, 2300);

/// The image's content before the first write.
pub fn first_content() -> Vec<u8> {
    let mut bytes = vec![0; IMAGE_BYTES as usize];
    stamp::fill(&mut bytes, 0, 0);
    bytes
}

/// Works on the image for about `length`; the first error ends it.
pub fn run(image: &Path, length: Duration, seed: u64, versions: &AtomicU64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let begin = Instant::now();
    while begin.elapsed() < length {
        session(image, time(&mut rng, SESSION_MS), rng.next() >> 8, versions)?;
        std::thread::sleep(time(&mut rng, PAUSE_MS));
    }
    session(image, time(&mut rng, SESSION_MS), rng.next() >> 8, versions)
}

fn time(rng: &mut Rng, (least, more): (u64, u64)) -> Duration {
    Duration::from_millis(least + rng.below(more + 1))
}

/// One session: writers and a reader at once, each with an open of its own.
fn session(image: &Path, length: Duration, seed: u64, versions: &AtomicU64) -> Result<(), String> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for i in 0..WRITERS {
            let worker = Worker::new(image, seed + i, i == 0, versions)?;
            workers.push(scope.spawn(|| worker.work(&stop)));
        }
        workers.push(scope.spawn(|| read_around(image, seed + WRITERS, &stop)));
        std::thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker
                .join()
                .map_err(|_| "a worker panicked".to_owned())??;
        }
        Ok(())
    })
}

/// Reads the whole image once: fills the cache.
pub fn read_all(image: &Path) -> Result<(), String> {
    let file = File::open(image).map_err(|e| format!("open: {e}"))?;
    let mut buf = vec![0; 1 << 20];
    for offset in (0..IMAGE_BYTES).step_by(buf.len()) {
        file.read_at(&mut buf, offset)
            .map_err(|e| format!("read: {e}"))?;
    }
    Ok(())
}

struct Worker<'a> {
    file: File,
    rng: Rng,
    /// This one also cuts the image off and grows it.
    truncates: bool,
    near_bytes: u64,
    versions: &'a AtomicU64,
    buf: Aligned,
}

impl<'a> Worker<'a> {
    fn new(
        image: &Path,
        seed: u64,
        truncates: bool,
        versions: &'a AtomicU64,
    ) -> Result<Worker<'a>, String> {
        let mut rng = Rng::new(seed);
        let flags = if rng.chance(50) { libc::O_DIRECT } else { 0 };
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(image);
        let file = file.map_err(|e| format!("open to write: {e}"))?;
        let buf = Aligned::new(WRITE_MAX_BYTES as usize);
        let near_bytes = rng.below((IMAGE_BYTES - NEAR_BYTES) / SECTOR as u64) * SECTOR as u64;
        Ok(Worker {
            file,
            rng,
            truncates,
            near_bytes,
            versions,
            buf,
        })
    }

    fn work(mut self, stop: &AtomicBool) -> Result<(), String> {
        while !stop.load(Ordering::Relaxed) {
            self.step().map_err(|e| format!("under the mount: {e}"))?;
            let pause = self.rng.below(4000);
            std::thread::sleep(Duration::from_micros(pause));
        }
        Ok(())
    }

    fn step(&mut self) -> std::io::Result<()> {
        match self.rng.below(100) {
            0..60 => self.write(8, 1),
            60..82 => self.write(8, 8),
            82..90 => self.write(WRITE_MAX_BYTES / SECTOR as u64, 1),
            90..95 => self.file.sync_data(),
            95..98 => self.punch(),
            _ if self.truncates => self.cut_and_grow(),
            _ => self.write(64, 1),
        }
    }

    /// Up to `max` sectors, in multiples of `unit` sectors.
    fn write(&mut self, max: u64, unit: u64) -> std::io::Result<()> {
        let sectors = (1 + self.rng.below(max)).next_multiple_of(unit);
        let first = self.place(sectors) / unit * unit;
        let version = self.versions.fetch_add(1, Ordering::Relaxed);
        let buf = &mut self.buf[..sectors as usize * SECTOR];
        stamp::fill(buf, first, version);
        self.file.write_all_at(buf, first * SECTOR as u64)
    }

    fn punch(&mut self) -> std::io::Result<()> {
        let sectors = 1 + self.rng.below(64);
        let first = self.place(sectors);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (start, len) = (first * SECTOR as u64, sectors * SECTOR as u64);
        // SAFETY: the descriptor is open; the call takes no pointers.
        let done =
            unsafe { libc::fallocate(self.file.as_raw_fd(), mode, start as i64, len as i64) };
        if done == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    }

    fn cut_and_grow(&mut self) -> std::io::Result<()> {
        let off = self.rng.below(TAIL_BYTES / SECTOR as u64) * SECTOR as u64;
        self.file.set_len(IMAGE_BYTES - off)?;
        std::thread::sleep(Duration::from_millis(1));
        self.file.set_len(IMAGE_BYTES)
    }

    /// A first sector for `sectors` of them: mostly in the hot part, else near this worker's place.
    fn place(&mut self, sectors: u64) -> u64 {
        let (start, len) = match self.rng.chance(75) {
            true => (0, HOT_BYTES),
            false => (self.near_bytes, NEAR_BYTES),
        };
        start / SECTOR as u64 + self.rng.below(len / SECTOR as u64 - sectors)
    }
}

/// Reads here and there: what was dropped is fetched again while others write.
fn read_around(image: &Path, seed: u64, stop: &AtomicBool) -> Result<(), String> {
    let file = File::open(image).map_err(|e| format!("open: {e}"))?;
    let mut rng = Rng::new(seed);
    let mut buf = vec![0; 128 << 10];
    while !stop.load(Ordering::Relaxed) {
        let len = (1 + rng.below(32)) as usize * 4096;
        let offset = rng.below(IMAGE_BYTES / 4096) * 4096;
        file.read_at(&mut buf[..len], offset)
            .map_err(|e| format!("read: {e}"))?;
        std::thread::sleep(Duration::from_micros(500 + rng.below(3000)));
    }
    Ok(())
}
