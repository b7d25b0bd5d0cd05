//! Operations on names: lookup, making, linking, renaming and removing.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::again::Making;
use super::answer::{Answer, Entry};
use super::core::{Core, with};
use super::nodes::Inode;
use super::once::Once;
use crate::store::{Attr, Caller, Error, ImageId, Kind, Node, Result};

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
        let inode = self.enter(parent, name, node, &attr);
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

    /// Makes an object by `make`, which gets who asks, the parent and the name; once, as `making` is known
    /// again.
    pub fn make(
        self: &Arc<Self>,
        (who, once): (Caller, Once),
        making: Making,
        (parent, name): (u64, OsString),
        answer: Answer<Entry>,
        make: impl FnOnce(&Core, &Caller, &Inode, &OsStr) -> Result<(Node, Attr)> + Send + 'static,
    ) {
        with(answer, self.inode(parent), |answer, dir| {
            let (nodeid, told) = (dir.nodeid, name.clone());
            self.ask(
                making.what(),
                answer,
                move |core| {
                    once.asks([None, None]);
                    let made = make(core, &who, &dir, &name);
                    let before = match &made {
                        Err(error) if error.errno() == libc::EEXIST => {
                            core.made_before(&who, &dir, &name, &making, &once)
                        }
                        _ => None,
                    };
                    once.told(before.map_or(made, Ok))
                },
                move |core, made| Ok(core.entered(nodeid, &told, made)),
            );
        });
    }

    pub fn link(
        self: &Arc<Self>,
        who: Caller,
        nodeid: u64,
        place: (u64, OsString),
        once: Once,
        answer: Answer<Entry>,
    ) {
        with(answer, self.inode(nodeid), |answer, inode| {
            let making = Making::Link(inode.id);
            let link = move |core: &Core, who: &Caller, dir: &Inode, name: &OsStr| {
                let attr = core.keeping_version(who, &inode, || {
                    core.store.link(who, &inode.node, &dir.node, name)
                })?;
                Ok((inode.node.clone(), attr))
            };
            self.make((who, once), making, place, answer, link);
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

    pub fn unlink(
        self: &Arc<Self>,
        who: Caller,
        parent: u64,
        name: OsString,
        once: Once,
        answer: Answer<()>,
    ) {
        with(answer, self.inode(parent), |answer, dir| {
            self.ask(
                "unlink",
                answer,
                move |core| core.remove_name(&who, &dir, &name, &once),
                |_, ()| Ok(()),
            );
        });
    }

    fn remove_name(&self, who: &Caller, dir: &Inode, name: &OsStr, once: &Once) -> Result<()> {
        let victim = self.victim(who, dir, name, once);
        if !self.removed_before(who, dir, name, once)? {
            let known = self.nodes.child(dir.nodeid, name);
            once.asks([known.as_ref().map(|inode| inode.id), None]);
            let unlink = || self.store.unlink(who, &dir.node, name);
            once.told(match known {
                Some(inode) => self.keeping_version(who, &inode, unlink),
                None => unlink(),
            })?;
        }
        self.nodes.name_removed(dir.nodeid, name);
        self.name_lost(who, victim);
        Ok(())
    }

    pub fn remove_dir(
        self: &Arc<Self>,
        who: Caller,
        parent: u64,
        name: OsString,
        once: Once,
        answer: Answer<()>,
    ) {
        with(answer, self.inode(parent), |answer, dir| {
            self.ask(
                "rmdir",
                answer,
                move |core| {
                    let known = core.nodes.child(dir.nodeid, &name);
                    if !core.removed_before(&who, &dir, &name, &once)? {
                        once.asks([known.as_ref().map(|inode| inode.id), None]);
                        once.told(core.store.remove_dir(&who, &dir.node, &name))?;
                    }
                    if let Some(removed) = known {
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
        once: Once,
        answer: Answer<()>,
    ) {
        let dirs = self
            .inode(from.0)
            .and_then(|source| Ok((source, self.inode(to.0)?)));
        with(answer, dirs, |answer, (source, target)| {
            self.ask(
                "rename",
                answer,
                move |core| {
                    let names = ((&*source, &*from.1), (&*target, &*to.1));
                    core.move_name(&who, names, flags, &once)
                },
                |_, ()| Ok(()),
            );
        });
    }

    fn move_name(
        &self,
        who: &Caller,
        (from, to): ((&Inode, &OsStr), (&Inode, &OsStr)),
        flags: u32,
        once: &Once,
    ) -> Result<()> {
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        let replaces = flags & (libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE) == 0;
        let victim = match replaces {
            true => self.victim_of_rename(who, to, once),
            false => None,
        };
        let known = |(dir, name): (&Inode, &OsStr)| self.nodes.child(dir.nodeid, name);
        let moved = known(from);
        let is_done = self.renamed_before(who, from, to, once)?;
        if !is_done {
            let id = |inode: &Option<Arc<Inode>>| inode.as_ref().map(|inode| inode.id);
            once.asks([id(&moved), id(&known(to))]);
            let rename = || {
                let (from, to) = ((&from.0.node, from.1), (&to.0.node, to.1));
                self.store.rename(who, from, to, flags)
            };
            once.told(match &moved {
                Some(moved) => self.keeping_version(who, moved, rename),
                None => rename(),
            })?;
        }
        // Where an earlier server has done it, the table may know already.
        let source = once.earlier().and_then(|[source, _]| source);
        let is_known = known(to).is_some_and(|inode| Some(inode.id) == source);
        if !(is_done && is_known) {
            self.nodes
                .renamed((from.0.nodeid, from.1), (to.0.nodeid, to.1), exchange);
        }
        self.name_lost(who, victim);
        self.tell_new_names();
        Ok(())
    }

    /// What is about to lose a name, if it is an image: as the table knows it, else as the store
    /// says. Of a repeated request, what it found when it came first.
    fn victim(
        &self,
        who: &Caller,
        dir: &Inode,
        name: &OsStr,
        once: &Once,
    ) -> Option<(Node, ImageId)> {
        let file =
            |inode: Arc<Inode>| (inode.kind == Kind::File).then(|| (inode.node.clone(), inode.id));
        if let Some([victim, _]) = once.earlier() {
            return file(self.nodes.of_image(victim?)?);
        }
        if let Some(known) = self.nodes.child(dir.nodeid, name) {
            return file(known);
        }
        let (node, attr) = self.store.lookup(who, &dir.node, name).ok()?;
        (attr.kind == Kind::File).then_some((node, attr.id))
    }

    /// As [`Core::victim`], of what is about to be replaced.
    fn victim_of_rename(
        &self,
        who: &Caller,
        (dir, name): (&Inode, &OsStr),
        once: &Once,
    ) -> Option<(Node, ImageId)> {
        match once.earlier() {
            Some([_, victim]) => {
                let inode = self.nodes.of_image(victim?)?;
                (inode.kind == Kind::File).then(|| (inode.node.clone(), inode.id))
            }
            None => self.victim(who, dir, name, once),
        }
    }

    /// An image lost a name; if that was its last one, its cached blocks can go.
    fn name_lost(&self, who: &Caller, victim: Option<(Node, ImageId)>) {
        let Some((node, id)) = victim else { return };
        if self.is_gone(who, &node) {
            self.images.removed(id);
            let removed = self.store.remove_sides(&self.callers.own(), id);
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
