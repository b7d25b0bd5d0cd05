//! Which pages of an image are resident, in memory: bit tests for the fast lane.
//!
//! Five bytes per block, in chunks that exist only where something was ever resident. A page is
//! *resident* when its bytes are in the cache file and *verified* when they came from this process
//! or were checked against their record since the mount.
//!
//! # Invariants
//! - A page is set only after its bytes are in the cache file.
//! - Its bits are cleared, and the chunk's drop count raised, before its bytes are punched or
//!   replaced by something a reader must not see. So a reader that takes a [`Stamp`], finds the bits
//!   set, reads the file and finds the stamp unchanged has read valid bytes, without a lock.
//!
//! # Locking
//! `chunks` is held for lookups only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use parking_lot::RwLock;

use super::{PAGE_BYTES, PAGES_PER_BLOCK, Pages};

/// Blocks a chunk covers: 64 MiB of the image.
const CHUNK_BLOCKS: u64 = 1024;
const HEAT_MASK: u8 = 0b11;
/// The block is in a queue of the caching module.
const QUEUED: u8 = 0b100;

struct Chunk {
    resident: [AtomicU16; CHUNK_BLOCKS as usize],
    verified: [AtomicU16; CHUNK_BLOCKS as usize],
    flags: [AtomicU8; CHUNK_BLOCKS as usize],
    drops: AtomicU32,
    writes: AtomicU32,
}

impl Chunk {
    fn new() -> Chunk {
        Chunk {
            resident: [const { AtomicU16::new(0) }; CHUNK_BLOCKS as usize],
            verified: [const { AtomicU16::new(0) }; CHUNK_BLOCKS as usize],
            flags: [const { AtomicU8::new(0) }; CHUNK_BLOCKS as usize],
            drops: AtomicU32::new(0),
            writes: AtomicU32::new(0),
        }
    }
}

/// How often something was dropped from the chunks of a range, and how often overwritten; equal
/// stamps mean never in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Drops, in the first and the last chunk.
    pub drops: (u32, u32),
    /// Overwrites, in the first and the last chunk.
    pub writes: (u32, u32),
}

/// What a range of pages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All resident and verified.
    Ready,
    /// All resident, some not verified since the mount.
    Unverified,
    /// Some not resident.
    Missing,
}

/// The residency of one image.
#[derive(Default)]
pub struct PageMap {
    chunks: RwLock<Vec<Option<Arc<Chunk>>>>,
    resident_pages: AtomicU64,
}

impl PageMap {
    /// Bytes resident.
    pub fn resident_bytes(&self) -> u64 {
        self.resident_pages.load(Ordering::Relaxed) * PAGE_BYTES
    }

    /// What `pages` are now.
    pub fn state(&self, pages: &Pages) -> State {
        let mut state = State::Ready;
        for (block, mask) in masks(pages) {
            let Some((chunk, at)) = self.chunk(block) else {
                return State::Missing;
            };
            if chunk.resident[at].load(Ordering::Acquire) & mask != mask {
                return State::Missing;
            }
            if chunk.verified[at].load(Ordering::Acquire) & mask != mask {
                state = State::Unverified;
            }
        }
        state
    }

    /// The first block from `block` on that holds resident pages.
    pub fn next_resident(&self, block: u64) -> Option<u64> {
        let chunks = self.chunks.read();
        let first = (block / CHUNK_BLOCKS) as usize;
        for (number, chunk) in chunks.iter().enumerate().skip(first) {
            let Some(chunk) = chunk else { continue };
            let base = number as u64 * CHUNK_BLOCKS;
            let from = block.max(base);
            let is_there =
                |block: &u64| chunk.resident[(block - base) as usize].load(Ordering::Acquire) != 0;
            if let Some(found) = (from..base + CHUNK_BLOCKS).find(is_there) {
                return Some(found);
            }
        }
        None
    }

    /// Bytes of `pages` that are resident, and that are verified as well.
    pub fn count(&self, pages: &Pages) -> (u64, u64) {
        let (mut resident, mut verified) = (0, 0);
        let mut next = pages.start / PAGES_PER_BLOCK;
        while let Some(block) = self.next_resident(next)
            && block * PAGES_PER_BLOCK < pages.end
        {
            let base = block * PAGES_PER_BLOCK;
            let part = pages.start.max(base)..pages.end.min(base + PAGES_PER_BLOCK);
            let mask = masks(&part).map(|(_, mask)| mask).next().unwrap_or(0);
            let there = self.resident_in(block) & mask;
            resident += u64::from(there.count_ones());
            verified += u64::from((there & !self.unverified_in(block)).count_ones());
            next = block + 1;
        }
        (resident * PAGE_BYTES, verified * PAGE_BYTES)
    }

