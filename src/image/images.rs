//! All images in use: opening, names, what becomes of them, status.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use log::Level;
use parking_lot::{Condvar, Mutex};

use crate::cache::{Entry, Pool, Validated};
use crate::config::Config;
use crate::io::BufferPool;
use crate::logs;
use crate::store::executor::{Executor, Limits};
use crate::store::{Attr, Error, ImageId, Result, StoreFile};

use super::Image;
use super::budget::Budget;
use super::counters::Counters;
use super::fetch::FETCH_BLOCKS_MAX;
use super::handle::Handle;
use super::latencies::{Histogram, Latencies};
use super::plane::Seats;
use super::status::{ImageStatus, PlaneStatus};
use super::stream::Policy;

/// Large buffers kept for reuse.
const BUFFERS_KEPT: usize = 16;
/// Threads for work on flash that is not done on a FUSE thread.
const FLASH_THREADS: usize = 4;
/// Jobs on flash that may wait; far more than the kernel has requests under way.
const FLASH_QUEUE: usize = 65536;

/// What all images share.
pub(super) struct Shared {
    pub store_executor: Arc<Executor>,
    pub flash_executor: Executor,
    pub pool: Arc<Pool>,
    pub buffers: BufferPool,
    pub budget: Arc<Budget>,
    pub store_is_local: bool,
    /// How far streams read ahead, and when they go around the cache.
    pub streams: Policy,
    /// The mount ends: work that nobody waits for stops.
    pub ending: AtomicBool,
    pub ahead_fetches: AtomicUsize,
    pub fetching_bytes: AtomicUsize,
    pub kept_bytes: AtomicUsize,
    pub latencies: Latencies,
    /// Of images that are open or cached.
    counters: DashMap<ImageId, Arc<Counters>>,
    work: Mutex<bool>,
    work_came: Condvar,
    awake: Arc<AtomicBool>,
}

/// All images that are open or not yet settled.
pub struct Images {
    pub(super) shared: Arc<Shared>,
    pub(super) open: DashMap<ImageId, Arc<Image>>,
    /// Which plane the open handles are on.
    pub seats: Arc<Seats>,
    pub(super) awake: Arc<AtomicBool>,
    pub(super) closing: AtomicBool,
}

impl Shared {
    /// What is counted for an image.
    pub(super) fn counters_of(&self, id: ImageId) -> Arc<Counters> {
        self.counters.entry(id).or_default().clone()
    }

    /// Forgets the counters of an image that is not cached any more.
    pub(super) fn prune_counters(&self, id: ImageId) {
        if self.pool.known(id).is_none() {
            self.counters.remove(&id);
        }
    }

    /// Wakes the settling thread if it sleeps.
    pub(super) fn nudge(&self) {
        if !self.awake.swap(true, Ordering::AcqRel) {
            *self.work.lock() = true;
            self.work_came.notify_one();
        }
    }
}

impl Images {
    /// The images of a mount. Starts the settling thread.
    pub fn new(
        config: &Config,
        store_executor: Arc<Executor>,
        pool: Arc<Pool>,
        store_is_local: bool,
    ) -> std::io::Result<Arc<Images>> {
        let awake = Arc::new(AtomicBool::new(pool.has_orphans()));
        let flash_limits = Limits {
            threads_max: FLASH_THREADS,
            queue_max: FLASH_QUEUE,
            warn_after: Duration::MAX,
            fallback_after: Duration::MAX,
            deadline: Duration::MAX,
        };
        let block_bytes = crate::cache::BLOCK_BYTES as usize;
        let shared = Shared {
            store_executor,
            flash_executor: Executor::new("flash", flash_limits),
            pool,
            buffers: BufferPool::new(FETCH_BLOCKS_MAX as usize * block_bytes, BUFFERS_KEPT),
            budget: Budget::new(
                config.write_buffer_bytes,
                config.fuse_threads,
                config.store_deadline,
            ),
            store_is_local,
            streams: Policy {
                window_max_bytes: config.readahead_max_bytes,
                around_bytes: config.stream_bypass_bytes.unwrap_or(u64::MAX),
            },
            ending: AtomicBool::new(false),
            ahead_fetches: AtomicUsize::new(0),
            fetching_bytes: AtomicUsize::new(0),
            kept_bytes: AtomicUsize::new(0),
            latencies: Latencies::default(),
            counters: DashMap::new(),
            work: Mutex::new(false),
            work_came: Condvar::new(),
            awake: awake.clone(),
        };
        let images = Arc::new(Images {
            shared: Arc::new(shared),
            open: DashMap::new(),
            seats: Arc::default(),
            awake,
            closing: AtomicBool::new(false),
        });
        let settling = images.clone();
        std::thread::Builder::new()
            .name("settle".into())
            .spawn(move || settling.tend_all())?;
        Ok(images)
    }

