//! The open directories: what a handle's number means. Where a listing goes on the kernel says itself.

use super::table::Table;

/// Words of a slot, after the one that says whether it is used.
mod word {
    pub const NUMBER: usize = 1;
    pub const NODEID: usize = 2;
    pub const UNIQUE: usize = 3;
}

/// Which slot an open directory has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirSlot(u32);

/// An open directory as the ledger has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarriedDir {
    /// What the kernel calls it.
    pub number: u64,
    /// The inode it opens.
    pub nodeid: u64,
    /// The OPENDIR that made it.
    pub unique: u64,
}

/// The table of open directories.
pub struct DirTable(pub(super) Table);

impl DirTable {
    /// Notes an open directory; `None` when it cannot be carried.
    pub fn add(&self, dir: &CarriedDir) -> Option<DirSlot> {
        let Some(number) = self.0.take() else {
            self.0.tell_full();
            return None;
        };
        let slot = self.0.slot(number);
        slot.set(word::NUMBER, dir.number);
        slot.set(word::NODEID, dir.nodeid);
        slot.set(word::UNIQUE, dir.unique);
        slot.mark_used();
        Some(DirSlot(number))
    }

    /// It is closed.
    pub fn remove(&self, dir: DirSlot) {
        self.0.free(dir.0);
    }

    /// Everything in it.
    pub fn all(&self) -> Vec<(DirSlot, CarriedDir)> {
        let carried = |number: u32| {
            let slot = self.0.slot(number);
            let dir = CarriedDir {
                number: slot.get(word::NUMBER),
                nodeid: slot.get(word::NODEID),
                unique: slot.get(word::UNIQUE),
            };
            (DirSlot(number), dir)
        };
        self.0.used().into_iter().map(carried).collect()
    }
}
