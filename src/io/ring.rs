//! The engine that reads through io_uring: begun reads are handed over in one call, and the same call
//! waits for what ends and for the watched descriptor.
//!
//! Completions are only worked off when this thread enters the kernel (deferred task work): nothing
//! interrupts it, and one entry collects many ends.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use super::engine::{Ended, Engine, Read};

/// Reads under way at once; more are refused.
const READS_MAX: usize = 256;
/// The ticket of the poll on the watched descriptor; those of reads are smaller.
const POLL: u64 = 1 << 63;
/// The ticket of calling the poll off.
const NOBODY: u64 = 1 << 62;
/// Wakes one of the threads that watch a descriptor, not all (EPOLLEXCLUSIVE).
const EXCLUSIVE: u32 = 1 << 28;

/// With many reads under way a wait goes on until a part of them has ended, but no longer than this once one
/// has: each wake-up costs as much as an answer. Linux 6.12.
const GATHER_SHARE: usize = 4;
const GATHER_MAX: usize = 8;
const GATHER_US: u32 = 30;
/// `IORING_ENTER_GETEVENTS` and `IORING_ENTER_EXT_ARG`.
const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_EXT_ARG: u32 = 1 << 3;

/// `struct io_uring_getevents_arg` of <linux/io_uring.h>, whose `min_wait_usec` the crate does not know.
#[repr(C)]
#[derive(Default)]
struct WaitArguments {
    sigmask: u64,
    sigmask_len: u32,
    min_wait_us: u32,
    timespec: u64,
}

/// One io_uring, with what is under way on it.
pub struct RingEngine {
    ring: IoUring,
    under_way: usize,
    /// The descriptor that a poll is armed on; its end has not been told.
    watching: Option<RawFd>,
    /// Reads that ended while something else was waited for.
    stashed: VecDeque<Ended>,
    gathers: bool,
}

impl RingEngine {
    /// Fails where the system has or allows no io_uring with deferred task work (Linux 6.1).
    pub fn new() -> io::Result<RingEngine> {
        let entries = (READS_MAX + 2).next_power_of_two() as u32;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_defer_taskrun()
            .build(entries)?;
        Ok(RingEngine {
            ring,
            under_way: 0,
            watching: None,
            stashed: VecDeque::new(),
            gathers: true,
        })
    }

    /// Queues an entry; there is room for all that may be under way.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry refers to is vouched for by the caller of `begin`, or is nothing.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.is_ok()
    }

    /// Watches `fd`, and nothing else.
    fn watch(&mut self, fd: RawFd) {
        if self.watching == Some(fd) {
            return;
        }
        self.unwatch();
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32 | EXCLUSIVE);
        if self.push(&poll.build().user_data(POLL)) {
            self.watching = Some(fd);
        }
    }

    /// The next read that has ended; takes the ends of polls into account.
    fn next_ended(&mut self) -> Option<Ended> {
        loop {
            let ended = self.ring.completion().next()?;
            match ended.user_data() {
                POLL => self.watching = None,
                NOBODY => {}
                ticket => {
                    self.under_way -= 1;
                    let result = match u32::try_from(ended.result()) {
                        Ok(got) => Ok(got),
                        Err(_) => Err(io::Error::from_raw_os_error(-ended.result())),
                    };
                    return Some((ticket as u32, result));
                }
            }
        }
    }

    fn enter(&mut self, wanted: usize, patience: Option<Duration>) {
        let queued = self.ring.submission().len() as u32;
        let submitter = self.ring.submitter();
        let entered = match patience {
            None => submitter.submit_and_wait(wanted),
            Some(patience) => {
                let span = types::Timespec::from(patience);
                let arguments = WaitArguments {
                    min_wait_us: if wanted > 1 { GATHER_US } else { 0 },
                    timespec: &raw const span as u64,
                    ..WaitArguments::default()
                };
                let flags = ENTER_GETEVENTS | ENTER_EXT_ARG;
                // SAFETY: queued entries are vouched for; `arguments` and `span` outlive the call.
                unsafe { submitter.enter(queued, wanted as u32, flags, Some(&arguments)) }
            }
        };
        match entered.map_err(|error| error.raw_os_error()) {
            // ETIME: patience is over. EINTR, EBUSY: the next call goes on.
            Ok(_) | Err(Some(libc::ETIME | libc::EINTR | libc::EBUSY)) => {}
            // A kernel that cannot gather: it has waited for nothing, and is not asked again.
            Err(Some(libc::EINVAL)) if wanted > 1 => self.gathers = false,
            Err(errno) => log::debug!("io_uring_enter ends with errno {errno:?}"),
        }
    }
}

impl Engine for RingEngine {
    unsafe fn begin(&mut self, read: Read) -> bool {
        if self.under_way >= READS_MAX {
            return false;
        }
        let entry = opcode::Read::new(types::Fd(read.file), read.to, read.len_bytes)
            .offset(read.offset_bytes)
            .build()
            .user_data(u64::from(read.ticket));
        let begun = self.push(&entry);
        self.under_way += usize::from(begun);
        begun
    }

    fn ended(&mut self) -> Option<Ended> {
        self.stashed.pop_front().or_else(|| self.next_ended())
    }

    fn submit(&mut self) {
        let queue = self.ring.submission();
        if !queue.is_empty() || queue.taskrun() {
            drop(queue);
            self.enter(0, None);
        }
    }

    fn wait(&mut self, watched: Option<RawFd>, patience: Duration) -> bool {
        if !self.stashed.is_empty() || !self.ring.completion().is_empty() {
            return true;
        }
        if let Some(fd) = watched {
            self.watch(fd);
        }
        let wanted = match self.gathers {
            true => (self.under_way / GATHER_SHARE).clamp(1, GATHER_MAX),
            false => 1,
        };
        self.enter(wanted, Some(patience));
        !self.ring.completion().is_empty()
    }

    /// Waits for the poll's own end: one that has been woken and not worked off stays in the queue of
    /// those to wake, and would swallow every further wake-up. The kernel tells that end at once.
    fn unwatch(&mut self) {
        if self.watching.is_none() {
            return;
        }
        let off = opcode::PollRemove::new(POLL).build().user_data(NOBODY);
        self.push(&off);
        loop {
            while let Some(ended) = self.next_ended() {
                self.stashed.push_back(ended);
            }
            if self.watching.is_none() {
                return;
            }
            self.enter(1, None);
        }
    }

    fn overlaps(&self) -> bool {
        true
    }
}
