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

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::io::DirectFile;
use crate::store::ImageId;

use super::device::Device;
use super::doubt::{Doubt, REGION_BYTES};
use super::entry::{Entry, Files};
use super::head::{Head, HeadFile};
use super::pagemap::PageMap;
use super::records::Records;
use super::version::Recovered;
use super::witness::Testimony;
use super::{PAGE_BYTES, Pages};

const REGION_PAGES: u64 = REGION_BYTES / PAGE_BYTES;

/// Loads every image of a device; `number` gives each entry its number. What cannot be read is
/// removed: a cache has nothing that the store does not have.
pub(super) fn load(
    device: &Arc<Device>,
    durable_marks: bool,
    mut number: impl FnMut() -> u32,
) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for dir in fs::read_dir(device.root.join("images"))? {
        let dir = dir?;
        let id: Option<ImageId> = dir.file_name().to_str().and_then(|name| name.parse().ok());
        let loaded = match id {
            Some(id) => load_entry(device, id, &dir.path(), durable_marks, number()),
            None => Ok(None),
        };
        match loaded {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => fs::remove_dir_all(dir.path())?,
            Err(error) => {
                log::warn!("{}: {error}; dropped", dir.path().display());
                fs::remove_dir_all(dir.path())?;
            }
        }
    }
    Ok(entries)
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
    let judge = Judge {
        head: &head,
        testimony: testimony.as_ref(),
        marked: &marked,
    };
    let map = PageMap::default();
    let findings = judge.scan(&records, &map)?;
    for run in &findings.void {
        records.zero(run)?;
    }
    if testimony.is_some() {
        doubt.adopt(&marked);
    } else {
        records.sync()?;
        doubt.clear(&marked)?;
    }
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
    entry.adopt(map);
    Ok(Some(entry))
}

fn testimony(device: &Device, id: ImageId) -> io::Result<Option<Testimony>> {
    match (&device.witness, device.unbroken) {
        (Some(witness), true) => witness.testimony(id).map(Some),
        _ => Ok(None),
    }
}

/// Decides record by record.
struct Judge<'a> {
    head: &'a Head,
    testimony: Option<&'a Testimony>,
    marked: &'a [u32],
}

#[derive(Default)]
struct Findings {
    void: Vec<Pages>,
    seq_max: u32,
}

impl Judge<'_> {
    /// Puts what is good into `map` as it is found: a list of it would take more memory than the map.
    fn scan(&self, records: &Records, map: &PageMap) -> io::Result<Findings> {
        let mut findings = Findings::default();
        let pages_max = self.head.validator.size_bytes.div_ceil(PAGE_BYTES);
        let mut good = Vec::new();
        records.scan(|first, run| {
            good.clear();
            for (page, record) in (first..).zip(run).filter(|(_, record)| record.seq != 0) {
                findings.seq_max = findings.seq_max.max(record.seq);
                let is_good = self.is_good(page, record.seq) && page < pages_max;
                let side = if is_good {
                    &mut good
                } else {
                    &mut findings.void
                };
                match side.last_mut() {
                    Some(run) if run.end == page => run.end += 1,
                    _ => side.push(page..page + 1),
                }
            }
            for run in &good {
                map.set(run, false);
            }
        })?;
        Ok(findings)
    }

    fn is_good(&self, page: u64, seq: u32) -> bool {
        if seq < self.head.valid_from {
            return false;
        }
        match self.testimony {
            Some(testimony) => {
                !testimony.disowned && !testimony.in_flight.iter().any(|run| run.contains(&page))
            }
            None => {
                let region = u32::try_from(page / REGION_PAGES).unwrap_or(u32::MAX);
                seq <= self.head.committed && !self.marked.contains(&region)
            }
        }
    }
}
