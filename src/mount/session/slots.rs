//! Memory for the answers of one thread's reads: made once, bounded, never allocated on the way.
//!
//! A slot is one piece of memory: a page for the head of the reply, then the pages that are read. The
//! head is put right before the first wanted byte, so that a reply is one write of one piece.
//!
//! *Invariant*: a slot is either free or in the hands of whoever took it.

use crate::io::Buffer;

/// Room before the pages, for the head of a reply.
const HEAD_ROOM: usize = 4096;

/// Slots of one size.
struct Class {
    pages_bytes: usize,
    free: Vec<Buffer>,
}

/// All slots of a thread: many small ones and a few large ones.
pub struct Slots {
    classes: [Class; 2],
}

/// Sizes and counts: with 64 small reads or 8 of a mebibyte under way the flash of a host is busy. A
/// read may touch one page more than its length. Untouched slots cost no memory.
const SMALL_BYTES: usize = 32 << 10;
const SMALL_COUNT: usize = 64;
const LARGE_BYTES: usize = (1 << 20) + 4096;
const LARGE_COUNT: usize = 8;

/// One slot.
pub struct Slot {
    buffer: Buffer,
    class: usize,
}

impl Slots {
    pub fn new() -> Slots {
        let class = |pages_bytes: usize, count: usize| Class {
            pages_bytes,
            free: (0..count)
                .map(|_| Buffer::new(HEAD_ROOM + pages_bytes))
                .collect(),
        };
        Slots {
            classes: [
                class(SMALL_BYTES, SMALL_COUNT),
                class(LARGE_BYTES, LARGE_COUNT),
            ],
        }
    }

    /// A free slot for a read of `pages_bytes`; `None` when all that are large enough are taken.
    pub fn take(&mut self, pages_bytes: usize) -> Option<Slot> {
        let fitting = self
            .classes
            .iter()
            .position(|class| pages_bytes <= class.pages_bytes)?;
        let class = &mut self.classes[fitting];
        let buffer = class.free.pop()?;
        Some(Slot {
            buffer,
            class: fitting,
        })
    }

    /// Gives a slot back.
    pub fn give(&mut self, slot: Slot) {
        self.classes[slot.class].free.push(slot.buffer);
    }
}

impl Slot {
    /// Where the pages go.
    pub fn pages(&mut self) -> *mut u8 {
        self.buffer.bytes_mut()[HEAD_ROOM..].as_mut_ptr()
    }

    /// The bytes `wanted` of the pages, with `head` right before them.
    pub fn reply(&mut self, head: &[u8], wanted: std::ops::Range<usize>) -> &[u8] {
        let body = HEAD_ROOM + wanted.start;
        let begin = body - head.len();
        self.buffer.bytes_mut()[begin..body].copy_from_slice(head);
        &self.buffer.bytes()[begin..HEAD_ROOM + wanted.end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_the_head_and_the_wanted_bytes_in_one_piece() {
        let mut slots = Slots::new();
        let mut slot = slots.take(8192).expect("free");
        let at = slot.pages();
        assert_eq!(at as usize % 4096, 0);
        // SAFETY: the slot has room for the 8192 bytes asked for.
        unsafe { at.write_bytes(7, 8192) };
        let reply = slot.reply(b"head", 512..1024);
        assert_eq!(&reply[..4], b"head");
        assert_eq!(reply.len(), 516);
        assert!(reply[4..].iter().all(|&byte| byte == 7));
        let reply = slot.reply(b"head", 0..8192);
        assert_eq!((reply[0], reply.len()), (b'h', 8196));
    }

    #[test]
    fn slots_run_out_and_come_back() {
        let mut slots = Slots::new();
        let taken: Vec<Slot> = std::iter::from_fn(|| slots.take(1 << 20)).collect();
        assert_eq!(taken.len(), LARGE_COUNT);
        assert!(slots.take(LARGE_BYTES + 1).is_none());
        assert!(slots.take(4096).is_some());
        taken.into_iter().for_each(|slot| slots.give(slot));
        assert!(slots.take(LARGE_BYTES).is_some());
    }
}
