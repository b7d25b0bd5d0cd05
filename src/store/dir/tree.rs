//! All objects of a directory store that are in use, and how they are found again.
//!
//! When the filesystem below goes away and comes back at the same path (a FUSE store that died and
//! was mounted again, an NFS server that lost its handles), descriptors answer ENOTCONN, ESTALE or
//! ESHUTDOWN. The object is then looked for from the root by its last known place, taken only if
//! its id is the same, and the call is tried once more. Otherwise the first error stands.
//!
//! A node that another process has known is looked for before its first use: by its file handle, as the
//! daemon, which had it open before; else by its place.
//!
//! *Locking*: the index is held for a lookup or an insertion; nothing is dropped under it.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::attr::{attr, kind};
use super::caller::Process;
use super::calls;
use super::closer::Closer;
use super::node::{DirNode, Place};
use crate::store::identity::{Filesystem, Identity, identity, image_id, open_handle};
use crate::store::{Attr, Caller, ImageId, Kind, Result};

/// Deeper than this nothing is looked for again: PATH_MAX allows no deeper path.
const DEPTH_MAX: usize = 2048;

/// The objects in use by id, so that one object is one node however often it is looked up.
#[derive(Debug, Default)]
pub struct Index(Mutex<HashMap<ImageId, Weak<DirNode>>>);

/// The filesystem and device number of the store's root.
type RootFacts = (Filesystem, (u32, u32));

/// The store's tree.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    process: Process,
    root: Arc<DirNode>,
    index: Arc<Index>,
    /// Forgotten when the root comes back: a FUSE store has another device number then.
    root_facts: Mutex<Option<RootFacts>>,
    /// The root, open for reading, as handles are opened by; once it was needed.
    anchor: Mutex<Option<Arc<OwnedFd>>>,
}

impl Index {
    fn get(&self, id: ImageId) -> Option<Arc<DirNode>> {
        self.0.lock().get(&id).and_then(Weak::upgrade)
    }

    /// Puts `node` in unless somebody was faster; returns the one that is in.
    fn insert(&self, id: ImageId, node: DirNode) -> Arc<DirNode> {
        let node = Arc::new(node);
        let mut index = self.0.lock();
        if let Some(other) = index.get(&id).and_then(Weak::upgrade) {
            drop(index);
            return other;
        }
        index.insert(id, Arc::downgrade(&node));
        drop(index);
        node
    }

    /// Removes the entry of a node that is being dropped, unless it has a successor.
    pub fn forget_dead(&self, id: ImageId) {
        let mut index = self.0.lock();
        if index.get(&id).is_some_and(|node| node.strong_count() == 0) {
            index.remove(&id);
        }
    }
}

