//! Pages found on flash, to be read by whoever asked, on whatever engine it has.
//!
//! # Order of steps
//! Take the stamp, test the bits ([`Entry::hit`]), read the file, then ask [`Hit::is_valid`]: if
//! something in the neighbourhood was dropped meanwhile, what was read may be a hole, and is not used.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::entry::{Entry, Files};
use super::pagemap::State;
use super::{PAGE_BYTES, Pages, pages_touched};

/// Pages that were resident and verified when asked for. Keeps their file open.
pub struct Hit {
    entry: Arc<Entry>,
    files: Arc<Files>,
    pages: Pages,
    /// Of the pages' bytes, so many from the first on are wanted.
    wanted_bytes: usize,
    drops: (u32, u32),
}

impl Entry {
    /// What to read for `len_bytes` at `offset_bytes`, if all of it is resident and verified.
    pub fn hit(self: &Arc<Self>, offset_bytes: u64, len_bytes: usize) -> Option<Hit> {
        let pages = pages_touched(offset_bytes, len_bytes as u64);
        let drops = self.map.stamp(&pages).drops;
        if self.map.state(&pages) != State::Ready {
            return None;
        }
        Some(Hit {
            entry: self.clone(),
            files: self.files()?,
            wanted_bytes: (offset_bytes % PAGE_BYTES) as usize + len_bytes,
            pages,
            drops,
        })
    }
}

impl Hit {
    /// The cache file.
    pub fn file(&self) -> RawFd {
        self.files.data.raw()
    }

    /// Where in the file the first page begins.
    pub fn offset_bytes(&self) -> u64 {
        self.pages.start * PAGE_BYTES
    }

    /// Length of all pages.
    pub fn len_bytes(&self) -> usize {
        ((self.pages.end - self.pages.start) * PAGE_BYTES) as usize
    }

    /// Asked after the read, with what it ended with: whether its bytes are the image's. All that is
    /// wanted must have come (the file of an image that is held may end within its last page); what
    /// flash could not give is dropped.
    pub fn is_valid(&self, read: &io::Result<u32>) -> bool {
        match read {
            Ok(got) if *got as usize >= self.wanted_bytes => {
                self.entry.map.stamp(&self.pages).drops == self.drops
            }
            Ok(_) => {
                self.lost(&io::ErrorKind::UnexpectedEof.into());
                false
            }
            Err(error) => {
                self.lost(error);
                false
            }
        }
    }

    fn lost(&self, error: &io::Error) {
        self.entry.device.report(error);
        self.entry.drop_pages(&self.pages);
    }
}
