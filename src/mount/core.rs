//! What all operations of a mount share, and how they ask the store: on the executor, with the
//! reply moved along, so that no FUSE thread ever waits for the store.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use fuser::{Errno, FileAttr, Generation, INodeNo, Notifier};
use parking_lot::Mutex;

use super::attr::{errno, file_attr};
use super::caller::Callers;
use super::files::OpenFile;
use super::handles::Handles;
use super::listing::{Listings, OpenDir};
use super::nodes::{Inode, Nodes};
use crate::config::Config;
use crate::image::Images;
use crate::store::executor::Executor;
use crate::store::{Attr, Caller, Error, Kind, Result, StatFs, Store};

/// A mount: its tables, and what it works with.
pub struct Core {
    pub store: Arc<dyn Store>,
    pub images: Arc<Images>,
    pub executor: Arc<Executor>,
    pub callers: Callers,
    pub nodes: Nodes,
    pub files: Handles<OpenFile>,
    pub dirs: Handles<OpenDir>,
    pub listings: Listings,
    pub last_stat_fs: Mutex<Option<StatFs>>,
    pub read_only: bool,
    pub control_uids: Vec<u32>,
    pub control_socket: PathBuf,
    /// The way to tell the kernel something unasked; there once mounted.
    pub notifier: OnceLock<Notifier>,
}

impl Core {
    /// The state of a new mount that keeps at most about `inodes_max` inodes.
    pub fn new(
        config: &Config,
        store: Arc<dyn Store>,
        images: Arc<Images>,
        executor: Arc<Executor>,
        control_socket: &Path,
        inodes_max: usize,
    ) -> Core {
        Core {
            nodes: Nodes::new(store.root(), inodes_max),
            store,
            images,
            executor,
            callers: Callers::new(config.store_user),
            files: Handles::default(),
            dirs: Handles::default(),
            listings: Listings::default(),
            last_stat_fs: Mutex::new(None),
            read_only: config.read_only,
            control_uids: config.control_uids.clone(),
            control_socket: control_socket.to_owned(),
            notifier: OnceLock::new(),
        }
    }

    /// The inode of a number the kernel gave; ESTALE if we never told it that number.
    pub fn inode(&self, nodeid: INodeNo) -> Result<Arc<Inode>> {
        let inode = self.nodes.get(nodeid.0);
        inode.ok_or_else(|| Error::from_errno(libc::ESTALE))
    }

    /// The kernel's copy of an inode's attributes is out of date.
    pub fn attr_outdated(&self, inode: &Inode) {
        const ATTRIBUTES_ONLY: i64 = -1;
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(inode.nodeid), ATTRIBUTES_ONLY, 0)
        {
            log::debug!("the kernel does not drop attributes: {error}");
        }
    }

    /// Attributes for the kernel. Of an image in use, the image knows the size better than the
    /// store, which may not have every write yet.
    pub fn file_attr(&self, inode: &Inode, attr: &Attr) -> FileAttr {
        let size_bytes = match inode.kind {
            Kind::File => self.images.true_size(inode.id, attr.size_bytes),
            _ => attr.size_bytes,
        };
        file_attr(inode.nodeid, attr, size_bytes)
    }

    /// Makes a change to an object that is not content (owner, mode, name, links, attributes). It moves
    /// the ctime, so the cache of an image is told that this was us and its blocks are still good.
    pub fn keeping_version<T>(
        &self,
        who: &Caller,
        inode: &Inode,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if !self.images.is_cached(inode.id) {
            return change();
        }
        let before = self.store.attr(who, &inode.node);
        let changed = change()?;
        if let (Ok(before), Ok(after)) = (before, self.store.attr(who, &inode.node)) {
            self.images.own_change(&before, &after);
        }
        Ok(changed)
    }

    /// Runs `work` on the executor, then answers with `ok` or with the error.
    pub fn ask<T: Send + 'static, R: Refuse>(
        self: &Arc<Self>,
        what: &'static str,
        reply: R,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
        ok: impl FnOnce(&Arc<Core>, R, T) + Send + 'static,
    ) {
        let (worker, answerer) = (self.clone(), self.clone());
        self.executor.submit(
            what,
            move || work(&worker),
            move |result| settle(reply, result, |reply, value| ok(&answerer, reply, value)),
        );
    }

    /// As [`Core::ask`]; while the store hangs, `known` answers instead if it can.
    pub fn ask_or<T: Send + 'static, R: Refuse>(
        self: &Arc<Self>,
        what: &'static str,
        reply: R,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
        ok: impl FnOnce(&Arc<Core>, R, T) + Send + 'static,
        known: impl FnOnce(&Core) -> Option<T> + Send + 'static,
    ) {
        let (worker, answerer, knower) = (self.clone(), self.clone(), self.clone());
        self.executor.submit_or(
            what,
            move || work(&worker),
            move |result| settle(reply, result, |reply, value| ok(&answerer, reply, value)),
            move || known(&knower),
        );
    }
}

/// The generation that goes with a number: differs between two uses of one inode number.
pub fn generation(inode: &Inode) -> Generation {
    Generation(inode.id.tag)
}

/// Answers with `ok`, or with the errno.
pub fn settle<T, R: Refuse>(reply: R, result: Result<T>, ok: impl FnOnce(R, T)) {
    match result {
        Ok(value) => ok(reply, value),
        Err(error) => reply.refuse(errno(&error)),
    }
}

/// A reply that can say an errno.
pub trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ident),+) => {$(
        impl Refuse for fuser::$reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        }
    )+};
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);
