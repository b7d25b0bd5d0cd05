//! The ghost queue: which blocks were evicted lately, at 2 bytes each.
//!
//! Nothing but "was this key remembered not long ago?" is ever asked, so a fingerprint of 16 bits will
//! do, and no queue is needed: a key's hash picks one of many *rows*, and each row is a little queue of
//! its own, the oldest print falling out at its end. With [`ROW_PRINTS`] prints in a row, a memory's
//! life varies by about a sixth from row to row. A foreign print is taken for the key's in one case of
//! two thousand; then a block starts in the wrong queue, which costs next to nothing.
//!
//! As the paper has it, there are as many memories as blocks in the main queue: nine tenths of the
//! cache. The number of blocks in a cache moves slowly, so a table stays until it is a quarter too
//! large or too small; then it is made anew and starts without memories. The old one is freed first.

use super::Key;

/// Prints in a row: a cache line.
const ROW_PRINTS: usize = 32;

/// Newest first; 0 is no print.
type Row = [u16; ROW_PRINTS];

/// The blocks evicted lately.
#[derive(Default)]
pub struct Ghost {
    rows: Vec<Row>,
}

impl Ghost {
    /// Gives it room for about `memories` memories.
    pub fn fit(&mut self, memories: usize) {
        let wanted = memories.div_ceil(ROW_PRINTS).max(1);
        let (least, most) = (wanted - wanted / 4, wanted + wanted / 4);
        if !(least..=most).contains(&self.rows.len()) {
            self.rows = Vec::new();
            self.rows = vec![[0; ROW_PRINTS]; wanted];
        }
    }

    /// Remembers `key`, if there is room for memories.
    pub fn remember(&mut self, key: Key) {
        if self.rows.is_empty() {
            return;
        }
        let (row, print) = place(key, self.rows.len());
        let row = &mut self.rows[row];
        row.copy_within(..ROW_PRINTS - 1, 1);
        row[0] = print;
    }

    /// Forgets `key`; true if it was remembered.
    pub fn forget(&mut self, key: Key) -> bool {
        if self.rows.is_empty() {
            return false;
        }
        let (row, print) = place(key, self.rows.len());
        let row = &mut self.rows[row];
        let Some(at) = row.iter().position(|known| *known == print) else {
            return false;
        };
        row.copy_within(at + 1.., at);
        row[ROW_PRINTS - 1] = 0;
        true
    }
}

/// The row and the print of a key.
fn place(key: Key, rows: usize) -> (usize, u16) {
    let hash = xxhash_rust::xxh3::xxh3_64(&key.0.to_le_bytes());
    let row = ((hash >> 32) * rows as u64) >> 32;
    (row as usize, (hash as u16).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of keys remembered one after the other, the share still known, by age in tenths of the size.
    fn known_by_age(size: usize) -> Vec<f64> {
        let mut ghost = Ghost::default();
        ghost.fit(size);
        let count = 4 * size as u64;
        (0..count).for_each(|key| ghost.remember(Key(key)));
        let tenth = size as u64 / 10;
        (0..20)
            .map(|age| {
                let keys = (count - (age + 1) * tenth..count - age * tenth).map(Key);
                keys.filter(|key| ghost.forget(*key)).count() as f64 / tenth as f64
            })
            .collect()
    }

    #[test]
    fn young_memories_are_there_and_old_ones_are_not() {
        let known = known_by_age(100_000);
        assert!(known[..5].iter().all(|share| *share > 0.98), "{known:?}");
        assert!(known[15..].iter().all(|share| *share < 0.02), "{known:?}");
    }

    #[test]
    fn a_memory_is_good_once_and_strangers_are_seldom_taken_for_one() {
        let mut ghost = Ghost::default();
        ghost.fit(10_000);
        (0..10_000).for_each(|key| ghost.remember(Key(key)));
        let strangers = (1 << 40..(1 << 40) + 10_000u64).filter(|key| ghost.forget(Key(*key)));
        assert!(strangers.count() < 50);
        ghost.remember(Key(7));
        ghost.fit(9_000);
        assert!(ghost.forget(Key(7)));
        assert!(!ghost.forget(Key(7)));
    }
}
