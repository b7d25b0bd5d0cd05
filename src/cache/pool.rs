//! The cache pool: all cache devices as one cache; which images are in it, and making room.
//!
//! # Locking
//! `entries` and `by_number` are held for lookups only, a device's module for queue operations only.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};

use crate::config::Config;
use crate::io::Buffer;
use crate::module::{Heat, Key};
use crate::store::{ImageId, Validator};

use super::device::Device;
use super::entry::{Entry, Written};
use super::head::{Head, UNTRUSTED};
use super::status::PoolStatus;
use super::unloaded::Unloaded;
use super::version::is_settled;
use super::{Error, PAGE_BYTES, PAGES_PER_BLOCK, Pages, recovery};

/// Blocks looked at for one eviction before an insert goes without room.
const VICTIM_TRIES: usize = 64;
/// The same where somebody asked for room and can wait. The filesystem may take more at once than one insert
/// makes room for: XFS gives a growing file up to its own size ahead.
const PATIENT_TRIES: usize = 1 << 16;
/// Bits of a key that number the block.
const BLOCK_BITS: u32 = 40;

/// Space promised on a device; given back when dropped.
pub struct Room {
    device: Arc<Device>,
    bytes: u64,
}

impl Room {
    /// Takes `bytes` of it away, or what there is.
    pub fn split(&mut self, bytes: u64) -> Room {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Room {
            device: self.device.clone(),
            bytes,
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.device.release(self.bytes);
    }
}

/// All cache devices and the images on them.
pub struct Pool {
    devices: Vec<Arc<Device>>,
    entries: DashMap<ImageId, Arc<Entry>>,
    by_number: RwLock<Vec<Weak<Entry>>>,
    next_number: AtomicU32,
    durable_marks: bool,
    unloaded: Unloaded,
    /// Loaded on demand; the module does not know their blocks yet.
    demanded: Mutex<Vec<Arc<Entry>>>,
}

impl Pool {
    /// Takes the configured devices into use for the store `store` and loads what they hold.
    pub fn open(config: &Config, store: &str) -> Result<Arc<Pool>, Error> {
        let pool = Self::take_over(config, store)?;
        pool.load_all();
        Ok(pool)
    }

    /// As [`Pool::open`], in place of a server that died while guests wait: images are loaded when
    /// somebody asks for them. Until [`Pool::load_all`] nothing that needs room is inserted.
    pub fn take_over(config: &Config, store: &str) -> Result<Arc<Pool>, Error> {
        let runtime_dir = crate::config::runtime_dir();
        let mut devices = Vec::new();
        for device in &config.caches {
            devices.push(Arc::new(Device::open(
                device,
                store,
                &runtime_dir,
                // The lock of a dead server's devices lasts as long as its system calls: a fence too.
                config.fence.then_some(config.mountpoint.as_path()),
            )?));
        }
        let pool = Pool {
            devices,
            entries: DashMap::new(),
            by_number: RwLock::default(),
            next_number: AtomicU32::new(0),
            durable_marks: config.in_doubt_marks,
            unloaded: Unloaded::default(),
            demanded: Mutex::default(),
        };
        for (device, config) in pool.devices.iter().zip(&config.caches) {
            let fail = |error| Error::Io(config.dir.clone(), error);
            if device.usable() {
                let found = recovery::find(device).map_err(fail)?;
                found
                    .into_iter()
                    .for_each(|id| pool.unloaded.add(id, device));
            }
        }
        Ok(Arc::new(pool))
    }

    /// Loads every image that is not loaded yet; from then on there is room. Blocks on flash.
    pub fn load_all(&self) {
        if self.unloaded.is_over() {
            return;
        }
        while let Some((id, device)) = self.unloaded.take_any() {
            if let Some(entry) = self.load(id, &device) {
                entry.enter_module();
            }
            self.unloaded.loaded(id);
        }
        self.unloaded.end(|| {
            for entry in std::mem::take(&mut *self.demanded.lock()) {
                entry.enter_module();
            }
            for device in &self.devices {
                device.set_loaded();
                self.shrink(device);
            }
        });
    }

    /// Loads an image that is asked for.
    fn load_demanded(&self, id: ImageId) {
        if self.unloaded.is_over() {
            return;
        }
        if let Some(device) = self.unloaded.take(id) {
            let entry = self.load(id, &device);
            self.demanded.lock().extend(entry);
            self.unloaded.loaded(id);
        }
    }

    fn load(&self, id: ImageId, device: &Arc<Device>) -> Option<Arc<Entry>> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        match recovery::load(device, id, self.durable_marks, number) {
            Ok(entry) => {
                let entry = Arc::new(entry?);
                self.register(entry.clone());
                Some(entry)
            }
            Err(error) => {
                device.report(&error);
                None
            }
        }
    }

