//! Finding out at a mount what a cache device holds: what is certain stays, the rest is dropped.
//!
//! Works in two situations. *Unbroken* (the daemon was killed, the filesystem stayed mounted): all
//! records count, except pages under a write that was in flight. *Broken* (power cut, reboot, after a
//! clean stop too): records count up to the head's `committed`, except those in regions in doubt.
//! Whether the image itself is still the same version is seen when it is opened
//! ([`super::version`]).
//!
//! # Order of steps
//! - What a reader of an earlier mount still has open is frozen before its file is touched ([`super::orphan`]).
//! - Void records are zeroed and durable before the in-doubt marks that voided them are cleared, so a
//!   crash in here leads to the same result the next time.
//!
//! # What is not made durable here, and why
//! A guest waits for the successor of a daemon that was killed, so nothing is synced without need.
//! - Unbroken, the marks stay: a power cut later drops their regions, whatever became of the records
//!   that are zeroed here. They are cleared as always, after a commit.
//! - Without marks a record is void because it was never committed, is older than `valid_from`, or lies
//!   past the image's end. Should its zeros be lost, it is void again for the same reason: `committed`
//!   goes past it only in a commit, which makes the zeros durable first.
//! - After a clean stop and after a power cut what was committed needs no commit; only after a kill may
//!   there be evictions that are not durable yet.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use crate::io::DirectFile;
use crate::store::ImageId;

use super::chunk::{CHUNK_BLOCKS, CHUNK_PAGES};
use super::device::Device;
use super::doubt::{Doubt, REGION_BYTES};
use super::entry::{Entry, Files};
use super::head::{Head, HeadFile};
use super::pagemap::PageMap;
use super::records::Records;
use super::version::Recovered;
use super::witness::Testimony;
use super::{PAGE_BYTES, PAGES_PER_BLOCK, Pages};

const REGION_PAGES: u64 = REGION_BYTES / PAGE_BYTES;

/// The images that lie on a device. What is no image is removed: a cache has nothing that the store does
/// not have.
pub(super) fn find(device: &Device) -> io::Result<Vec<ImageId>> {
    let mut found = Vec::new();
    for dir in fs::read_dir(device.root.join("images"))? {
        let dir = dir?;
        match dir.file_name().to_str().and_then(|name| name.parse().ok()) {
            Some(id) => found.push(id),
            None => fs::remove_dir_all(dir.path())?,
        }
    }
    Ok(found)
}

/// Loads one image, or removes it where it cannot be read.
pub(super) fn load(
    device: &Arc<Device>,
    id: ImageId,
    durable_marks: bool,
    number: u32,
) -> io::Result<Option<Entry>> {
    let dir = device.image_dir(id);
    match load_entry(device, id, &dir, durable_marks, number) {
        Ok(Some(entry)) => Ok(Some(entry)),
        Ok(None) => fs::remove_dir_all(&dir).map(|()| None),
        Err(error) => {
            log::warn!("{}: {error}; dropped", dir.display());
            fs::remove_dir_all(&dir).map(|()| None)
        }
    }
}

/// Loads one image; `None` when its directory holds no valid head.
fn load_entry(
    device: &Arc<Device>,
    id: ImageId,
    dir: &Path,
    durable_marks: bool,
    number: u32,
) -> io::Result<Option<Entry>> {
    let (head_file, Some(head)) = HeadFile::open(&dir.join("head"))? else {
        return Ok(None);
    };
    let (doubt, marked) = Doubt::open(&dir.join("doubt"), durable_marks)?;
    let records = Records::open(&dir.join("map"))?;
    let testimony = testimony(device, id)?;
    let map = PageMap::default();
    let findings = Judge::new(&head, testimony.as_ref(), &marked).scan(&records, &map)?;
    for run in &findings.void {
        records.zero(run)?;
    }
    if testimony.is_some() {
        doubt.adopt(&marked);
    } else if !marked.is_empty() {
        records.sync()?;
        doubt.clear(&marked)?;
    }
    let newer = !findings.void.is_empty() || findings.seq_max > head.committed;
    let pending = newer || testimony.is_some();
    let seq = findings.seq_max.max(head.committed).max(head.valid_from) + 1;
    let mut entry = Entry::new(id, number, device.clone(), head, seq, durable_marks);
    *entry.files.write() = Some(Arc::new(Files {
        data: DirectFile::open(&dir.join("data"))?,
        records,
        head: head_file,
        doubt,
        account: std::sync::OnceLock::new(),
    }));
    entry.freeze_if_shared();
    entry.whole_pages_again()?;
    entry.version.set_recovered(Recovered { testimony });
    entry.adopt(map, pending);
    Ok(Some(entry))
}

