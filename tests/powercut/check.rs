//! One cut: the device as the cut left it, the store as it was, the daemon on both, and every byte
//! under the mount compared with the store.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::history::Content;
use crate::recorder::Mounted;
use crate::rig::stamp::{self, Found, SECTOR};
use crate::rig::{Launch, xattr};
use crate::store::{IMAGE, Store};

/// Where cuts are checked.
pub struct Bench<'a> {
    pub store: &'a Store,
    /// The device image of the cut; written before, removed afterwards.
    pub device: PathBuf,
    /// Where the device's filesystem is mounted.
    pub flash: PathBuf,
    pub launch: Launch,
}

/// What a check found.
#[derive(Clone, Copy, Default)]
pub struct Verdict {
    pub size_bytes: u64,
    /// On flash after recovery, before anything was read.
    pub kept_bytes: u64,
    /// Fetched from the store to read the whole image.
    pub fetched_bytes: u64,
    /// Sectors that are whole but of another version than the store's.
    pub stale: u64,
    /// Sectors that are nothing anybody wrote.
    pub torn: u64,
}

impl Verdict {
    pub fn good(&self) -> bool {
        self.stale == 0 && self.torn == 0
    }
}

impl Bench<'_> {
    /// Recovers from the device image with the store at `content`, and compares. With `twice` the
    /// daemon is stopped and started again, and all is compared again: what the first recovery
    /// dropped must not come back.
    pub fn check(&self, content: Content, twice: bool) -> Result<Verdict, String> {
        let flash = Mounted::new(&self.device, &self.flash, |_| Ok(()))
            .map_err(|e| format!("the cut's own filesystem does not mount: {e}"))?;
        let mut verdict = self.recover(&content)?;
        if twice {
            let again = self.recover(&content)?;
            verdict.stale += again.stale;
            verdict.torn += again.torn;
        }
        drop(flash);
        Ok(verdict)
    }

    fn recover(&self, content: &Content) -> Result<Verdict, String> {
        self.store.set(content.clone());
        let daemon = self.launch.start()?;
        let compared = self.compare(&content.bytes);
        let compared = compared.map_err(|e| format!("{e}: {}", daemon.last_words()))?;
        daemon.stop()?;
        match self.store.changes() {
            0 => Ok(compared),
            n => Err(format!("recovery and reading changed the store {n} times")),
        }
    }

    fn compare(&self, expected: &[u8]) -> Result<Verdict, String> {
        let path = self.launch.mountpoint.join(IMAGE);
        let file = File::open(&path).map_err(|e| format!("open: {e}"))?;
        let kept_bytes = xattr::number(&file, "resident")?;
        let mut verdict = Verdict {
            kept_bytes,
            ..Verdict::default()
        };
        let mut buf = vec![0; 1 << 20];
        loop {
            let offset = verdict.size_bytes;
            let read = file.read_at(&mut buf, offset);
            match read.map_err(|e| format!("read at {offset}: {e}"))? {
                0 => break,
                len => {
                    verdict.compare(&buf[..len], expected);
                    verdict.size_bytes += len as u64;
                }
            }
        }
        if verdict.size_bytes != expected.len() as u64 {
            let (is, was) = (verdict.size_bytes, expected.len());
            return Err(format!("the image has {is} bytes, in the store {was}"));
        }
        verdict.fetched_bytes = self.store.served_bytes();
        Ok(verdict)
    }
}

impl Verdict {
    /// Compares what was read at the end of what has been compared.
    fn compare(&mut self, read: &[u8], expected: &[u8]) {
        let start = self.size_bytes as usize;
        let Some(expected) = expected.get(start..start + read.len()) else {
            return;
        };
        if read == expected {
            return;
        }
        let pairs = read.chunks(SECTOR).zip(expected.chunks(SECTOR));
        for (i, (is, should)) in pairs.enumerate() {
            if is == should {
                continue;
            }
            let index = (start / SECTOR + i) as u64;
            let found = if is.len() == SECTOR {
                stamp::read(is, index)
            } else {
                Found::Torn
            };
            match found {
                Found::Torn => self.torn += 1,
                Found::Version(_) | Found::Zeros => self.stale += 1,
            }
            if self.stale + self.torn <= 3 {
                let wanted = stamp::read(should, index);
                eprintln!("  sector {index}: found {found:?}, the store has {wanted:?}");
            }
        }
    }
}
