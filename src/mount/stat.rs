//! Operations on attributes: getattr, setattr (truncation included) and statfs.

use std::sync::Arc;

use fuser::{Errno, FileHandle, INodeNo, ReplyAttr, ReplyStatfs};

use super::attr::TTL;
use super::core::{Core, settle};
use super::nodes::{Inode, ROOT};
use crate::image::Handle;
use crate::store::{Attr, Caller, Kind, OpenMode, Result, SetAttr, StatFs};

/// How a file is opened to be truncated by name.
const FOR_TRUNCATION: OpenMode = OpenMode {
    read: false,
    write: true,
    sync: false,
};

impl Core {
    /// Learns the root's attributes before anybody asks, to know them when the store hangs.
    pub fn learn_root(self: &Arc<Self>) {
        let core = self.clone();
        let work = move || {
            let root = core.inode(INodeNo(ROOT))?;
            root.remember(&core.store.attr(&core.callers.own(), &root.node)?);
            Ok(())
        };
        self.executor.submit("getattr", work, |result: Result<()>| {
            if let Err(error) = result {
                log::debug!("the store does not show its root to the daemon: {error}");
            }
        });
    }

    fn answer_attr(&self, reply: ReplyAttr, inode: &Inode, attr: &Attr) {
        inode.remember(attr);
        reply.attr(&TTL, &self.file_attr(inode, attr));
    }

    pub fn get_attr(self: &Arc<Self>, who: Caller, nodeid: INodeNo, reply: ReplyAttr) {
        settle(reply, self.inode(nodeid), |reply, inode| {
            let (asked, known) = (inode.clone(), inode.clone());
            self.ask_or(
                "getattr",
                reply,
                move |core| core.store.attr(&who, &asked.node),
                move |core, reply, attr| core.answer_attr(reply, &inode, &attr),
                move |_| known.last_attr(),
            );
        });
    }

    /// Changes attributes. A new size comes first: it is content, and goes through the image.
    pub fn set_attr(
        self: &Arc<Self>,
        who: Caller,
        nodeid: INodeNo,
        size_bytes: Option<u64>,
        number: Option<FileHandle>,
        set: SetAttr,
        reply: ReplyAttr,
    ) {
        if self.read_only {
            return reply.error(Errno::EROFS);
        }
        settle(reply, self.inode(nodeid), |reply, inode| match size_bytes {
            None => self.set_rest(who, inode, set, false, reply),
            Some(_) if inode.kind != Kind::File => reply.error(Errno::EINVAL),
            Some(size_bytes) => {
                let change = Change {
                    who,
                    inode,
                    size_bytes,
                    set,
                    reply,
                };
                match number.and_then(|number| self.files.get(number.0)) {
                    Some(file) if file.write => self.truncate(&file.handle, change, |_| ()),
                    _ => self.open_and_truncate(change),
                }
            }
        });
    }

    /// Truncation by name: a short-lived open as the caller, whose rights the store checks.
    fn open_and_truncate(self: &Arc<Self>, change: Change) {
        let Change {
            who,
            inode,
            size_bytes,
            set,
            reply,
        } = change;
        let (asker, asked) = (who.clone(), inode.clone());
        self.ask(
            "truncate",
            reply,
            move |core| core.open_store(&asker, &asked.node, FOR_TRUNCATION),
            move |core, reply, (file, attr)| {
                let handle = core.join(&inode, file, &attr, FOR_TRUNCATION);
                let change = Change {
                    who,
                    inode,
                    size_bytes,
                    set,
                    reply,
                };
                core.truncate(&handle, change, |handle| handle.release());
            },
        );
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
            settle(change.reply, result, |reply, ()| {
                core.set_rest(change.who, change.inode, change.set, true, reply);
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
        reply: ReplyAttr,
    ) {
        let asked = inode.clone();
        self.ask(
            "setattr",
            reply,
            move |core| core.apply(&who, &asked, set, truncated),
            move |core, reply, attr| core.answer_attr(reply, &inode, &attr),
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

    pub fn stat_fs(self: &Arc<Self>, who: Caller, reply: ReplyStatfs) {
        self.ask_or(
            "statfs",
            reply,
            move |core| core.store.stat_fs(&who),
            |core, reply, stat| {
                *core.last_stat_fs.lock() = Some(stat);
                answer_stat_fs(reply, stat);
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
    reply: ReplyAttr,
}

fn answer_stat_fs(reply: ReplyStatfs, stat: StatFs) {
    reply.statfs(
        stat.blocks,
        stat.blocks_free,
        stat.blocks_available,
        stat.files,
        stat.files_free,
        stat.block_size,
        stat.name_max,
        stat.block_size,
    );
}