    fn register(&self, entry: Arc<Entry>) {
        let mut by_number = self.by_number.write();
        let at = entry.number as usize;
        if by_number.len() <= at {
            by_number.resize(at + 1, Weak::new());
        }
        by_number[at] = Arc::downgrade(&entry);
        drop(by_number);
        self.entries.insert(entry.id, entry);
    }

    /// The entry of an image, made if there is none; `None` without a usable device. `found` is the
    /// image as it is now.
    pub fn entry(&self, found: &Validator, name: &str) -> Option<Arc<Entry>> {
        if let Some(known) = self.known(found.id) {
            let given_up = known.disowned.load(Ordering::Acquire);
            if given_up && known.device.usable() && !known.stays_frozen() {
                self.forget(found.id);
            } else {
                return Some(known);
            }
        }
        let device = self
            .devices
            .iter()
            .filter(|device| device.usable())
            .max_by_key(|device| {
                let status = device.status();
                status.limit_bytes.saturating_sub(status.used_bytes)
            })?;
        let head = Head {
            validator: *found,
            horizon_ns: if is_settled(found) { 0 } else { UNTRUSTED },
            committed: 0,
            valid_from: 1,
            name: name.to_owned(),
        };
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let entry = Entry::new(
            found.id,
            number,
            device.clone(),
            head,
            1,
            self.durable_marks,
        );
        let entry = Arc::new(entry);
        self.register(entry.clone());
        Some(entry)
    }

    /// The entry of an image that is in the cache.
    pub fn known(&self, id: ImageId) -> Option<Arc<Entry>> {
        self.load_demanded(id);
        self.entries.get(&id).map(|entry| entry.value().clone())
    }

    /// True where an image may be frozen: looked at again until none is ([`Entry::stays_frozen`]).
    pub fn has_orphans(&self) -> bool {
        !self.unloaded.is_over() || self.entries.iter().any(|entry| entry.is_frozen())
    }

