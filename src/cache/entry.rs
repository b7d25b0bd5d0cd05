//! One image in the cache: its files on one device and its page map; reading, inserting, dropping.
//!
//! # Files, in `images/<image id>/`
//! `data` (byte x of the image is byte x here, sparse), `map` ([`super::records`]), `doubt`
//! ([`super::doubt`]), `head` ([`super::head`]). They are made when the image first has something to
//! keep.
//!
//! # Order of steps
//! - Insert: bytes into `data`, then the records, then the bits in memory. The reverse would let a
//!   reader, or a recovery, see a page that is not there.
//! - Drop: bits in memory, then the records, then the hole.
//!
//! Which insert may happen at all, and in which order with writes and discards, is decided above, in
//! the image; here only inserts, eviction and verification are kept apart ([`super::claims`]).
//!
//! # Locking
//! `files` is held to clone an `Arc`. One lock is held across I/O: `creating`, while the four files of
//! an image are made, once in its life; whoever finds them made never takes it.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::io::{Buffer, DirectFile};
use crate::module::Key;
use crate::store::{ImageId, Validator};

use super::claims::Claims;
use super::commit::Gate;
use super::device::Device;
use super::doubt::Doubt;
use super::head::{Head, HeadFile};
use super::hold::Holds;
use super::pagemap::{PageMap, State};
use super::records::{Record, Records, page_bytes, page_sum};
use super::version::Version;
use super::witness::Account;
use super::{BLOCK_BYTES, PAGE_BYTES, Pages, blocks_of, pages_touched};

/// Inserts after which the filesystem is asked again what the files occupy.
const RECOUNT_INSERTS: u64 = 64;
/// A read that meets a drop in its neighbourhood is tried again this often.
const READ_TRIES: usize = 4;

/// The open files of an entry.
pub(super) struct Files {
    pub data: DirectFile,
    pub records: Records,
    pub head: HeadFile,
    pub doubt: Doubt,
    pub account: OnceLock<Option<Account>>,
}

/// A write that the store has taken.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    pub offset_bytes: u64,
    pub len_bytes: u64,
    /// Of the image, by now.
    pub size_bytes: u64,
    /// Pages that are not resident become so.
    pub admit: bool,
}

/// An image in the cache.
pub struct Entry {
    pub id: ImageId,
    /// The number that keys of its blocks carry.
    pub(super) number: u32,
    pub(super) device: Arc<Device>,
    pub(super) map: PageMap,
    pub(super) claims: Claims,
    pub(super) holds: Holds,
    pub(super) files: RwLock<Option<Arc<Files>>>,
    pub(super) creating: Mutex<()>,
    pub(super) version: Version,
    pub(super) gate: Gate,
    /// Something has to be committed.
    pub(super) pending: AtomicBool,
    /// Given up until the image is opened anew: nothing is resident, nothing is inserted.
    pub(super) disowned: AtomicBool,
    pub(super) durable_marks: bool,
    mismatches: AtomicU64,
    /// Bytes charged to the device: as last counted, and the change since.
    counted: AtomicI64,
    since_count: AtomicI64,
    inserts: AtomicU64,
}

impl Entry {
    /// `seq` is higher than any sequence on flash.
    pub(super) fn new(
        id: ImageId,
        number: u32,
        device: Arc<Device>,
        head: Head,
        seq: u32,
        durable_marks: bool,
    ) -> Entry {
        Entry {
            id,
            number,
            device,
            map: PageMap::default(),
            claims: Claims::default(),
            holds: Holds::default(),
            files: RwLock::new(None),
            creating: Mutex::new(()),
            gate: Gate::new(seq),
            version: Version::new(head),
            pending: AtomicBool::new(false),
            disowned: AtomicBool::new(false),
            durable_marks,
            mismatches: AtomicU64::new(0),
            counted: AtomicI64::new(0),
            since_count: AtomicI64::new(0),
            inserts: AtomicU64::new(0),
        }
    }

    /// Bytes resident.
    pub fn resident_bytes(&self) -> u64 {
        self.map.resident_bytes()
    }

    /// Pages that did not match their checksum since the mount.
    pub fn checksum_mismatches(&self) -> u64 {
        self.mismatches.load(Ordering::Relaxed)
    }

