//! Readers of an immutable image on kernel passthrough: one keeps its handle through all that happens, one
//! opens and closes it again and again, which asks the server. Both check every sector.
//!
//! Touches one image of the mount.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::rig::Rng;
use crate::rig::stamp::{self, Found, SECTOR};
use crate::tally::Tally;

/// Bytes of the image.
pub const IMAGE_BYTES: u64 = 8 << 20;
const READ_BYTES: usize = 64 << 10;
/// Reads through one handle of the second reader.
const READS: usize = 4;
const REST: Duration = Duration::from_millis(2);

/// Reads through one handle until the run is over.
pub fn keep(image: &Path, tally: &Tally) {
    let Some(file) = tally.call("opening the golden image", || File::open(image)) else {
        return;
    };
    let mut rng = Rng::new(3);
    while !tally.is_over() {
        read(&file, &mut rng, tally);
    }
}

/// Opens, reads, closes, until the run is over.
pub fn reopen(image: &Path, tally: &Tally) {
    let mut rng = Rng::new(4);
    while !tally.is_over() {
        let opened = tally.call("opening the golden image again", || File::open(image));
        let Some(file) = opened else { continue };
        (0..READS).for_each(|_| read(&file, &mut rng, tally));
    }
}

fn read(file: &File, rng: &mut Rng, tally: &Tally) {
    let mut bytes = [0; READ_BYTES];
    let at = rng.below((IMAGE_BYTES - READ_BYTES as u64) / SECTOR as u64) * SECTOR as u64;
    let read = tally.call("reading the golden image", || {
        file.read_exact_at(&mut bytes, at)
    });
    let sectors = bytes.chunks(SECTOR).zip(at / SECTOR as u64..);
    for (sector, index) in sectors.filter(|_| read.is_some()) {
        let found = stamp::read(sector, index);
        if found != Found::Version(0) {
            tally.mismatch(&format!("golden: sector {index} is {found:?}"));
        }
    }
    std::thread::sleep(REST);
}
