//! S3-FIFO: three queues, no work on a hit.
//!
//! Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP
//! 2023. New blocks enter the small queue (a tenth of all); those used more than once there move
//! to the main queue, the others leave and are remembered in the ghost, from which they would
//! return straight to the main queue. In the main queue a used block gets another round.

use std::collections::VecDeque;

use super::{Heat, Key, Module};

/// The small queue's share of all blocks: one in this many.
const SMALL_SHARE: usize = 10;
/// Uses in the small queue that earn a place in the main queue.
const PROMOTE_HEAT: u8 = 2;

/// The state of the algorithm: 8 bytes per resident block and 8 per remembered one.
#[derive(Default)]
pub struct S3Fifo {
    small: VecDeque<Key>,
    main: VecDeque<Key>,
    ghost: Ghost,
}

impl Module for S3Fifo {
    fn inserted(&mut self, key: Key) {
        if self.ghost.forget(key) {
            self.main.push_back(key);
        } else {
            self.small.push_back(key);
        }
    }

    fn victim(&mut self, heat: &dyn Heat) -> Option<Key> {
        loop {
            let small_is_large = self.small.len() * SMALL_SHARE >= self.len();
            let found = if small_is_large || self.main.is_empty() {
                self.victim_of_small(heat)
            } else {
                self.victim_of_main(heat)
            };
            if found.is_some() || self.is_empty() {
                return found;
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
        let key = self.small.pop_front()?;
        match heat.heat(key)? {
            uses if uses >= PROMOTE_HEAT => {
                heat.set_heat(key, 0);
                self.main.push_back(key);
                None
            }
            _ => {
                self.ghost.remember(key, self.main.len() + self.small.len());
                Some(key)
            }
        }
    }

    /// Looks at the oldest main block: a victim, or given another round, or gone already.
    fn victim_of_main(&mut self, heat: &dyn Heat) -> Option<Key> {
        let key = self.main.pop_front()?;
        match heat.heat(key)? {
            0 => Some(key),
            uses => {
                heat.set_heat(key, uses - 1);
                self.main.push_back(key);
                None
            }
        }
    }
}

/// Blocks evicted lately, as a table of fingerprints; an entry is valid while fewer blocks than the
/// cache holds have been remembered after it. A collision only loses an old memory.
#[derive(Default)]
struct Ghost {
    /// Fingerprint and the number of the memory; number 0 is an empty place.
    places: Vec<(u32, u32)>,
    latest: u32,
    valid: u32,
}

impl Ghost {
    const PLACES_MIN: usize = 1024;

    fn remember(&mut self, key: Key, cache_blocks: usize) {
        let wanted = cache_blocks.next_power_of_two().max(Self::PLACES_MIN);
        if wanted > self.places.len() {
            self.places = vec![(0, 0); wanted]; // growing forgets: rare, and harmless
        }
        self.valid = u32::try_from(cache_blocks).unwrap_or(u32::MAX);
        self.latest = self.latest.wrapping_add(1).max(1);
        let (place, print) = self.place(key);
        self.places[place] = (print, self.latest);
    }

    /// Removes the memory of `key`; true if there was one.
    fn forget(&mut self, key: Key) -> bool {
        if self.places.is_empty() {
            return false;
        }
        let (place, print) = self.place(key);
        let (known, number) = self.places[place];
        let found =
            number != 0 && known == print && self.latest.wrapping_sub(number) < self.valid.max(1);
        if found {
            self.places[place] = (0, 0);
        }
        found
    }

    fn place(&self, key: Key) -> (usize, u32) {
        let hash = xxhash_rust::xxh3::xxh3_64(&key.0.to_le_bytes());
        let place = (hash as usize) & (self.places.len() - 1);
        (place, (hash >> 32) as u32)
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
