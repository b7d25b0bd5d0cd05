//! A table of a ledger: fixed slots, each beginning with a word that says whether it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::header::Mark;
use super::memory::Memory;

/// The first word of a slot that is used; a free one begins with 0.
const USED: u64 = 1;

/// Where a table lies and what it holds.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// For people.
    pub what: &'static str,
    pub first_word: usize,
    pub slot_words: usize,
    pub slots: usize,
    pub mark: Mark,
}

impl Layout {
    /// The word behind the table.
    pub const fn end(&self) -> usize {
        self.first_word + self.slot_words * self.slots
    }
}

/// A table in memory, and which of its slots are free.
pub struct Table {
    memory: Arc<Memory>,
    layout: Layout,
    free: Mutex<Free>,
    /// That it is full was said.
    told: AtomicBool,
}

struct Free {
    /// Free slots below the high mark; the latest freed is the next used, its memory is there.
    slots: Vec<u32>,
    /// The high mark.
    unused_from: u32,
}

/// One slot of a table.
#[derive(Clone, Copy)]
pub struct Slot<'a> {
    memory: &'a Memory,
    at: usize,
}

impl Table {
    /// The table that lies in `memory`.
    pub fn new(memory: Arc<Memory>, layout: Layout) -> Table {
        let marked = memory.get(layout.mark as usize).min(layout.slots as u64);
        let table = Table {
            memory,
            layout,
            free: Mutex::new(Free {
                slots: Vec::new(),
                unused_from: marked as u32,
            }),
            told: AtomicBool::new(false),
        };
        let free = (0..marked as u32).rev();
        let free = free.filter(|&number| !table.slot(number).is_used());
        table.free.lock().slots = free.collect();
        table
    }

    pub fn slot(&self, number: u32) -> Slot<'_> {
        Slot {
            memory: &self.memory,
            at: self.layout.first_word + number as usize * self.layout.slot_words,
        }
    }

    /// The slots that are used.
    pub fn used(&self) -> Vec<u32> {
        let marked = self.free.lock().unused_from;
        (0..marked)
            .filter(|&number| self.slot(number).is_used())
            .collect()
    }

    /// A free slot, to be filled and then marked used; `None` when the table is full.
    pub fn take(&self) -> Option<u32> {
        let mut free = self.free.lock();
        if let Some(number) = free.slots.pop() {
            return Some(number);
        }
        let number = free.unused_from;
        if number as usize == self.layout.slots {
            return None;
        }
        free.unused_from += 1;
        self.memory
            .set(self.layout.mark as usize, u64::from(free.unused_from));
        Some(number)
    }

    /// Says, once, that what comes now is not carried.
    pub fn tell_full(&self) {
        if !self.told.swap(true, Ordering::AcqRel) {
            log::warn!(
                "more than {} {}: further ones do not survive a restart of the server",
                self.layout.slots,
                self.layout.what
            );
        }
    }

    /// Marks a slot free and gives it back.
    pub fn free(&self, number: u32) {
        self.slot(number).set(0, 0);
        self.free.lock().slots.push(number);
    }
}

impl Slot<'_> {
    pub fn get(&self, word: usize) -> u64 {
        self.memory.get(self.at + word)
    }

    pub fn set(&self, word: usize, value: u64) {
        self.memory.set(self.at + word, value);
    }

    pub fn set_bytes(&self, word: usize, bytes: &[u8]) {
        self.memory.set_bytes(self.at + word, bytes);
    }

    pub fn bytes(&self, word: usize, len: usize) -> Vec<u8> {
        self.memory.bytes(self.at + word, len)
    }

    pub fn is_used(&self) -> bool {
        self.get(0) == USED
    }

    /// Everything in it is there.
    pub fn mark_used(&self) {
        self.set(0, USED);
    }
}
