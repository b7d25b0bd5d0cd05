//! The directory store: images are files of a directory, in production on NFS, CephFS or GFS2.
//!
//! Every operation runs as its caller ([`caller`]), on O_PATH descriptors, so that nothing depends
//! on paths after a lookup and no name leads out of the store. The root itself is only opened, not
//! looked at: a store may refuse the daemon and still serve its callers.
//!
//! May touch: what is below the store's directory.

pub mod attr;
pub mod caller;
pub mod calls;
pub mod closer;
pub mod file;
pub mod listing;
pub mod node;
pub mod side;
pub mod tree;

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use self::file::{DirFile, open_flags};
use self::node::{DirNode, Place};
use self::tree::{Tree, open_object};
use super::identity::{Filesystem, Identity, store_identity};
use super::{
    Attr, Caller, DirEntry, ImageId, Kind, Node, OpenMode, Result, SetAttr, StatFs, Store,
    StoreFile,
};

/// What flashside keeps in a store, at its root; hidden from the mount.
pub const RESERVED_NAME: &str = ".flashside";

/// A store that is a directory.
pub struct DirStore {
    tree: Arc<Tree>,
    is_local: bool,
    identity: String,
}

impl DirStore {
    /// Opens the store at `path`, a directory.
    pub fn open(path: &Path) -> io::Result<DirStore> {
        let tree = Tree::open(path)?;
        let root = tree.root().fd();
        let is_local = Filesystem::of(root.as_fd()).is_ok_and(|filesystem| filesystem.is_local());
        let own_view = calls::stat(root.as_fd(), 0).and_then(|stat| tree.attr(tree.root(), &stat));
        let identity = store_identity(path, &root, own_view.ok().map(|attr| attr.id));
        Ok(DirStore {
            tree: Arc::new(tree),
            is_local,
            identity,
        })
    }

    /// Adds a name to a directory by `make`, and looks it up.
    fn add(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        make: impl Fn(&OwnedFd, &CString) -> io::Result<()>,
    ) -> Result<(Node, Attr)> {
        let parent = dir_node(parent)?;
        let c_name = new_name(&parent, name)?;
        let (node, attr) = self.tree.run(who, &[&parent], || {
            make(&parent.fd(), &c_name)?;
            self.tree
                .adopt(open_object(&parent, &c_name)?, &parent, name)
        })?;
        Ok((Node(node), attr))
    }

    /// Runs `call` on an object's descriptor.
    fn on<T>(
        &self,
        who: &Caller,
        node: &Node,
        call: impl Fn(&OwnedFd) -> io::Result<T>,
    ) -> Result<T> {
        let node = dir_node(node)?;
        self.tree.run(who, &[&node], || call(&node.fd()))
    }

    fn remove(&self, who: &Caller, parent: &Node, name: &OsStr, flags: i32) -> Result<()> {
        let parent = dir_node(parent)?;
        let name = known_name(&parent, name)?;
        self.tree.run(who, &[&parent], || {
            calls::unlink(parent.fd().as_fd(), &name, flags)
        })
    }

    /// After a rename the object's node learns its new place, if anybody uses it.
    fn note_place(&self, who: &Caller, parent: &Arc<DirNode>, name: &OsStr, c_name: &CString) {
        let looked_up = self.tree.run(who, &[], || {
            self.tree.adopt(open_object(parent, c_name)?, parent, name)
        });
        if let Err(error) = looked_up {
            log::debug!("a renamed object cannot be looked up: {error}");
        }
    }
}

impl Store for DirStore {
    fn root(&self) -> Node {
        Node(self.tree.root().clone())
    }

