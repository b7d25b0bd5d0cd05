//! Which version of the image an entry's pages belong to (rule 7), and the horizon up to which
//! changes of the image are our own (rule 3a).
//!
//! # Invariants
//! - A write goes to the store only while a durable horizon lies ahead of it.
//! - A horizon of 0 is durable only with a validator that was read while no write of ours was under
//!   way and that was 2 s old.
//! - A head with a newer validator never makes older records valid: dropping everything raises
//!   `valid_from` in the same durable write.
//!
//! # Locking
//! `cell` is never held across I/O. Writes of the head are one at a time: `busy` is the turn, waited for
//! on `turn`.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::logs;
use crate::store::Validator;

use super::doubt::regions_of;
use super::entry::{Entry, Files};
use super::head::{Head, UNTRUSTED};
use super::witness::{Slot, Testimony, now_ns};

/// A validator younger than this cannot tell two versions apart on a filesystem with coarse
/// timestamps (rule 7).
pub const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// How far ahead a horizon is set; it is renewed in the last fifth. Another host's change within
/// this time after a power cut of ours is taken for our own: docs/SEMANTICS.md.
const HORIZON: Duration = Duration::from_secs(10);
const RENEW_BEFORE: Duration = Duration::from_secs(2);
/// A change of more regions than this (4 GiB) drops the image's cache instead of marking each.
const REGIONS_MAX: usize = 4096;
/// After kill -9: how long after its begin a write that was in flight may have changed the image.
const IN_FLIGHT_SLACK: Duration = Duration::from_millis(250);
/// The same where the store's clock is another one.
const CLOCK_MARGIN: Duration = Duration::from_secs(1);

/// The version of an entry.
pub(super) struct Version {
    cell: Mutex<Cell>,
    turn: Condvar,
    /// Writes begun since the mount.
    pub writes_begun: AtomicU64,
    /// Raised when everything was dropped: inserts of what was read before are refused.
    pub era: AtomicU64,
    /// While everything is being dropped nothing is inserted.
    dropping: AtomicUsize,
}

struct Cell {
    head: Head,
    busy: bool,
    /// Set while nobody has compared the validator since the entry was recovered.
    recovered: Option<Recovered>,
}

/// What recovery found, needed to judge the validator later.
pub(super) struct Recovered {
    /// What the witness says, where nothing was lost since the last run.
    pub testimony: Option<Testimony>,
}

/// What comparing an image with what is cached of it led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validated {
    /// The version is the one known.
    Same,
    /// There is something to settle: the version was taken over after a crash, or all was dropped.
    Renewed,
}

/// A write under way: what [`Entry::begin_write`] announced.
pub struct Announced {
    regions: std::ops::Range<u32>,
    slot: Option<Slot>,
}

impl Version {
    pub(super) fn new(head: Head) -> Version {
        Version {
            cell: Mutex::new(Cell {
                head,
                busy: false,
                recovered: None,
            }),
            turn: Condvar::new(),
            writes_begun: AtomicU64::new(0),
            era: AtomicU64::new(0),
            dropping: AtomicUsize::new(0),
        }
    }

    pub(super) fn set_recovered(&self, recovered: Recovered) {
        self.cell.lock().recovered = Some(recovered);
    }

    pub(super) fn head(&self) -> Head {
        self.cell.lock().head.clone()
    }

    pub(super) fn is_dropping(&self) -> bool {
        self.dropping.load(Ordering::Acquire) > 0
    }

    pub(super) fn name(&self) -> String {
        self.cell.lock().head.name.clone()
    }

    pub(super) fn set_size(&self, size_bytes: u64) {
        self.cell.lock().head.validator.size_bytes = size_bytes;
    }

    /// Changes the head and makes it durable, in turn with others; `change` may refuse.
    pub(super) fn update(
        &self,
        files: &Files,
        change: impl FnOnce(&mut Head) -> bool,
    ) -> io::Result<()> {
        let mut cell = self.cell.lock();
        while cell.busy {
            self.turn.wait(&mut cell);
        }
        let mut head = cell.head.clone();
        if !change(&mut head) {
            return Ok(());
        }
        cell.busy = true;
        drop(cell);
        let written = files.head.write(&head);
        let mut cell = self.cell.lock();
        if written.is_ok() {
            // The name and the size may have moved on meanwhile; they are hints here.
            cell.head = head;
        }
        cell.busy = false;
        self.turn.notify_all();
        written
    }
}

/// True for a validator old enough to be told from its successor.
pub(super) fn is_settled(validator: &Validator) -> bool {
    now_ns() - validator.ctime.as_ns() >= SETTLED_AFTER.as_nanos() as i64
}

