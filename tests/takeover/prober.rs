//! Two threads that do one small I/O after the other, so that a pause shows: one reads a page that is on
//! flash, one writes a page. Both with O_DIRECT, both check what they read.
//!
//! Touches one image of the mount: sectors that nobody writes, then pages of the writer's own.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::rig::stamp::{self, Found, SECTOR};
use crate::rig::{Aligned, Rng};
use crate::tally::Tally;

const PAGE: usize = 4096;
/// The reader's part of the image; the writer has as much behind it.
pub const PART_BYTES: u64 = 1 << 20;
/// Between two I/Os: the load should be another's.
const REST: Duration = Duration::from_micros(500);

/// When each I/O of one thread began and ended.
#[derive(Default)]
pub struct Probes {
    times: Mutex<Vec<(Instant, Instant)>>,
}

impl Probes {
    /// The I/O that met an event: the longest of those that were in flight at `event`, or began before
    /// `over`, when the successor was seen to serve; its begin and its end.
    pub fn met(&self, event: Instant, over: Instant) -> Option<(Instant, Instant)> {
        let times = self.times.lock().expect("nobody panics under this lock");
        let of_event = times
            .iter()
            .rev()
            .take_while(|(_, end)| *end > event)
            .filter(|(begin, _)| *begin < over);
        of_event.max_by_key(|(begin, end)| *end - *begin).copied()
    }

    /// How long all I/Os took, events or not.
    pub fn durations(&self) -> Vec<Duration> {
        let times = self.times.lock().expect("nobody panics under this lock");
        times.iter().map(|(begin, end)| *end - *begin).collect()
    }

    /// Whether an I/O that began after `moment` has ended.
    pub fn done_since(&self, moment: Instant) -> bool {
        let times = self.times.lock().expect("nobody panics under this lock");
        times.last().is_some_and(|(begin, _)| *begin > moment)
    }

    /// One I/O; whether it succeeded.
    fn time(&self, tally: &Tally, what: &str, io: impl FnOnce() -> io::Result<()>) -> bool {
        let begin = Instant::now();
        let done = tally.call(what, io).is_some();
        if done {
            let mut times = self.times.lock().expect("nobody panics under this lock");
            times.push((begin, Instant::now()));
        }
        std::thread::sleep(REST);
        done
    }
}

/// Reads pages of version 0 until the run is over.
pub fn read(image: &Path, probes: &Probes, tally: &Tally) {
    let Some(file) = tally.call("opening to probe", || open(image)) else {
        return;
    };
    let (mut rng, mut page) = (Rng::new(1), Aligned::new(PAGE));
    while !tally.is_over() {
        let at = rng.below(PART_BYTES / PAGE as u64) * PAGE as u64;
        if probes.time(tally, "probing by a read", || {
            file.read_exact_at(&mut page, at)
        }) {
            check(&page, at, 0, tally);
        }
    }
}

/// Writes pages of growing versions until the run is over, and reads back one of 16.
pub fn write(image: &Path, probes: &Probes, tally: &Tally) {
    let Some(file) = tally.call("opening to probe", || open(image)) else {
        return;
    };
    let (mut rng, mut page) = (Rng::new(2), Aligned::new(PAGE));
    for version in 1.. {
        if tally.is_over() {
            return;
        }
        let at = PART_BYTES + rng.below(PART_BYTES / PAGE as u64) * PAGE as u64;
        stamp::fill(&mut page, at / SECTOR as u64, version);
        probes.time(tally, "probing by a write", || file.write_all_at(&page, at));
        if version % 16 == 0 {
            let back = tally.call("reading back", || file.read_exact_at(&mut page, at));
            back.inspect(|()| check(&page, at, version, tally));
        }
    }
}

fn check(page: &[u8], at: u64, version: u64, tally: &Tally) {
    for (sector, index) in page.chunks(SECTOR).zip(at / SECTOR as u64..) {
        let found = stamp::read(sector, index);
        if found != Found::Version(version) {
            tally.mismatch(&format!(
                "probe: sector {index} is {found:?}, not {version}"
            ));
        }
    }
}

fn open(image: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.open(image)
}
