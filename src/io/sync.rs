//! The engine that reads at once, with pread(2), and so one after the other.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::engine::{Ended, Engine, Read};

/// Reads when asked to; what has ended waits to be told.
#[derive(Default)]
pub struct SyncEngine {
    ended: VecDeque<Ended>,
}

/// Reads now; the bytes read, fewer at the end of the file.
///
/// # Safety
/// As [`Engine::begin`], until the return.
pub unsafe fn read_now(read: &Read) -> io::Result<u32> {
    loop {
        let offset = read.offset_bytes as libc::off_t;
        // SAFETY: the caller vouches for file and memory.
        let got =
            unsafe { libc::pread(read.file, read.to.cast(), read.len_bytes as usize, offset) };
        match u32::try_from(got) {
            Ok(got) => return Ok(got),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

impl Engine for SyncEngine {
    unsafe fn begin(&mut self, read: Read) -> bool {
        // SAFETY: handed on from the caller.
        let result = unsafe { read_now(&read) };
        self.ended.push_back((read.ticket, result));
        true
    }

    fn ended(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }

    fn submit(&mut self) {}

    fn wait(&mut self, watched: Option<RawFd>, patience: Duration) -> bool {
        let Some(fd) = watched else { return true };
        if !self.ended.is_empty() {
            return true;
        }
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd, ours.
        unsafe { libc::poll(&mut poll, 1, patience) != 0 }
    }

    fn unwatch(&mut self) {}

    fn overlaps(&self) -> bool {
        false
    }
}
