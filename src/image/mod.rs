//! One image: reads, writes, flush, discard, and the order of their steps.
//!
//! [`Images`] knows every image that is open or not yet settled; [`Handle`] is one open of one. Guests'
//! requests come in through a handle and are answered through callbacks. This room decides what goes to
//! the store and what to the cache, and in which order; it knows nothing of FUSE.
//!
//! # Locking
//! Locks here guard bookkeeping and are never held across I/O. Order: an image's lanes, then a fetch,
//! then a miss.

mod begun;
mod budget;
mod counters;
mod fetch;
mod handle;
mod hold;
mod images;
pub mod immutable;
mod kept;
mod lanes;
pub mod latencies;
mod miss;
mod open;
mod plan;
pub mod plane;
mod read;
pub mod settings;
mod settle;
pub mod status;
mod stream;
mod warm;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use log::Level;
use parking_lot::{Mutex, RwLock};

use crate::cache::{Entry, Pool};
use crate::io::BufferPool;
use crate::logs;
use crate::store::executor::Executor;
use crate::store::{Error, ImageId, StoreFile};

pub use crate::cache::Hit;
pub use begun::{Begun, PendingRead};
use budget::Budget;
pub use budget::Permit;
use counters::Counters;
pub use handle::Handle;
pub use hold::HeldImage;
pub use images::Images;
use images::Shared;
use lanes::Lanes;
use latencies::{Latencies, Outcome, Timed};
pub use open::OpenImage;

/// What an operation ends with; called exactly once, from any thread.
pub type Done<T> = Box<dyn FnOnce(Result<T, Error>) + Send>;
/// As [`Done`] for a read: the bytes are only valid during the call.
pub type ReadDone = Box<dyn FnOnce(Result<&[u8], Error>) + Send>;

/// An image that is open or not yet settled.
pub(crate) struct Image {
    pub(crate) id: ImageId,
    name: Mutex<String>,
    shared: Arc<Shared>,
    entry: RwLock<Option<Arc<Entry>>>,
    lanes: Arc<Lanes>,
    counters: Arc<Counters>,
    size_bytes: AtomicU64,
    handles: AtomicUsize,
    /// A file to settle with: the latest opened one that can write, or any.
    file: Mutex<Option<Arc<dyn StoreFile>>>,
    settling: AtomicBool,
    /// Being verified in the background.
    verifying: AtomicBool,
    settled_at: Mutex<Instant>,
    /// Regions whose store fsync failed; tried again.
    unsynced: Mutex<Vec<u32>>,
    /// Gone from the store: forgotten when closed.
    removed: AtomicBool,
}

impl Image {
    fn new(id: ImageId, name: &str, shared: Arc<Shared>) -> Image {
        Image {
            id,
            name: Mutex::new(name.to_owned()),
            entry: RwLock::new(None),
            lanes: Arc::default(),
            counters: shared.counters_of(id),
            shared,
            size_bytes: AtomicU64::new(0),
            handles: AtomicUsize::new(0),
            file: Mutex::new(None),
            settling: AtomicBool::new(false),
            verifying: AtomicBool::new(false),
            settled_at: Mutex::new(Instant::now()),
            unsynced: Mutex::default(),
            removed: AtomicBool::new(false),
        }
    }

    fn name(&self) -> String {
        self.name.lock().clone()
    }

    /// The image in the cache, if it has a place there.
    fn entry(&self) -> Option<Arc<Entry>> {
        self.entry.read().clone()
    }

    fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    fn buffers(&self) -> &BufferPool {
        &self.shared.buffers
    }

    fn budget(&self) -> &Arc<Budget> {
        &self.shared.budget
    }

    fn store_executor(&self) -> &Executor {
        &self.shared.store_executor
    }

    fn flash_executor(&self) -> &Executor {
        &self.shared.flash_executor
    }

    /// How long things take, over all images.
    fn latencies(&self) -> &Latencies {
        &self.shared.latencies
    }

    /// `done`, with the time until it is called counted and a failure told.
    fn timed(self: &Arc<Self>, timed: Timed, what: &'static str, done: Done<()>) -> Done<()> {
        let (image, begun) = (self.clone(), Instant::now());
        Box::new(move |result| {
            let outcome = Outcome::of(&result);
            if let Err(error) = &result {
                image.tell_failed(what, error);
            }
            done(result);
            image.latencies().note(timed, outcome, begun);
        })
    }

    /// A guest gets an error: one line, or a count where it happens again and again.
    fn tell_failed(&self, what: &'static str, error: &Error) {
        let name = self.name();
        let line = || format!("image {name}: a {what} failed: {error}; its guest was told");
        logs::say(Level::Warn, what, &name, line);
    }

    /// A change cannot be announced on flash; not told again of an image whose cache was given up.
    fn tell_flash_failed(&self, error: &std::io::Error) {
        if error.raw_os_error() == Some(libc::ENODEV) {
            return;
        }
        let name = self.name();
        let line = || {
            format!(
                "image {name}: its cache cannot be written: {error}; it is served from the store for now"
            )
        };
        logs::say(Level::Warn, "flash", &name, line);
    }

    fn store_is_local(&self) -> bool {
        self.shared.store_is_local
    }

    /// Bytes of all fetches that are begun.
    fn fetching_bytes(&self) -> &AtomicUsize {
        &self.shared.fetching_bytes
    }

    /// Bytes of all fetches that are kept.
    fn kept_bytes(&self) -> &AtomicUsize {
        &self.shared.kept_bytes
    }

    fn ahead_fetches(&self) -> &AtomicUsize {
        &self.shared.ahead_fetches
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn set_size(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::Release);
    }

    /// The image reaches at least to `end_bytes` now; gives its size.
    fn grow_to(&self, end_bytes: u64) -> u64 {
        let before = self.size_bytes.fetch_max(end_bytes, Ordering::AcqRel);
        if before < end_bytes
            && let Some(entry) = self.entry()
        {
            entry.resize(end_bytes);
        }
        before.max(end_bytes)
    }

    /// True while an operation is under way or writes are not settled.
    fn is_being_written(&self) -> bool {
        !self.lanes.is_idle() || self.entry().is_some_and(|entry| entry.is_unsettled())
    }

    /// There is something to settle.
    fn changed(&self) {
        self.shared.nudge();
    }

    /// An fsync of the store failed: what it holds of the writes since the last one is unknown, so the
    /// cache forgets them (rule 3a).
    fn store_lost_writes(&self) {
        if let Some(entry) = self.entry() {
            entry.drop_regions(&entry.doubtful_regions());
        }
    }

    /// A handle was closed for good.
    fn released(&self) {
        self.handles.fetch_sub(1, Ordering::AcqRel);
        self.changed();
    }
}
