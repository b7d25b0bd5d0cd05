//! Operations on attributes: getattr, setattr (truncation included) and statfs.

use std::sync::Arc;

use super::answer::{Answer, Shown, refuse};
use super::core::{Core, with};
use super::nodes::{Inode, ROOT};
use super::plane::Found;
use crate::image::Handle;
use crate::store::{Attr, Caller, Kind, OpenMode, Result, SetAttr, StatFs};

/// How a file is opened to be truncated by name.
pub const FOR_TRUNCATION: OpenMode = OpenMode {
    read: false,
    write: true,
    sync: false,
};

impl Core {
    /// Learns the root's attributes before anybody asks, to know them when the store hangs.
    pub fn learn_root(self: &Arc<Self>) {
        let core = self.clone();
        let work = move || {
            let root = core.inode(ROOT)?;
            root.remember(&core.store.attr(&core.callers.own(), &root.node)?);
            Ok(())
        };
        self.executor.submit("getattr", work, |result: Result<()>| {
            if let Err(error) = result {
                log::debug!("the store does not show its root to the daemon: {error}");
            }
        });
    }

    fn learned(&self, inode: &Inode, attr: &Attr) -> Shown {
        inode.remember(attr);
        self.shown(inode, attr)
    }

    pub fn get_attr(self: &Arc<Self>, who: Caller, nodeid: u64, answer: Answer<Shown>) {
        with(answer, self.inode(nodeid), |answer, inode| {
            let (asked, known) = (inode.clone(), inode.clone());
            self.ask_or(
                "getattr",
                answer,
                move |core| core.store.attr(&who, &asked.node),
                move |core, attr| Ok(core.learned(&inode, &attr)),
                move |_| known.last_attr(),
            );
        });
    }

    /// Changes attributes. A new size comes first: it is content, and goes through the image.
    pub fn set_attr(
        self: &Arc<Self>,
        who: Caller,
        nodeid: u64,
        size_bytes: Option<u64>,
        number: Option<u64>,
        set: SetAttr,
        answer: Answer<Shown>,
    ) {
        if self.read_only {
            return refuse(answer, libc::EROFS);
        }
        with(
            answer,
            self.inode(nodeid),
            |answer, inode| match size_bytes {
                None => self.set_rest(who, inode, set, false, answer),
                Some(_) if inode.kind != Kind::File => refuse(answer, libc::EINVAL),
                Some(size_bytes) => {
                    let change = Change {
                        who,
                        inode,
                        size_bytes,
                        set,
                        answer,
                    };
                    match number.and_then(|number| self.files.get(number)) {
                        Some(file) if file.write => self.truncate(&file.handle, change, |_| ()),
                        _ => self.open_and_truncate(change),
                    }
                }
            },
        );
    }

    /// Truncation by name: a short-lived open as the caller, whose rights the store checks.
    fn open_and_truncate(self: &Arc<Self>, change: Change) {
        let Change {
            who,
            inode,
            size_bytes,
            set,
            answer,
        } = change;
        let (core, opener) = (self.clone(), self.clone());
        let (asker, asked) = (who.clone(), inode.clone());
        let open = move || opener.find(&asker, &asked, FOR_TRUNCATION);
        let opened = move |result: Result<Found>| {
            let joined = result.and_then(|found| found.join(&core, &inode));
            with(answer, joined, |answer, (handle, seat)| {
                let change = Change {
                    who,
                    inode,
                    size_bytes,
                    set,
                    answer,
                };
                core.truncate(&handle, change, |handle| {
                    handle.release();
                    drop(seat);
                });
            });
        };
        self.executor.submit("truncate", open, opened);
    }

    fn truncate(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        change: Change,
        then: impl FnOnce(&Arc<Handle>) + Send + 'static,
    ) {
        let (core, used) = (self.clone(), handle.clone());
        let size_bytes = change.size_bytes;
        let done = move |result: Result<()>| {
            then(&used);
            with(change.answer, result, |answer, ()| {
                core.set_rest(change.who, change.inode, change.set, true, answer);
            });
        };
        handle.truncate(size_bytes, Box::new(done));
    }

    fn set_rest(
        self: &Arc<Self>,
        who: Caller,
        inode: Arc<Inode>,
        set: SetAttr,
        truncated: bool,
        answer: Answer<Shown>,
    ) {
        let asked = inode.clone();
        self.ask(
            "setattr",
            answer,
            move |core| core.apply(&who, &asked, set, truncated),
            move |core, attr| Ok(core.learned(&inode, &attr)),
        );
    }

    fn apply(&self, who: &Caller, inode: &Inode, set: SetAttr, truncated: bool) -> Result<Attr> {
        let node = &inode.node;
        let mut set = set;
        // With a truncation, a mode means that the kernel strips set-uid and set-gid. Who truncates
        // need not own the file, so the daemon does it, and only that.
        if truncated
            && set.mode.take().is_some()
            && let Err(error) = self.strip(inode)
        {
            log::debug!("cannot strip set-uid: {error}");
        }
        inode.remember_acl(0, None); // a mode change rewrites the ACL's mask
        self.keeping_version(who, inode, || self.store.set_attr(who, node, &set))
    }

    pub fn stat_fs(self: &Arc<Self>, who: Caller, answer: Answer<StatFs>) {
        self.ask_or(
            "statfs",
            answer,
            move |core| core.store.stat_fs(&who),
            |core, stat| {
                *core.last_stat_fs.lock() = Some(stat);
                Ok(stat)
            },
            // Never asked before: nothing known, but umount(8) asks too and must not wait.
            |core| Some(core.last_stat_fs.lock().unwrap_or_default()),
        );
    }
}

/// A truncation with what else changes.
struct Change {
    who: Caller,
    inode: Arc<Inode>,
    size_bytes: u64,
    set: SetAttr,
    answer: Answer<Shown>,
}