    /// All images in the cache.
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.load_all();
        self.entries.iter().map(|entry| entry.clone()).collect()
    }

    /// Makes room for `bytes` of `entry` as an insert does, but takes none of the image's own `pages`
    /// for it; `None` where there is none but by that.
    pub fn room_beside(&self, entry: &Entry, pages: &Pages, bytes: u64) -> Option<Room> {
        let own = |key: Key| {
            let first = block_of(key) * PAGES_PER_BLOCK;
            key == entry.key(block_of(key)) && pages.contains(&first.max(pages.start))
        };
        let device = &entry.device;
        (device.usable() && self.make_room_beside(device, bytes, PATIENT_TRIES, own)).then(|| {
            Room {
                device: device.clone(),
                bytes,
            }
        })
    }

    /// As [`Pool::insert`], where the room was made before.
    pub fn insert_into(&self, room: &Room, entry: &Entry, era: u64, first: u64, bytes: &[u8]) {
        debug_assert!(Arc::ptr_eq(&room.device, &entry.device));
        match entry.insert(era, first, bytes) {
            Ok(()) => entry.device.report_ok(),
            Err(error) => entry.report(&error),
        }
    }

    /// Inserts fetched pages, if there is room and the version is still `era`.
    pub fn insert(&self, entry: &Entry, era: u64, first: u64, bytes: &[u8]) {
        let insert = || entry.insert(era, first, bytes);
        self.with_room(entry, bytes.len() as u64, insert);
    }

    /// Follows a write that the store has taken; see [`Entry::overwrite`]. When flash fails the pages
    /// are dropped: the store has them.
    pub fn overwrite(&self, entry: &Entry, written: &Written, buffer: &mut Buffer) {
        let pages = super::pages_touched(written.offset_bytes, written.len_bytes);
        let bytes = (pages.end - pages.start) * PAGE_BYTES;
        let room = written.admit && self.make_room(&entry.device, bytes);
        let written = Written {
            admit: room,
            ..*written
        };
        let done = entry.overwrite(&written, buffer);
        if room {
            entry.device.release(bytes);
        }
        match done {
            Ok(()) => entry.device.report_ok(),
            Err(error) => {
                entry.drop_pages(&pages);
                entry.report(&error);
            }
        }
    }

    fn with_room(&self, entry: &Entry, bytes: u64, insert: impl FnOnce() -> io::Result<()>) {
        if !entry.device.usable() || !self.make_room(&entry.device, bytes) {
            return;
        }
        let done = insert();
        entry.device.release(bytes);
        match done {
            Ok(()) => entry.device.report_ok(),
            Err(error) => entry.report(&error),
        }
    }

    /// Evicts until `bytes` fit and promises them; false when they cannot be made to fit.
    fn make_room(&self, device: &Device, bytes: u64) -> bool {
        self.make_room_beside(device, bytes, VICTIM_TRIES, |_| false)
    }

    /// As [`Pool::make_room`] after at most `tries` blocks and those for `bytes`; ends where the module would give up a block that `stays`.
    fn make_room_beside(
        &self,
        device: &Device,
        bytes: u64,
        tries: usize,
        stays: impl Fn(Key) -> bool,
    ) -> bool {
        if !device.is_loaded() {
            return false;
        }
        let mut tries = tries + bytes as usize / super::BLOCK_BYTES as usize;
        while !device.try_reserve(bytes) {
            if tries == 0 || !self.evict_one(device, &stays) {
                return false;
            }
            tries -= 1;
        }
        true
    }

    /// Brings a device under its limit, after the limit was lowered.
    fn shrink(&self, device: &Device) {
        while !device.within_limit() && self.evict_one(device, &|_| false) {}
    }

    /// Evicts one block; false when there is none, or it is one that `stays`.
    fn evict_one(&self, device: &Device, stays: &impl Fn(Key) -> bool) -> bool {
        let Some(key) = device.module.lock().victim(self) else {
            return false;
        };
        if stays(key) {
            device.module.lock().inserted(key);
            return false;
        }
        if let Some(entry) = self.of_key(key)
            && !entry.evict(block_of(key))
        {
            device.module.lock().inserted(key);
        }
        true
    }

    fn of_key(&self, key: Key) -> Option<Arc<Entry>> {
        let number = (key.0 >> BLOCK_BITS) as usize;
        self.by_number.read().get(number)?.upgrade()
    }

    /// `bytes` of an image were dropped without the module's asking.
    pub fn note_dropped(&self, entry: &Entry, bytes: u64) {
        entry.device.note_stale(bytes / super::BLOCK_BYTES, self);
    }

    /// Forgets an image that nobody uses and that has nothing on flash.
    pub fn forget_if_empty(&self, id: ImageId) {
        let unused = self.entries.remove_if(&id, |_, entry| {
            Arc::strong_count(entry) == 1 && entry.resident_bytes() == 0 && !entry.is_frozen()
        });
        if let Some((_, entry)) = unused {
            self.erase(&entry);
        }
    }

    /// Forgets an image: it is gone from the store, or its cache cannot be used. A frozen one stays,
    /// with nothing valid in it.
    pub fn forget(&self, id: ImageId) {
        if let Some(entry) = self.known(id)
            && entry.stays_frozen()
        {
            entry.drop_pages(&(0..u64::MAX));
            return;
        }
        if let Some((_, entry)) = self.entries.remove(&id) {
            self.erase(&entry);
        }
    }

    fn erase(&self, entry: &Entry) {
        entry.disowned.store(true, Ordering::Release);
        entry.map.clear(&(0..u64::MAX));
        entry.device.note_stale(entry.map.queued_blocks(), self);
        let had_files = entry.files.write().take().is_some();
        entry.uncharge();
        if let Some(witness) = &entry.device.witness {
            witness.forget(entry.id);
        }
        if had_files && let Err(error) = fs::remove_dir_all(entry.dir()) {
            entry.report(&error);
        }
    }

    /// Every device has everything durable: after a clean stop no witness is needed.
    pub fn close(&self) {
        for device in &self.devices {
            if let Some(witness) = &device.witness {
                witness.close();
            }
        }
    }

    /// For `flashside status`.
    pub fn status(&self) -> PoolStatus {
        let devices: Vec<_> = self.devices.iter().map(|device| device.status()).collect();
        PoolStatus {
            limit_bytes: devices.iter().map(|device| device.limit_bytes).sum(),
            used_bytes: devices.iter().map(|device| device.used_bytes).sum(),
            devices,
        }
    }
}

impl Heat for Pool {
    fn heat(&self, key: Key) -> Option<u8> {
        let entry = self.of_key(key)?;
        // Held blocks leave the module and return when the hold ends.
        let heat = match entry.is_held() {
            true => None,
            false => entry.map.heat(block_of(key)),
        };
        if heat.is_none() {
            entry.map.set_unqueued(block_of(key));
            entry.map.release(block_of(key));
        }
        heat
    }

    fn set_heat(&self, key: Key, heat: u8) {
        if let Some(entry) = self.of_key(key) {
            entry.map.set_heat(block_of(key), heat);
        }
    }
}

fn block_of(key: Key) -> u64 {
    key.0 & ((1 << BLOCK_BITS) - 1)
}