    fn is_local(&self) -> bool {
        self.is_local
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn lookup(&self, who: &Caller, parent: &Node, name: &OsStr) -> Result<(Node, Attr)> {
        let parent = dir_node(parent)?;
        let c_name = known_name(&parent, name)?;
        let (node, attr) = self.tree.run(who, &[&parent], || {
            self.tree
                .adopt(open_object(&parent, &c_name)?, &parent, name)
        })?;
        Ok((Node(node), attr))
    }

    fn attr(&self, who: &Caller, node: &Node) -> Result<Attr> {
        let node = dir_node(node)?;
        self.tree.run(who, &[&node], || {
            let stat = calls::stat(node.fd().as_fd(), 0)?;
            self.tree.attr(&node, &stat)
        })
    }

    fn set_attr(&self, who: &Caller, node: &Node, set: &SetAttr) -> Result<Attr> {
        self.on(who, node, |fd| {
            let fd = fd.as_fd();
            // The owner first: changing it clears set-uid and set-gid, which `mode` may then set.
            if set.uid.is_some() || set.gid.is_some() {
                calls::set_owner(fd, set.uid, set.gid)?;
            }
            if let Some(mode) = set.mode {
                calls::set_mode(fd, mode)?;
            }
            if set.atime.is_some() || set.mtime.is_some() {
                calls::set_times(fd, set.atime, set.mtime)?;
            }
            Ok(())
        })?;
        self.attr(who, node)
    }

    fn read_link(&self, who: &Caller, node: &Node) -> Result<OsString> {
        self.on(who, node, |fd| calls::read_link(fd.as_fd()))
    }

    fn read_dir(
        &self,
        who: &Caller,
        node: &Node,
        cookie: u64,
        max_entries: usize,
    ) -> Result<Vec<DirEntry>> {
        let hides_reserved = dir_node(node)?.is_root();
        self.on(who, node, |fd| {
            let dir = calls::reopen(fd.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?;
            listing::read(dir.as_fd(), cookie, max_entries, |name| {
                hides_reserved && name == RESERVED_NAME
            })
        })
    }

    fn open(&self, who: &Caller, node: &Node, mode: OpenMode) -> Result<Arc<dyn StoreFile>> {
        let node = dir_node(node)?;
        if node.kind() != Kind::File {
            return Err(super::Error::from_errno(libc::EINVAL)); // opening a FIFO would wait
        }
        let fd = self.tree.run(who, &[&node], || {
            calls::reopen(node.fd().as_fd(), open_flags(mode))
        })?;
        let file = DirFile::new(self.tree.clone(), node, who.clone(), mode, fd);
        Ok(Arc::new(file))
    }

    fn token(&self, node: &Node) -> Option<Arc<[u8]>> {
        dir_node(node).ok()?.handle().cloned()
    }

    fn node_of(
        &self,
        id: ImageId,
        kind: Kind,
        token: &[u8],
        place: Option<(&Node, &OsStr)>,
    ) -> Result<Node> {
        let place = match place {
            Some((parent, name)) if !name.is_empty() => {
                let parent = dir_node(parent)?;
                known_name(&parent, name)?;
                let name = name.to_owned();
                Some(Place { parent, name })
            }
            _ => None,
        };
        let handle = (!token.is_empty()).then(|| Arc::from(token));
        let identity = Identity { id, handle };
        Ok(Node(self.tree.carry(identity, kind, place)))
    }

    fn adopt_file(
        &self,
        who: &Caller,
        node: &Node,
        mode: OpenMode,
        file: OwnedFd,
    ) -> Result<Arc<dyn StoreFile>> {
        let node = dir_node(node)?;
        if !node.is_found() {
            let path = calls::reopen(file.as_fd(), libc::O_PATH)?;
            self.tree.find_as(&node, path, libc::AT_STATX_DONT_SYNC)?;
        }
        let file = DirFile::new(self.tree.clone(), node, who.clone(), mode, file);
        Ok(Arc::new(file))
    }

    fn create(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<(Node, Attr, Arc<dyn StoreFile>)> {
        let parent = dir_node(parent)?;
        let c_name = new_name(&parent, name)?;
        let flags = open_flags(mode) | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let (fd, node, attr) = self.tree.run(who, &[&parent], || {
            let fd = calls::open_at(parent.fd().as_fd(), &c_name, flags, permissions)?;
            let path = calls::reopen(fd.as_fd(), libc::O_PATH)?;
            let (node, attr) = self.tree.adopt(path, &parent, name)?;
            Ok((fd, node, attr))
        })?;
        let file = DirFile::new(self.tree.clone(), node.clone(), who.clone(), mode, fd);
        Ok((Node(node), attr, Arc::new(file)))
    }

    fn make_dir(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        permissions: u32,
    ) -> Result<(Node, Attr)> {
        self.add(who, parent, name, |dir, name| {
            calls::make_dir(dir.as_fd(), name, permissions)
        })
    }

    fn make_node(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<(Node, Attr)> {
        self.add(who, parent, name, |dir, name| {
            calls::make_node(dir.as_fd(), name, mode, rdev)
        })
    }

    fn make_symlink(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<(Node, Attr)> {
        let target = calls::c_name(target)?;
        self.add(who, parent, name, |dir, name| {
            calls::make_symlink(&target, dir.as_fd(), name)
        })
    }

    fn link(&self, who: &Caller, node: &Node, parent: &Node, name: &OsStr) -> Result<Attr> {
        let (node, parent) = (dir_node(node)?, dir_node(parent)?);
        let name = new_name(&parent, name)?;
        self.tree.run(who, &[&node, &parent], || {
            calls::link(node.fd().as_fd(), parent.fd().as_fd(), &name)?;
            let stat = calls::stat(node.fd().as_fd(), 0)?;
            self.tree.attr(&node, &stat)
        })
    }

    fn unlink(&self, who: &Caller, parent: &Node, name: &OsStr) -> Result<()> {
        self.remove(who, parent, name, 0)
    }

    fn remove_dir(&self, who: &Caller, parent: &Node, name: &OsStr) -> Result<()> {
        self.remove(who, parent, name, libc::AT_REMOVEDIR)
    }

    fn rename(
        &self,
        who: &Caller,
        (from, from_name): (&Node, &OsStr),
        (to, to_name): (&Node, &OsStr),
        flags: u32,
    ) -> Result<()> {
        let (from, to) = (dir_node(from)?, dir_node(to)?);
        let from_c_name = known_name(&from, from_name)?;
        let to_c_name = new_name(&to, to_name)?;
        self.tree.run(who, &[&from, &to], || {
            calls::rename(
                (from.fd().as_fd(), &from_c_name),
                (to.fd().as_fd(), &to_c_name),
                flags,
            )
        })?;
        self.note_place(who, &to, to_name, &to_c_name);
        if flags & libc::RENAME_EXCHANGE != 0 {
            self.note_place(who, &from, from_name, &from_c_name);
        }
        Ok(())
    }

    fn get_xattr(&self, who: &Caller, node: &Node, name: &OsStr) -> Result<Vec<u8>> {
        let name = calls::c_name(name)?;
        self.on(who, node, |fd| calls::get_xattr(fd.as_fd(), &name))
    }

    fn set_xattr(
        &self,
        who: &Caller,
        node: &Node,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        let name = calls::c_name(name)?;
        self.on(who, node, |fd| {
            calls::set_xattr(fd.as_fd(), &name, value, flags)
        })
    }

    fn list_xattr(&self, who: &Caller, node: &Node) -> Result<Vec<u8>> {
        self.on(who, node, |fd| calls::list_xattr(fd.as_fd()))
    }

    fn remove_xattr(&self, who: &Caller, node: &Node, name: &OsStr) -> Result<()> {
        let name = calls::c_name(name)?;
        self.on(who, node, |fd| calls::remove_xattr(fd.as_fd(), &name))
    }

    fn sync_dir(&self, who: &Caller, node: &Node) -> Result<()> {
        self.on(who, node, |fd| {
            let dir = calls::reopen(fd.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?;
            calls::sync(dir.as_fd(), false)
        })
    }

    fn stat_fs(&self, who: &Caller) -> Result<StatFs> {
        self.on(who, &self.root(), |fd| calls::stat_fs(fd.as_fd()))
    }

    fn read_side(&self, who: &Caller, id: ImageId, name: &str) -> Result<Vec<u8>> {
        side::read(&self.tree, who, id, name)
    }

    fn write_side(&self, who: &Caller, id: ImageId, name: &str, bytes: &[u8]) -> Result<()> {
        side::write(&self.tree, who, id, name, bytes)
    }

    fn remove_sides(&self, who: &Caller, id: ImageId) -> Result<()> {
        side::remove_all(&self.tree, who, id)
    }
}

/// The node behind the handle; EINVAL if another store made it.
fn dir_node(node: &Node) -> Result<Arc<DirNode>> {
    let node = node.0.clone().downcast::<DirNode>();
    node.map_err(|_| super::Error::from_errno(libc::EINVAL))
}

/// A name to find: one component, not the reserved one.
fn known_name(parent: &DirNode, name: &OsStr) -> Result<CString> {
    component(parent, name, libc::ENOENT)
}

/// A name to make: the reserved one is not allowed.
fn new_name(parent: &DirNode, name: &OsStr) -> Result<CString> {
    component(parent, name, libc::EPERM)
}

fn component(parent: &DirNode, name: &OsStr, if_reserved: i32) -> Result<CString> {
    if parent.is_root() && name == RESERVED_NAME {
        return Err(super::Error::from_errno(if_reserved));
    }
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(super::Error::from_errno(libc::EINVAL));
    }
    Ok(calls::c_name(name)?)
}

#[cfg(test)]
mod tests;