fn testimony(device: &Device, id: ImageId) -> io::Result<Option<Testimony>> {
    match (&device.witness, device.unbroken) {
        (Some(witness), true) => witness.testimony(id).map(Some),
        _ => Ok(None),
    }
}

/// Decides record by record.
struct Judge {
    /// A record counts if and only if its sequence is one of these and its page is not doubtful.
    seqs: RangeInclusive<u32>,
    doubtful: Vec<Pages>,
    /// Pages of the image.
    pages_max: u64,
}

#[derive(Default)]
struct Findings {
    void: Vec<Pages>,
    seq_max: u32,
}

impl Judge {
    fn new(head: &Head, testimony: Option<&Testimony>, marked: &[u32]) -> Judge {
        let (last, doubtful) = match testimony {
            Some(testimony) if testimony.disowned => (0, Vec::new()),
            Some(testimony) => (u32::MAX, testimony.in_flight.clone()),
            None => (head.committed, marked.iter().map(region_pages).collect()),
        };
        Judge {
            seqs: head.valid_from.max(1)..=last,
            doubtful,
            pages_max: head.validator.size_bytes.div_ceil(PAGE_BYTES),
        }
    }

    /// Puts what is good into `map` as it is found: a list of it would take more memory than the map.
    fn scan(&self, records: &Records, map: &PageMap) -> io::Result<Findings> {
        let mut findings = Findings::default();
        records.scan(|first, words| {
            let pages = first..first + CHUNK_PAGES;
            let in_chunk = |run: &&Pages| run.start < pages.end && pages.start < run.end;
            let doubtful: Vec<Pages> = self.doubtful.iter().filter(in_chunk).cloned().collect();
            let mut good = [0; CHUNK_BLOCKS as usize];
            self.judge_chunk(first, words, &doubtful, &mut good, &mut findings);
            if good.iter().any(|mask| *mask != 0) {
                map.found(first / PAGES_PER_BLOCK, &good);
            }
        })?;
        Ok(findings)
    }

    /// One record after the other, in plain words: a mount waits for this.
    fn judge_chunk(
        &self,
        first: u64,
        words: &[u64],
        doubtful: &[Pages],
        good: &mut [u16],
        findings: &mut Findings,
    ) {
        let (seq_first, seq_last) = (*self.seqs.start(), *self.seqs.end());
        for (at, word) in words.iter().enumerate() {
            let seq = (*word >> 32) as u32;
            if seq == 0 {
                continue;
            }
            if seq > findings.seq_max {
                findings.seq_max = seq;
            }
            let page = first + at as u64;
            let counts = seq >= seq_first && seq <= seq_last && page < self.pages_max;
            if counts && (doubtful.is_empty() || !doubtful.iter().any(|run| run.contains(&page))) {
                good[at / 16] |= 1 << (at % 16);
            } else {
                findings.void(page);
            }
        }
    }
}

impl Findings {
    fn void(&mut self, page: u64) {
        match self.void.last_mut() {
            Some(run) if run.end == page => run.end += 1,
            _ => self.void.push(page..page + 1),
        }
    }
}

fn region_pages(region: &u32) -> Pages {
    let first = u64::from(*region) * REGION_PAGES;
    first..first + REGION_PAGES
}
