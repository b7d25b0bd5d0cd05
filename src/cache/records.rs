//! The page records of one image: what each page in the cache file is, on flash.
//!
//! # Bytes (`map`, little-endian)
//! Record p lies at byte 8·p: `sum: u32`, `seq: u32`.
//! - `seq` = 0: page p is not resident. Otherwise the commit sequence that was open when the record
//!   was written.
//! - `sum`: the low half of xxh3-64 of the page's 4096 bytes, seeded with p.
//!
//! Record p is valid if and only if `seq` ≥ the head's `valid_from`, and `seq` ≤ the head's `committed`
//! or the filesystem has been mounted without a break since the record was written (see
//! [`super::witness`]), and page p lies in no in-doubt region (the same break set aside).
//!
//! # Order of steps
//! The page's bytes are in the cache file before its record is written; the record is zeroed after
//! the page left the map in memory. Records go through the page cache; [`super::commit`] makes them
//! durable, after the data. Eight aligned bytes never straddle a sector, so a record is whole or old.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64_with_seed;
use zerocopy::IntoBytes;

use crate::io::file;

use super::chunk::CHUNK_PAGES;
use super::{PAGE_BYTES, Pages};

/// Bytes of a record.
pub const RECORD_BYTES: u64 = 8;
/// Records zeroed by one write; longer ranges are punched.
const ZERO_WRITE_RECORDS: u64 = 512;

/// One page's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Checksum of the page's bytes.
    pub sum: u32,
    /// Commit sequence, 0 when the page is not resident.
    pub seq: u32,
}

/// The checksum of one page's bytes.
pub fn page_sum(page: u64, bytes: &[u8]) -> u32 {
    xxh3_64_with_seed(bytes, page) as u32
}

/// The open `map` file of an image.
pub struct Records {
    file: File,
}

impl Records {
    /// Opens or creates the file.
    pub fn open(path: &Path) -> io::Result<Records> {
        let file = file::open_private(path)?;
        Ok(Records { file })
    }

    /// Writes records for consecutive pages from `first`.
    pub fn write(&self, first: u64, records: &[Record]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(records.len() * RECORD_BYTES as usize);
        for record in records {
            bytes.extend_from_slice(&record.sum.to_le_bytes());
            bytes.extend_from_slice(&record.seq.to_le_bytes());
        }
        self.file.write_all_at(&bytes, first * RECORD_BYTES)
    }

    /// The records of `pages`; past the end of the file they are zero.
    pub fn read(&self, pages: &Pages) -> io::Result<Vec<Record>> {
        let count = (pages.end - pages.start) as usize;
        let mut bytes = vec![0; count * RECORD_BYTES as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            let at = pages.start * RECORD_BYTES + filled as u64;
            match self.file.read_at(&mut bytes[filled..], at)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(decode(&bytes).collect())
    }

    /// Zeroes the records of `pages`.
    pub fn zero(&self, pages: &Pages) -> io::Result<()> {
        let count = pages.end.saturating_sub(pages.start);
        if count <= ZERO_WRITE_RECORDS {
            let end = self.file.metadata()?.len() / RECORD_BYTES;
            let count = count.min(end.saturating_sub(pages.start));
            let zeros = [0; (ZERO_WRITE_RECORDS * RECORD_BYTES) as usize];
            let bytes = &zeros[..(count * RECORD_BYTES) as usize];
            return self.file.write_all_at(bytes, pages.start * RECORD_BYTES);
        }
        let len = self.file.metadata()?.len();
        let begin = (pages.start * RECORD_BYTES).min(len);
        let end = pages.end.saturating_mul(RECORD_BYTES).min(len);
        if end == len {
            return self.file.set_len(begin);
        }
        file::punch(&self.file, begin, end - begin)
    }

    /// Calls `each` with the records of every chunk of the page map that has some: the first page, and
    /// one word per page, `seq` in its upper half. Words, because a mount waits for this.
    pub fn scan(&self, mut each: impl FnMut(u64, &[u64])) -> io::Result<()> {
        const STEP_BYTES: u64 = CHUNK_PAGES * RECORD_BYTES;
        let mut words = vec![0; CHUNK_PAGES as usize];
        let (mut at, mut data_until) = (0, 0);
        loop {
            if at >= data_until {
                let Some((begin, end)) = file::next_data(&self.file, at)? else {
                    return Ok(());
                };
                at = begin - begin % STEP_BYTES;
                data_until = end;
            }
            self.read_words(at, &mut words)?;
            each(at / RECORD_BYTES, &words);
            at += STEP_BYTES;
        }
    }

    /// Fills `words` from byte `at` of the file; past its end they are zero.
    fn read_words(&self, at: u64, words: &mut [u64]) -> io::Result<()> {
        let bytes = words.as_mut_bytes();
        let mut filled = 0;
        while filled < bytes.len() {
            match self
                .file
                .read_at(&mut bytes[filled..], at + filled as u64)?
            {
                0 => break,
                read => filled += read,
            }
        }
        bytes[filled..].fill(0);
        if cfg!(target_endian = "big") {
            words.iter_mut().for_each(|word| *word = word.swap_bytes());
        }
        Ok(())
    }

    /// Makes all records durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Forgets all records.
    pub fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// Bytes the file occupies on flash.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        file::allocated_bytes(&self.file)
    }
}

fn decode(bytes: &[u8]) -> impl Iterator<Item = Record> {
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    bytes
        .chunks_exact(RECORD_BYTES as usize)
        .map(move |record| Record {
            sum: word(record, 0),
            seq: word(record, 4),
        })
}

/// Bytes of page `page` inside `bytes`, which begin at page `first`.
pub fn page_bytes(bytes: &[u8], first: u64, page: u64) -> &[u8] {
    let begin = ((page - first) * PAGE_BYTES) as usize;
    &bytes[begin..begin + PAGE_BYTES as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back_and_zeroed() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let records = Records::open(&dir.path().join("map")).expect("open");
        let record = Record { sum: 7, seq: 3 };
        records.write(5, &[record; 700]).expect("write");
        assert_eq!(records.read(&(4..6)).expect("read")[1], record);
        records.zero(&(6..8)).expect("zero");
        records.zero(&(100..u64::MAX)).expect("zero the tail");
        let mut seen = Vec::new();
        records
            .scan(|first, words| {
                seen.extend(
                    (first..)
                        .zip(words)
                        .filter(|(_, word)| **word >> 32 == 3)
                        .map(|(page, _)| page),
                );
            })
            .expect("scan");
        assert_eq!(seen.len(), 93);
        assert!(!seen.contains(&6) && seen.contains(&5) && seen.contains(&99));
    }

    #[test]
    fn a_sum_depends_on_bytes_and_place() {
        let bytes = [1; PAGE_BYTES as usize];
        assert_ne!(page_sum(1, &bytes), page_sum(2, &bytes));
        assert_ne!(page_sum(1, &bytes), page_sum(1, &[2; PAGE_BYTES as usize]));
    }
}
