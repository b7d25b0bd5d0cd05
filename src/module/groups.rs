//! Short names for keys: 5 bytes instead of 8 for each key in a queue.
//!
//! Keys that differ only in their low [`LOW_BITS`] bits (1 GiB of one image) are a *group*. A group in
//! use has a number, and a [`Short`] is that number and the low bits. A number is given to another
//! group when no key of its group is left.
//!
//! About 60 bytes per group in use, so nothing much where a gigabyte of an image has more than a few
//! blocks in the cache.

use std::collections::HashMap;

use super::Key;

/// Bits of a key that tell it from the others of its group.
const LOW_BITS: u32 = 14;
/// Bytes of a short name.
pub const SHORT_BYTES: usize = 5;
/// Groups that short names can tell apart.
const GROUPS_MAX: u64 = 1 << (SHORT_BYTES as u32 * 8 - LOW_BITS);

/// A key by its short name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short(u64);

impl Short {
    /// As bytes.
    pub fn to_bytes(self) -> [u8; SHORT_BYTES] {
        let [a, b, c, d, e, ..] = self.0.to_le_bytes();
        [a, b, c, d, e]
    }

    /// From what [`Short::to_bytes`] gave.
    pub fn from_bytes([a, b, c, d, e]: [u8; SHORT_BYTES]) -> Short {
        Short(u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]))
    }

    fn group(self) -> usize {
        (self.0 >> LOW_BITS) as usize
    }
}

/// The groups in use.
#[derive(Default)]
pub struct Groups {
    numbers: HashMap<u64, u32>,
    /// By number; those in `free` mean nothing.
    groups: Vec<Group>,
    free: Vec<u32>,
}

struct Group {
    /// The bits that its keys have in common.
    high: u64,
    /// Keys of it that have short names.
    keys: u32,
}

impl Groups {
    /// Gives `key` a short name; [`Groups::leave`] takes it back.
    pub fn enter(&mut self, key: Key) -> Short {
        let high = key.0 >> LOW_BITS;
        let number = match self.numbers.get(&high) {
            Some(number) => *number,
            None => self.found(high),
        };
        self.groups[number as usize].keys += 1;
        let low = key.0 & ((1 << LOW_BITS) - 1);
        Short(u64::from(number) << LOW_BITS | low)
    }

    /// The key that a short name stands for.
    pub fn key(&self, short: Short) -> Key {
        let low = short.0 & ((1 << LOW_BITS) - 1);
        Key(self.groups[short.group()].high << LOW_BITS | low)
    }

    /// A short name is not used any more; gives the key it stood for.
    pub fn leave(&mut self, short: Short) -> Key {
        let key = self.key(short);
        let group = &mut self.groups[short.group()];
        group.keys -= 1;
        if group.keys == 0 {
            self.numbers.remove(&group.high);
            self.free.push(short.group() as u32);
        }
        key
    }

    fn found(&mut self, high: u64) -> u32 {
        let group = Group { high, keys: 0 };
        let number = match self.free.pop() {
            Some(number) => {
                self.groups[number as usize] = group;
                number
            }
            None => {
                // Page maps of so many pieces would take 320 GiB of memory.
                assert!((self.groups.len() as u64) < GROUPS_MAX, "too many groups");
                self.groups.push(group);
                (self.groups.len() - 1) as u32
            }
        };
        self.numbers.insert(high, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_stands_for_its_key_until_it_is_given_back() {
        let mut groups = Groups::default();
        let keys = [0, 1, 1 << LOW_BITS, 7 << 40 | 5, u64::MAX].map(Key);
        let shorts = keys.map(|key| groups.enter(key));
        for (key, short) in keys.into_iter().zip(shorts) {
            assert_eq!(groups.key(Short::from_bytes(short.to_bytes())), key);
        }
        for (key, short) in keys.into_iter().zip(shorts) {
            assert_eq!(groups.leave(short), key);
        }
        assert!(groups.numbers.is_empty());
        groups.enter(Key(99 << 30));
        assert_eq!(groups.groups.len(), 4, "a free number is given again");
    }
}
