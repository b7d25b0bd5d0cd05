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

mod table;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use self::table::{Slot, Table};
use crate::handover::Ledger;
use crate::store::{Attr, ImageId, Kind, Node, Store};

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
        Nodes {
            table: Mutex::new(Table::new(root, ledger)),
            clock: AtomicU64::new(0),
            inodes_max,
            crowded: Condvar::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Enters what servers before have told the kernel, as the ledger has it. Objects are looked for when
    /// they are first used.
    pub fn take_on(&self, store: &dyn Store) {
        self.table.lock().take_on(store);
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

#[cfg(test)]
mod tests;
