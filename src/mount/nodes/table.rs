//! The maps behind the inode table, written through to the ledger.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use super::{Inode, Name, ROOT, SYNTHETIC_FIRST};
use crate::handover::Ledger;
use crate::handover::ledger::nodes::{CarriedNode, NodeFacts, NodeSlot};
use crate::store::{Attr, ImageId, Kind, Node, Result, Store};

/// The maps.
pub(super) struct Table {
    pub(super) slots: HashMap<u64, Slot>,
    pub(super) by_image: HashMap<ImageId, u64>,
    pub(super) names: HashMap<Name, u64>,
    pub(super) ledger: Arc<Ledger>,
}

/// One inode of the table.
pub(super) struct Slot {
    pub(super) inode: Arc<Inode>,
    pub(super) lookups: u64,
    pub(super) names: Vec<Name>,
    /// Where it is in the ledger, if it found room there.
    pub(super) carried: Option<NodeSlot>,
}

impl Slot {
    pub(super) fn is_idle(&self) -> bool {
        self.inode.nodeid != ROOT && !self.inode.is_open() && !self.names.is_empty()
    }
}

impl Table {
    /// With the root alone, which the kernel never forgets.
    pub(super) fn new(root: Node, ledger: Arc<Ledger>) -> Table {
        let nowhere = ImageId { ino: 0, tag: 0 };
        let inode = Inode::new(ROOT, nowhere, Kind::Dir, root, None);
        let mut table = Table {
            slots: HashMap::new(),
            by_image: HashMap::new(),
            names: HashMap::new(),
            ledger,
        };
        let slot = Slot {
            inode,
            lookups: 1,
            names: Vec::new(),
            carried: None,
        };
        table.slots.insert(ROOT, slot);
        table
    }

    /// Enters everything in the ledger.
    pub(super) fn take_on(&mut self, store: &dyn Store) {
        let all = self.ledger.nodes.all();
        let numbers: Vec<u64> = all.iter().map(|(_, node)| node.facts.nodeid).collect();
        let by_number = |entry: (NodeSlot, CarriedNode)| (entry.1.facts.nodeid, entry);
        let mut left: HashMap<_, _> = all.into_iter().map(by_number).collect();
        for number in numbers {
            // The way up, so that parents come first. Nothing is met twice, so it ends.
            let (mut way, mut at) = (Vec::new(), number);
            while let Some((slot, node)) = left.remove(&at) {
                at = node.place.as_ref().map_or(ROOT, |(parent, _)| *parent);
                way.push((slot, node));
            }
            for (slot, node) in way.into_iter().rev() {
                self.carry(store, slot, node);
            }
        }
    }

    /// The number of this object. Where ids have no tag, another kind tells that the inode number
    /// is used again.
    pub(super) fn find(&self, attr: &Attr) -> Option<u64> {
        let nodeid = self.by_image.get(&attr.id).copied()?;
        let same_kind = self.slots.get(&nodeid)?.inode.kind == attr.kind;
        same_kind.then_some(nodeid)
    }

    pub(super) fn add(&mut self, node: Node, token: &[u8], attr: &Attr) -> u64 {
        let ino = attr.id.ino;
        let usable = ino > ROOT && ino < SYNTHETIC_FIRST && !self.slots.contains_key(&ino);
        let nodeid = if usable {
            ino
        } else {
            SYNTHETIC_FIRST + self.ledger.next_synthetic()
        };
        let carried = self.ledger.nodes.add(&NodeFacts {
            nodeid,
            ino,
            tag: attr.id.tag,
            kind: attr.kind.number(),
            token: token.to_vec(),
        });
        let inode = Inode::new(nodeid, attr.id, attr.kind, node, Some(*attr));
        self.insert(inode, 0, carried);
        nodeid
    }

