//! In-doubt marks: the regions of an image where cache and store may disagree after a power cut
//! (rule 3a).
//!
//! # Bytes (`doubt`)
//! A bitmap: bit r (byte r / 8, bit r mod 8) is set if and only if region r, 1 MiB of the image, is in
//! doubt. Bytes past the end of the file are zero.
//!
//! # Order of steps
//! 1. The mark is durable before the first write to its region reaches the store.
//! 2. It is cleared only after the store's fsync, the cache's fdatasync and the records are durable.
//!
//! The reverse of 1 would let a power cut leave a page that claims to be good while the store has a
//! newer one; the reverse of 2 the same. Many writers share one fdatasync (group commit).
//!
//! # Locking
//! `state` is never held across I/O: one caller flushes for all, the others wait for it on `flushed`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::io::file;

/// Bytes of an image that one mark stands for.
pub const REGION_BYTES: u64 = 1 << 20;
const SECTOR_BYTES: usize = 4096;
const SECTOR_REGIONS: u32 = (SECTOR_BYTES * 8) as u32;
/// A flush of the marks that takes longer than this counts as failed.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(30);

/// The regions that `len_bytes` bytes at `offset_bytes` touch.
pub fn regions_of(offset_bytes: u64, len_bytes: u64) -> Range<u32> {
    let end = offset_bytes.saturating_add(len_bytes.max(1));
    let region = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    region(offset_bytes / REGION_BYTES)..region(end.div_ceil(REGION_BYTES))
}

/// The marks of one image.
pub struct Doubt {
    file: File,
    /// False breaks rule 3a for the test that shows why it is there.
    durable: bool,
    state: Mutex<State>,
    flushed: Condvar,
}

#[derive(Default)]
struct State {
    /// Regions that are marked, and who uses them.
    regions: HashMap<u32, Region>,
    /// The bitmap as it should be on flash, sectors that are not zero.
    sectors: BTreeMap<u32, Vec<u8>>,
    changed: BTreeSet<u32>,
    /// Number of the latest wanted flush and of the latest done one.
    wanted: u64,
    done: u64,
    flushing: bool,
    failed: bool,
}

struct Region {
    writes_active: u32,
    written: Instant,
    /// The flush after which the mark is durable.
    flush: u64,
}

impl Doubt {
    /// Opens or creates the file; gives the regions marked in it.
    pub fn open(path: &Path, durable: bool) -> io::Result<(Doubt, Vec<u32>)> {
        let file = file::open_private(path)?;
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        let mut state = State::default();
        let mut marked = Vec::new();
        for (number, sector) in (0..).zip(bytes.chunks(SECTOR_BYTES)) {
            let mut sector = sector.to_vec();
            sector.resize(SECTOR_BYTES, 0);
            let base = number * SECTOR_REGIONS;
            marked.extend(
                (0..SECTOR_REGIONS)
                    .filter(|bit| is_set(&sector, *bit))
                    .map(|b| base + b),
            );
            state.sectors.insert(number, sector);
        }
        let doubt = Doubt {
            file,
            durable,
            state: Mutex::new(state),
            flushed: Condvar::new(),
        };
        Ok((doubt, marked))
    }

    /// Takes over marks found at a mount as regions that were just written.
    pub fn adopt(&self, marked: &[u32]) {
        let mut state = self.state.lock();
        for number in marked {
            let flush = state.done;
            state.regions.insert(
                *number,
                Region {
                    writes_active: 0,
                    written: Instant::now(),
                    flush,
                },
            );
        }
    }

    /// Marks `regions` for a write that is about to go to the store; returns when the marks are
    /// durable. Every call is paired with [`Doubt::end`], also after an error.
    pub fn begin(&self, regions: Range<u32>) -> io::Result<()> {
        let mut state = self.state.lock();
        let mut need = 0;
        for number in regions {
            need = need.max(state.enter(number));
        }
        if need <= state.done {
            return Ok(());
        }
        self.flush_until(&mut state, need)
    }

    /// The write that [`Doubt::begin`] announced is over.
    pub fn end(&self, regions: Range<u32>) {
        let mut state = self.state.lock();
        for number in regions {
            if let Some(region) = state.regions.get_mut(&number) {
                region.writes_active -= 1;
                region.written = Instant::now();
            }
        }
    }

