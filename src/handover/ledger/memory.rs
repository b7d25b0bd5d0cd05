//! A memfd mapped into this process, seen as words that are read and written whole.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a word.
pub const WORD: usize = size_of::<u64>();

/// The mapped memory. Unmapped when dropped.
pub struct Memory {
    file: File,
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to this value alone, and is only seen as atomic words.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// New memory of `words` zeros, which nobody can make smaller.
    pub fn create(words: usize) -> io::Result<Memory> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"flashside-ledger".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len((words * WORD) as u64)?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: the descriptor is open; the call takes a plain number.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Memory::map(file.into(), words)
    }

    /// Maps memory made by [`Memory::create`], here or elsewhere. InvalidData where it is smaller.
    pub fn map(descriptor: OwnedFd, words: usize) -> io::Result<Memory> {
        let file = File::from(descriptor);
        let bytes = words * WORD;
        if file.metadata()?.len() < bytes as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: a new mapping where the kernel likes it; the file is as long, and cannot shrink.
        let base = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let at = std::ptr::null_mut();
            libc::mmap(at, bytes, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Memory { file, base, words })
    }

    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is that long, page-aligned and lives as long as `self`; every process that
        // maps it sees it as atomic words.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }

    /// One word.
    pub fn word(&self, at: usize) -> &AtomicU64 {
        &self.words()[at]
    }

    pub fn get(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Everything stored before is there where this is seen.
    pub fn set(&self, at: usize, value: u64) {
        self.word(at).store(value, Ordering::Release);
    }

    /// Stores `bytes` from word `at` on, the last word filled up with zeros.
    pub fn set_bytes(&self, at: usize, bytes: &[u8]) {
        for (index, piece) in bytes.chunks(WORD).enumerate() {
            let mut word = [0; WORD];
            word[..piece.len()].copy_from_slice(piece);
            self.set(at + index, u64::from_ne_bytes(word));
        }
    }

    /// The `len` bytes from word `at` on.
    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let words = at..at + len.div_ceil(WORD);
        let mut bytes: Vec<u8> = words.flat_map(|at| self.get(at).to_ne_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping, and nobody uses it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.words * WORD) };
    }
}
