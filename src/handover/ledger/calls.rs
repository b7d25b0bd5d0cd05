//! Requests under way that must not be carried out twice, and how far they have come.
//!
//! A request that a server has taken and not answered is sent again to its successor, which cannot know
//! by itself what of it is done. So the server notes what it found before it asks the store, that the store
//! refused, and which inode it is about to tell the kernel.
//!
//! *Order of steps*: a slot is taken, the request [`Call::asks`] with what was found, the store is asked,
//! [`Call::refused`] where it says no, [`Call::gives`] before an inode is told, the reply goes out, the slot
//! is freed with the last use of the [`Call`]. A slot whose reply went out just before its server died
//! stays; its request never comes again, and the slot is used when there is no other.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::table::Table;

/// Words of a slot, after the one that says whether it is used.
mod word {
    pub const UNIQUE: usize = 1;
    pub const STAGE: usize = 2;
    pub const GIVEN: usize = 3;
    /// Which of the two ids below are known, as bits.
    pub const KNOWN: usize = 4;
    pub const IDS: usize = 5;
}

/// How far a request has come.
mod stage {
    pub const TAKEN: u64 = 0;
    pub const ASKED: u64 = 1;
}

/// An object of the store by inode number and tag.
pub type Id = (u64, u64);

/// What a request found before it asked the store: as many as two objects, by meaning of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings(pub [Option<Id>; 2]);

/// The table of calls.
pub struct CallTable {
    table: Table,
    /// What servers before have left, by request.
    carried: Mutex<HashMap<u64, u32>>,
}

/// A request that has a slot; freed when dropped.
pub struct Call {
    calls: Arc<CallTable>,
    slot: u32,
    earlier: Option<Findings>,
}

impl CallTable {
    pub(super) fn new(table: Table) -> CallTable {
        let by_unique = |slot: u32| (table.slot(slot).get(word::UNIQUE), slot);
        let carried = table.used().into_iter().map(by_unique).collect();
        CallTable {
            carried: Mutex::new(carried),
            table,
        }
    }

    /// A slot for the request `unique`; where it was `sent_again`, the one that it had. `None` when there
    /// is no room: it is served, but not safe from being carried out twice.
    pub fn begin(self: &Arc<Self>, unique: u64, sent_again: bool) -> Option<Call> {
        if sent_again && let Some(slot) = self.carried.lock().remove(&unique) {
            return Some(Call {
                calls: self.clone(),
                slot,
                earlier: self.findings(slot),
            });
        }
        let Some(number) = self.table.take().or_else(|| self.take_left_over()) else {
            self.table.tell_full();
            return None;
        };
        let slot = self.table.slot(number);
        slot.set(word::UNIQUE, unique);
        slot.set(word::STAGE, stage::TAKEN);
        slot.set(word::GIVEN, 0);
        slot.mark_used();
        Some(Call {
            calls: self.clone(),
            slot: number,
            earlier: None,
        })
    }

    /// What an earlier server found before it asked the store; `None` if it did not ask, or was refused.
    fn findings(&self, slot: u32) -> Option<Findings> {
        let slot = self.table.slot(slot);
        if slot.get(word::STAGE) != stage::ASKED {
            return None;
        }
        let known = slot.get(word::KNOWN);
        let id = |which: usize| {
            let at = word::IDS + 2 * which;
            (known & (1 << which) != 0).then(|| (slot.get(at), slot.get(at + 1)))
        };
        Some(Findings([id(0), id(1)]))
    }

    fn take_left_over(&self) -> Option<u32> {
        let mut carried = self.carried.lock();
        let unique = *carried.keys().min()?;
        let number = carried.remove(&unique)?;
        self.table.slot(number).set(0, 0);
        Some(number)
    }

    /// How many slots are used.
    pub fn count(&self) -> usize {
        self.table.used().len()
    }
}

impl Call {
    /// What was found before the store was asked for this by a server that did not answer.
    pub fn earlier(&self) -> Option<Findings> {
        self.earlier
    }

    /// The inode that a server before was about to tell, if any; told once.
    pub fn given(&self) -> Option<u64> {
        let slot = self.calls.table.slot(self.slot);
        let nodeid = slot.get(word::GIVEN);
        slot.set(word::GIVEN, 0);
        (nodeid != 0).then_some(nodeid)
    }

    /// The store is about to be asked. What an earlier server found stays: it was before the change.
    pub fn asks(&self, findings: Findings) {
        if self.earlier.is_some() {
            return;
        }
        let slot = self.calls.table.slot(self.slot);
        let mut known = 0;
        for (which, id) in findings.0.iter().enumerate() {
            if let Some((ino, tag)) = id {
                known |= 1 << which;
                slot.set(word::IDS + 2 * which, *ino);
                slot.set(word::IDS + 2 * which + 1, *tag);
            }
        }
        slot.set(word::KNOWN, known);
        slot.set(word::STAGE, stage::ASKED);
    }

    /// The store has not done it.
    pub fn refused(&self) {
        let slot = self.calls.table.slot(self.slot);
        slot.set(word::STAGE, stage::TAKEN);
    }

    /// The kernel is about to be told of this inode, which has one reference more; or after all of none.
    pub fn gives(&self, nodeid: Option<u64>) {
        let slot = self.calls.table.slot(self.slot);
        slot.set(word::GIVEN, nodeid.unwrap_or(0)); // no inode is called 0
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.table.free(self.slot);
    }
}