    /// Enters an inode of the ledger, after its parent.
    fn carry(&mut self, store: &dyn Store, slot: NodeSlot, carried: CarriedNode) {
        let entered = match carried.lookups {
            0 => None, // its server died before it told the kernel
            _ => self.carried(store, &carried),
        };
        let Some((inode, place)) = entered else {
            return self.ledger.nodes.remove(slot);
        };
        let nodeid = inode.nodeid;
        self.insert(inode, carried.lookups, Some(slot));
        if let Some(place) = place {
            self.name(place, nodeid);
        }
    }

    fn carried(
        &self,
        store: &dyn Store,
        carried: &CarriedNode,
    ) -> Option<(Arc<Inode>, Option<Name>)> {
        let NodeFacts {
            nodeid, ino, tag, ..
        } = carried.facts;
        let (id, kind) = (ImageId { ino, tag }, Kind::of_number(carried.facts.kind)?);
        let place = carried.place.clone();
        let place = place.map(|(parent, name)| (parent, OsString::from_vec(name)));
        let place = place.filter(|(parent, _)| self.slots.contains_key(parent));
        let parent = place.as_ref().and_then(|(parent, name)| {
            let slot = self.slots.get(parent)?;
            Some((&slot.inode.node, name.as_os_str()))
        });
        let token = &carried.facts.token;
        let node: Result<Node> = store.node_of(id, kind, token, parent);
        let inode = Inode::new(nodeid, id, kind, node.ok()?, None);
        Some((inode, place))
    }

    fn insert(&mut self, inode: Arc<Inode>, lookups: u64, carried: Option<NodeSlot>) {
        let (nodeid, id) = (inode.nodeid, inode.id);
        let slot = Slot {
            inode,
            lookups,
            names: Vec::new(),
            carried,
        };
        self.slots.insert(nodeid, slot);
        self.by_image.insert(id, nodeid);
    }

    /// One reference more to an inode that is in the table.
    pub(super) fn refer(&mut self, nodeid: u64) -> Arc<Inode> {
        let slot = self.slots.get_mut(&nodeid);
        let slot = slot.expect("every number that is found or added has a slot");
        slot.lookups += 1;
        if let Some(carried) = slot.carried {
            self.ledger.nodes.set_lookups(carried, slot.lookups);
        }
        slot.inode.clone()
    }

    /// Writes the name that counts of a slot whose names have changed.
    fn note_place(&self, slot: &Slot) {
        if let Some(carried) = slot.carried {
            let place = slot.names.last();
            let place = place.map(|(parent, name)| (*parent, name.as_bytes()));
            self.ledger.nodes.set_place(carried, place);
        }
    }

    pub(super) fn remove(&mut self, nodeid: u64) -> Option<Slot> {
        let slot = self.slots.remove(&nodeid)?;
        if let Some(carried) = slot.carried {
            self.ledger.nodes.remove(carried);
        }
        if self.by_image.get(&slot.inode.id) == Some(&nodeid) {
            self.by_image.remove(&slot.inode.id);
        }
        for name in &slot.names {
            self.names.remove(name);
        }
        Some(slot)
    }

    pub(super) fn name(&mut self, name: Name, nodeid: u64) {
        if self.names.get(&name) == Some(&nodeid) {
            return;
        }
        self.unname(&name);
        if let Some(slot) = self.slots.get_mut(&nodeid) {
            slot.names.push(name.clone());
            self.names.insert(name, nodeid);
        }
        if let Some(slot) = self.slots.get(&nodeid) {
            self.note_place(slot);
        }
    }

    /// Removes a name; returns what it led to.
    pub(super) fn unname(&mut self, name: &Name) -> Option<u64> {
        let nodeid = self.names.remove(name)?;
        if let Some(slot) = self.slots.get_mut(&nodeid) {
            slot.names.retain(|other| other != name);
        }
        if let Some(slot) = self.slots.get(&nodeid) {
            self.note_place(slot);
        }
        Some(nodeid)
    }
}
