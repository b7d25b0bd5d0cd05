//! One object of the store: an O_PATH descriptor, and where it was last seen.
//!
//! The descriptor follows the object through renames. The place (parent and name) only serves to
//! find the object again when the filesystem below went away and came back ([`super::tree`]).
//!
//! A node that an earlier process has known begins without a descriptor: it is found when it is first
//! used, by its file handle or by its place.
//!
//! *Invariant*: the descriptor of a node that is found always refers to the object `id`.
//! *Locking*: `fd` and `place` are held for a copy or a swap, never together, never across a call.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::closer::Closer;
use super::tree::Index;
use crate::store::identity::Identity;
use crate::store::{ImageId, Kind};

/// An object of the store.
#[derive(Debug)]
pub struct DirNode {
    /// Unknown only for the root of a store that does not let the daemon look.
    id: OnceLock<ImageId>,
    kind: Kind,
    fd: Mutex<Arc<OwnedFd>>,
    /// None for the root, or unknown.
    place: Mutex<Option<Place>>,
    is_root: bool,
    /// The descriptor is there.
    is_found: AtomicBool,
    /// By which the object is found again, also by another process.
    handle: Option<Arc<[u8]>>,
    /// Writes begun, and how many of them an fsync has covered.
    writes: AtomicU64,
    synced: AtomicU64,
    /// How often the object went away while unsynced: that data may be gone.
    losses: AtomicU64,
    closer: Closer,
    index: Arc<Index>,
}

/// Where an object was last seen.
#[derive(Clone, Debug)]
pub struct Place {
    pub parent: Arc<DirNode>,
    pub name: OsString,
}

impl DirNode {
    /// The root, whose id may be learnt later.
    pub fn root(fd: OwnedFd, closer: Closer, index: Arc<Index>) -> DirNode {
        DirNode {
            id: OnceLock::new(),
            kind: Kind::Dir,
            fd: Mutex::new(Arc::new(fd)),
            place: Mutex::new(None),
            is_root: true,
            is_found: AtomicBool::new(true),
            handle: None,
            writes: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            closer,
            index,
        }
    }

    /// A child of `parent`.
    pub fn child(
        identity: Identity,
        kind: Kind,
        fd: OwnedFd,
        parent: &Arc<DirNode>,
        name: &OsStr,
    ) -> Self {
        let place = Place {
            parent: parent.clone(),
            name: name.to_owned(),
        };
        let mut node = DirNode::carried(identity, kind, Some(place), parent);
        *node.fd.get_mut() = Arc::new(fd);
        *node.is_found.get_mut() = true;
        node
    }

    /// What another process has known: not found yet. `root` is the store's root, or any other node.
    pub fn carried(identity: Identity, kind: Kind, place: Option<Place>, root: &DirNode) -> Self {
        DirNode {
            id: OnceLock::from(identity.id),
            kind,
            fd: Mutex::new(root.closer.nothing()),
            place: Mutex::new(place),
            is_root: false,
            is_found: AtomicBool::new(false),
            handle: identity.handle,
            writes: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            closer: root.closer.clone(),
            index: root.index.clone(),
        }
    }

    /// The id, if it is known yet.
    pub fn id(&self) -> Option<ImageId> {
        self.id.get().copied()
    }

    /// The id, which is `found` if none was known.
    pub fn learn_id(&self, found: ImageId) -> ImageId {
        *self.id.get_or_init(|| found)
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn is_root(&self) -> bool {
        self.is_root
    }

    /// Whether the descriptor is there.
    pub fn is_found(&self) -> bool {
        self.is_found.load(Ordering::Acquire)
    }

    /// The file handle, where there is one that can be opened.
    pub fn handle(&self) -> Option<&Arc<[u8]>> {
        self.handle.as_ref()
    }

    /// The descriptor of the moment.
    pub fn fd(&self) -> Arc<OwnedFd> {
        self.fd.lock().clone()
    }

    pub fn closer(&self) -> &Closer {
        &self.closer
    }

    /// Where the object was last seen; None for the root, and for what was carried without a place.
    pub fn place(&self) -> Option<Place> {
        self.place.lock().clone()
    }

    /// The object is at `parent`/`name` now.
    pub fn seen_at(&self, parent: &Arc<DirNode>, name: &OsStr) {
        let same = |place: &Place| Arc::ptr_eq(&place.parent, parent) && place.name == name;
        if self.is_root || self.place.lock().as_ref().is_some_and(same) {
            return;
        }
        let place = Place {
            parent: parent.clone(),
            name: name.to_owned(),
        };
        let before = self.place.lock().replace(place);
        drop(before); // may be the last user of the old parent, so not under the lock
    }

    /// The object came back as `fd`. What was written and not yet made durable may be lost.
    pub fn came_back_as(&self, fd: OwnedFd) {
        let writes = self.writes.load(Ordering::Acquire);
        if self.synced.fetch_max(writes, Ordering::AcqRel) < writes {
            self.losses.fetch_add(1, Ordering::AcqRel);
        }
        let before = std::mem::replace(&mut *self.fd.lock(), Arc::new(fd));
        self.is_found.store(true, Ordering::Release);
        self.closer.close(before);
    }

    /// Something of this object is being written.
    pub fn note_write(&self) {
        self.writes.fetch_add(1, Ordering::AcqRel);
    }

    /// How many writes an fsync that begins now covers.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Acquire)
    }

    /// An fsync that covers so many writes is done.
    pub fn synced(&self, writes: u64) {
        self.synced.fetch_max(writes, Ordering::AcqRel);
    }

    /// How often unsynced data may have been lost.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }
}

impl Drop for DirNode {
    fn drop(&mut self) {
        if let Some(id) = self.id() {
            self.index.forget_dead(id);
        }
        self.closer.take(self.fd.get_mut());
    }
}