impl Tree {
    /// Opens the tree at `path`. Looks at nothing, so that a store that refuses the daemon's own
    /// identity can be opened.
    pub fn open(path: &Path) -> io::Result<Tree> {
        let fd = open_root(path)?;
        let index = Arc::new(Index::default());
        Ok(Tree {
            path: path.to_owned(),
            process: Process::current()?,
            root: Arc::new(DirNode::root(fd, Closer::start()?, index.clone())),
            index,
            root_facts: Mutex::new(None),
            anchor: Mutex::new(None),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn root(&self) -> &Arc<DirNode> {
        &self.root
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Runs `call` as `who`. If it fails because the filesystem went away, finds `nodes` again and
    /// runs it once more.
    pub fn run<T>(
        &self,
        who: &Caller,
        nodes: &[&Arc<DirNode>],
        call: impl Fn() -> io::Result<T>,
    ) -> Result<T> {
        for node in nodes.iter().filter(|node| !node.is_found()) {
            if let Err(error) = self.find_by_handle(node) {
                log::debug!("an object is not found by its handle: {error}");
            }
        }
        let _as_caller = self.process.act_as(who)?;
        for node in nodes.iter().filter(|node| !node.is_found()) {
            self.find_again(node).map_err(|_| stale())?;
        }
        let result = call();
        match result {
            Err(error) if went_away(&error) => {
                for node in nodes {
                    if self.find_again(node).is_err() {
                        return Err(error.into());
                    }
                }
                Ok(call()?)
            }
            result => Ok(result?),
        }
    }

    /// The node and attributes of what `fd`, an O_PATH descriptor, refers to.
    pub fn adopt(
        &self,
        fd: OwnedFd,
        parent: &Arc<DirNode>,
        name: &OsStr,
    ) -> io::Result<(Arc<DirNode>, Attr)> {
        let stat = calls::stat(fd.as_fd(), 0)?;
        let identity = identity(fd.as_fd(), &stat, self.root_facts())?;
        let id = identity.id;
        let node = match self.index.get(id) {
            Some(node) => self.refresh(node, id, fd),
            None => {
                let kind = kind(u32::from(stat.stx_mode));
                let node = DirNode::child(identity, kind, fd, parent, name);
                self.index.insert(id, node)
            }
        };
        node.seen_at(parent, name);
        Ok((node, attr(id, &stat)))
    }

    /// Where ids have no tag, an inode number may be used again while its old node is still in
    /// use; the old object then cannot be asked any more and the node means the new one.
    fn refresh(&self, node: Arc<DirNode>, id: ImageId, fd: OwnedFd) -> Arc<DirNode> {
        let is_lost = || id.tag == 0 && calls::stat(node.fd().as_fd(), 0).is_err();
        if !node.is_found() || is_lost() {
            node.came_back_as(fd);
        }
        node
    }

    /// The node of what another process has known, in use already or not found yet.
    pub fn carry(&self, identity: Identity, kind: Kind, place: Option<Place>) -> Arc<DirNode> {
        let id = identity.id;
        self.index.get(id).unwrap_or_else(|| {
            let node = DirNode::carried(identity, kind, place, &self.root);
            self.index.insert(id, node)
        })
    }

    /// Opens a node that was carried by its file handle, with the rights of this thread.
    fn find_by_handle(&self, node: &DirNode) -> io::Result<()> {
        let handle = node.handle().ok_or_else(stale)?;
        let fd = open_handle(self.anchor()?.as_fd(), handle)?;
        self.find_as(node, fd, 0)
    }

    /// `fd`, an O_PATH descriptor, is what a carried node refers to; ESTALE if it is something else.
    /// `flags` as for statx(2).
    pub fn find_as(&self, node: &DirNode, fd: OwnedFd, flags: i32) -> io::Result<()> {
        let stat = calls::stat(fd.as_fd(), flags)?;
        let found = image_id(fd.as_fd(), &stat, self.root_facts())?;
        if node.id() != Some(found) {
            return Err(stale());
        }
        node.came_back_as(fd);
        Ok(())
    }

    fn anchor(&self) -> io::Result<Arc<OwnedFd>> {
        if let Some(anchor) = self.anchor.lock().clone() {
            return Ok(anchor);
        }
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let anchor = Arc::new(calls::reopen(self.root.fd().as_fd(), flags)?);
        *self.anchor.lock() = Some(anchor.clone());
        Ok(anchor)
    }

    /// The id of `node` and its attributes.
    pub fn attr(&self, node: &DirNode, stat: &libc::statx) -> io::Result<Attr> {
        let id = match node.id() {
            Some(id) => id,
            None => node.learn_id(image_id(node.fd().as_fd(), stat, self.root_facts())?),
        };
        Ok(attr(id, stat))
    }

    /// What is known of the root's filesystem, asking it if need be.
    fn root_facts(&self) -> Option<RootFacts> {
        let known = *self.root_facts.lock();
        known.or_else(|| {
            let fd = self.root.fd();
            let stat = calls::stat(fd.as_fd(), 0).ok()?;
            let filesystem = Filesystem::of(fd.as_fd()).ok()?;
            let facts = (filesystem, (stat.stx_dev_major, stat.stx_dev_minor));
            *self.root_facts.lock() = Some(facts);
            Some(facts)
        })
    }

    /// Opens `node` anew by its last known place, and its parents on the way. ESTALE if it is not
    /// there any more.
    pub fn find_again(&self, node: &Arc<DirNode>) -> io::Result<()> {
        if answers(node) {
            return Ok(()); // another caller was faster
        }
        let mut way = vec![node.clone()];
        while let Some(place) = way.last().and_then(|node| node.place()) {
            if way.len() > DEPTH_MAX {
                return Err(stale());
            }
            way.push(place.parent);
        }
        for step in way.iter().rev().filter(|step| !answers(step)) {
            self.reopen(step)?;
        }
        Ok(())
    }

    fn reopen(&self, node: &Arc<DirNode>) -> io::Result<()> {
        let fd = match node.place() {
            None if node.is_root() => open_root(&self.path)?,
            None => return Err(stale()),
            Some(place) => {
                let name = calls::c_name(&place.name)?;
                open_object(&place.parent, &name)?
            }
        };
        if node.is_root() {
            *self.root_facts.lock() = None;
            *self.anchor.lock() = None;
        }
        let stat = calls::stat(fd.as_fd(), 0)?;
        let facts = (!node.is_root()).then(|| self.root_facts()).flatten();
        let found = image_id(fd.as_fd(), &stat, facts)?;
        if node.id().is_some_and(|id| id != found) {
            return Err(stale());
        }
        node.came_back_as(fd);
        if node.is_root() {
            log::info!("the store at {} is back", self.path.display());
        }
        Ok(())
    }
}

/// An O_PATH descriptor of `parent`/`name`, not following a symbolic link.
pub fn open_object(parent: &DirNode, name: &CString) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    calls::open_at(parent.fd().as_fd(), name, flags, 0)
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let path = calls::c_name(path.as_os_str())?;
    calls::open_path(&path, libc::O_PATH | libc::O_DIRECTORY)
}

fn answers(node: &DirNode) -> bool {
    node.is_found()
        && !matches!(calls::stat(node.fd().as_fd(), libc::AT_STATX_FORCE_SYNC), Err(error) if went_away(&error))
}

/// Whether an error means that the filesystem below is not the one that was opened.
pub fn went_away(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ESTALE | libc::ESHUTDOWN | libc::ECONNABORTED)
    )
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}
