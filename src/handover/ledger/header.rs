//! The first page of a ledger: what it is, and its counters.

use std::io;
use std::sync::atomic::Ordering;

use super::memory::Memory;

/// Words of the header.
pub const WORDS: usize = 512;
/// "flashled", to tell a ledger from anything else.
const MAGIC: u64 = u64::from_be_bytes(*b"flashled");

/// Where a table's high mark is: so many of its slots were ever used.
#[derive(Clone, Copy, Debug)]
pub enum Mark {
    Nodes = 8,
    Files = 9,
    Dirs = 10,
    Calls = 11,
}

/// Other words of the header.
#[derive(Clone, Copy)]
enum Word {
    Magic = 0,
    Version = 1,
    Restarts = 2,
    Resent = 3,
    NextHandle = 4,
    NextSynthetic = 5,
}

/// The header of a ledger in memory.
pub struct Header<'a>(pub &'a Memory);

impl Header<'_> {
    /// Makes zeros a ledger.
    pub fn begin(&self, version: u32) {
        self.0.set(Word::Version as usize, u64::from(version));
        self.0.set(Word::Magic as usize, MAGIC);
    }

    /// InvalidData where this is no ledger of that version.
    pub fn check(&self, version: u32) -> io::Result<()> {
        let is_ledger = self.0.get(Word::Magic as usize) == MAGIC;
        match is_ledger && self.0.get(Word::Version as usize) == u64::from(version) {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    pub fn restarts(&self) -> u64 {
        self.0.get(Word::Restarts as usize)
    }

    pub fn restarted(&self) {
        self.count(Word::Restarts);
    }

    pub fn resent_requests(&self) -> u64 {
        self.0.get(Word::Resent as usize)
    }

    pub fn resent(&self) {
        self.count(Word::Resent);
    }

    /// From 1 on.
    pub fn next_handle(&self) -> u64 {
        self.count(Word::NextHandle)
    }

    /// From 1 on.
    pub fn next_synthetic(&self) -> u64 {
        self.count(Word::NextSynthetic)
    }

    fn count(&self, word: Word) -> u64 {
        1 + self.0.word(word as usize).fetch_add(1, Ordering::AcqRel)
    }
}
