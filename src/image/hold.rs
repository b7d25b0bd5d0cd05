//! Making an image ready for direct reading: whole on flash, verified since the mount, its version
//! certain, and held.
//!
//! # Order of steps
//! Verify, within [`VERIFY_MAX`]; settle the version if that is still to be done; hold. Everything runs
//! on a flash thread and asks the store nothing. What takes longer to verify goes on in the background,
//! a slice at a time so that guests' requests come in between, and serves the next open.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::cache::pagemap::State;
use crate::cache::{Entry, Held, NotHeld, PAGE_BYTES, Pages};

use crate::store::ImageId;

use super::handle::Handle;
use super::images::Shared;
use super::plane::Why;
use super::{Image, Images};

/// How long an open waits for its image to be verified.
const VERIFY_MAX: Duration = Duration::from_secs(1);
/// Pages verified between two looks at the clock: 1 MiB.
const STEP_PAGES: u64 = 256;
/// Pages verified in the background before other work on flash gets its turn: 16 MiB.
const SLICE_PAGES: u64 = 4096;

/// The era of what was found at a mount.
const FIRST_ERA: u64 = 0;

/// An image whose cache file nobody touches. The hold ends some time after this was dropped, on a flash
/// thread.
pub struct HeldImage {
    shared: Arc<Shared>,
    /// The version that is read: an era of an entry. None where it is not known to be the present one.
    version: Option<(Arc<Entry>, u64)>,
    held: Option<Held>,
}

impl HeldImage {
    /// The cache file, to read only.
    pub fn file(&self) -> Option<&std::fs::File> {
        self.held.as_ref()?.file.as_ref()
    }

    /// False when the image has become another version.
    pub fn is_current(&self) -> bool {
        let version = self.version.as_ref();
        version.is_some_and(|(entry, era)| entry.era() == *era)
    }
}

impl Drop for HeldImage {
    fn drop(&mut self) {
        let held = self.held.take();
        let shared = self.shared.clone();
        let end = move || {
            drop(held);
            Ok(())
        };
        let ended = move |_| shared.nudge();
        self.shared.flash_executor.submit("release", end, ended);
    }
}

impl Handle {
    /// Holds the image for direct reading; `done` is called on another thread.
    pub fn hold(
        self: &Arc<Self>,
        done: impl FnOnce(std::result::Result<HeldImage, Why>) + Send + 'static,
    ) {
        let this = self.clone();
        let work = move || Ok(this.hold_now());
        self.image
            .flash_executor()
            .submit("hold", work, move |held| {
                done(held.unwrap_or(Err(Why::Failed)));
            });
    }

    fn hold_now(&self) -> std::result::Result<HeldImage, Why> {
        let image = &self.image;
        let entry = image.entry().ok_or(Why::NotWhole)?;
        let pages = 0..image.size_bytes().div_ceil(PAGE_BYTES);
        let deadline = Instant::now() + VERIFY_MAX;
        if entry.state(&pages) == State::Missing {
            return Err(Why::NotWhole);
        }
        if let Some(rest) = verify_until(&entry, &pages, deadline) {
            image.verify_in_background(entry, rest);
            return Err(Why::NotVerified);
        }
        if entry.is_unsettled() {
            let writes = entry.writes_begun();
            match entry.settle(&self.opened_as, writes) {
                Ok(true) => {}
                Ok(false) => return Err(Why::Changed),
                Err(_) => return Err(Why::Failed),
            }
        }
        let era = entry.era();
        let held = entry.hold().map_err(|why| match why {
            NotHeld::NotWhole => Why::NotWhole,
            NotHeld::NoRoom => Why::NoRoom,
            NotHeld::Frozen => Why::Frozen,
            NotHeld::Failed => Why::Failed,
        })?;
        Ok(HeldImage {
            shared: image.shared.clone(),
            version: Some((entry, era)),
            held: Some(held),
        })
    }
}

impl Images {
    /// The hold under which handles of an earlier server read an image: see [`Entry::hold_carried`]. Before
    /// anything else is done with the image. Where its cache was given up meanwhile, or is not to be had, they
    /// read on and nobody joins them. Blocks on flash.
    pub fn hold_carried(&self, id: ImageId) -> HeldImage {
        let shared = self.shared.clone();
        let Some(entry) = shared.pool.known(id) else {
            return HeldImage {
                shared,
                version: None,
                held: None,
            };
        };
        let (held, found) = entry.hold_carried();
        HeldImage {
            shared,
            version: found.then_some((entry, FIRST_ERA)),
            held: Some(held),
        }
    }
}

/// Verifies `pages` until `deadline`; gives what is left.
fn verify_until(entry: &Entry, pages: &Pages, deadline: Instant) -> Option<Pages> {
    let mut first = pages.start;
    while first < pages.end {
        if Instant::now() >= deadline {
            return Some(first..pages.end);
        }
        let end = (first + STEP_PAGES).min(pages.end);
        verify_step(entry, &(first..end));
        first = end;
    }
    None
}

fn verify_step(entry: &Entry, pages: &Pages) {
    if entry.state(pages) == State::Unverified
        && let Err(error) = entry.verify(pages)
    {
        log::debug!("verifying {}: {error}", entry.name());
    }
}

impl Image {
    /// Verifies `pages` slice by slice, unless that is under way. Ends early when something is missing
    /// or nobody uses the image.
    fn verify_in_background(self: &Arc<Self>, entry: Arc<Entry>, pages: Pages) {
        if !self.verifying.swap(true, Ordering::AcqRel) {
            self.verify_slice(entry, pages);
        }
    }

    fn verify_slice(self: &Arc<Self>, entry: Arc<Entry>, pages: Pages) {
        let this = self.clone();
        let slice = pages.start..(pages.start + SLICE_PAGES).min(pages.end);
        let rest = slice.end..pages.end;
        let verified = entry.clone();
        let work = move || {
            verify_step(&verified, &slice);
            Ok(())
        };
        let next = move |_| {
            let used = this.handles.load(Ordering::Acquire) > 0;
            if rest.is_empty() || !used || entry.state(&rest) == State::Missing {
                this.verifying.store(false, Ordering::Release);
            } else {
                this.verify_slice(entry, rest);
            }
        };
        self.flash_executor().submit("verify", work, next);
    }
}
