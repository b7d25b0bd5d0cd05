//! A guest read that could not be answered from the cache at once: it waits for fetches, and is
//! answered when the last of them is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::cache::{PAGE_BYTES, Pages, pages_touched};
use crate::io::Buffer;
use crate::store::executor::Parked;
use crate::store::{Error, Result};

use super::counters::add;
use super::handle::Handle;
use super::latencies::Timed;

/// The bytes of a read: part of a buffer, which a fetch and several reads may share.
pub struct ReadBytes {
    pub buffer: Arc<Buffer>,
    pub begin: usize,
    pub len: usize,
    /// Nothing of them had to be fetched for this read.
    pub from_flash: bool,
}

impl ReadBytes {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer.bytes()[self.begin..self.begin + self.len]
    }
}

/// A read that waits.
pub struct Miss {
    handle: Arc<Handle>,
    offset_bytes: u64,
    len_bytes: usize,
    /// Runs that were resident when the read came; read from flash at the end.
    resident: Vec<Pages>,
    /// Fetches outstanding, plus one while they are being begun.
    outstanding: AtomicUsize,
    state: Mutex<MissState>,
}

#[derive(Default)]
struct MissState {
    /// Holds the pages the read touches; made when the first bytes come.
    buffer: Option<Buffer>,
    /// A fetch that brought all of them: its bytes, and the page they begin with.
    whole: Option<(Arc<Buffer>, u64)>,
    failed: bool,
    parked: Option<Parked<ReadBytes>>,
}

impl Miss {
    /// A read of `len_bytes` at `offset_bytes` that answers `parked`. [`Miss::begun`] has to follow
    /// when its fetches are begun.
    pub fn new(
        handle: Arc<Handle>,
        offset_bytes: u64,
        len_bytes: usize,
        resident: Vec<Pages>,
        parked: Parked<ReadBytes>,
    ) -> Arc<Miss> {
        Arc::new(Miss {
            handle,
            offset_bytes,
            len_bytes,
            resident,
            outstanding: AtomicUsize::new(1),
            state: Mutex::new(MissState {
                buffer: None,
                whole: None,
                failed: false,
                parked: Some(parked),
            }),
        })
    }

    /// The pages it touches.
    pub fn pages(&self) -> Pages {
        pages_touched(self.offset_bytes, self.len_bytes as u64)
    }

    /// One more fetch brings bytes for this read.
    pub fn expect(&self) {
        self.outstanding.fetch_add(1, Ordering::AcqRel);
    }

    /// All fetches are begun.
    pub fn begun(self: &Arc<Self>) {
        self.arrived();
    }

    /// A fetch has brought `wanted`; `bytes` begin with page `first`.
    pub fn deliver(self: &Arc<Self>, wanted: &Pages, first: u64, bytes: &Arc<Buffer>) {
        let mine = self.pages();
        let mut state = self.state.lock();
        if *wanted == mine {
            state.whole = Some((bytes.clone(), first));
        } else {
            let buffer = state.buffer.get_or_insert_with(|| self.new_buffer());
            let to = ((wanted.start - mine.start) * PAGE_BYTES) as usize;
            let from = ((wanted.start - first) * PAGE_BYTES) as usize;
            let len = ((wanted.end - wanted.start) * PAGE_BYTES) as usize;
            buffer.bytes_mut()[to..to + len].copy_from_slice(&bytes.bytes()[from..from + len]);
        }
        drop(state);
        self.arrived();
    }

    /// A fetch has failed; the read will try for itself.
    pub fn fail(self: &Arc<Self>, error: Error) {
        log::debug!("fetch for {}: {error}", self.handle.image.name());
        self.state.lock().failed = true;
        self.arrived();
    }

    fn read_again(&self) -> Option<ReadBytes> {
        let entry = self.handle.image.entry()?;
        let mut buffer = Buffer::new(0);
        let begin = entry.read(self.offset_bytes, self.len_bytes, &mut buffer)?;
        Some(fetched(Arc::new(buffer), begin, self.len_bytes))
    }

    fn new_buffer(&self) -> Buffer {
        let pages = self.pages();
        Buffer::new(((pages.end - pages.start) * PAGE_BYTES) as usize)
    }

    fn arrived(self: &Arc<Self>) {
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let (mut state, parked) = {
            let mut state = self.state.lock();
            let parked = state.parked.take();
            (std::mem::take(&mut *state), parked)
        };
        let Some(parked) = parked else {
            return;
        };
        let begin = (self.offset_bytes % PAGE_BYTES) as usize;
        let len = self.len_bytes;
        if let Some((buffer, first)) = state.whole.take() {
            let begin = begin + ((self.pages().start - first) * PAGE_BYTES) as usize;
            return parked.answer(Ok(fetched(buffer, begin, len)));
        }
        let complete = (state.buffer.take())
            .filter(|_| !state.failed)
            .and_then(|mut buffer| self.add_resident(&mut buffer).then_some(buffer));
        match complete {
            Some(buffer) => {
                let buffer = Arc::new(buffer);
                parked.answer(Ok(fetched(buffer, begin, len)));
            }
            None => {
                let miss = self.clone();
                parked.run(move || miss.read_directly());
            }
        }
    }

    /// Adds the runs that were resident; false if one is not any more.
    fn add_resident(&self, buffer: &mut Buffer) -> bool {
        let Some(entry) = self.handle.image.entry() else {
            return self.resident.is_empty();
        };
        let first = self.pages().start;
        self.resident.iter().all(|run| {
            let len = ((run.end - run.start) * PAGE_BYTES) as usize;
            let mut bytes = Buffer::new(len);
            let found = entry.read(run.start * PAGE_BYTES, len, &mut bytes);
            let at = ((run.start - first) * PAGE_BYTES) as usize;
            found.is_some_and(|from| {
                buffer.bytes_mut()[at..at + len].copy_from_slice(&bytes.bytes()[from..from + len]);
                true
            })
        })
    }

    /// Reads just the wanted bytes from the store, which always has what was acknowledged; or from
    /// flash, if the fetch that came too late for this read has brought them.
    pub fn read_directly(&self) -> Result<ReadBytes> {
        if let Some(bytes) = self.read_again() {
            return Ok(bytes);
        }
        let mut buffer = Buffer::new(self.len_bytes);
        let bytes = &mut buffer.bytes_mut()[..self.len_bytes];
        let counters = &self.handle.image.counters;
        add(&counters.store_read_requests, 1);
        let latencies = self.handle.image.latencies();
        let len = latencies.time(Timed::StoreRead, || {
            self.handle.file.read_at(bytes, self.offset_bytes)
        })?;
        add(&counters.store_read_bytes, len as u64);
        Ok(fetched(Arc::new(buffer), 0, len))
    }
}

fn fetched(buffer: Arc<Buffer>, begin: usize, len: usize) -> ReadBytes {
    ReadBytes {
        buffer,
        begin,
        len,
        from_flash: false,
    }
}