    /// Sleeps until there is something to settle.
    pub(super) fn wait_for_work(&self) {
        let mut work = self.shared.work.lock();
        while !*work && !self.awake.load(Ordering::Acquire) && !self.closing.load(Ordering::Acquire)
        {
            self.shared.work_came.wait(&mut work);
        }
        *work = false;
    }

    /// Ends the settling thread.
    pub(super) fn stop(&self) {
        self.closing.store(true, Ordering::Release);
        let _work = self.shared.work.lock();
        self.shared.work_came.notify_all();
    }

    /// Joins `file`, just opened with attributes `attr`, to its image. `name` is for people. Blocks on
    /// flash, never on the store. ESTALE where the image has changed in the store and the old version
    /// is being read directly.
    pub fn open(
        self: &Arc<Self>,
        name: &str,
        file: Arc<dyn StoreFile>,
        attr: &Attr,
        write: bool,
    ) -> Result<Arc<Handle>> {
        self.check_version(name, attr)?;
        Ok(self.go_on(name, file, attr, write))
    }

    /// As [`Images::open`] for a handle that an earlier server has opened: it goes on whatever its image has
    /// become.
    pub fn go_on(
        self: &Arc<Self>,
        name: &str,
        file: Arc<dyn StoreFile>,
        attr: &Attr,
        write: bool,
    ) -> Arc<Handle> {
        let image = {
            let entry = self.open.entry(attr.id);
            let image =
                entry.or_insert_with(|| Arc::new(Image::new(attr.id, name, self.shared.clone())));
            image.handles.fetch_add(1, Ordering::AcqRel);
            image.clone()
        };
        *image.name.lock() = name.to_owned();
        self.join_cache(&image, name, attr);
        let mut settle_with = image.file.lock();
        if write || settle_with.is_none() {
            *settle_with = Some(file.clone());
        }
        drop(settle_with);
        Arc::new(Handle::new(image, file, attr.validator()))
    }

    /// Rule 14 waives rule 7 for handles that read directly, not for later ones.
    fn check_version(&self, name: &str, attr: &Attr) -> Result<()> {
        let entry = match self.seats.is_read_directly(attr.id) {
            true => self.shared.pool.known(attr.id),
            false => None,
        };
        match entry {
            Some(entry) if !entry.is_version(&attr.validator()) => {
                logs::say(Level::Warn, "changed", name, || {
                    format!(
                        "image {name}: changed in the store while it is read directly; it opens again when those who \
                         read the old version have closed it"
                    )
                });
                Err(Error::from_errno(libc::ESTALE))
            }
            _ => Ok(()),
        }
    }

    /// Finds the image's place in the cache and compares versions (rule 7).
    fn join_cache(&self, image: &Image, name: &str, attr: &Attr) {
        let found = attr.validator();
        if image.lanes.is_idle() {
            image.set_size(attr.size_bytes);
        } else {
            image.grow_to(attr.size_bytes);
        }
        if let Some(entry) = self.shared.pool.entry(&found, name) {
            entry.stays_frozen(); // looked at now, because somebody comes to use it
            if entry.admit(&found, name) == Validated::Renewed {
                self.shared.nudge();
            }
            *image.entry.write() = Some(entry);
        }
    }

    /// The store object is gone for good (its last link was removed): forget what is cached of it, now
    /// or when its last handle closes.
    pub fn removed(&self, id: ImageId) {
        match self.open.get(&id).map(|image| image.clone()) {
            Some(image) => {
                image.removed.store(true, Ordering::Release);
                self.shared.nudge();
            }
            None => self.shared.pool.forget(id),
        }
    }