    /// The stamp of the chunks that `pages` lie in, at most two for requests up to 64 MiB.
    pub fn stamp(&self, pages: &Pages) -> Stamp {
        let first = pages.start / PAGES_PER_BLOCK;
        let last = pages.end.saturating_sub(1).max(pages.start) / PAGES_PER_BLOCK;
        let counts = |block| {
            self.chunk(block).map_or((0, 0), |(chunk, _)| {
                let drops = chunk.drops.load(Ordering::Acquire);
                (drops, chunk.writes.load(Ordering::Acquire))
            })
        };
        let (first, last) = (counts(first), counts(last));
        Stamp {
            drops: (first.0, last.0),
            writes: (first.1, last.1),
        }
    }

    /// The resident pages of one block, as bits from its first page.
    pub fn resident_in(&self, block: u64) -> u16 {
        self.chunk(block)
            .map_or(0, |(chunk, at)| chunk.resident[at].load(Ordering::Acquire))
    }

    /// The pages of one block that are resident but not verified, as bits.
    pub fn unverified_in(&self, block: u64) -> u16 {
        self.chunk(block).map_or(0, |(chunk, at)| {
            chunk.resident[at].load(Ordering::Acquire) & !chunk.verified[at].load(Ordering::Acquire)
        })
    }

    /// Marks `pages` resident. Returns the blocks that were not in a module's queue; they count as
    /// queued from now on.
    pub fn set(&self, pages: &Pages, verified: bool) -> Vec<u64> {
        let mut new_blocks = Vec::new();
        for (block, mask) in masks(pages) {
            let (chunk, at) = self.chunk_or_new(block);
            if verified {
                chunk.verified[at].fetch_or(mask, Ordering::Release);
            }
            let before = chunk.resident[at].fetch_or(mask, Ordering::AcqRel);
            let added = (mask & !before).count_ones();
            self.resident_pages
                .fetch_add(u64::from(added), Ordering::Relaxed);
            if chunk.flags[at].fetch_or(QUEUED, Ordering::AcqRel) & QUEUED == 0 {
                new_blocks.push(block);
            }
        }
        new_blocks
    }

    /// Marks pages that are resident verified.
    pub fn set_verified(&self, pages: &Pages) {
        for (block, mask) in masks(pages) {
            if let Some((chunk, at)) = self.chunk(block) {
                chunk.verified[at].fetch_or(mask, Ordering::Release);
            }
        }
    }

    /// Clears `pages` and raises the drop counts; returns how many were resident. The caller may
    /// punch afterwards.
    pub fn clear(&self, pages: &Pages) -> u64 {
        const CHUNK_PAGES: u64 = CHUNK_BLOCKS * PAGES_PER_BLOCK;
        let chunks: Vec<u64> = {
            let chunks = self.chunks.read();
            let end = pages.end.div_ceil(CHUNK_PAGES).min(chunks.len() as u64);
            let there = |number: &u64| chunks[*number as usize].is_some();
            (pages.start / CHUNK_PAGES..end).filter(there).collect()
        };
        let mut cleared = 0;
        for number in chunks {
            let Some((chunk, _)) = self.chunk(number * CHUNK_BLOCKS) else {
                continue;
            };
            let base = number * CHUNK_PAGES;
            let part = pages.start.max(base)..pages.end.min(base + CHUNK_PAGES);
            for (block, mask) in masks(&part) {
                let at = (block % CHUNK_BLOCKS) as usize;
                let before = chunk.resident[at].fetch_and(!mask, Ordering::AcqRel);
                chunk.verified[at].fetch_and(!mask, Ordering::AcqRel);
                cleared += u64::from((before & mask).count_ones());
            }
            chunk.drops.fetch_add(1, Ordering::AcqRel);
        }
        self.resident_pages.fetch_sub(cleared, Ordering::Relaxed);
        cleared
    }

