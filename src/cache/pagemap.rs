//! Which pages of an image are resident, in memory: bit tests for the fast lane.
//!
//! Three bytes per block, in chunks ([`super::chunk`]) that exist only where something is resident or in
//! a module's queue. A page is *resident* when its bytes are in the cache file. A block is *unverified*
//! while some of its pages were found there at the mount and not checked against their records since;
//! whatever comes from this process needs no check.
//!
//! # Invariants
//! - A page is set only after its bytes are in the cache file.
//! - Its bits are cleared, and the chunk's drop count raised, before its bytes are punched or
//!   replaced by something a reader must not see. So a reader that takes a [`Stamp`], finds the bits
//!   set, reads the file and finds the stamp unchanged has read valid bytes, without holding a lock.
//! - Counts only grow, also where a chunk is let go and made again: its place remembers them
//!   ([`super::places`]), and letting go counts as a drop, because whoever cleared the last page may not
//!   have counted it yet.
//!
//! # Locking
//! `places` is held for bit operations only, for writing only to make a chunk or to let one go. So a
//! chunk that bits are being set in is not let go.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::chunk::{CHUNK_BLOCKS, CHUNK_PAGES, Chunk};
use super::places::{Place, Places};
use super::{PAGE_BYTES, PAGES_PER_BLOCK, Pages};

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
    /// All resident, some in blocks that were not verified since the mount.
    Unverified,
    /// Some not resident.
    Missing,
}

