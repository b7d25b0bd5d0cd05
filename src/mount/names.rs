//! Operations on names: lookup, making, linking, renaming and removing.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::answer::{Answer, Entry};
use super::core::{Core, with};
use super::nodes::Inode;
use crate::store::{Attr, Caller, Error, Kind, Node, Result};

/// The extended attribute that makes new objects inherit an ACL.
const DEFAULT_ACL: &str = "system.posix_acl_default";

impl Core {
    /// Permissions for a new object in `parent`: without the bits of `umask`, unless an ACL is
    /// inherited, which takes the umask's place. (FUSE_DONT_MASK leaves this to us.)
    pub fn masked(&self, who: &Caller, parent: &Inode, mode: u32, umask: u32) -> u32 {
        if umask == 0 {
            return mode;
        }
        let inherits = self
            .store
            .get_xattr(who, &parent.node, OsStr::new(DEFAULT_ACL))
            .is_ok_and(|acl| !acl.is_empty());
        if inherits { mode } else { mode & !umask }
    }

    /// Tells the kernel what a name leads to.
    fn entered(&self, parent: u64, name: &OsStr, (node, attr): (Node, Attr)) -> Entry {
        let inode = self.nodes.enter(parent, name, node, &attr);
        self.entry(&inode, &attr)
    }

    pub fn lookup(
        self: &Arc<Self>,
        who: Caller,
        parent: u64,
        name: OsString,
        answer: Answer<Entry>,
    ) {
        with(answer, self.inode(parent), |answer, dir| {
            let (asked, known, told) = (name.clone(), name.clone(), name);
            let nodeid = dir.nodeid;
            self.ask_or(
                "lookup",
                answer,
                move |core| core.store.lookup(&who, &dir.node, &asked),
                move |core, found| Ok(core.entered(nodeid, &told, found)),
                move |core| {
                    let inode = core.nodes.child(nodeid, &known)?;
                    Some((inode.node.clone(), inode.last_attr()?))
                },
            );
        });
    }

    /// Makes an object by `make`, which gets the parent and the name.
    pub fn make(
        self: &Arc<Self>,
        what: &'static str,
        (parent, name): (u64, OsString),
        answer: Answer<Entry>,
        make: impl FnOnce(&Core, &Inode, &OsStr) -> Result<(Node, Attr)> + Send + 'static,
    ) {
        with(answer, self.inode(parent), |answer, dir| {
            let (nodeid, told) = (dir.nodeid, name.clone());
            self.ask(
                what,
                answer,
                move |core| make(core, &dir, &name),
                move |core, made| Ok(core.entered(nodeid, &told, made)),
            );
        });
    }

    pub fn link(
        self: &Arc<Self>,
        who: Caller,
        nodeid: u64,
        (parent, name): (u64, OsString),
        answer: Answer<Entry>,
    ) {
        with(answer, self.inode(nodeid), |answer, inode| {
            self.make("link", (parent, name), answer, move |core, dir, name| {
                let attr = core.keeping_version(&who, &inode, || {
                    core.store.link(&who, &inode.node, &dir.node, name)
                })?;
                Ok((inode.node.clone(), attr))
            });
        });
    }

    pub fn read_link(self: &Arc<Self>, who: Caller, nodeid: u64, answer: Answer<Vec<u8>>) {
        use std::os::unix::ffi::OsStringExt;
        with(answer, self.inode(nodeid), |answer, inode| {
            self.ask(
                "readlink",
                answer,
                move |core| core.store.read_link(&who, &inode.node),
                |_, target| Ok(target.into_vec()),
            );
        });
    }

    pub fn unlink(self: &Arc<Self>, who: Caller, parent: u64, name: OsString, answer: Answer<()>) {
        with(answer, self.inode(parent), |answer, dir| {
            self.ask(
                "unlink",
                answer,
                move |core| {
                    let victim = core.victim(&who, &dir, &name);
                    let unlink = || core.store.unlink(&who, &dir.node, &name);
                    match core.nodes.child(dir.nodeid, &name) {
                        Some(inode) => core.keeping_version(&who, &inode, unlink)?,
                        None => unlink()?,
                    }
                    core.nodes.name_removed(dir.nodeid, &name);
                    core.name_lost(&who, victim);
                    Ok(())
                },
                |_, ()| Ok(()),
            );
        });
    }

