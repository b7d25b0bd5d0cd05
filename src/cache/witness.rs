//! The witness: proof that the page cache of this host survived, and what was under way when the
//! daemon ended.
//!
//! kill -9 ends the daemon but loses nothing it had written; a power cut, a reboot or an unmount of
//! the cache filesystem after an error may. The witness lives in the runtime directory (tmpfs), dies
//! with the host, and names the very mount of the cache filesystem. While it fits, records that were
//! never committed are good, and only pages under a write that was in flight are in doubt.
//!
//! # Bytes
//! `<runtime dir>/<device uuid>/session`: one line, boot id, device number and unique mount id.
//! `<runtime dir>/<device uuid>/<image id>`: slots of 64 bytes, little-endian:
//! `state: u64` (0 free, 1 in flight, 2 done, 3 disowned), `offset: u64`, `len: u64`,
//! `begun_ns: i64`, then the validator after the write: `size: u64`, mtime and ctime (`i64`, `u32` each).
//!
//! # Order of steps
//! A slot is in flight before its write goes to the store, and done after the cache followed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::store::{ImageId, Timestamp, Validator};

use super::{Pages, pages_touched};

const SLOT_BYTES: u64 = 64;
const IN_FLIGHT: u64 = 1;
const DONE: u64 = 2;
const DISOWNED: u64 = 3;

/// The witness of one cache device.
pub struct Witness {
    dir: PathBuf,
}

/// What the witness of an image says after the daemon ended without a clean stop.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Testimony {
    /// Pages under a write that was in flight.
    pub in_flight: Vec<Pages>,
    /// When the latest write began, nanoseconds since 1970; 0 for none.
    pub last_begun_ns: i64,
    /// The newest validator seen after a write.
    pub size_and_times: Option<(u64, Timestamp, Timestamp)>,
    /// The cache gave the image up: nothing of it is good.
    pub disowned: bool,
}

/// Nanoseconds since 1970.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    })
}

impl Witness {
    /// Opens the witness of the device `uuid` below `runtime_dir`; true when it proves that the
    /// filesystem of `cache_dir` has been mounted without a break since it was written. `None` where
    /// this system cannot tell.
    pub fn open(runtime_dir: &Path, uuid: &str, cache_dir: &Path) -> (Option<Witness>, bool) {
        match Self::try_open(runtime_dir, uuid, cache_dir) {
            Ok(Some((witness, unbroken))) => (Some(witness), unbroken),
            Ok(None) => (None, false),
            Err(error) => {
                log::warn!(
                    "no witness in {}: {error}; after a crash less of the cache is kept",
                    runtime_dir.display()
                );
                (None, false)
            }
        }
    }

    fn try_open(
        runtime_dir: &Path,
        uuid: &str,
        cache_dir: &Path,
    ) -> io::Result<Option<(Witness, bool)>> {
        let Some(mount) = crate::io::file::mount_identity(cache_dir)? else {
            return Ok(None);
        };
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let session = format!("{} {mount}\n", boot.trim());
        let dir = runtime_dir.join(uuid);
        let known = fs::read_to_string(dir.join("session")).ok();
        let unbroken = known.as_deref() == Some(session.as_str());
        if !unbroken {
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(&dir)?;
            fs::write(dir.join("session"), &session)?;
        }
        Ok(Some((Witness { dir }, unbroken)))
    }

    /// What is known of an image.
    pub fn testimony(&self, id: ImageId) -> io::Result<Testimony> {
        match fs::read(self.dir.join(id.to_string())) {
            Ok(bytes) => Ok(read_testimony(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Testimony::default()),
            Err(error) => Err(error),
        }
    }

    /// Begins a new account for an image.
    pub fn account(&self, id: ImageId) -> io::Result<Account> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(self.dir.join(id.to_string()))?;
        Ok(Account {
            file,
            free: Mutex::default(),
        })
    }

    /// Forgets an image.
    pub fn forget(&self, id: ImageId) {
        // A leftover account of a clean image is harmless: its validator decides.
        let _ = fs::remove_file(self.dir.join(id.to_string()));
    }