/// The residency of one image.
#[derive(Default)]
pub struct PageMap {
    places: RwLock<Places>,
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
        let mut from = pages.start;
        while from < pages.end {
            let to = pages.end.min((from / CHUNK_PAGES + 1) * CHUNK_PAGES);
            match self.state_in_chunk(&(from..to)) {
                State::Missing => return State::Missing,
                State::Unverified => state = State::Unverified,
                State::Ready => {}
            }
            from = to;
        }
        state
    }

    fn state_in_chunk(&self, pages: &Pages) -> State {
        let places = self.places.read();
        let Some(chunk) = chunk_of(&places, pages.start / PAGES_PER_BLOCK) else {
            return State::Missing;
        };
        let mut state = State::Ready;
        for (block, mask) in masks(pages) {
            let at = at(block);
            if chunk.resident(at) & mask != mask {
                return State::Missing;
            }
            if chunk.is_unverified(at) {
                state = State::Unverified;
            }
        }
        state
    }

    /// The first block from `block` on that holds resident pages.
    pub fn next_resident(&self, block: u64) -> Option<u64> {
        let places = self.places.read();
        places
            .chunks(block / CHUNK_BLOCKS)
            .find_map(|(number, chunk)| {
                let base = number * CHUNK_BLOCKS;
                let mut blocks = block.max(base)..base + CHUNK_BLOCKS;
                blocks.find(|block| chunk.resident(at(*block)) != 0)
            })
    }

    /// Bytes of `pages` that are resident, and of those in blocks that need not be verified.
    pub fn count(&self, pages: &Pages) -> (u64, u64) {
        let (mut resident, mut verified) = (0, 0);
        for number in self.chunks_of(pages) {
            let base = number * CHUNK_PAGES;
            let part = pages.start.max(base)..pages.end.min(base + CHUNK_PAGES);
            self.with(number * CHUNK_BLOCKS, |chunk, _| {
                for (block, mask) in masks(&part) {
                    let there = u64::from((chunk.resident(at(block)) & mask).count_ones());
                    resident += there;
                    verified += there * u64::from(!chunk.is_unverified(at(block)));
                }
            });
        }
        (resident * PAGE_BYTES, verified * PAGE_BYTES)
    }

    /// The stamp of the chunks that `pages` lie in, at most two for requests up to 16 MiB.
    pub fn stamp(&self, pages: &Pages) -> Stamp {
        let places = self.places.read();
        let counts = |page: u64| {
            let place = places.get(page / CHUNK_PAGES);
            place.map(Place::counts).unwrap_or_default()
        };
        let first = counts(pages.start);
        let last = counts(pages.end.saturating_sub(1).max(pages.start));
        Stamp {
            drops: (first.drops, last.drops),
            writes: (first.writes, last.writes),
        }
    }

    /// The resident pages of one block, as bits from its first page.
    pub fn resident_in(&self, block: u64) -> u16 {
        self.with(block, |chunk, at| chunk.resident(at))
            .unwrap_or(0)
    }

    /// The resident pages of one block if it is unverified, as bits.
    pub fn unverified_in(&self, block: u64) -> u16 {
        let bits = |chunk: &Chunk, at| chunk.is_unverified(at).then(|| chunk.resident(at));
        self.with(block, bits).flatten().unwrap_or(0)
    }

    /// Marks `pages` resident; where they are not `verified` their blocks are not. Returns the blocks that were not in a module's queue; they count as
    /// queued from now on.
    pub fn set(&self, pages: &Pages, verified: bool) -> Vec<u64> {
        let mut new_blocks = Vec::new();
        for (block, mask) in masks(pages) {
            self.with_or_new(block, |chunk, at| {
                if !verified {
                    chunk.set_unverified(at);
                }
                let added = u64::from(chunk.set(at, mask));
                self.resident_pages.fetch_add(added, Ordering::Relaxed);
                if chunk.enqueue(at) {
                    new_blocks.push(block);
                }
            });
        }
        new_blocks
    }

    /// Takes over what was found at a mount: pages of the blocks of one chunk, `first` the first, none of
    /// them verified, all blocks in a queue. Nobody else knows the map yet.
    pub fn found(&self, first: u64, masks: &[u16; CHUNK_BLOCKS as usize]) {
        self.with_or_new(first, |chunk, _| {
            let mut pages = 0;
            for at in (0..masks.len()).filter(|at| masks[*at] != 0) {
                chunk.set_unverified(at);
                pages += u64::from(chunk.set(at, masks[at]));
                chunk.enqueue(at);
            }
            self.resident_pages.fetch_add(pages, Ordering::Relaxed);
        });
    }

    /// All resident pages of a block are verified.
    pub fn set_verified(&self, block: u64) {
        self.with(block, |chunk, at| chunk.set_verified(at));
    }

    /// Clears `pages` and raises the drop counts; returns how many were resident. The caller may
    /// punch afterwards.
    pub fn clear(&self, pages: &Pages) -> u64 {
        let mut cleared = 0;
        for number in self.chunks_of(pages) {
            let base = number * CHUNK_PAGES;
            let part = pages.start.max(base)..pages.end.min(base + CHUNK_PAGES);
            self.with(number * CHUNK_BLOCKS, |chunk, _| {
                for (block, mask) in masks(&part) {
                    cleared += u64::from(chunk.clear(at(block), mask));
                }
                chunk.count_drop();
            });
        }
        self.resident_pages.fetch_sub(cleared, Ordering::Relaxed);
        cleared
    }

    /// Raises the overwrite counts of `pages`: their bytes are being replaced.
    pub fn touch(&self, pages: &Pages) {
        for number in self.chunks_of(pages) {
            self.with(number * CHUNK_BLOCKS, |chunk, _| chunk.count_write());
        }
    }

    /// Counts a use of each block of `pages`.
    pub fn heat_up(&self, pages: &Pages) {
        for block in super::blocks_of(pages) {
            self.with(block, |chunk, at| chunk.heat_up(at));
        }
    }

    /// Uses counted for a block, `None` when nothing of it is resident.
    pub fn heat(&self, block: u64) -> Option<u8> {
        self.with(block, |chunk, at| {
            (chunk.resident(at) != 0).then(|| chunk.heat(at))
        })?
    }

    /// Sets the uses counted for a block.
    pub fn set_heat(&self, block: u64, heat: u8) {
        self.with(block, |chunk, at| chunk.set_heat(at, heat));
    }

    /// Counts every block with resident pages as queued and much used; calls `each` with those that
    /// were not queued.
    pub fn queue_all(&self, mut each: impl FnMut(u64)) {
        let places = self.places.read();
        for (number, chunk) in places.chunks(0) {
            let there = (0..CHUNK_BLOCKS).filter(|at| chunk.resident(*at as usize) != 0);
            for at in there {
                chunk.set_heat(at as usize, u8::MAX);
                if chunk.enqueue(at as usize) {
                    each(number * CHUNK_BLOCKS + at);
                }
            }
        }
    }

    /// The block has left the module's queues.
    pub fn set_unqueued(&self, block: u64) {
        self.with(block, |chunk, at| chunk.dequeue(at));
    }

    /// Blocks in the module's queues.
    pub fn queued_blocks(&self) -> u64 {
        let places = self.places.read();
        let queued = places.chunks(0).map(|(_, chunk)| u64::from(chunk.queued()));
        queued.sum()
    }

    /// Calls `each` with every block that counts as queued, in their order.
    pub fn each_queued(&self, mut each: impl FnMut(u64)) {
        let places = self.places.read();
        for (number, chunk) in places.chunks(0) {
            let queued = (0..CHUNK_BLOCKS).filter(|at| chunk.is_queued(*at as usize));
            queued.for_each(|at| each(number * CHUNK_BLOCKS + at));
        }
    }

    /// Lets the chunk of `block` go if nothing of it is in use; called after a block was evicted.
    pub fn release(&self, block: u64) {
        if self.with(block, |chunk, _| chunk.queued()) != Some(0) {
            return;
        }
        let mut places = self.places.write();
        places.get_mut(block / CHUNK_BLOCKS).empty();
    }

    /// The numbers of the chunks that `pages` lie in, those that exist.
    fn chunks_of(&self, pages: &Pages) -> Vec<u64> {
        let places = self.places.read();
        let end = pages.end.div_ceil(CHUNK_PAGES);
        let numbers = places.chunks(pages.start / CHUNK_PAGES).map(|(n, _)| n);
        numbers.take_while(|number| *number < end).collect()
    }

    /// Does something with the chunk of a block, if there is one.
    fn with<T>(&self, block: u64, work: impl FnOnce(&Chunk, usize) -> T) -> Option<T> {
        let places = self.places.read();
        chunk_of(&places, block).map(|chunk| work(chunk, at(block)))
    }

    /// Does something with the chunk of a block, made if need be.
    fn with_or_new(&self, block: u64, mut work: impl FnMut(&Chunk, usize)) {
        while self.with(block, &mut work).is_none() {
            let mut places = self.places.write();
            places.get_mut(block / CHUNK_BLOCKS).fill();
        }
    }
}

