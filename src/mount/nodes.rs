//! The inode table: what the kernel means by a node number.
//!
//! A number is the store's inode number where that is free, so that `ls -i` shows what the store
//! shows; else one that no store uses. Hard links to one image share a number. An inode stays as
//! long as the kernel counts references to it.
//!
//! The table is bounded: each inode keeps a descriptor of the store. Past the bound the reaper asks
//! the kernel to forget ([`Nodes::wait_until_crowded`]).
//!
//! Everything that the kernel relies on is written through to the ledger, for the server that comes next
//! ([`Nodes::take_on`]).
//!
//! *Invariants*: an inode is in the table while its lookup count is above 0; every recorded name
//! leads to an inode in the table; the ledger says the same as the table, one name for each inode.
//! *Locking*: `table` is held for map operations and stores to the ledger's memory only, never while
//! an inode is dropped (which may be the last use of a descriptor).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::handover::Ledger;
use crate::handover::ledger::nodes::{CarriedNode, NodeFacts, NodeSlot};
use crate::store::{Attr, ImageId, Kind, Node, Result as StoreResult, Store};

/// The kernel's number for the root.
pub const ROOT: u64 = 1;
/// Numbers given where the store's own is taken start here.
const SYNTHETIC_FIRST: u64 = 1 << 63;
/// Longest path shown for an inode, in components.
const PATH_COMPONENTS_MAX: usize = 2048;

/// One object as the kernel knows it.
#[derive(Debug)]
pub struct Inode {
    pub nodeid: u64,
    pub id: ImageId,
    pub kind: Kind,
    pub node: Node,
    /// The latest attributes; None for a root never asked about.
    attr: Mutex<Option<Attr>>,
    /// The latest answers for the two ACLs, to serve while the store hangs.
    acls: Mutex<[Option<AclAnswer>; 2]>,
    opens: AtomicU32,
    last_used: AtomicU64,
}

/// What the store said of an ACL: its bytes, or the errno.
pub type AclAnswer = Result<Arc<[u8]>, i32>;

/// All inodes in use.
pub struct Nodes {
    table: Mutex<Table>,
    clock: AtomicU64,
    inodes_max: usize,
    crowded: Condvar,
    closed: AtomicBool,
}

struct Table {
    slots: HashMap<u64, Slot>,
    by_image: HashMap<ImageId, u64>,
    names: HashMap<Name, u64>,
    ledger: Arc<Ledger>,
}

struct Slot {
    inode: Arc<Inode>,
    lookups: u64,
    names: Vec<Name>,
    /// Where it is in the ledger, if it found room there.
    carried: Option<NodeSlot>,
}

/// A parent's number and a name in it.
pub type Name = (u64, OsString);

impl Inode {
    fn new(nodeid: u64, id: ImageId, kind: Kind, node: Node, attr: Option<Attr>) -> Arc<Inode> {
        Arc::new(Inode {
            nodeid,
            id,
            kind,
            node,
            attr: Mutex::new(attr),
            acls: Mutex::new([None, None]),
            opens: AtomicU32::new(0),
            last_used: AtomicU64::new(0),
        })
    }

    /// The latest attributes known.
    pub fn last_attr(&self) -> Option<Attr> {
        *self.attr.lock()
    }

    /// These are the attributes now.
    pub fn remember(&self, attr: &Attr) {
        *self.attr.lock() = Some(*attr);
    }

    /// The latest answer for an ACL (0 access, 1 default).
    pub fn last_acl(&self, which: usize) -> Option<AclAnswer> {
        self.acls.lock()[which].clone()
    }

    /// This is the answer for an ACL now; None forgets.
    pub fn remember_acl(&self, which: usize, answer: Option<AclAnswer>) {
        self.acls.lock()[which] = answer;
    }

    /// A file of it was opened.
    pub fn opened(&self) {
        self.opens.fetch_add(1, Ordering::Relaxed);
    }