    /// The image now has this name; for status.
    pub fn renamed(&self, id: ImageId, name: &str) {
        if let Some(image) = self.open.get(&id) {
            *image.name.lock() = name.to_owned();
        }
    }

    /// Owner, mode, links, names or attributes of an image were changed through us, from `before` to
    /// `after`; its content is the same.
    pub fn own_change(&self, before: &Attr, after: &Attr) {
        if let Some(entry) = self.shared.pool.known(after.id) {
            entry.own_change(&before.validator(), &after.validator());
            self.shared.nudge();
        }
    }

    /// The size of an image whose attributes the store has just told as `size_bytes`. They may be older
    /// than the latest write of ours; otherwise an open image takes growth over (shrinking is seen at
    /// the next open).
    pub fn true_size(&self, id: ImageId, size_bytes: u64) -> u64 {
        let image = self.open.get(&id).map(|image| image.clone());
        let Some(image) = image.filter(|image| image.handles.load(Ordering::Acquire) > 0) else {
            return size_bytes;
        };
        if !image.is_being_written() {
            image.grow_to(size_bytes);
        }
        image.size_bytes()
    }

    /// The plane that an image's open handles are on, for people.
    pub fn plane(&self, id: ImageId) -> String {
        plane_of(&self.seats.status(id)).to_owned()
    }

    /// True if something of the image is on flash.
    pub fn is_cached(&self, id: ImageId) -> bool {
        self.shared.pool.known(id).is_some()
    }

    /// Bytes of an image on flash.
    pub fn resident_bytes(&self, id: ImageId) -> Option<u64> {
        self.shared
            .pool
            .known(id)
            .map(|entry| entry.resident_bytes())
    }

    /// How long requests and store calls took, for metrics.
    pub fn latencies(&self) -> Vec<Histogram> {
        self.shared.latencies.look()
    }

    /// Every image that is open or cached.
    pub fn status(&self) -> Vec<ImageStatus> {
        let open: Vec<_> = self.open.iter().map(|image| image.clone()).collect();
        let mut all: Vec<ImageStatus> = open
            .iter()
            .map(|image| image.status(self.seats.status(image.id)))
            .collect();
        for entry in self.shared.pool.all() {
            if !self.open.contains_key(&entry.id) {
                let counters = self.shared.counters_of(entry.id);
                let image = ImageStatus {
                    name: entry.name(),
                    id: entry.id.to_string(),
                    size_bytes: entry.validator().size_bytes,
                    plane: "closed".to_owned(),
                    ..ImageStatus::default()
                };
                all.push(counted(image, &counters, Some(&entry)));
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.id.cmp(&b.id)));
        all
    }
}

impl Image {
    fn status(&self, planes: Vec<PlaneStatus>) -> ImageStatus {
        let image = ImageStatus {
            name: self.name(),
            id: self.id.to_string(),
            size_bytes: self.size_bytes(),
            plane: plane_of(&planes).to_owned(),
            planes,
            handles: self.handles.load(Ordering::Relaxed) as u64,
            ..ImageStatus::default()
        };
        counted(image, &self.counters, self.entry().as_deref())
    }
}

/// The plane of an image whose handles are on `planes`.
pub(super) fn plane_of(planes: &[PlaneStatus]) -> &str {
    planes.first().map_or("closed", |plane| &plane.plane)
}

/// `image` with what is counted of it.
fn counted(image: ImageStatus, counters: &Counters, entry: Option<&Entry>) -> ImageStatus {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    ImageStatus {
        resident_bytes: entry.map_or(0, Entry::resident_bytes),
        pinned_bytes: entry.map_or(0, Entry::held_bytes),
        checksum_mismatches: entry.map_or(0, Entry::checksum_mismatches),
        reads: count(&counters.reads),
        read_hits: count(&counters.read_hits),
        read_bytes: count(&counters.read_bytes),
        writes: count(&counters.writes),
        write_bytes: count(&counters.write_bytes),
        store_read_bytes: count(&counters.store_read_bytes),
        store_read_requests: count(&counters.store_read_requests),
        store_write_bytes: count(&counters.store_write_bytes),
        store_write_requests: count(&counters.store_write_requests),
        ..image
    }
}