    /// Raises the overwrite counts of `pages`: their bytes are being replaced.
    pub fn touch(&self, pages: &Pages) {
        let chunk_pages = CHUNK_BLOCKS * PAGES_PER_BLOCK;
        for chunk in pages.start / chunk_pages..pages.end.div_ceil(chunk_pages) {
            if let Some((chunk, _)) = self.chunk(chunk * CHUNK_BLOCKS) {
                chunk.writes.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Counts a use of each block of `pages`.
    pub fn heat_up(&self, pages: &Pages) {
        for block in super::blocks_of(pages) {
            if let Some((chunk, at)) = self.chunk(block) {
                let flags = chunk.flags[at].load(Ordering::Relaxed);
                if flags & HEAT_MASK < HEAT_MASK {
                    chunk.flags[at].store(flags + 1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Uses counted for a block, `None` when nothing of it is resident.
    pub fn heat(&self, block: u64) -> Option<u8> {
        let (chunk, at) = self.chunk(block)?;
        (chunk.resident[at].load(Ordering::Acquire) != 0)
            .then(|| chunk.flags[at].load(Ordering::Relaxed) & HEAT_MASK)
    }

    /// Sets the uses counted for a block.
    pub fn set_heat(&self, block: u64, heat: u8) {
        if let Some((chunk, at)) = self.chunk(block) {
            let flags = chunk.flags[at].load(Ordering::Relaxed);
            chunk.flags[at].store(
                (flags & !HEAT_MASK) | heat.min(HEAT_MASK),
                Ordering::Relaxed,
            );
        }
    }

    /// The block has left the module's queues.
    pub fn set_unqueued(&self, block: u64) {
        if let Some((chunk, at)) = self.chunk(block) {
            chunk.flags[at].fetch_and(!(QUEUED | HEAT_MASK), Ordering::AcqRel);
        }
    }

    fn chunk(&self, block: u64) -> Option<(Arc<Chunk>, usize)> {
        let chunks = self.chunks.read();
        let chunk = chunks.get((block / CHUNK_BLOCKS) as usize)?.as_ref()?;
        Some((chunk.clone(), (block % CHUNK_BLOCKS) as usize))
    }

    fn chunk_or_new(&self, block: u64) -> (Arc<Chunk>, usize) {
        if let Some(found) = self.chunk(block) {
            return found;
        }
        let at = (block / CHUNK_BLOCKS) as usize;
        let mut chunks = self.chunks.write();
        if chunks.len() <= at {
            chunks.resize(at + 1, None);
        }
        let chunk = chunks[at].get_or_insert_with(|| Arc::new(Chunk::new()));
        (chunk.clone(), (block % CHUNK_BLOCKS) as usize)
    }
}

/// The blocks that `pages` touch, each with the bits of its pages that are meant.
pub fn masks(pages: &Pages) -> impl Iterator<Item = (u64, u16)> + use<> {
    let pages = pages.clone();
    super::blocks_of(&pages).map(move |block| {
        let base = block * PAGES_PER_BLOCK;
        let first = pages.start.max(base) - base;
        let end = pages.end.min(base + PAGES_PER_BLOCK) - base;
        let below = |n: u64| ((1u32 << n) - 1) as u16;
        (block, below(end) & !below(first))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_exactly_the_pages() {
        let got: Vec<_> = masks(&(14..34)).collect();
        assert_eq!(got, [(0, 0xc000), (1, 0xffff), (2, 0x0003)]);
        assert_eq!(masks(&(3..3)).map(|(_, mask)| mask).sum::<u16>(), 0);
    }

    #[test]
    fn set_and_clear_count_pages_and_change_the_stamp() {
        let map = PageMap::default();
        assert_eq!(map.state(&(0..1)), State::Missing);
        assert_eq!(map.set(&(10..40), true), [0, 1, 2]);
        assert_eq!(map.set(&(10..12), true), [0u64; 0]);
        assert_eq!(map.resident_bytes(), 30 * PAGE_BYTES);
        let stamp = map.stamp(&(10..40));
        assert_eq!(map.state(&(10..40)), State::Ready);
        assert_eq!(map.clear(&(0..16)), 6);
        assert_ne!(map.stamp(&(10..40)), stamp);
        assert_eq!(map.state(&(10..40)), State::Missing);
        assert_eq!(map.state(&(16..40)), State::Ready);
        assert_eq!(map.resident_bytes(), 24 * PAGE_BYTES);
        assert_eq!(map.clear(&(0..u64::MAX)), 24);
    }

    #[test]
    fn resident_blocks_are_found_and_counted() {
        let map = PageMap::default();
        assert_eq!(map.next_resident(0), None);
        map.set(&(20..24), true);
        map.set(&(40_000..40_020), false);
        assert_eq!(map.next_resident(0), Some(1));
        assert_eq!(map.next_resident(2), Some(2500));
        assert_eq!(map.next_resident(2502), None);
        assert_eq!(map.count(&(0..100_000)), (24 * PAGE_BYTES, 4 * PAGE_BYTES));
        assert_eq!(map.count(&(22..40_001)), (3 * PAGE_BYTES, 2 * PAGE_BYTES));
    }

    #[test]
    fn heat_saturates_and_dies_with_residency() {
        let map = PageMap::default();
        map.set(&(0..16), false);
        assert_eq!(map.state(&(0..16)), State::Unverified);
        (0..9).for_each(|_| map.heat_up(&(0..16)));
        assert_eq!(map.heat(0), Some(3));
        map.clear(&(0..16));
        assert_eq!(map.heat(0), None);
    }
}
