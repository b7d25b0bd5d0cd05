//! S3-FIFO: three queues, no work on a hit.
//!
//! Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP
//! 2023. New blocks enter the small queue (a tenth of all); those used more than once there move
//! to the main queue, the others leave and are remembered in the ghost, from which they would
//! return straight to the main queue. In the main queue a used block gets another round.
//!
//! # Memory
//! At most 8 bytes per resident block at any number of blocks, and a few KiB:
//! - 5 in a queue, as a short name ([`super::groups`]) in pieces that never double ([`super::queue`]);
//! - 1.8, for a while up to 2.3, in the ghost: 2 bytes for each block of the main queue
//!   ([`super::ghost`]);
//! - less than 0.6 for the groups, where a tenth of a percent of an image or more is resident.
//!
//! Blocks that left the cache by another door (an image was deleted) stay in the queues until their turn
//! comes or somebody sweeps.

use super::ghost::Ghost;
use super::groups::{Groups, Short};
use super::queue::Queue;
use super::{Heat, Key, Module};

/// The small queue's share of all blocks: one in this many.
const SMALL_SHARE: usize = 10;
/// Uses in the small queue that earn a place in the main queue.
const PROMOTE_HEAT: u8 = 2;

/// The state of the algorithm.
#[derive(Default)]
pub struct S3Fifo {
    small: Queue,
    main: Queue,
    ghost: Ghost,
    groups: Groups,
}

impl Module for S3Fifo {
    fn inserted(&mut self, key: Key) {
        let short = self.groups.enter(key);
        if self.ghost.forget(key) {
            self.main.push(short);
        } else {
            self.small.push(short);
        }
    }

    fn victim(&mut self, heat: &dyn Heat) -> Option<Key> {
        self.ghost.fit(self.len() - self.len() / SMALL_SHARE);
        loop {
            let small_is_large = self.small.len() * SMALL_SHARE >= self.len();
            let found = if small_is_large || self.main.len() == 0 {
                self.victim_of_small(heat)
            } else {
                self.victim_of_main(heat)
            };
            if found.is_some() || self.is_empty() {
                return found;
            }
        }
    }

    fn sweep(&mut self, heat: &dyn Heat) {
        for queue in [&mut self.small, &mut self.main] {
            for _ in 0..queue.len() {
                let Some(short) = queue.pop() else {
                    break;
                };
                match heat.heat(self.groups.key(short)) {
                    Some(_) => queue.push(short),
                    None => _ = self.groups.leave(short),
                }
            }
        }
    }

    fn len(&self) -> usize {
        self.small.len() + self.main.len()
    }
}

impl S3Fifo {
    /// Looks at the oldest small block: a victim, or promoted, or gone already.
    fn victim_of_small(&mut self, heat: &dyn Heat) -> Option<Key> {
        let short = self.small.pop()?;
        match self.heat_or_leave(short, heat)? {
            uses if uses >= PROMOTE_HEAT => {
                heat.set_heat(self.groups.key(short), 0);
                self.main.push(short);
                None
            }
            _ => {
                let key = self.groups.leave(short);
                self.ghost.remember(key);
                Some(key)
            }
        }
    }

    /// Looks at the oldest main block: a victim, or given another round, or gone already.
    fn victim_of_main(&mut self, heat: &dyn Heat) -> Option<Key> {
        let short = self.main.pop()?;
        match self.heat_or_leave(short, heat)? {
            0 => Some(self.groups.leave(short)),
            uses => {
                heat.set_heat(self.groups.key(short), uses - 1);
                self.main.push(short);
                None
            }
        }
    }

    /// The heat of a block taken from a queue; one that is gone is forgotten.
    fn heat_or_leave(&mut self, short: Short, heat: &dyn Heat) -> Option<u8> {
        let found = heat.heat(self.groups.key(short));
        if found.is_none() {
            self.groups.leave(short);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::HashMap;

    /// A cache of block numbers driven by the module.
    struct Sim {
        heat: RefCell<HashMap<Key, u8>>,
        module: S3Fifo,
        capacity: usize,
    }

    impl Heat for Sim {
        fn heat(&self, key: Key) -> Option<u8> {
            self.heat.borrow().get(&key).copied()
        }
        fn set_heat(&self, key: Key, heat: u8) {
            self.heat.borrow_mut().insert(key, heat);
        }
    }

    impl Sim {
        fn new(capacity: usize) -> Sim {
            Sim {
                heat: RefCell::default(),
                module: S3Fifo::default(),
                capacity,
            }
        }

        /// True on a hit.
        fn access(&mut self, block: u64) -> bool {
            let key = Key(block);
            if let Some(heat) = self.heat.borrow_mut().get_mut(&key) {
                *heat = (*heat + 1).min(3);
                return true;
            }
            if self.heat.borrow().len() == self.capacity {
                let mut module = std::mem::take(&mut self.module);
                let victim = module.victim(self).expect("a full cache has a victim");
                self.module = module;
                assert!(self.heat.borrow_mut().remove(&victim).is_some());
            }
            self.heat.borrow_mut().insert(key, 0);
            self.module.inserted(key);
            false
        }
    }

    #[test]
    fn a_scan_does_not_evict_what_is_used() {
        let mut sim = Sim::new(100);
        for _ in 0..4 {
            (0..50).for_each(|block| {
                sim.access(block);
            });
        }
        (1000..2000).for_each(|block| {
            sim.access(block);
        });
        let hits = (0..50).filter(|block| sim.access(*block)).count();
        assert!(hits >= 45, "{hits} of 50 used blocks survived the scan");
    }

    #[test]
    fn a_block_that_left_the_cache_is_skipped() {
        let mut sim = Sim::new(10);
        (0..10).for_each(|block| {
            sim.access(block);
        });
        sim.heat.borrow_mut().clear();
        let mut module = std::mem::take(&mut sim.module);
        assert_eq!(module.victim(&sim), None);
        assert!(module.is_empty());
    }
}