fn chunk_of(places: &Places, block: u64) -> Option<&Chunk> {
    places.get(block / CHUNK_BLOCKS)?.chunk.as_deref()
}

/// The number of a block in its chunk.
fn at(block: u64) -> usize {
    (block % CHUNK_BLOCKS) as usize
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
        map.set_verified(0);
        assert_eq!(map.state(&(0..16)), State::Ready);
        map.clear(&(0..16));
        assert_eq!(map.heat(0), None);
    }

    #[test]
    fn a_chunk_goes_with_its_last_block_and_comes_back_with_another_stamp() {
        let map = PageMap::default();
        let pages = 5 * CHUNK_PAGES..5 * CHUNK_PAGES + 32;
        let (first, second) = (5 * CHUNK_BLOCKS, 5 * CHUNK_BLOCKS + 1);
        map.set(&pages, true);
        let mut stamps = vec![map.stamp(&pages)];
        map.clear(&pages);
        map.set_unqueued(first);
        map.release(first);
        assert_eq!(map.chunks_of(&pages), [5], "a block is still queued");
        stamps.push(map.stamp(&pages));
        map.set_unqueued(second);
        map.release(second);
        assert_eq!(map.chunks_of(&pages), [0u64; 0]);
        stamps.push(map.stamp(&pages));
        assert_eq!(map.set(&pages, true), [first, second]);
        map.clear(&(pages.start..pages.start + 1));
        stamps.push(map.stamp(&pages));
        assert!(stamps.is_sorted_by(|a, b| a.drops < b.drops), "{stamps:?}");
        map.set_unqueued(first);
        map.set_unqueued(second);
        map.release(first);
        assert_eq!(map.state(&(pages.start + 1..pages.end)), State::Ready);
    }
}