    /// A file of it was closed for good.
    pub fn closed(&self) {
        self.opens.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn is_open(&self) -> bool {
        self.opens.load(Ordering::Relaxed) > 0
    }
}

impl Nodes {
    /// A table with the root alone, which crowds past `inodes_max` and writes to `ledger`.
    pub fn new(root: Node, inodes_max: usize, ledger: Arc<Ledger>) -> Nodes {
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
            lookups: 1, // the kernel never forgets the root
            names: Vec::new(),
            carried: None,
        };
        table.slots.insert(ROOT, slot);
        Nodes {
            table: Mutex::new(table),
            clock: AtomicU64::new(0),
            inodes_max,
            crowded: Condvar::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Enters what servers before have told the kernel, as the ledger has it. Objects are looked for when
    /// they are first used.
    pub fn take_on(&self, store: &dyn Store) {
        let mut table = self.table.lock();
        let all = table.ledger.nodes.all();
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
                table.carry(store, slot, node);
            }
        }
    }

    /// The inode of a number.
    pub fn get(&self, nodeid: u64) -> Option<Arc<Inode>> {
        let inode = self.table.lock().slots.get(&nodeid)?.inode.clone();
        self.touch(&inode);
        Some(inode)
    }

    /// The inode of an object of the store.
    pub fn of_image(&self, id: ImageId) -> Option<Arc<Inode>> {
        let table = self.table.lock();
        let nodeid = table.by_image.get(&id)?;
        Some(table.slots.get(nodeid)?.inode.clone())
    }

    /// The inode that a name led to when last looked up.
    pub fn child(&self, parent: u64, name: &OsStr) -> Option<Arc<Inode>> {
        let table = self.table.lock();
        let nodeid = table.names.get(&(parent, name.to_owned()))?;
        Some(table.slots.get(nodeid)?.inode.clone())
    }

    /// The kernel is about to be told that `parent`/`name` is this object, which has `token`: one reference
    /// more.
    pub fn enter(
        &self,
        parent: u64,
        name: &OsStr,
        node: Node,
        token: Option<&[u8]>,
        attr: &Attr,
    ) -> Arc<Inode> {
        let mut table = self.table.lock();
        let nodeid = match table.find(attr) {
            Some(nodeid) => nodeid,
            None => table.add(node, token.unwrap_or_default(), attr),
        };
        table.name((parent, name.to_owned()), nodeid);
        let inode = table.refer(nodeid);
        if table.slots.len() > self.inodes_max {
            self.crowded.notify_one();
        }
        drop(table);
        inode.remember(attr);
        self.touch(&inode);
        inode
    }

    /// The kernel gives back `count` references.
    pub fn forget(&self, nodeid: u64, count: u64) {
        let mut table = self.table.lock();
        let Some(slot) = table.slots.get_mut(&nodeid) else {
            return;
        };
        slot.lookups = slot.lookups.saturating_sub(count);
        let (left, carried) = (slot.lookups, slot.carried);
        if let Some(carried) = carried {
            table.ledger.nodes.set_lookups(carried, left);
        }
        if left == 0 && nodeid != ROOT {
            let dropped = table.remove(nodeid);
            drop(table);
            drop(dropped);
        }
    }

    /// `parent`/`name` is no more.
    pub fn name_removed(&self, parent: u64, name: &OsStr) {
        self.table.lock().unname(&(parent, name.to_owned()));
    }

    /// `from` is called `to` now; with `exchange` the reverse also holds.
    pub fn renamed(&self, from: (u64, &OsStr), to: (u64, &OsStr), exchange: bool) {
        let from = (from.0, from.1.to_owned());
        let to = (to.0, to.1.to_owned());
        let mut table = self.table.lock();
        let moved = table.unname(&from);
        let replaced = table.unname(&to);
        if let Some(nodeid) = moved {
            table.name(to, nodeid);
        }
        if let (Some(nodeid), true) = (replaced, exchange) {
            table.name(from, nodeid);
        }
    }

    /// The parent by which a directory is known; the root is its own.
    pub fn parent(&self, nodeid: u64) -> u64 {
        let table = self.table.lock();
        let slot = table.slots.get(&nodeid);
        slot.and_then(|slot| slot.names.last())
            .map_or(ROOT, |(parent, _)| *parent)
    }

