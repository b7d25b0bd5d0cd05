//! The ledger: what one server of a mount leaves to the next, in memory that both map.
//!
//! A memfd, made with the mount and held by the keeper: a header with counters, then tables of fixed slots
//! for nodes, open files, open directories and calls in flight. Whoever serves writes; nobody else does, so
//! a plain store is enough, and what a server wrote before it was killed is there. The tables have room for
//! more than a mount needs; memory is only used where something was written. When a table is full that is
//! said once, and what finds no room is not carried.
//!
//! # Invariants
//! - A slot is filled first and marked used last, so a used slot is whole. What changes in a used slot is
//!   one word, or lies under a count that is odd while it is written ([`nodes`]): torn is told from right.
//! - No slot above a table's high mark was ever used, so that looking for them touches no memory.
//!
//! # Locking
//! Which slots are free is known to the process that serves, under a lock for each table.

pub mod calls;
pub mod dirs;
pub mod files;
mod header;
mod memory;
pub mod nodes;
mod table;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use self::header::{Header, Mark};
use self::memory::Memory;
use self::table::{Layout, Table};

/// The layout below; a server of another build may take on a ledger of the same version only.
pub const VERSION: u32 = 1;

/// The tables, one after the other behind the header. Slots are counted in words of 8 bytes.
const NODES: Layout = Layout {
    what: "inodes",
    first_word: header::WORDS,
    slot_words: 64,
    slots: 128 << 10,
    mark: Mark::Nodes,
};
const FILES: Layout = Layout {
    what: "open files",
    first_word: NODES.end(),
    slot_words: 64,
    slots: 16 << 10,
    mark: Mark::Files,
};
const DIRS: Layout = Layout {
    what: "open directories",
    first_word: FILES.end(),
    slot_words: 8,
    slots: 16 << 10,
    mark: Mark::Dirs,
};
const CALLS: Layout = Layout {
    what: "requests under way",
    first_word: DIRS.end(),
    slot_words: 16,
    slots: 4 << 10,
    mark: Mark::Calls,
};

/// The shared memory of one mount.
pub struct Ledger {
    memory: Arc<Memory>,
    pub nodes: nodes::NodeTable,
    pub files: files::FileTable,
    pub dirs: dirs::DirTable,
    pub calls: Arc<calls::CallTable>,
}

impl Ledger {
    /// An empty one. Fails without memory.
    pub fn new() -> io::Result<Ledger> {
        let memory = Memory::create(CALLS.end())?;
        Header(&memory).begin(VERSION);
        Ok(Ledger::of(memory))
    }

    /// The one that another process has made. InvalidData where that is of another version.
    pub fn open(memory: OwnedFd) -> io::Result<Ledger> {
        let memory = Memory::map(memory, CALLS.end())?;
        Header(&memory).check(VERSION)?;
        Ok(Ledger::of(memory))
    }

    fn of(memory: Memory) -> Ledger {
        let memory = Arc::new(memory);
        let table = |layout: &Layout| Table::new(memory.clone(), *layout);
        Ledger {
            nodes: nodes::NodeTable(table(&NODES)),
            files: files::FileTable(table(&FILES)),
            dirs: dirs::DirTable(table(&DIRS)),
            calls: Arc::new(calls::CallTable::new(table(&CALLS))),
            memory,
        }
    }

    /// To hand it on.
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.memory.descriptor()
    }

    /// How many servers have taken over from one before.
    pub fn restarts(&self) -> u64 {
        Header(&self.memory).restarts()
    }

    /// Another server has taken over.
    pub fn restarted(&self) {
        Header(&self.memory).restarted();
    }

    /// How many requests the kernel has sent again.
    pub fn resent_requests(&self) -> u64 {
        Header(&self.memory).resent_requests()
    }

    /// The kernel has sent a request again.
    pub fn resent(&self) {
        Header(&self.memory).resent();
    }

    /// A number for an open file or directory; none is given twice.
    pub fn next_handle(&self) -> u64 {
        Header(&self.memory).next_handle()
    }

    /// A number for an inode whose own is taken; none is given twice.
    pub fn next_synthetic(&self) -> u64 {
        Header(&self.memory).next_synthetic()
    }
}

#[cfg(test)]
mod tests;
