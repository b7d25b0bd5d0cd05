//! Who works on a block's bytes in the cache file: several inserts, or one eviction or verification.
//!
//! # Locking
//! `claims` is held for bookkeeping only; who meets others waits on `freed`, for as long as these take
//! to write, punch or read on flash.

use std::collections::HashMap;
use std::ops::Range;

use parking_lot::{Condvar, Mutex};

/// The claims on the blocks of one image.
#[derive(Default)]
pub struct Claims {
    /// Inserts counted, or [`ALONE`].
    claims: Mutex<HashMap<u64, u32>>,
    freed: Condvar,
}

const ALONE: u32 = u32::MAX;

/// A claim; ends when dropped.
pub struct Claim<'a> {
    claims: &'a Claims,
    blocks: Range<u64>,
}

impl Claims {
    /// Claims `blocks` together with others who insert; waits for who has one alone.
    pub fn share(&self, blocks: Range<u64>) -> Claim<'_> {
        let mut claims = self.claims.lock();
        for block in blocks.clone() {
            while claims.get(&block) == Some(&ALONE) {
                self.freed.wait(&mut claims);
            }
            *claims.entry(block).or_insert(0) += 1;
        }
        Claim {
            claims: self,
            blocks,
        }
    }

    /// Waits until nobody has a claim. Each lasts as long as one access to flash.
    pub fn wait_until_idle(&self) {
        let mut claims = self.claims.lock();
        while !claims.is_empty() {
            self.freed.wait(&mut claims);
        }
    }

    /// Claims one block alone, if nobody has it.
    pub fn try_alone(&self, block: u64) -> Option<Claim<'_>> {
        let mut claims = self.claims.lock();
        if claims.contains_key(&block) {
            return None;
        }
        Some(self.take_alone(&mut claims, block))
    }

    /// Claims one block alone; waits until nobody has it.
    pub fn alone(&self, block: u64) -> Claim<'_> {
        let mut claims = self.claims.lock();
        while claims.contains_key(&block) {
            self.freed.wait(&mut claims);
        }
        self.take_alone(&mut claims, block)
    }

    fn take_alone(&self, claims: &mut HashMap<u64, u32>, block: u64) -> Claim<'_> {
        claims.insert(block, ALONE);
        Claim {
            claims: self,
            blocks: block..block + 1,
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claims = self.claims.claims.lock();
        for block in self.blocks.clone() {
            match claims.get_mut(&block) {
                Some(count) if *count != ALONE && *count > 1 => *count -= 1,
                _ => {
                    claims.remove(&block);
                }
            }
        }
        self.claims.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_keeps_eviction_away_and_the_reverse() {
        let claims = Claims::default();
        let insert = claims.share(3..5);
        let other = claims.share(4..6);
        assert!(claims.try_alone(4).is_none());
        drop(insert);
        assert!(claims.try_alone(4).is_none());
        assert!(claims.try_alone(3).is_some());
        drop(other);
        let evict = claims.try_alone(4).expect("free");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(claims.share(4..5)));
            drop(evict);
            waiting.join().expect("it ends");
            let insert = claims.share(4..5);
            let waiting = scope.spawn(|| drop(claims.alone(4)));
            drop(insert);
            waiting.join().expect("it ends");
        });
        assert!(claims.claims.lock().is_empty());
    }
}