    /// A path from the root by which the inode is known, without a leading slash.
    pub fn path(&self, nodeid: u64) -> PathBuf {
        let table = self.table.lock();
        let mut components = Vec::new();
        let mut at = nodeid;
        while let Some((parent, name)) = table.slots.get(&at).and_then(|slot| slot.names.last()) {
            components.push(name.as_os_str());
            at = *parent;
            if components.len() > PATH_COMPONENTS_MAX {
                break;
            }
        }
        components.iter().rev().map(Path::new).collect()
    }

    /// The inodes with open files.
    pub fn open_inodes(&self) -> Vec<Arc<Inode>> {
        let table = self.table.lock();
        let inodes = table.slots.values().map(|slot| &slot.inode);
        inodes.filter(|inode| inode.is_open()).cloned().collect()
    }

    /// Blocks until there are more inodes than allowed, or until closed (false).
    pub fn wait_until_crowded(&self) -> bool {
        let mut table = self.table.lock();
        while table.slots.len() <= self.inodes_max && !self.closed.load(Ordering::Acquire) {
            self.crowded.wait(&mut table);
        }
        !self.closed.load(Ordering::Acquire)
    }

    /// How many inodes there are.
    pub fn count(&self) -> usize {
        self.table.lock().slots.len()
    }

    /// Names of the inodes longest unused that are not open, files before directories: as many as
    /// there are above seven eighths of what is allowed. They count as used now, so that the next
    /// call gives others.
    pub fn oldest_names(&self) -> Vec<Name> {
        let table = self.table.lock();
        let excess = table.slots.len().saturating_sub(self.inodes_max / 8 * 7);
        let mut idle: Vec<&Slot> = table.slots.values().filter(|slot| slot.is_idle()).collect();
        // Cached, because the times change meanwhile and a sort must not see that.
        idle.sort_by_cached_key(|slot| {
            let is_dir = slot.inode.kind == Kind::Dir;
            (is_dir, slot.inode.last_used.load(Ordering::Relaxed))
        });
        idle.truncate(excess);
        idle.iter().for_each(|slot| self.touch(&slot.inode));
        let names = idle.iter().flat_map(|slot| slot.names.iter().cloned());
        names.collect()
    }

    /// Ends the waiting.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _table = self.table.lock();
        self.crowded.notify_all();
    }

    fn touch(&self, inode: &Inode) {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        inode.last_used.store(now, Ordering::Relaxed);
    }
}

impl Slot {
    fn is_idle(&self) -> bool {
        self.inode.nodeid != ROOT && !self.inode.is_open() && !self.names.is_empty()
    }
}

impl Table {
    /// The number of this object. Where ids have no tag, another kind tells that the inode number
    /// is used again.
    fn find(&self, attr: &Attr) -> Option<u64> {
        let nodeid = self.by_image.get(&attr.id).copied()?;
        let same_kind = self.slots.get(&nodeid)?.inode.kind == attr.kind;
        same_kind.then_some(nodeid)
    }