    /// What `pages` are now.
    pub fn state(&self, pages: &Pages) -> State {
        self.map.state(pages)
    }

    /// What people call the image.
    pub fn name(&self) -> String {
        self.version.name()
    }

    /// True if a block holds pages that were not verified since the mount.
    pub fn has_unverified(&self, block: u64) -> bool {
        self.map.unverified_in(block) != 0
    }

    /// True while a region is in doubt or the version is not certain.
    pub fn is_unsettled(&self) -> bool {
        let in_doubt = self.files().is_some_and(|files| !files.doubt.is_empty());
        let kept = !self.disowned.load(Ordering::Acquire) && self.files().is_some();
        kept && (in_doubt || !self.version_is_settled())
    }

    /// Counts a use of the blocks of `pages`.
    pub fn heat_up(&self, pages: &Pages) {
        self.map.heat_up(pages);
    }

    /// The files, if there are any yet.
    pub(super) fn files(&self) -> Option<Arc<Files>> {
        self.files.read().clone()
    }

    /// The files, made if need be.
    pub(super) fn ensure_files(&self) -> io::Result<Arc<Files>> {
        if let Some(files) = self.files() {
            return Ok(files);
        }
        if !self.device.usable() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        // Held across the making of four files, once per image; requests that find them never wait.
        let _creating = self.creating.lock();
        if let Some(files) = self.files() {
            return Ok(files);
        }
        let files = Arc::new(self.create_files()?);
        *self.files.write() = Some(files.clone());
        Ok(files)
    }

