//! Memory for the answers of one thread's reads: made once, bounded, never allocated on the way.
//!
//! A slot is one piece of memory: a page for the head of the reply, then the pages that are read. The
//! head is put right before the first wanted byte, so that a reply is one write of one piece.
//!
//! The bytes of a reply are there when it goes out: they have just been read or written, and stay
//! ([`crate::io::resident`]).
//!
//! *Invariant*: a slot is either free or in the hands of whoever took it; nobody else touches its bytes.

use std::io;
use std::ops::Range;

use crate::io::region::Region;
use crate::io::resident::keep_resident_when_used;

/// Room before the pages, for the head of a reply.
const HEAD_ROOM: usize = 4096;
/// Sizes and counts: with 64 small reads or 8 of a mebibyte under way the flash of a host is busy. A
/// read may touch one page more than its length.
const SMALL: Class = Class {
    pages_bytes: 32 << 10,
    count: 64,
};
const LARGE: Class = Class {
    pages_bytes: (1 << 20) + 4096,
    count: 8,
};

/// Slots of one size.
struct Class {
    pages_bytes: usize,
    count: usize,
}

impl Class {
    const fn stride(&self) -> usize {
        HEAD_ROOM + self.pages_bytes
    }
}

/// All slots of a thread: many small ones and a few large ones.
pub struct Slots {
    memory: Region,
    /// Where free slots begin; the latest given back is the next taken, its memory is warm.
    free_small: Vec<usize>,
    free_large: Vec<usize>,
}

/// One slot.
pub struct Slot {
    at: usize,
    is_large: bool,
}

impl Slots {
    /// Fails where there is no memory.
    pub fn new() -> io::Result<Slots> {
        let large_from = SMALL.stride() * SMALL.count;
        let total = large_from + LARGE.stride() * LARGE.count;
        let places = |class: &Class, from: usize| {
            let stride = class.stride();
            (0..class.count).rev().map(|n| from + n * stride).collect()
        };
        let mut memory = Region::new(total)?;
        keep_resident_when_used(memory.bytes_mut());
        Ok(Slots {
            memory,
            free_small: places(&SMALL, 0),
            free_large: places(&LARGE, large_from),
        })
    }

    /// A free slot for a read of `pages_bytes`; `None` when all that are large enough are taken.
    pub fn take(&mut self, pages_bytes: usize) -> Option<Slot> {
        let is_large = pages_bytes > SMALL.pages_bytes;
        let at = match is_large {
            false => self.free_small.pop(),
            true if pages_bytes <= LARGE.pages_bytes => self.free_large.pop(),
            true => None,
        };
        at.map(|at| Slot { at, is_large })
    }

    /// Gives a slot back.
    pub fn give(&mut self, slot: Slot) {
        match slot.is_large {
            true => self.free_large.push(slot.at),
            false => self.free_small.push(slot.at),
        }
    }

    /// Where the pages of a slot go.
    pub fn pages(&mut self, slot: &Slot) -> *mut u8 {
        self.memory.bytes_mut()[slot.at + HEAD_ROOM..].as_mut_ptr()
    }

    /// The bytes `wanted` of a slot's pages, with `head` right before them.
    pub fn reply(&mut self, slot: &Slot, head: &[u8], wanted: Range<usize>) -> &[u8] {
        let body = slot.at + HEAD_ROOM + wanted.start;
        let begin = body - head.len();
        self.memory.bytes_mut()[begin..body].copy_from_slice(head);
        &self.memory.bytes()[begin..body + wanted.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_the_head_and_the_wanted_bytes_in_one_piece() {
        let mut slots = Slots::new().expect("memory");
        let slot = slots.take(8192).expect("free");
        let at = slots.pages(&slot);
        assert_eq!(at as usize % 4096, 0);
        // SAFETY: the slot has room for the 8192 bytes asked for.
        unsafe { at.write_bytes(7, 8192) };
        let reply = slots.reply(&slot, b"head", 512..1024);
        assert_eq!(&reply[..4], b"head");
        assert_eq!(reply.len(), 516);
        assert!(reply[4..].iter().all(|&byte| byte == 7));
        let reply = slots.reply(&slot, b"head", 0..8192);
        assert_eq!((reply[0], reply.len()), (b'h', 8196));
    }

    #[test]
    fn slots_run_out_come_back_and_do_not_overlap() {
        let mut slots = Slots::new().expect("memory");
        let large: Vec<Slot> = std::iter::from_fn(|| slots.take(LARGE.pages_bytes)).collect();
        let small: Vec<Slot> = std::iter::from_fn(|| slots.take(4096)).collect();
        assert_eq!((large.len(), small.len()), (LARGE.count, SMALL.count));
        assert!(slots.take(LARGE.pages_bytes + 1).is_none());
        let mut places: Vec<_> = (large.iter().map(|slot| (slot.at, LARGE.stride())))
            .chain(small.iter().map(|slot| (slot.at, SMALL.stride())))
            .collect();
        places.sort_unstable();
        let apart = |two: &[(usize, usize)]| two[0].0 + two[0].1 <= two[1].0;
        assert!(places.windows(2).all(apart));
        let last = places.last().expect("some");
        assert!(last.0 + last.1 <= slots.memory.bytes().len());
        large.into_iter().for_each(|slot| slots.give(slot));
        assert!(slots.take(1 << 20).is_some());
    }
}