    fn add(&mut self, node: Node, token: &[u8], attr: &Attr) -> u64 {
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
        let node: StoreResult<Node> = store.node_of(id, kind, token, parent);
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
    fn refer(&mut self, nodeid: u64) -> Arc<Inode> {
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

    fn remove(&mut self, nodeid: u64) -> Option<Slot> {
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

    fn name(&mut self, name: Name, nodeid: u64) {
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
    fn unname(&mut self, name: &Name) -> Option<u64> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Timestamp;

    fn attr(ino: u64, tag: u64) -> Attr {
        Attr {
            id: ImageId { ino, tag },
            kind: Kind::File,
            mode: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size_bytes: 0,
            blocks: 0,
            blksize: 4096,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
        }
    }

    fn node() -> Node {
        Node(Arc::new(()))
    }

    fn enter(nodes: &Nodes, name: &str, ino: u64, tag: u64) -> Arc<Inode> {
        enter_in(nodes, ROOT, name, &attr(ino, tag))
    }

    fn enter_in(nodes: &Nodes, parent: u64, name: &str, attr: &Attr) -> Arc<Inode> {
        nodes.enter(parent, OsStr::new(name), node(), None, attr)
    }

    fn ledger() -> Arc<Ledger> {
        Arc::new(Ledger::new().expect("memory"))
    }

    #[test]
    fn hard_links_share_a_number_and_a_reused_inode_number_gets_another() {
        let nodes = Nodes::new(node(), 100, ledger());
        let a = enter(&nodes, "a", 7, 1);
        let b = enter(&nodes, "b", 7, 1);
        assert_eq!((a.nodeid, b.nodeid), (7, 7));
        let reused = enter(&nodes, "c", 7, 2);
        assert_ne!(reused.nodeid, 7);
        assert_ne!(enter(&nodes, "d", ROOT, 1).nodeid, ROOT);
    }

    #[test]
    fn an_inode_lives_until_every_reference_is_given_back() {
        let nodes = Nodes::new(node(), 100, ledger());
        enter(&nodes, "a", 7, 1);
        enter(&nodes, "a", 7, 1);
        nodes.forget(7, 1);
        assert!(nodes.get(7).is_some());
        nodes.forget(7, 1);
        assert!(nodes.get(7).is_none());
        assert!(nodes.child(ROOT, OsStr::new("a")).is_none());
        nodes.forget(ROOT, 5);
        assert!(nodes.get(ROOT).is_some());
    }

    #[test]
    fn names_follow_renames_and_exchanges() {
        let nodes = Nodes::new(node(), 100, ledger());
        let dir = enter(&nodes, "dir", 5, 1).nodeid;
        enter(&nodes, "a", 7, 1);
        nodes.renamed((ROOT, OsStr::new("a")), (dir, OsStr::new("b")), false);
        assert_eq!(nodes.path(7), Path::new("dir/b"));
        enter(&nodes, "c", 8, 1);
        nodes.renamed((ROOT, OsStr::new("c")), (dir, OsStr::new("b")), true);
        assert_eq!(nodes.path(8), Path::new("dir/b"));
        assert_eq!(nodes.path(7), Path::new("c"));
        nodes.renamed((dir, OsStr::new("b")), (ROOT, OsStr::new("c")), false);
        assert_eq!(nodes.path(7), Path::new(""));
        assert_eq!(nodes.path(8), Path::new("c"));
    }

    #[test]
    fn the_oldest_that_are_not_open_are_given_up_first() {
        let nodes = Nodes::new(node(), 32, ledger());
        for ino in 10..50 {
            enter(&nodes, &format!("f{ino}"), ino, 1);
        }
        nodes.get(10).expect("known").opened();
        assert!(nodes.wait_until_crowded());
        let names = nodes.oldest_names();
        assert_eq!(names.len(), 41 - 28);
        assert_eq!(names[0], (ROOT, "f11".into()));
        assert_eq!(nodes.oldest_names()[0], (ROOT, "f24".into()));
        nodes.close();
        assert!(!nodes.wait_until_crowded());
    }

    /// The table as the next server has it.
    fn successor(ledger: &Ledger, store: &dyn Store) -> Nodes {
        use std::os::fd::AsFd;
        let memory = ledger.memory().as_fd().try_clone_to_owned();
        let ledger = Ledger::open(memory.expect("a descriptor")).expect("a ledger");
        let nodes = Nodes::new(store.root(), 100, Arc::new(ledger));
        nodes.take_on(store);
        nodes
    }

    /// What the kernel can tell of a table: numbers, identities, references, and one name of each.
    fn seen(nodes: &Nodes) -> Vec<(u64, ImageId, Kind, u64, Option<Name>, PathBuf)> {
        let facts = |nodes: &Nodes| {
            let table = nodes.table.lock();
            let slots = table.slots.values();
            let of = |slot: &Slot| {
                let inode = &slot.inode;
                let name = slot.names.last().cloned();
                (inode.nodeid, inode.id, inode.kind, slot.lookups, name)
            };
            slots.map(of).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = facts(nodes)
            .into_iter()
            .map(|(nodeid, id, kind, lookups, name)| {
                (nodeid, id, kind, lookups, name, nodes.path(nodeid))
            })
            .collect();
        all.sort_by_key(|entry| entry.0);
        all
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u64, u8, u64, bool),
        Forget(u64, u64),
        Remove(u64, u8),
        Rename((u64, u8), (u64, u8), bool),
    }

    /// As the kernel does, nothing is forgotten that has children, and only directories have them.
    fn take(nodes: &Nodes, step: &Step) {
        let name = |name: u8| OsString::from(format!("n{name}"));
        let dir = |dir: u64| match nodes.get(dir) {
            Some(inode) if inode.kind == Kind::Dir => dir,
            _ => ROOT,
        };
        match *step {
            Step::Enter(parent, called, ino, is_dir) => {
                let kind = if is_dir { Kind::Dir } else { Kind::File };
                let attr = Attr {
                    kind,
                    ..attr(ino, u64::from(is_dir))
                };
                let parent = dir(parent);
                let within = |at: u64| nodes.path(at).starts_with(nodes.path(ino));
                if !(is_dir && (ino == parent || within(parent))) {
                    let token = [called; 20];
                    nodes.enter(parent, &name(called), node(), Some(&token), &attr);
                }
            }
            Step::Forget(nodeid, count) => {
                let has_children =
                    (nodes.table.lock().names.keys()).any(|(parent, _)| *parent == nodeid);
                if !has_children && nodeid != ROOT {
                    nodes.forget(nodeid, count);
                }
            }
            Step::Remove(parent, called) => nodes.name_removed(dir(parent), &name(called)),
            Step::Rename(from, to, exchange) => {
                let (from, to) = ((dir(from.0), name(from.1)), (dir(to.0), name(to.1)));
                let names = ((from.0, &*from.1), (to.0, &*to.1));
                nodes.renamed(names.0, names.1, exchange);
            }
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            cases: 200,
            failure_persistence: None,
            ..Default::default()
        })]
        #[test]
        fn the_next_server_knows_what_this_one_knew(steps in proptest::collection::vec(step(), 1..200)) {
            let ledger = ledger();
            let dir = tempfile::tempdir().expect("tempdir");
            let store = crate::store::dir::DirStore::open(dir.path()).expect("open");
            let nodes = Nodes::new(store.root(), 100, ledger.clone());
            for step in &steps {
                take(&nodes, step);
            }
            let next = successor(&ledger, &store);
            proptest::prop_assert_eq!(seen(&nodes), seen(&next));
            let after = successor(&ledger, &store);
            proptest::prop_assert_eq!(seen(&nodes), seen(&after));
        }
    }

    fn step() -> impl proptest::strategy::Strategy<Value = Step> {
        use proptest::prelude::*;
        let ino = || prop_oneof![Just(ROOT), 2..12u64];
        prop_oneof![
            4 => (ino(), 0..6u8, 1..12u64, any::<bool>())
                .prop_map(|(parent, name, ino, is_dir)| Step::Enter(parent, name, ino, is_dir)),
            2 => (ino(), 1..4u64).prop_map(|(nodeid, count)| Step::Forget(nodeid, count)),
            1 => (ino(), 0..6u8).prop_map(|(parent, name)| Step::Remove(parent, name)),
            2 => ((ino(), 0..6u8), (ino(), 0..6u8), any::<bool>())
                .prop_map(|(from, to, exchange)| Step::Rename(from, to, exchange)),
        ]
    }

    #[test]
    fn what_was_never_told_is_not_taken_on() {
        let ledger = ledger();
        let dir = tempfile::tempdir().expect("tempdir");
        let store = crate::store::dir::DirStore::open(dir.path()).expect("open");
        let facts = NodeFacts {
            nodeid: 9,
            ino: 9,
            tag: 1,
            kind: 0,
            token: Vec::new(),
        };
        ledger.nodes.add(&facts).expect("room");
        let next = successor(&ledger, &store);
        assert!(next.get(9).is_none());
        assert!(ledger.nodes.all().is_empty());
    }
}