    /// Takes the regions without an active write that were not written for `quiet`: a later write
    /// marks them anew. They stay marked on flash until [`Doubt::clear`].
    pub fn take_quiet(&self, quiet: Duration) -> Vec<u32> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let taken: Vec<u32> = state
            .regions
            .iter()
            .filter(|(_, region)| {
                region.writes_active == 0 && now.duration_since(region.written) >= quiet
            })
            .map(|(number, _)| *number)
            .collect();
        for number in &taken {
            state.regions.remove(number);
        }
        taken
    }

    /// Clears the marks of regions taken before, except those marked anew since.
    pub fn clear(&self, regions: &[u32]) -> io::Result<()> {
        if regions.is_empty() {
            return Ok(());
        }
        let mut state = self.state.lock();
        for number in regions {
            if !state.regions.contains_key(number) {
                state.set_bit(*number, false);
            }
        }
        state.wanted += 1;
        let need = state.wanted;
        self.flush_until(&mut state, need)
    }

    /// Regions marked now.
    pub fn marked(&self) -> Vec<u32> {
        self.state.lock().regions.keys().copied().collect()
    }

    /// True when no region is marked.
    pub fn is_empty(&self) -> bool {
        self.state.lock().regions.is_empty()
    }

    /// Returns when flush number `need` is done, doing it for all who wait if nobody else does.
    fn flush_until(
        &self,
        state: &mut parking_lot::MutexGuard<'_, State>,
        need: u64,
    ) -> io::Result<()> {
        let deadline = Instant::now() + FLUSH_WAIT_MAX;
        while state.done < need {
            if state.failed {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            if !state.flushing {
                self.flush(state);
            } else if self.flushed.wait_until(state, deadline).timed_out() {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
        }
        Ok(())
    }

    fn flush(&self, state: &mut parking_lot::MutexGuard<'_, State>) {
        state.flushing = true;
        let number = state.wanted;
        let writes: Vec<(u32, Vec<u8>)> = std::mem::take(&mut state.changed)
            .into_iter()
            .filter_map(|sector| Some((sector, state.sectors.get(&sector)?.clone())))
            .collect();
        let written = parking_lot::MutexGuard::unlocked(state, || self.write(&writes));
        state.flushing = false;
        match written {
            Ok(()) => state.done = number,
            Err(error) => {
                log::debug!("cannot write in-doubt marks: {error}"); // whoever writes is told
                state.failed = true;
            }
        }
        self.flushed.notify_all();
    }

    fn write(&self, writes: &[(u32, Vec<u8>)]) -> io::Result<()> {
        if !self.durable {
            return Ok(());
        }
        for (sector, bytes) in writes {
            self.file
                .write_all_at(bytes, u64::from(*sector) * SECTOR_BYTES as u64)?;
        }
        self.file.sync_data()
    }
}

impl State {
    /// Counts a write into a region, marking it if it is not; gives the flush it has to wait for.
    fn enter(&mut self, number: u32) -> u64 {
        if let Some(region) = self.regions.get_mut(&number) {
            region.writes_active += 1;
            return region.flush;
        }
        // All marks set since the flush in progress began share the next one.
        if self.wanted == self.done || self.flushing {
            self.wanted = self.wanted.max(self.done + 1 + u64::from(self.flushing));
        }
        let flush = self.wanted;
        self.set_bit(number, true);
        self.regions.insert(
            number,
            Region {
                writes_active: 1,
                written: Instant::now(),
                flush,
            },
        );
        flush
    }

    fn set_bit(&mut self, number: u32, on: bool) {
        let sector = number / SECTOR_REGIONS;
        let bit = number % SECTOR_REGIONS;
        let bytes = self
            .sectors
            .entry(sector)
            .or_insert_with(|| vec![0; SECTOR_BYTES]);
        let mask = 1u8 << (bit % 8);
        let byte = &mut bytes[(bit / 8) as usize];
        *byte = if on { *byte | mask } else { *byte & !mask };
        self.changed.insert(sector);
    }
}

fn is_set(sector: &[u8], bit: u32) -> bool {
    sector[(bit / 8) as usize] >> (bit % 8) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked_on_flash(path: &Path) -> Vec<u32> {
        Doubt::open(path, true).expect("open").1
    }

    #[test]
    fn a_mark_is_on_flash_before_begin_returns_and_until_it_is_cleared() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("doubt");
        let (doubt, none) = Doubt::open(&path, true).expect("open");
        assert!(none.is_empty());
        doubt.begin(3..5).expect("mark");
        doubt.begin(40_000..40_001).expect("mark");
        assert_eq!(marked_on_flash(&path), [3, 4, 40_000]);
        doubt.end(3..5);
        let mut taken = doubt.take_quiet(Duration::ZERO);
        taken.sort_unstable();
        assert_eq!(taken, [3, 4], "an active region is not taken");
        doubt.begin(4..5).expect("mark anew");
        doubt.clear(&taken).expect("clear");
        assert_eq!(marked_on_flash(&path), [4, 40_000]);
    }

    #[test]
    fn many_writers_share_flushes_and_all_marks_are_durable() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("doubt");
        let (doubt, _) = Doubt::open(&path, true).expect("open");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let doubt = &doubt;
                let path = &path;
                scope.spawn(move || {
                    for step in 0..50 {
                        let region = thread * 100 + step;
                        doubt.begin(region..region + 1).expect("mark");
                        assert!(marked_on_flash(path).contains(&region));
                    }
                });
            }
        });
        assert_eq!(doubt.marked().len(), 400);
    }
}