impl Entry {
    /// Compares the image as it is now, `found`, with what is cached, at an open; drops everything if
    /// it is another version. `name` is what people call it.
    pub fn admit(&self, found: &Validator, name: &str) -> Validated {
        let mut outcome = Validated::Same;
        let keep = {
            let mut cell = self.version.cell.lock();
            cell.head.name = name.to_owned();
            let keep = match &cell.recovered {
                Some(recovered) => accepts(&cell.head, recovered, found),
                None => cell.head.horizon_ns > 0 || cell.head.validator == *found,
            };
            if keep && cell.recovered.take().is_some() {
                let renewed = cell.head.validator != *found;
                cell.head.validator = *found;
                if renewed || cell.head.horizon_ns != 0 {
                    self.pending.store(true, Ordering::Release);
                    outcome = Validated::Renewed;
                }
            }
            keep
        };
        if !keep {
            self.drop_version(found);
            outcome = Validated::Renewed;
        }
        outcome
    }

    /// Whether `found` is the version that is cached, or a later one of our own making.
    pub fn is_version(&self, found: &Validator) -> bool {
        let cell = self.version.cell.lock();
        cell.head.horizon_ns > 0 || cell.head.validator == *found
    }

    /// The image is another version: everything cached of it is void, at once and after any crash.
    pub(super) fn drop_version(&self, found: &Validator) {
        let had_bytes = self.resident_bytes();
        if had_bytes > 0 {
            log::info!(
                "image {}: changed in the store, {had_bytes} cached bytes dropped",
                self.version.name()
            );
        }
        let horizon_ns = if is_settled(found) { 0 } else { UNTRUSTED };
        let done = self.void(|head| {
            head.validator = *found;
            head.horizon_ns = horizon_ns;
        });
        self.version.cell.lock().recovered = None;
        self.pending.store(true, Ordering::Release);
        if let Err(error) = done {
            self.device.report(&error);
            self.disown();
        }
    }

    /// Makes every page void, by one durable write of the head that `change` takes part in.
    fn void(&self, change: impl FnOnce(&mut Head)) -> io::Result<()> {
        self.version.era.fetch_add(1, Ordering::AcqRel);
        self.version.dropping.fetch_add(1, Ordering::AcqRel);
        let seq = self.gate.seal();
        self.map.clear(&(0..u64::MAX));
        let renew = |head: &mut Head| {
            change(head);
            head.valid_from = seq + 1;
            head.committed = seq;
            true
        };
        let done = match self.files() {
            Some(files) => self.version.update(&files, renew).and_then(|()| {
                files.records.clear()?;
                self.empty_data(&files)
            }),
            None => {
                renew(&mut self.version.cell.lock().head);
                Ok(())
            }
        };
        self.recount();
        self.version.dropping.fetch_sub(1, Ordering::AcqRel);
        done
    }

    /// Something that is not content (owner, mode, name, link count) was changed through us: the
    /// validator moves from `before` to `after` without a new version.
    pub fn own_change(&self, before: &Validator, after: &Validator) {
        let name = self.version.name();
        self.admit(before, &name);
        let mut cell = self.version.cell.lock();
        if cell.head.horizon_ns <= 0 && cell.head.validator != *before {
            return;
        }
        cell.head.validator = *after;
        cell.head.horizon_ns = now_ns() + HORIZON.as_nanos() as i64;
        self.pending.store(true, Ordering::Release);
        drop(cell);
        // While it is read directly a successor must not take the image for another one, because it could
        // not be opened then.
        if self.is_held()
            && let Some(files) = self.files()
            && let Err(error) = self.version.update(&files, |_| true)
        {
            self.device.report(&error);
        }
    }

