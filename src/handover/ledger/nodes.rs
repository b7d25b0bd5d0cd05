//! The inodes that the kernel knows: what number means what object, how often it was told, and one way
//! to find the object again.
//!
//! A slot: number, identity, kind and token are written once, before it is used; the references are one
//! word; the place lies under a count that is odd while it is written, so that a torn one is unknown and
//! never wrong.

use super::table::{Slot, Table};

/// A longer token does not fit, in bytes.
pub const TOKEN_BYTES_MAX: usize = 128;
/// A longer name does not fit, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Words of a slot, after the one that says whether it is used.
mod word {
    pub const NODEID: usize = 1;
    pub const INO: usize = 2;
    pub const TAG: usize = 3;
    pub const KIND: usize = 4;
    pub const LOOKUPS: usize = 5;
    pub const TOKEN_BYTES: usize = 6;
    /// Odd while the three below are written.
    pub const PLACE_COUNT: usize = 7;
    pub const PARENT: usize = 8;
    pub const NAME_BYTES: usize = 9;
    pub const NAME: usize = 10;
    pub const TOKEN: usize = NAME + super::NAME_BYTES_MAX / 8;
}

/// Which slot an inode has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSlot(u32);

/// What does not change about an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// What the kernel calls it.
    pub nodeid: u64,
    /// Inode number and tag in the store.
    pub ino: u64,
    pub tag: u64,
    /// The kind, in the mount's numbers.
    pub kind: u8,
    /// By which the store finds it again; empty where it has none.
    pub token: Vec<u8>,
}

/// An inode as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarriedNode {
    pub facts: NodeFacts,
    /// References that the kernel has.
    pub lookups: u64,
    /// The parent's number and the name by which it was last known.
    pub place: Option<(u64, Vec<u8>)>,
}

/// The table of inodes.
pub struct NodeTable(pub(super) Table);

impl NodeTable {
    /// Notes an inode without references or place; `None` when it cannot be carried.
    pub fn add(&self, facts: &NodeFacts) -> Option<NodeSlot> {
        let Some(number) = self.0.take() else {
            self.0.tell_full();
            return None;
        };
        let token = match facts.token.len() {
            0..=TOKEN_BYTES_MAX => &facts.token[..],
            _ => &[],
        };
        let slot = self.0.slot(number);
        slot.set(word::NODEID, facts.nodeid);
        slot.set(word::INO, facts.ino);
        slot.set(word::TAG, facts.tag);
        slot.set(word::KIND, u64::from(facts.kind));
        slot.set(word::LOOKUPS, 0);
        slot.set(word::TOKEN_BYTES, token.len() as u64);
        slot.set_bytes(word::TOKEN, token);
        slot.set(word::PLACE_COUNT, 0);
        slot.set(word::NAME_BYTES, 0);
        slot.mark_used();
        Some(NodeSlot(number))
    }

    /// So many references does the kernel have now.
    pub fn set_lookups(&self, node: NodeSlot, lookups: u64) {
        self.0.slot(node.0).set(word::LOOKUPS, lookups);
    }

    /// Where it is known to be now.
    pub fn set_place(&self, node: NodeSlot, place: Option<(u64, &[u8])>) {
        let slot = self.0.slot(node.0);
        let count = slot.get(word::PLACE_COUNT) | 1;
        slot.set(word::PLACE_COUNT, count);
        let (parent, name) = match place {
            Some((parent, name)) if name.len() <= NAME_BYTES_MAX => (parent, name),
            _ => (0, &[][..]),
        };
        slot.set(word::PARENT, parent);
        slot.set(word::NAME_BYTES, name.len() as u64);
        slot.set_bytes(word::NAME, name);
        slot.set(word::PLACE_COUNT, count + 1);
    }

    /// The kernel has forgotten it.
    pub fn remove(&self, node: NodeSlot) {
        self.0.free(node.0);
    }

    /// Everything in it.
    pub fn all(&self) -> Vec<(NodeSlot, CarriedNode)> {
        let used = self.0.used().into_iter();
        used.map(|number| (NodeSlot(number), carried(self.0.slot(number))))
            .collect()
    }

    #[cfg(test)]
    pub(super) fn slot(&self, node: NodeSlot) -> Slot<'_> {
        self.0.slot(node.0)
    }

    #[cfg(test)]
    pub(super) const PLACE_COUNT: usize = word::PLACE_COUNT;
}

fn carried(slot: Slot<'_>) -> CarriedNode {
    let token_bytes = slot.get(word::TOKEN_BYTES) as usize;
    CarriedNode {
        facts: NodeFacts {
            nodeid: slot.get(word::NODEID),
            ino: slot.get(word::INO),
            tag: slot.get(word::TAG),
            kind: slot.get(word::KIND) as u8,
            token: slot.bytes(word::TOKEN, token_bytes.min(TOKEN_BYTES_MAX)),
        },
        lookups: slot.get(word::LOOKUPS),
        place: place(slot),
    }
}

fn place(slot: Slot<'_>) -> Option<(u64, Vec<u8>)> {
    let is_torn = slot.get(word::PLACE_COUNT) % 2 == 1;
    let len = slot.get(word::NAME_BYTES) as usize;
    if is_torn || len == 0 || len > NAME_BYTES_MAX {
        return None;
    }
    Some((slot.get(word::PARENT), slot.bytes(word::NAME, len)))
}
