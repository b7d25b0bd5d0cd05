//! The head of one image in the cache: which version of the image its pages belong to.
//!
//! # Bytes (`head`, little-endian, two slots at 0 and 4096)
//! | at | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `FLSHEAD1` |
//! | 8 | 8 | `generation`: raised by each write; slot = generation mod 2 |
//! | 16 | 16 | image id: inode, tag |
//! | 32 | 8 | size of the image in bytes |
//! | 40 | 12 | mtime: seconds, nanoseconds |
//! | 52 | 12 | ctime: seconds, nanoseconds |
//! | 64 | 8 | `horizon`: nanoseconds since 1970 |
//! | 72 | 4 | `committed`: records up to this sequence are durable with their data |
//! | 76 | 4 | `valid_from`: records before this sequence are void |
//! | 80 | 2 | length of the name |
//! | 82 | 0..=1024 | the image's name when last opened, for people |
//! | 4088 | 8 | xxh3-64 of the 4088 bytes before |
//!
//! A slot is valid if and only if magic and checksum fit; of two, the higher generation counts.
//! A torn write hits one slot and leaves the other.
//!
//! `horizon` 0: the validator was read when the image had not changed for 2 s; the pages are good if
//! the image still has it. Otherwise we are or were the writer: changes of the image up to `horizon`
//! are our own. No write reaches the store after `horizon` before a later one is durable.
//! [`UNTRUSTED`]: the validator was too young to tell versions apart; without it being renewed the
//! pages are void.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::io::file;
use crate::store::{ImageId, Timestamp, Validator};

const MAGIC: &[u8; 8] = b"FLSHEAD1";
const SLOT_BYTES: usize = 4096;
const SUM_AT: usize = SLOT_BYTES - 8;
const NAME_BYTES_MAX: usize = 1024;

/// A horizon that no change lies before.
pub const UNTRUSTED: i64 = i64::MIN;

/// What the head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub validator: Validator,
    /// Nanoseconds since 1970, 0 or [`UNTRUSTED`]; see above.
    pub horizon_ns: i64,
    pub committed: u32,
    pub valid_from: u32,
    pub name: String,
}

/// The open `head` file of an image.
pub struct HeadFile {
    file: File,
    generation: std::sync::atomic::AtomicU64,
}

impl HeadFile {
    /// Opens or creates the file; gives the head it holds, if one is valid.
    pub fn open(path: &Path) -> io::Result<(HeadFile, Option<Head>)> {
        let file = file::open_private(path)?;
        let latest = (0..2)
            .filter_map(|slot| read_slot(&file, slot))
            .max_by_key(|(generation, _)| *generation);
        let generation = latest.as_ref().map_or(0, |(generation, _)| *generation);
        let head_file = HeadFile {
            file,
            generation: generation.into(),
        };
        Ok((head_file, latest.map(|(_, head)| head)))
    }

    /// Writes `head` into the older slot and makes it durable. Calls must not overlap.
    pub fn write(&self, head: &Head) -> io::Result<()> {
        use std::sync::atomic::Ordering;
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let slot = encode(generation, head);
        let at = (generation % 2) * SLOT_BYTES as u64;
        self.file.write_all_at(&slot, at)?;
        self.file.sync_data()
    }
}

fn read_slot(file: &File, slot: u64) -> Option<(u64, Head)> {
    let mut bytes = [0; SLOT_BYTES];
    file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64)
        .ok()?;
    decode(&bytes)
}

fn encode(generation: u64, head: &Head) -> [u8; SLOT_BYTES] {
    let mut out = Vec::with_capacity(SLOT_BYTES);
    let v = &head.validator;
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&generation.to_le_bytes());
    out.extend_from_slice(&v.id.ino.to_le_bytes());
    out.extend_from_slice(&v.id.tag.to_le_bytes());
    out.extend_from_slice(&v.size_bytes.to_le_bytes());
    for time in [v.mtime, v.ctime] {
        out.extend_from_slice(&time.secs.to_le_bytes());
        out.extend_from_slice(&time.nanos.to_le_bytes());
    }
    out.extend_from_slice(&head.horizon_ns.to_le_bytes());
    out.extend_from_slice(&head.committed.to_le_bytes());
    out.extend_from_slice(&head.valid_from.to_le_bytes());
    let mut cut = head.name.len().min(NAME_BYTES_MAX);
    while !head.name.is_char_boundary(cut) {
        cut -= 1;
    }
    out.extend_from_slice(&(cut as u16).to_le_bytes());
    out.extend_from_slice(&head.name.as_bytes()[..cut]);
    let mut slot = [0; SLOT_BYTES];
    slot[..out.len()].copy_from_slice(&out);
    let sum = xxh3_64(&slot[..SUM_AT]);
    slot[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
    slot
}

fn decode(bytes: &[u8; SLOT_BYTES]) -> Option<(u64, Head)> {
    let sum = u64_at(bytes, SUM_AT);
    if &bytes[..8] != MAGIC || sum != xxh3_64(&bytes[..SUM_AT]) {
        return None;
    }
    let time = |at| Timestamp {
        secs: u64_at(bytes, at) as i64,
        nanos: u32_at(bytes, at + 8),
    };
    let name_len = usize::from(u16::from_le_bytes([bytes[80], bytes[81]])).min(NAME_BYTES_MAX);
    let head = Head {
        validator: Validator {
            id: ImageId {
                ino: u64_at(bytes, 16),
                tag: u64_at(bytes, 24),
            },
            size_bytes: u64_at(bytes, 32),
            mtime: time(40),
            ctime: time(52),
        },
        horizon_ns: u64_at(bytes, 64) as i64,
        committed: u32_at(bytes, 72),
        valid_from: u32_at(bytes, 76),
        name: String::from_utf8_lossy(&bytes[82..82 + name_len]).into_owned(),
    };
    Some((u64_at(bytes, 8), head))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(committed: u32) -> Head {
        Head {
            validator: Validator {
                id: ImageId { ino: 12, tag: 99 },
                size_bytes: 1 << 40,
                mtime: Timestamp { secs: -5, nanos: 6 },
                ctime: Timestamp { secs: 7, nanos: 8 },
            },
            horizon_ns: UNTRUSTED,
            committed,
            valid_from: 2,
            name: "vms/wéb.img".into(),
        }
    }

    #[test]
    fn the_latest_valid_slot_counts_and_a_torn_one_does_not() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("head");
        let (file, none) = HeadFile::open(&path).expect("open");
        assert_eq!(none, None);
        file.write(&head(1)).expect("write");
        file.write(&head(2)).expect("write");
        assert_eq!(HeadFile::open(&path).expect("open").1, Some(head(2)));
        // Generation 3 would go to slot 1; tear it.
        file.write(&head(3)).expect("write");
        let raw = file::open_private(&path).expect("open");
        raw.write_all_at(&[0xff; 512], 4096 + 512).expect("tear");
        assert_eq!(HeadFile::open(&path).expect("open").1, Some(head(2)));
    }
}