    /// Announces a write: when it returns, marks and horizon are durable and the write may go to the
    /// store. On an error the entry must be disowned before the write goes on. Followed by
    /// [`Entry::end_write`] in the first case.
    pub fn begin_write(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<Announced> {
        self.version.writes_begun.fetch_add(1, Ordering::AcqRel);
        if self.disowned.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let files = self.ensure_files()?;
        let mut regions = regions_of(offset_bytes, len_bytes);
        if regions.len() > REGIONS_MAX {
            let horizon_ns = now_ns() + HORIZON.as_nanos() as i64;
            self.void(|head| head.horizon_ns = head.horizon_ns.max(horizon_ns))?;
            regions = 0..0;
        }
        let account = files.account.get_or_init(|| self.open_account());
        let slot = account
            .as_ref()
            .map(|account| account.begin(offset_bytes, len_bytes))
            .transpose()?;
        let begun = files
            .doubt
            .begin(regions.clone())
            .and_then(|()| self.extend_horizon(&files));
        self.pending.store(true, Ordering::Release);
        match begun {
            Ok(()) => Ok(Announced { regions, slot }),
            Err(error) => {
                files.doubt.end(regions);
                Err(error)
            }
        }
    }

    /// The cache has followed the write. `after` is the image's validator read since, if it was.
    pub fn end_write(&self, announced: Announced, after: Option<&Validator>) {
        let Some(files) = self.files() else {
            return;
        };
        if let (Some(Some(account)), Some(slot)) = (files.account.get(), announced.slot)
            && let Err(error) = account.end(slot, after)
        {
            log::debug!("image {}: witness: {error}", self.version.name());
        }
        files.doubt.end(announced.regions);
    }

    fn open_account(&self) -> Option<super::witness::Account> {
        let witness = self.device.witness.as_ref()?;
        match witness.account(self.id) {
            Ok(account) => Some(account),
            Err(error) => {
                let name = self.version.name();
                logs::say(log::Level::Warn, "witness", &name, || {
                    format!(
                        "image {name}: no witness: {error}; after a crash less of its cache is kept"
                    )
                });
                None
            }
        }
    }

    fn extend_horizon(&self, files: &Files) -> io::Result<()> {
        let now = now_ns();
        let enough = now + RENEW_BEFORE.as_nanos() as i64;
        if self.version.cell.lock().head.horizon_ns > enough && !self.version.cell.lock().busy {
            return Ok(());
        }
        self.version.update(files, |head| {
            if head.horizon_ns > enough {
                return false;
            }
            head.horizon_ns = now + HORIZON.as_nanos() as i64;
            true
        })
    }

    /// Gives the image's cache up after a flash error: nothing is resident any more, and it returns
    /// only when what a later run may find on flash can no longer pass for the current version.
    pub fn disown(&self) {
        let first = !self.disowned.swap(true, Ordering::AcqRel);
        if first {
            self.version.era.fetch_add(1, Ordering::AcqRel);
            self.map.clear(&(0..u64::MAX));
        }
        if let Some(files) = self.files()
            && let Some(Some(account)) = files.account.get()
            && let Err(error) = account.disown()
        {
            let name = self.version.name();
            logs::say(log::Level::Warn, "witness", &name, || {
                format!("image {name}: its witness cannot be written: {error}")
            });
        }
        let horizon_ns = self.version.cell.lock().head.horizon_ns;
        let wait_ns = horizon_ns
            .saturating_sub(now_ns())
            .clamp(0, 2 * HORIZON.as_nanos() as i64);
        if wait_ns > 0 {
            std::thread::sleep(Duration::from_nanos(wait_ns as u64) + Duration::from_millis(10));
        }
    }

    /// True when the version is known for certain and durable: no horizon.
    pub(super) fn version_is_settled(&self) -> bool {
        self.version.cell.lock().head.horizon_ns == 0
    }

    /// Writes begun since the mount, for [`Entry::settle`].
    pub fn writes_begun(&self) -> u64 {
        self.version.writes_begun.load(Ordering::Acquire)
    }

    /// Records `found` as the version, for certain, if it is 2 s old and no write began since
    /// `writes_begun`. For an untrusted version it must also be the one known. True when settled.
    pub fn settle(&self, found: &Validator, writes_begun: u64) -> io::Result<bool> {
        let Some(files) = self.files() else {
            return Ok(true);
        };
        if !is_settled(found) || !files.doubt.is_empty() {
            return Ok(false);
        }
        let known = self.version.head();
        if known.horizon_ns == UNTRUSTED && known.validator != *found {
            self.drop_version(found);
            return Ok(true);
        }
        let mut settled = false;
        self.version.update(&files, |head| {
            if self.writes_begun() != writes_begun {
                return false;
            }
            head.validator = *found;
            head.horizon_ns = 0;
            settled = true;
            true
        })?;
        Ok(settled)
    }
}

/// Whether pages recovered with `head` belong to the image as it is now.
fn accepts(head: &Head, recovered: &Recovered, found: &Validator) -> bool {
    if head.horizon_ns == UNTRUSTED {
        return false;
    }
    if head.validator == *found {
        return true;
    }
    if head.horizon_ns == 0 {
        return false;
    }
    let changed_ns = found.ctime.as_ns();
    let Some(testimony) = &recovered.testimony else {
        return changed_ns <= head.horizon_ns;
    };
    let begun_ns = testimony.last_begun_ns;
    match testimony.size_and_times {
        Some((size_bytes, mtime, ctime)) => {
            let same = (size_bytes, mtime, ctime) == (found.size_bytes, found.mtime, found.ctime);
            let ours_in_flight = !testimony.in_flight.is_empty()
                && changed_ns <= begun_ns + IN_FLIGHT_SLACK.as_nanos() as i64;
            same || ours_in_flight
        }
        None => begun_ns > 0 && changed_ns <= begun_ns + CLOCK_MARGIN.as_nanos() as i64,
    }
}