    fn create_files(&self) -> io::Result<Files> {
        let dir = self.dir();
        // What an earlier entry could not remove must not come back to life.
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)?;
        let (head, _) = HeadFile::open(&dir.join("head"))?;
        let (doubt, _) = Doubt::open(&dir.join("doubt"), self.durable_marks)?;
        let files = Files {
            data: DirectFile::open(&dir.join("data"))?,
            records: Records::open(&dir.join("map"))?,
            head,
            doubt,
            account: OnceLock::new(),
        };
        let known = self.version.head();
        files.data.set_len(data_len(known.validator.size_bytes))?;
        files.head.write(&known)?;
        // The files themselves must survive a power cut as soon as a mark in them has to.
        fs::File::open(&dir)?.sync_all()?;
        fs::File::open(self.device.root.join("images"))?.sync_all()?;
        Ok(files)
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.device.image_dir(self.id)
    }

    /// Reads `len_bytes` at `offset_bytes` into `buffer` if all of it is resident and verified; gives
    /// where in the buffer it begins.
    pub fn read(&self, offset_bytes: u64, len_bytes: usize, buffer: &mut Buffer) -> Option<usize> {
        let pages = pages_touched(offset_bytes, len_bytes as u64);
        (0..READ_TRIES).find_map(|_| self.try_read(&pages, buffer))?;
        Some((offset_bytes % PAGE_BYTES) as usize)
    }

    /// Reads `pages`; `None` when they are not there or something in their neighbourhood was dropped
    /// meanwhile.
    fn try_read(&self, pages: &Pages, buffer: &mut Buffer) -> Option<()> {
        let drops = self.map.stamp(pages).drops;
        if self.map.state(pages) != State::Ready {
            return None;
        }
        let files = self.files()?;
        let cover = ((pages.end - pages.start) * PAGE_BYTES) as usize;
        buffer.reserve(cover);
        let bytes = &mut buffer.bytes_mut()[..cover];
        if let Err(error) = files.data.read(bytes, pages.start * PAGE_BYTES) {
            self.device.report(&error);
            self.drop_pages(pages);
            return None;
        }
        (self.map.stamp(pages).drops == drops).then_some(())
    }

    /// Puts whole pages, `bytes` from page `first`, into the cache file and marks them resident. Room
    /// has been made ([`super::Pool::insert`]).
    ///
    /// `era` is that of the version the bytes belong to. ENODEV when the version is another by now, or
    /// the image's cache is given up.
    pub(super) fn insert(&self, era: u64, first: u64, bytes: &[u8]) -> io::Result<()> {
        let pages = first..first + bytes.len() as u64 / PAGE_BYTES;
        let files = self.ensure_files()?;
        let _claim = self.claims.share(blocks_of(&pages));
        let pass = self.gate.enter();
        // Asked inside the gate: whoever drops the version waits for those inside, and keeps others
        // out. A held image is whole, so what comes for it is late.
        if self.disowned.load(Ordering::Acquire)
            || self.era() != era
            || self.version.is_dropping()
            || self.is_held()
        {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        self.map.touch(&pages);
        files.data.write(bytes, first * PAGE_BYTES)?;
        let records: Vec<Record> = pages
            .clone()
            .map(|page| Record {
                sum: page_sum(page, page_bytes(bytes, first, page)),
                seq: pass.seq(),
            })
            .collect();
        files.records.write(first, &records)?;
        let before = self.map.resident_bytes();
        let new_blocks = self.map.set(&pages, true);
        self.charge(self.map.resident_bytes() as i64 - before as i64);
        self.map.touch(&pages);
        self.pending.store(true, Ordering::Release);
        let mut module = self.device.module.lock();
        for block in new_blocks {
            module.inserted(self.key(block));
        }
        drop(module);
        if self.inserts.fetch_add(1, Ordering::Relaxed) % RECOUNT_INSERTS == RECOUNT_INSERTS - 1 {
            self.recount();
        }
        Ok(())
    }

    /// Follows a write that the store has taken. `buffer` holds the written bytes at the offset they
    /// have in their first page. Pages written as a whole become resident if `admit`; pages written
    /// in part, and without `admit` all, are changed where they are resident.
    pub(super) fn overwrite(&self, written: &Written, buffer: &mut Buffer) -> io::Result<()> {
        let Written {
            offset_bytes,
            len_bytes,
            size_bytes,
            admit,
        } = *written;
        let touched = pages_touched(offset_bytes, len_bytes);
        let mut pages = touched.clone();
        let end = offset_bytes + len_bytes;
        let base = touched.start * PAGE_BYTES;
        // Past the end of the image a page is zeros: the last page may be whole without being full.
        let tail_is_whole = end.is_multiple_of(PAGE_BYTES) || end >= size_bytes;
        if tail_is_whole {
            let cover = ((touched.end - touched.start) * PAGE_BYTES) as usize;
            buffer.bytes_mut()[(end - base) as usize..cover].fill(0);
        }
        let head_is_part = !offset_bytes.is_multiple_of(PAGE_BYTES);
        if head_is_part
            && !self.merge(
                touched.start,
                offset_bytes,
                end.min(base + PAGE_BYTES),
                base,
                buffer,
            )?
        {
            pages.start += 1;
        }
        let tail = touched.end - 1;
        let tail_done = tail_is_whole || (head_is_part && tail == touched.start);
        if !tail_done && !self.merge(tail, tail * PAGE_BYTES, end, base, buffer)? {
            pages.end -= 1;
        }
        if pages.is_empty() {
            return Ok(());
        }
        let put = |pages: Pages| {
            let begin = ((pages.start - touched.start) * PAGE_BYTES) as usize;
            let len = ((pages.end - pages.start) * PAGE_BYTES) as usize;
            self.insert(self.era(), pages.start, &buffer.bytes()[begin..begin + len])
        };
        match admit {
            true => put(pages),
            false => self.resident_runs(&pages).into_iter().try_for_each(put),
        }
    }

    /// The runs of `pages` that are resident.
    fn resident_runs(&self, pages: &Pages) -> Vec<Pages> {
        let mut runs: Vec<Pages> = Vec::new();
        for page in pages.clone() {
            if self.map.state(&(page..page + 1)) == State::Missing {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    /// Completes a page written only from `from` to `to` with its resident bytes; false when the page
    /// is not resident. `base` is the image offset of the buffer's first byte.
    fn merge(
        &self,
        page: u64,
        from: u64,
        to: u64,
        base: u64,
        buffer: &mut Buffer,
    ) -> io::Result<bool> {
        if self.map.state(&(page..page + 1)) == State::Unverified {
            self.verify(&(page..page + 1))?;
        }
        let mut old = Buffer::new(PAGE_BYTES as usize);
        let page_at = page * PAGE_BYTES;
        if self.read(page_at, PAGE_BYTES as usize, &mut old).is_none() {
            self.drop_pages(&(page..page + 1));
            return Ok(false);
        }
        let at = (page_at - base) as usize;
        let (from, to) = ((from - page_at) as usize, (to - page_at) as usize);
        let new = &mut buffer.bytes_mut()[at..at + PAGE_BYTES as usize];
        new[..from].copy_from_slice(&old.bytes()[..from]);
        new[to..].copy_from_slice(&old.bytes()[to..PAGE_BYTES as usize]);
        Ok(true)
    }

    /// Checks resident pages that were not verified since the mount against their records (rule 5). A
    /// page that does not match is dropped: the store has it.
    pub fn verify(&self, pages: &Pages) -> io::Result<()> {
        let Some(files) = self.files() else {
            return Ok(());
        };
        for block in blocks_of(pages) {
            if self.map.unverified_in(block) != 0 {
                self.verify_block(&files, block)?;
            }
        }
        Ok(())
    }

    fn verify_block(&self, files: &Files, block: u64) -> io::Result<()> {
        // An insert between its bytes and their record would look like damage, and the hole punched for
        // it would take the new bytes.
        let _claim = self.claims.alone(block);
        let first = block * super::PAGES_PER_BLOCK;
        let bits = self.map.unverified_in(block);
        let count = u64::from(16 - bits.leading_zeros());
        let pages = first..first + count;
        let stamp = self.map.stamp(&pages);
        let mut buffer = Buffer::new(BLOCK_BYTES as usize);
        let len = (count * PAGE_BYTES) as usize;
        if let Err(error) = files
            .data
            .read(&mut buffer.bytes_mut()[..len], first * PAGE_BYTES)
        {
            self.drop_pages(&pages);
            return Err(error);
        }
        let records = files.records.read(&pages)?;
        if self.map.stamp(&pages).drops != stamp.drops {
            return Ok(()); // dropped meanwhile; whoever needs it asks again
        }
        for (page, record) in pages.zip(records) {
            let sum = page_sum(page, page_bytes(buffer.bytes(), first, page));
            let is_resident = bits >> (page - first) & 1 == 1;
            if is_resident && (record.seq == 0 || record.sum != sum) {
                self.mismatch(page);
            }
        }
        self.map.set_verified(block);
        Ok(())
    }

    fn mismatch(&self, page: u64) {
        if self.mismatches.fetch_add(1, Ordering::Relaxed) == 0 {
            log::warn!(
                "image {}: page {page} on flash does not match its checksum and is fetched again; \
                 further ones are counted in status",
                self.version.name()
            );
        }
        self.drop_pages(&(page..page + 1));
    }

    /// Drops `pages`: from now on the store has them. Flash errors are reported to the device; what
    /// they could leave behind is covered by the in-doubt marks of the caller.
    pub fn drop_pages(&self, pages: &Pages) {
        let cleared = self.map.clear(pages);
        if cleared == 0 {
            return;
        }
        let Some(files) = self.files() else {
            return;
        };
        let dropped =
            files
                .records
                .zero(pages)
                .and_then(|()| match self.void_when_released(pages) {
                    true => Ok(()),
                    false => punch_pages(&files.data, pages),
                });
        self.charge(-((cleared * PAGE_BYTES) as i64));
        self.pending.store(true, Ordering::Release);
        if let Err(error) = dropped {
            self.device.report(&error);
        }
    }

    /// Evicts one block; false when somebody is inserting into it right now, or the image is held.
    pub(super) fn evict(&self, block: u64) -> bool {
        let Some(_claim) = self.claims.try_alone(block) else {
            return false;
        };
        if self.is_held() {
            return false;
        }
        self.map.set_unqueued(block);
        let first = block * super::PAGES_PER_BLOCK;
        self.drop_pages(&(first..first + super::PAGES_PER_BLOCK));
        self.map.release(block);
        true
    }

    /// False while its device fails, or when its cache was given up.
    pub fn is_usable(&self) -> bool {
        self.device.usable() && !self.disowned.load(Ordering::Acquire)
    }

    /// Drops one block for good, without the module's asking; gives the bytes that were resident. 0
    /// when somebody is inserting into it right now, or the image is held. The module finds out when it
    /// comes across it.
    pub fn give_up(&self, block: u64) -> u64 {
        let Some(_claim) = self.claims.try_alone(block) else {
            return 0;
        };
        if self.is_held() {
            return 0;
        }
        let bytes = u64::from(self.map.resident_in(block).count_ones()) * PAGE_BYTES;
        let first = block * super::PAGES_PER_BLOCK;
        self.drop_pages(&(first..first + super::PAGES_PER_BLOCK));
        bytes
    }

    /// The first block from `block` on that holds resident pages.
    pub fn next_resident(&self, block: u64) -> Option<u64> {
        self.map.next_resident(block)
    }

    /// Bytes of `pages` that are resident, and that are verified as well.
    pub fn resident_of(&self, pages: &Pages) -> (u64, u64) {
        self.map.count(pages)
    }

    /// Follows a size change of the image; pages past a new end have been dropped.
    pub fn resize(&self, size_bytes: u64) {
        self.version.set_size(size_bytes);
        if let Some(files) = self.files()
            && let Err(error) = self.set_data_len(&files, size_bytes)
        {
            self.device.report(&error);
        }
    }

    /// Takes over the map of what was found at a mount, none of it verified. The module does not know
    /// of it before [`Entry::enter_module`]. `pending`: something of it has to be committed.
    pub(super) fn adopt(&mut self, map: PageMap, pending: bool) {
        self.map = map;
        self.pending.store(pending, Ordering::Release);
    }

    /// The module gets to know the blocks that were found, and the device what the files occupy.
    /// Nothing is evicted or inserted on the device before that.
    pub(super) fn enter_module(&self) {
        let mut module = self.device.module.lock();
        self.map
            .each_queued(|block| module.inserted(self.key(block)));
        drop(module);
        self.recount();
    }

    /// Raised each time everything cached of the image became void; an insert of bytes fetched in an
    /// earlier era is refused.
    pub fn era(&self) -> u64 {
        self.version.era.load(Ordering::Acquire)
    }

    /// Notes a flash error, unless it is only that the image's cache has been given up.
    pub(super) fn report(&self, error: &io::Error) {
        if error.raw_os_error() != Some(libc::ENODEV) {
            self.device.report(error);
        }
    }

    /// The key of one of its blocks.
    pub(super) fn key(&self, block: u64) -> Key {
        Key(u64::from(self.number) << 40 | block)
    }

    fn charge(&self, bytes: i64) {
        self.since_count.fetch_add(bytes, Ordering::Relaxed);
        self.device.charge(bytes);
    }

    /// Asks the filesystem what the files occupy and corrects the account.
    pub(super) fn recount(&self) {
        let Some(files) = self.files() else {
            return;
        };
        let since = self.since_count.load(Ordering::Acquire);
        let (Ok(data), Ok(records)) = (
            files.data.allocated_bytes(),
            files.records.allocated_bytes(),
        ) else {
            return;
        };
        // Inserts that end meanwhile count twice until the next time: never too little.
        const SMALL_FILES_BYTES: u64 = 32 * 1024;
        let now = i64::try_from(data + records + SMALL_FILES_BYTES).unwrap_or(i64::MAX);
        let before = self.counted.swap(now, Ordering::AcqRel);
        self.since_count.fetch_sub(since, Ordering::AcqRel);
        self.device.charge(now - before - since);
    }

    /// Takes the entry out of its device's account, for good.
    pub(super) fn uncharge(&self) {
        let charged =
            self.counted.swap(0, Ordering::AcqRel) + self.since_count.swap(0, Ordering::AcqRel);
        self.device.charge(-charged);
    }

    /// The validator its pages belong to.
    pub fn validator(&self) -> Validator {
        self.version.head().validator
    }
}

/// Gives the space of pages back, as far as the file reaches.
pub(super) fn punch_pages(data: &DirectFile, pages: &Pages) -> io::Result<()> {
    let begin = pages.start * PAGE_BYTES;
    let end = pages.end.saturating_mul(PAGE_BYTES).min(data.len()?);
    match begin < end {
        true => data.punch(begin, end - begin),
        false => Ok(()),
    }
}

/// Length of the data file for an image of `size_bytes`: whole pages.
pub(super) fn data_len(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(PAGE_BYTES)
}