    /// Everything is committed: nothing needs a witness.
    pub fn close(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The account of the writes of one image.
pub struct Account {
    file: File,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    slots: Vec<u64>,
    made: u64,
}

/// A write under way.
pub struct Slot(u64);

impl Account {
    /// Notes a write that is about to go to the store.
    pub fn begin(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<Slot> {
        let slot = {
            let mut free = self.free.lock();
            free.slots.pop().unwrap_or_else(|| {
                free.made += 1;
                free.made - 1
            })
        };
        let mut bytes = [0; SLOT_BYTES as usize];
        bytes[..8].copy_from_slice(&IN_FLIGHT.to_le_bytes());
        bytes[8..16].copy_from_slice(&offset_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&len_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&now_ns().to_le_bytes());
        self.file.write_all_at(&bytes[..32], slot * SLOT_BYTES)?;
        Ok(Slot(slot))
    }

    /// The cache has followed; `after` is the image's validator read after the write, if it was.
    pub fn end(&self, slot: Slot, after: Option<&Validator>) -> io::Result<()> {
        let at = slot.0 * SLOT_BYTES;
        if let Some(after) = after {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&after.size_bytes.to_le_bytes());
            bytes[8..16].copy_from_slice(&after.mtime.secs.to_le_bytes());
            bytes[16..20].copy_from_slice(&after.mtime.nanos.to_le_bytes());
            bytes[20..28].copy_from_slice(&after.ctime.secs.to_le_bytes());
            bytes[28..32].copy_from_slice(&after.ctime.nanos.to_le_bytes());
            self.file.write_all_at(&bytes, at + 32)?;
        }
        self.file.write_all_at(&DONE.to_le_bytes(), at)?;
        self.free.lock().slots.push(slot.0);
        Ok(())
    }

    /// Notes that the cache of this image is given up.
    pub fn disown(&self) -> io::Result<()> {
        let slot = {
            let mut free = self.free.lock();
            free.made += 1;
            free.made - 1
        };
        self.file
            .write_all_at(&DISOWNED.to_le_bytes(), slot * SLOT_BYTES)
    }
}

fn read_testimony(bytes: &[u8]) -> Testimony {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(SLOT_BYTES as usize), 0);
    let mut testimony = Testimony::default();
    for slot in padded.chunks_exact(SLOT_BYTES as usize) {
        read_slot(slot, &mut testimony);
    }
    testimony
}

fn read_slot(slot: &[u8], testimony: &mut Testimony) {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&slot[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let nanos =
        |at: usize| u32::from_le_bytes([slot[at], slot[at + 1], slot[at + 2], slot[at + 3]]);
    match word(0) {
        IN_FLIGHT => testimony.in_flight.push(pages_touched(word(8), word(16))),
        DISOWNED => testimony.disowned = true,
        _ => {}
    }
    testimony.last_begun_ns = testimony.last_begun_ns.max(word(24) as i64);
    let mtime = Timestamp {
        secs: word(40) as i64,
        nanos: nanos(48),
    };
    let ctime = Timestamp {
        secs: word(52) as i64,
        nanos: nanos(60),
    };
    let newest = testimony.size_and_times.map(|(_, _, ctime)| ctime);
    if ctime != Timestamp::default() && newest.is_none_or(|newest| newest < ctime) {
        testimony.size_and_times = Some((word(32), mtime, ctime));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_write_is_reported_and_a_finished_one_leaves_its_validator() {
        let runtime = tempfile::tempdir().expect("a temp dir");
        let cache = tempfile::tempdir().expect("a temp dir");
        let id = ImageId { ino: 1, tag: 2 };
        let (witness, unbroken) = Witness::open(runtime.path(), "u", cache.path());
        let Some(witness) = witness else {
            println!("skipped: this kernel has no unique mount ids");
            return;
        };
        assert!(!unbroken);
        let account = witness.account(id).expect("an account");
        let first = account.begin(0, 4096).expect("begin");
        let second = account.begin(8192, 100).expect("begin");
        let after = Validator {
            id,
            size_bytes: 77,
            mtime: Timestamp { secs: 1, nanos: 2 },
            ctime: Timestamp { secs: 3, nanos: 4 },
        };
        account.end(first, Some(&after)).expect("end");
        let (again, unbroken) = Witness::open(runtime.path(), "u", cache.path());
        assert!(unbroken);
        let testimony = again.expect("a witness").testimony(id).expect("read");
        assert_eq!(testimony.in_flight, vec![pages_touched(8192, 100)]);
        assert_eq!(
            testimony.size_and_times,
            Some((77, after.mtime, after.ctime))
        );
        assert!(testimony.last_begun_ns > 0 && !testimony.disowned);
        account.end(second, None).expect("end");
        account.disown().expect("disown");
        let testimony = witness.testimony(id).expect("read");
        assert!(testimony.in_flight.is_empty() && testimony.disowned);
    }
}
