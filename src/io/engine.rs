//! Reading cache files on behalf of one thread: many at once through io_uring, or one after the other
//! with pread(2) where io_uring is forbidden.
//!
//! A read is begun with a ticket and ends with it. Between the two the file and the memory belong to the
//! kernel.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::ring::RingEngine;
use super::sync::SyncEngine;

/// A read that has to be done.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    pub file: RawFd,
    pub offset_bytes: u64,
    /// Where the bytes go.
    pub to: *mut u8,
    pub len_bytes: u32,
    /// Comes back at the end.
    pub ticket: u32,
}

/// A read that has ended: its ticket, and the bytes read, fewer at the end of the file.
pub type Ended = (u32, io::Result<u32>);

/// What begins reads and tells their ends. Used by one thread.
pub trait Engine {
    /// Begins a read; false when too many are under way, and then nothing is begun.
    ///
    /// # Safety
    /// `file` stays open and `to` is valid for writes of `len_bytes`, and nobody else's, until the
    /// read has ended.
    unsafe fn begin(&mut self, read: Read) -> bool;
    /// The next read that has ended, of those known to have. Never waits.
    fn ended(&mut self) -> Option<Ended>;
    /// Hands to the kernel what was begun.
    fn submit(&mut self);
    /// Hands over what was begun and sleeps until a read has ended, or `watched` is readable where one is
    /// given, or `patience` is over; false in the last case.
    fn wait(&mut self, watched: Option<RawFd>, patience: Duration) -> bool;
    /// Stops watching. From its return on, no wake-up meant for others is swallowed here.
    fn unwatch(&mut self);
    /// True where several reads run together.
    fn overlaps(&self) -> bool;
}

/// An engine for this thread: io_uring where the system allows it.
pub fn new(allow_ring: bool) -> Box<dyn Engine> {
    match allow_ring.then(RingEngine::new) {
        Some(Ok(ring)) => Box::new(ring),
        Some(Err(_)) | None => Box::new(SyncEngine::default()),
    }
}

/// Whether this system lets us have an io_uring.
pub fn ring_works() -> bool {
    match RingEngine::new() {
        Ok(_) => true,
        Err(error) => {
            log::info!("io_uring is not to be had here ({error}): flash is read with pread");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Buffer;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    /// Reads page after page, several at once, and checks each.
    fn reads_all(mut engine: Box<dyn Engine>) {
        const PAGES: usize = 40;
        let file = tempfile::tempfile().expect("a file");
        for page in 0..PAGES {
            let bytes = vec![page as u8; 4096];
            let written = file.write_all_at(&bytes, page as u64 * 4096);
            written.expect("written");
        }
        let mut buffer = Buffer::new((PAGES + 1) * 4096);
        let mut seen = [None; PAGES + 1];
        for page in 0..=PAGES {
            let read = Read {
                file: file.as_raw_fd(),
                offset_bytes: page as u64 * 4096,
                to: buffer.bytes_mut()[page * 4096..].as_mut_ptr(),
                len_bytes: 4096,
                ticket: page as u32,
            };
            // SAFETY: file and buffer outlive the loop below, which waits for every end.
            assert!(unsafe { engine.begin(read) });
        }
        while seen.contains(&None) {
            match engine.ended() {
                Some((ticket, result)) => seen[ticket as usize] = Some(result.expect("read")),
                None => assert!(engine.wait(None, Duration::from_secs(10))),
            }
        }
        assert!(seen[..PAGES].iter().all(|read| *read == Some(4096)));
        assert_eq!(seen[PAGES], Some(0), "past the end there is nothing");
        for page in 0..PAGES {
            assert_eq!(buffer.bytes()[page * 4096 + 4095], page as u8);
        }
    }

    #[test]
    fn both_engines_read_what_is_there() {
        reads_all(Box::new(SyncEngine::default()));
        match RingEngine::new() {
            Ok(ring) => reads_all(Box::new(ring)),
            Err(error) => println!("skipped: no io_uring here: {error}"),
        }
    }

    #[test]
    fn a_wait_ends_when_what_is_watched_is_readable_and_when_patience_is_over() {
        use std::io::{Read as _, Write};
        let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
        for mut engine in [new(true), new(false)] {
            assert!(!engine.wait(Some(reader.as_raw_fd()), Duration::from_millis(1)));
            writer.write_all(b"x").expect("written");
            assert!(engine.wait(Some(reader.as_raw_fd()), Duration::from_secs(60)));
            while engine.ended().is_some() {}
            assert!(engine.wait(Some(reader.as_raw_fd()), Duration::from_secs(60)));
            reader.read_exact(&mut [0]).expect("read");
        }
    }
}
