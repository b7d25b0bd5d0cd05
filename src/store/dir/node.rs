//! One object of the store: an O_PATH descriptor, and where it was last seen.
//!
//! The descriptor follows the object through renames. The place (parent and name) only serves to
//! find the object again when the filesystem below went away and came back ([`super::tree`]).
//!
//! *Invariant*: the descriptor always refers to the object `id`.
//! *Locking*: `fd` and `place` are held for a copy or a swap, never together, never across a call.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::closer::Closer;
use super::tree::Index;
use crate::store::{ImageId, Kind};

/// An object of the store.
#[derive(Debug)]
pub struct DirNode {
    /// Unknown only for the root of a store that does not let the daemon look.
    id: OnceLock<ImageId>,
    kind: Kind,
    fd: Mutex<Arc<OwnedFd>>,
    /// None for the root.
    place: Mutex<Option<Place>>,
    is_root: bool,
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
            writes: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            closer,
            index,
        }
    }

    /// A child of `parent`.
    pub fn child(
        id: ImageId,
        kind: Kind,
        fd: OwnedFd,
        parent: &Arc<DirNode>,
        name: &OsStr,
    ) -> Self {
        DirNode {
            id: OnceLock::from(id),
            kind,
            fd: Mutex::new(Arc::new(fd)),
            place: Mutex::new(Some(Place {
                parent: parent.clone(),
                name: name.to_owned(),
            })),
            is_root: false,
            writes: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            closer: parent.closer.clone(),
            index: parent.index.clone(),
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

    /// The descriptor of the moment.
    pub fn fd(&self) -> Arc<OwnedFd> {
        self.fd.lock().clone()
    }

    pub fn closer(&self) -> &Closer {
        &self.closer
    }

    /// Where the object was last seen; None for the root.
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
