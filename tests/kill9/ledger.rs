//! Who wrote what: for every sector the last acknowledged version, and the version on its way.
//!
//! *Invariants.* A sector with a version on its way belongs to one writer; nobody else writes it.
//! Versions of a sector only grow. What was on its way when the daemon died stays so until the
//! sector has been looked at again.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::rig::stamp::Found;

/// The state of all sectors of the image.
pub struct Ledger {
    acknowledged: Vec<AtomicU64>,
    /// 0: nothing on its way.
    coming: Vec<AtomicU64>,
    /// Claimed since it was last looked at after a crash.
    touched: Vec<AtomicBool>,
    next: AtomicU64,
}

impl Ledger {
    /// Every sector holds version 0.
    pub fn new(sectors: u64) -> Ledger {
        let zeros = || (0..sectors).map(|_| AtomicU64::new(0)).collect();
        Ledger {
            acknowledged: zeros(),
            coming: zeros(),
            touched: (0..sectors).map(|_| AtomicBool::new(true)).collect(),
            next: AtomicU64::new(1),
        }
    }

    pub fn sectors(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    /// Takes `sectors` for one write, unless another write has one of them; its version.
    pub fn claim(&self, sectors: Range<u64>) -> Option<u64> {
        let version = self.next.fetch_add(1, Ordering::SeqCst);
        for sector in sectors.clone() {
            let free = self.coming[sector as usize].compare_exchange(
                0,
                version,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
            self.touched[sector as usize].store(true, Ordering::SeqCst);
            if free.is_err() {
                self.release(sectors.start..sector);
                return None;
            }
        }
        Some(version)
    }

    /// The write of `version` to `sectors` was acknowledged.
    pub fn acknowledge(&self, sectors: Range<u64>, version: u64) {
        for sector in sectors.clone() {
            self.acknowledged[sector as usize].store(version, Ordering::SeqCst);
        }
        self.release(sectors);
    }

    fn release(&self, sectors: Range<u64>) {
        for sector in sectors {
            self.coming[sector as usize].store(0, Ordering::SeqCst);
        }
    }

    /// The version a sector certainly has, if nothing is on its way to it.
    pub fn settled(&self, sector: u64) -> Option<u64> {
        let coming = self.coming[sector as usize].load(Ordering::SeqCst);
        let version = self.acknowledged[sector as usize].load(Ordering::SeqCst);
        (coming == 0).then_some(version)
    }

    /// True once after each claim of the sector: it may have changed.
    pub fn take_touched(&self, sector: u64) -> bool {
        self.touched[sector as usize].swap(false, Ordering::SeqCst)
    }

    /// Looks at a sector after a crash, when nobody writes: true if it holds what was acknowledged
    /// or what was on its way. What it holds counts from now on.
    pub fn settle(&self, sector: u64, found: Found) -> bool {
        let coming = self.coming[sector as usize].swap(0, Ordering::SeqCst);
        let version = self.acknowledged[sector as usize].load(Ordering::SeqCst);
        match found {
            Found::Version(is) if is == version => true,
            Found::Version(is) if coming != 0 && is == coming => {
                self.acknowledged[sector as usize].store(is, Ordering::SeqCst);
                true
            }
            _ => false,
        }
    }
}
