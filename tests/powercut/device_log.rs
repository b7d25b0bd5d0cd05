//! The log of everything that was written to a device, and the images a power cut could leave.
//!
//! The log is in the dm-log-writes format: a superblock in sector 0 (magic, version, number of
//! entries, sector size), then entries, each one sector of header (sector, sectors, flags, data
//! length; little-endian u64) and its data, padded to whole sectors. The number in the superblock
//! may lag, so the log is read to the end of its file.
//!
//! What a cut may leave: everything before the last flush, plus any part of what came after it,
//! in units of 512 bytes. A device is free to keep or to lose what nobody flushed.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::rig::Rng;
use crate::rig::stamp::SECTOR;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// Units in which an image is written out; all-zero units stay holes.
const UNIT: usize = 64 << 10;
static ZEROS: [u8; UNIT] = [0; UNIT];

/// One thing the device was told.
struct Entry {
    /// First byte on the device.
    start: usize,
    len: usize,
    flags: u64,
    /// Where its data lies in the log.
    data: Range<usize>,
    /// Length of the log with this entry in it.
    end: u64,
}

/// The log, read into memory.
pub struct DeviceLog {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// How the writes after the last flush fare.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// All of them are there: the cut came between two writes.
    Nothing,
    /// Each is there or lost, by the toss of a coin.
    Some,
    /// All are lost.
    All,
    /// All are there, and of the last one only some of its sectors.
    TornLast,
}

impl DeviceLog {
    /// Reads and checks a log.
    pub fn read(path: &Path) -> Result<DeviceLog, String> {
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        if bytes.len() < SECTOR || word(0) != MAGIC {
            return Err("not a dm-log-writes log".into());
        }
        let mut entries = Vec::new();
        let mut at = SECTOR;
        while at + SECTOR <= bytes.len() {
            let (start, len) = (word(at) as usize * SECTOR, word(at + 8) as usize * SECTOR);
            let flags = word(at + 16);
            let data_len = if flags & DISCARD != 0 { 0 } else { len };
            let data = at + SECTOR..at + SECTOR + data_len;
            at = data.end;
            if flags > FLUSH | FUA | DISCARD | MARK || at > bytes.len() {
                return Err(format!("entry {} of the log is broken", entries.len()));
            }
            entries.push(Entry {
                start,
                len,
                flags,
                data,
                end: at as u64,
            });
        }
        Ok(DeviceLog { bytes, entries })
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Number of flushes.
    pub fn flushes(&self) -> usize {
        self.entries.iter().filter(|e| e.flags & FLUSH != 0).count()
    }

    /// Length of the log, in bytes, when it held the first `count` entries.
    pub fn position(&self, count: usize) -> u64 {
        count
            .checked_sub(1)
            .map_or(0, |last| self.entries[last].end)
    }

    /// Number of entries in the log when it was `position` bytes long.
    pub fn count_at(&self, position: u64) -> usize {
        self.entries.partition_point(|entry| entry.end <= position)
    }

    /// Number of entries up to the first flush at or after entry `from`, that flush included.
    pub fn count_at_flush(&self, from: usize) -> usize {
        let flush = (from..self.len()).find(|&i| self.entries[i].flags & FLUSH != 0);
        flush.map_or(self.len(), |i| i + 1)
    }
}

/// A device as it is when everything up to some flush is durable. Cuts are taken in rising order.
pub struct Device<'a> {
    log: &'a DeviceLog,
    bytes: Vec<u8>,
    /// Entries applied to `bytes`.
    applied: usize,
}

impl<'a> Device<'a> {
    pub fn new(log: &'a DeviceLog, size_bytes: usize) -> Device<'a> {
        Device {
            log,
            bytes: vec![0; size_bytes],
            applied: 0,
        }
    }

    /// Writes to `path` what the device holds after a cut behind the first `count` entries.
    /// Returns how many writes were not yet flushed.
    pub fn cut(
        &mut self,
        count: usize,
        loss: Loss,
        rng: &mut Rng,
        path: &Path,
    ) -> std::io::Result<usize> {
        let durable = (self.applied..count).rev().find(|&i| {
            let flags = self.log.entries[i].flags;
            flags & FLUSH != 0
        });
        while durable.is_some_and(|last| self.applied <= last) {
            self.apply(self.applied, |_| true);
            self.applied += 1;
        }
        let open = self.applied..count;
        let undo = self.apply_open(open.clone(), loss, rng);
        let written = write_sparse(&self.bytes, path);
        for (start, old) in undo.into_iter().rev() {
            self.bytes[start..start + old.len()].copy_from_slice(&old);
        }
        written.map(|()| open.len())
    }

    /// Applies what survives of the unflushed entries; returns what was there before.
    fn apply_open(
        &mut self,
        open: Range<usize>,
        loss: Loss,
        rng: &mut Rng,
    ) -> Vec<(usize, Vec<u8>)> {
        let mut undo = Vec::new();
        for i in open.clone() {
            let entry = &self.log.entries[i];
            let old = self.bytes[entry.start..entry.start + entry.len].to_vec();
            undo.push((entry.start, old));
            let forced = entry.flags & FUA != 0;
            match loss {
                _ if forced => self.apply(i, |_| true),
                Loss::Nothing => self.apply(i, |_| true),
                Loss::All => {}
                Loss::Some if rng.chance(50) => self.apply(i, |_| true),
                Loss::Some => {}
                Loss::TornLast if i + 1 == open.end => self.apply(i, |_| rng.chance(50)),
                Loss::TornLast => self.apply(i, |_| true),
            }
        }
        undo
    }

    /// Applies those sectors of an entry that `keep` names.
    fn apply(&mut self, index: usize, mut keep: impl FnMut(usize) -> bool) {
        let entry = &self.log.entries[index];
        let target = &mut self.bytes[entry.start..entry.start + entry.len];
        let data = &self.log.bytes[entry.data.clone()];
        for (i, sector) in target.chunks_exact_mut(SECTOR).enumerate() {
            if !keep(i) {
                continue;
            }
            match data.get(i * SECTOR..(i + 1) * SECTOR) {
                Some(new) => sector.copy_from_slice(new),
                None => sector.fill(0),
            }
        }
    }
}

fn write_sparse(bytes: &[u8], path: &Path) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(bytes.len() as u64)?;
    for (i, unit) in bytes.chunks(UNIT).enumerate() {
        if unit != &ZEROS[..unit.len()] {
            file.write_all_at(unit, (i * UNIT) as u64)?;
        }
    }
    Ok(())
}
