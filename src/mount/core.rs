//! What all operations of a mount share, and how they ask the store: on the executor, with the
//! answer moved along, so that no FUSE thread ever waits for the store.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::answer::{Answer, Entry, Shown};
use super::caller::Callers;
use super::files::OpenFile;
use super::handles::Handles;
use super::kernel::Kernel;
use super::legacy::Legacy;
use super::listing::{Listings, OpenDir};
use super::nodes::{Inode, Nodes};
use super::plane::Planes;
use super::take_on::Missing;
use crate::config::Config;
use crate::image::Images;
use crate::store::executor::Executor;
use crate::store::{Attr, Caller, Error, Kind, Node, Result, StatFs, Store};

/// A mount: its tables, and what it works with.
pub struct Core {
    pub store: Arc<dyn Store>,
    pub images: Arc<Images>,
    pub executor: Arc<Executor>,
    pub callers: Callers,
    pub nodes: Nodes,
    pub files: Handles<OpenFile>,
    pub dirs: Handles<OpenDir>,
    /// Files of servers before that are not, or not yet, taken on.
    pub missing: Missing,
    pub legacy: Legacy,
    pub listings: Listings,
    pub last_stat_fs: Mutex<Option<StatFs>>,
    pub read_only: bool,
    /// Requests that must not be repeated are guarded. Off only to see tests fail.
    pub exactly_once: bool,
    pub planes: Planes,
    pub control_uids: Vec<u32>,
    pub control_socket: PathBuf,
    /// The way to tell the kernel something unasked; there once mounted.
    pub kernel: OnceLock<Arc<dyn Kernel>>,
}

impl Core {
    /// The state of a mount that keeps at most about `inodes_max` inodes and leaves to others what
    /// `legacy` says; empty, before anything is taken on.
    pub fn new(
        config: &Config,
        store: Arc<dyn Store>,
        images: Arc<Images>,
        executor: Arc<Executor>,
        control_socket: &Path,
        inodes_max: usize,
        legacy: Legacy,
    ) -> Core {
        Core {
            nodes: Nodes::new(store.root(), inodes_max, legacy.ledger.clone()),
            store,
            images,
            executor,
            callers: Callers::new(config.store_user),
            files: Handles::default(),
            dirs: Handles::default(),
            missing: Missing::default(),
            legacy,
            exactly_once: config.exactly_once,
            listings: Listings::default(),
            last_stat_fs: Mutex::new(None),
            read_only: config.read_only,
            planes: Planes::new(config),
            control_uids: config.control_uids.clone(),
            control_socket: control_socket.to_owned(),
            kernel: OnceLock::new(),
        }
    }

    /// Tells the inode table what a name leads to, as the kernel is about to hear it.
    pub fn enter(&self, parent: u64, name: &OsStr, node: Node, attr: &Attr) -> Arc<Inode> {
        let token = self.store.token(&node);
        self.nodes.enter(parent, name, node, token.as_deref(), attr)
    }

    /// The inode of a number the kernel gave; ESTALE if we never told it that number.
    pub fn inode(&self, nodeid: u64) -> Result<Arc<Inode>> {
        let inode = self.nodes.get(nodeid);
        inode.ok_or_else(|| Error::from_errno(libc::ESTALE))
    }

    /// The kernel's copy of an inode's attributes is out of date.
    pub fn attr_outdated(&self, inode: &Inode) {
        if let Some(kernel) = self.kernel.get()
            && let Err(error) = kernel.attr_outdated(inode.nodeid)
        {
            log::debug!("the kernel does not drop attributes: {error}");
        }
    }

    /// Attributes for the kernel. Of an image in use, the image knows the size better than the
    /// store, which may not have every write yet.
    pub fn shown(&self, inode: &Inode, attr: &Attr) -> Shown {
        let size_bytes = match inode.kind {
            Kind::File => self.images.true_size(inode.id, attr.size_bytes),
            _ => attr.size_bytes,
        };
        Shown {
            nodeid: inode.nodeid,
            attr: Attr {
                size_bytes,
                ..*attr
            },
        }
    }

    /// What a name leads to, for the kernel.
    pub fn entry(&self, inode: &Inode, attr: &Attr) -> Entry {
        Entry {
            shown: self.shown(inode, attr),
            generation: inode.id.tag,
        }
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

    /// Runs `work` on the executor, then answers with what `ok` makes of its result, or with the error.
    pub fn ask<T: Send + 'static, A: 'static>(
        self: &Arc<Self>,
        what: &'static str,
        answer: Answer<A>,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
        ok: impl FnOnce(&Arc<Core>, T) -> Result<A> + Send + 'static,
    ) {
        let (worker, answerer) = (self.clone(), self.clone());
        self.executor.submit(
            what,
            move || work(&worker),
            move |result| answer(result.and_then(|value| ok(&answerer, value))),
        );
    }

    /// As [`Core::ask`]; while the store hangs, `known` answers instead if it can.
    pub fn ask_or<T: Send + 'static, A: 'static>(
        self: &Arc<Self>,
        what: &'static str,
        answer: Answer<A>,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
        ok: impl FnOnce(&Arc<Core>, T) -> Result<A> + Send + 'static,
        known: impl FnOnce(&Core) -> Option<T> + Send + 'static,
    ) {
        let (worker, answerer, knower) = (self.clone(), self.clone(), self.clone());
        self.executor.submit_or(
            what,
            move || work(&worker),
            move |result| answer(result.and_then(|value| ok(&answerer, value))),
            move || known(&knower),
        );
    }
}

/// Goes on with a value, or answers with the error.
pub fn with<T, A>(answer: Answer<A>, result: Result<T>, go_on: impl FnOnce(Answer<A>, T)) {
    match result {
        Ok(value) => go_on(answer, value),
        Err(error) => answer(Err(error)),
    }
}
