//! Sectors that say what they are: every 64-bit word of a 512-byte sector follows from the sector's
//! place in the image and the version written. A sector that is old, torn or misplaced shows it.

use super::rng::mix;

/// Bytes of a sector: what a disk writes as a whole.
pub const SECTOR: usize = 512;

/// Fills `buf`, whole sectors, as version `version` of the image from sector `first` on.
pub fn fill(buf: &mut [u8], first: u64, version: u64) {
    for (i, sector) in buf.chunks_exact_mut(SECTOR).enumerate() {
        let base = base(first + i as u64, version);
        for (word, bytes) in sector.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&word_at(base, version, word).to_le_bytes());
        }
    }
}

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The whole sector as this version wrote it here.
    Version(u64),
    /// Nothing but zeros: a hole.
    Zeros,
    /// Neither: parts of several versions, or bytes from elsewhere.
    Torn,
}

/// Recognises the sector `index` of the image.
pub fn read(sector: &[u8], index: u64) -> Found {
    let word = |i: usize| u64::from_le_bytes(sector[i * 8..i * 8 + 8].try_into().expect("8 bytes"));
    let version = word(0);
    let base = base(index, version);
    if (1..SECTOR / 8).all(|i| word(i) == word_at(base, version, i)) {
        return Found::Version(version);
    }
    if sector.iter().all(|&byte| byte == 0) {
        return Found::Zeros;
    }
    Found::Torn
}

fn base(sector: u64, version: u64) -> u64 {
    mix(sector ^ mix(version))
}

/// Word 0 is the version itself, so that a reader knows what the others must be.
fn word_at(base: u64, version: u64, word: usize) -> u64 {
    match word {
        0 => version,
        _ => base.wrapping_mul(2 * word as u64 + 1) ^ word as u64,
    }
}
