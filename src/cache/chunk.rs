//! A piece of a page map: the bits of [`CHUNK_BLOCKS`] blocks, 3 bytes each. Every change is one atomic
//! operation; what they mean together is in [`super::pagemap`].

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

use super::PAGES_PER_BLOCK;

/// Blocks a chunk covers: 16 MiB of the image.
pub const CHUNK_BLOCKS: u64 = 256;
/// Pages a chunk covers.
pub const CHUNK_PAGES: u64 = CHUNK_BLOCKS * PAGES_PER_BLOCK;

const HEAT_MASK: u8 = 0b11;
/// The block is in a queue of the caching module.
const QUEUED: u8 = 0b100;
/// Some of its pages were found at the mount and not compared with their records since.
const UNVERIFIED: u8 = 0b1000;

/// How often something was dropped from a chunk's part of the image, and how often overwritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub drops: u32,
    pub writes: u32,
}

/// The bits of some blocks. Blocks are meant by their number in the chunk.
pub struct Chunk {
    resident: [AtomicU16; CHUNK_BLOCKS as usize],
    flags: [AtomicU8; CHUNK_BLOCKS as usize],
    /// Blocks with [`QUEUED`] set.
    queued: AtomicU32,
    drops: AtomicU32,
    writes: AtomicU32,
}

impl Chunk {
    /// Nothing resident; the counts go on from `counts`.
    pub fn new(counts: Counts) -> Box<Chunk> {
        Box::new(Chunk {
            resident: [const { AtomicU16::new(0) }; CHUNK_BLOCKS as usize],
            flags: [const { AtomicU8::new(0) }; CHUNK_BLOCKS as usize],
            queued: AtomicU32::new(0),
            drops: AtomicU32::new(counts.drops),
            writes: AtomicU32::new(counts.writes),
        })
    }

    /// The counts now.
    pub fn counts(&self) -> Counts {
        Counts {
            drops: self.drops.load(Ordering::Acquire),
            writes: self.writes.load(Ordering::Acquire),
        }
    }

    /// Something is being overwritten.
    pub fn count_write(&self) {
        self.writes.fetch_add(1, Ordering::AcqRel);
    }

    /// Something has been dropped.
    pub fn count_drop(&self) {
        self.drops.fetch_add(1, Ordering::AcqRel);
    }

    /// The resident pages of a block.
    pub fn resident(&self, at: usize) -> u16 {
        self.resident[at].load(Ordering::Acquire)
    }

    /// True when some of the block's pages have to be verified.
    pub fn is_unverified(&self, at: usize) -> bool {
        self.flags[at].load(Ordering::Acquire) & UNVERIFIED != 0
    }

    /// Makes pages of a block resident; gives how many were not.
    pub fn set(&self, at: usize, mask: u16) -> u32 {
        let before = self.resident[at].fetch_or(mask, Ordering::AcqRel);
        (mask & !before).count_ones()
    }

    /// Some of the block's pages have to be verified; said before they are set.
    pub fn set_unverified(&self, at: usize) {
        self.flags[at].fetch_or(UNVERIFIED, Ordering::AcqRel);
    }

    /// No page of the block has to be verified any more.
    pub fn set_verified(&self, at: usize) {
        self.flags[at].fetch_and(!UNVERIFIED, Ordering::AcqRel);
    }

    /// Pages of a block are gone; gives how many were there.
    pub fn clear(&self, at: usize, mask: u16) -> u32 {
        let before = self.resident[at].fetch_and(!mask, Ordering::AcqRel);
        if before & !mask == 0 && self.is_unverified(at) {
            self.set_verified(at);
        }
        (before & mask).count_ones()
    }

    /// The block enters a queue; false if it is in one.
    pub fn enqueue(&self, at: usize) -> bool {
        let entered = self.flags[at].fetch_or(QUEUED, Ordering::AcqRel) & QUEUED == 0;
        if entered {
            self.queued.fetch_add(1, Ordering::AcqRel);
        }
        entered
    }

    /// The block has left its queue, and its uses do not count any more.
    pub fn dequeue(&self, at: usize) {
        let before = self.flags[at].fetch_and(!(QUEUED | HEAT_MASK), Ordering::AcqRel);
        if before & QUEUED != 0 {
            self.queued.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// True for a block in a queue.
    pub fn is_queued(&self, at: usize) -> bool {
        self.flags[at].load(Ordering::Acquire) & QUEUED != 0
    }

    /// Blocks in queues.
    pub fn queued(&self) -> u32 {
        self.queued.load(Ordering::Acquire)
    }

    /// Counts a use of a block. One that meets another change of the flags may be lost.
    pub fn heat_up(&self, at: usize) {
        let flags = self.flags[at].load(Ordering::Relaxed);
        if flags & HEAT_MASK < HEAT_MASK {
            let (set, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
            let _ = self.flags[at].compare_exchange(flags, flags + 1, set, relaxed);
        }
    }

    /// Uses counted.
    pub fn heat(&self, at: usize) -> u8 {
        self.flags[at].load(Ordering::Relaxed) & HEAT_MASK
    }

    /// Sets the uses counted.
    pub fn set_heat(&self, at: usize, heat: u8) {
        self.flags[at].fetch_and(!HEAT_MASK, Ordering::AcqRel);
        self.flags[at].fetch_or(heat.min(HEAT_MASK), Ordering::AcqRel);
    }

    /// True when nothing is resident and nothing in a queue. Asked while nobody sets anything.
    pub fn is_idle(&self) -> bool {
        let empty = |bits: &AtomicU16| bits.load(Ordering::Acquire) == 0;
        self.queued() == 0 && self.resident.iter().all(empty)
    }
}