    pub fn remove_dir(
        self: &Arc<Self>,
        who: Caller,
        parent: u64,
        name: OsString,
        answer: Answer<()>,
    ) {
        with(answer, self.inode(parent), |answer, dir| {
            self.ask(
                "rmdir",
                answer,
                move |core| {
                    core.store.remove_dir(&who, &dir.node, &name)?;
                    if let Some(removed) = core.nodes.child(dir.nodeid, &name) {
                        core.listings.forget(removed.nodeid);
                    }
                    core.nodes.name_removed(dir.nodeid, &name);
                    Ok(())
                },
                |_, ()| Ok(()),
            );
        });
    }

    pub fn rename(
        self: &Arc<Self>,
        who: Caller,
        from: (u64, OsString),
        to: (u64, OsString),
        flags: u32,
        answer: Answer<()>,
    ) {
        let dirs = self
            .inode(from.0)
            .and_then(|source| Ok((source, self.inode(to.0)?)));
        with(answer, dirs, |answer, (source, target)| {
            self.ask(
                "rename",
                answer,
                move |core| core.move_name(&who, (&source, &from.1), (&target, &to.1), flags),
                |_, ()| Ok(()),
            );
        });
    }

    fn move_name(
        &self,
        who: &Caller,
        from: (&Inode, &OsStr),
        to: (&Inode, &OsStr),
        flags: u32,
    ) -> Result<()> {
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        let replaces = flags & (libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE) == 0;
        let victim = if replaces {
            self.victim(who, to.0, to.1)
        } else {
            None
        };
        let rename = || {
            let (from, to) = ((&from.0.node, from.1), (&to.0.node, to.1));
            self.store.rename(who, from, to, flags)
        };
        match self.nodes.child(from.0.nodeid, from.1) {
            Some(moved) => self.keeping_version(who, &moved, rename)?,
            None => rename()?,
        }
        self.nodes
            .renamed((from.0.nodeid, from.1), (to.0.nodeid, to.1), exchange);
        self.name_lost(who, victim);
        self.tell_new_names();
        Ok(())
    }

    /// What is about to lose a name, if it is an image: as the table knows it, else as the store
    /// says.
    fn victim(&self, who: &Caller, dir: &Inode, name: &OsStr) -> Option<(Node, Attr)> {
        let known = self.nodes.child(dir.nodeid, name);
        let found = known.and_then(|inode| Some((inode.node.clone(), inode.last_attr()?)));
        let found = found.or_else(|| self.store.lookup(who, &dir.node, name).ok());
        found.filter(|(_, attr)| attr.kind == Kind::File)
    }

    /// An image lost a name; if that was its last one, its cached blocks can go.
    fn name_lost(&self, who: &Caller, victim: Option<(Node, Attr)>) {
        let Some((node, attr)) = victim else { return };
        if self.is_gone(who, &node) {
            self.images.removed(attr.id);
            let removed = self.store.remove_sides(&self.callers.own(), attr.id);
            if let Err(error) = removed {
                log::debug!("settings of a removed image stay behind: {error}");
            }
        }
    }

    /// Whether an object has no name left in the store.
    fn is_gone(&self, who: &Caller, node: &Node) -> bool {
        match self.store.attr(who, node) {
            Ok(attr) => attr.nlink == 0,
            Err(Error::Os(error)) => {
                matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE))
            }
            Err(Error::Deadline(_) | Error::Overloaded) => false,
        }
    }

    /// The names that people see of images in use, after a rename of one or of a directory above.
    fn tell_new_names(&self) {
        for inode in self.nodes.open_inodes() {
            let path = self.nodes.path(inode.nodeid);
            self.images.renamed(inode.id, &path.to_string_lossy());
        }
    }
}
