//! What this server leaves to the next as it goes: open files and directories in the ledger, and the
//! files' descriptors with whoever holds them. (Inodes are noted by [`super::nodes`], requests by
//! [`super::once`].)
//!
//! # Order of steps
//! At an open: the descriptor is held, the slot is filled, the handle is answered. At the end: the slot is
//! marked as closing, what belongs to the file is given back (its backing id above all), the slot is freed, the
//! descriptor let go. So a used slot has its descriptor and a backing id has a slot, wherever a server dies.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::handover::ledger::dirs::{CarriedDir, DirSlot};
use crate::handover::ledger::files::{CarriedFile, FileSlot};
use crate::handover::{Holder, Ledger};
use crate::store::StoreFile;

/// Where things are left.
pub struct Legacy {
    pub ledger: Arc<Ledger>,
    holder: Arc<dyn Holder>,
    /// What servers before have opened, by the request that asked for it.
    pub files_by_request: Mutex<HashMap<u64, u64>>,
    pub dirs_by_request: Mutex<HashMap<u64, u64>>,
}

impl Legacy {
    pub fn new(ledger: Arc<Ledger>, holder: Arc<dyn Holder>) -> Legacy {
        Legacy {
            ledger,
            holder,
            files_by_request: Mutex::default(),
            dirs_by_request: Mutex::default(),
        }
    }

    /// A file is about to be answered. `None`: it is not carried.
    pub fn file_opened(&self, carried: &CarriedFile, file: &dyn StoreFile) -> Option<FileSlot> {
        let descriptor = file.descriptor()?;
        self.holder.hold(carried.number, descriptor.as_fd());
        let slot = self.ledger.files.add(carried);
        if slot.is_none() {
            self.holder.let_go(carried.number);
        }
        slot
    }

    /// The kernel has closed a file.
    pub fn file_closing(&self, slot: Option<FileSlot>) {
        if let Some(slot) = slot {
            self.ledger.files.closing(slot);
        }
    }

    /// A file is closed.
    pub fn file_closed(&self, number: u64, slot: Option<FileSlot>) {
        if let Some(slot) = slot {
            self.ledger.files.remove(slot);
            self.holder.let_go(number);
        }
    }

    /// Nobody knows the file that is held under this number.
    pub fn let_go(&self, number: u64) {
        self.holder.let_go(number);
    }

    /// A directory is about to be answered.
    pub fn dir_opened(&self, dir: &CarriedDir) -> Option<DirSlot> {
        self.ledger.dirs.add(dir)
    }

    /// A directory is closed.
    pub fn dir_closed(&self, slot: Option<DirSlot>) {
        if let Some(slot) = slot {
            self.ledger.dirs.remove(slot);
        }
    }
}
