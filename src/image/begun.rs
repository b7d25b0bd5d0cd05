//! A read that has begun: the end of the image, pages on flash that whoever asked reads itself, or the
//! slow way.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::cache::{Hit, PAGE_BYTES, pages_touched};
use crate::store::Result;

use super::ReadDone;
use super::counters::add;
use super::handle::Handle;
use super::latencies::{Outcome, Timed};
use super::miss::ReadBytes;
use super::read::{Follow, SlowRead};

/// How a read goes on.
pub enum Begun {
    /// Nothing lies there.
    End,
    /// All is on flash: read the hit, ask whether it is valid, then [`PendingRead::served`]; if not,
    /// [`PendingRead::finish`].
    Hit(Hit, PendingRead),
    /// [`PendingRead::finish`] answers.
    Slow(PendingRead),
}

/// What is left to do of a read.
pub struct PendingRead {
    handle: Arc<Handle>,
    begun: Instant,
    offset_bytes: u64,
    len_bytes: usize,
    follow: Follow,
}

impl Handle {
    /// Begins a read of up to `len_bytes` at `offset_bytes`. Waits for nothing.
    pub fn begin_read(self: &Arc<Self>, offset_bytes: u64, len_bytes: usize) -> Begun {
        let image = &self.image;
        let left = image.size_bytes().saturating_sub(offset_bytes);
        let len_bytes = len_bytes.min(usize::try_from(left).unwrap_or(usize::MAX));
        if len_bytes == 0 {
            return Begun::End;
        }
        add(&image.counters.reads, 1);
        add(&image.counters.read_bytes, len_bytes as u64);
        let pages = pages_touched(offset_bytes, len_bytes as u64);
        let pending = PendingRead {
            handle: self.clone(),
            begun: Instant::now(),
            offset_bytes,
            len_bytes,
            follow: self.follow_stream(offset_bytes, len_bytes as u64, &pages),
        };
        let hit = match self.has_kept(&pages) {
            true => None,
            false => image
                .entry()
                .and_then(|entry| entry.hit(offset_bytes, len_bytes)),
        };
        match hit {
            Some(hit) => Begun::Hit(hit, pending),
            None => Begun::Slow(pending),
        }
    }
}

impl PendingRead {
    /// Bytes that are wanted.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Where in the hit's pages the wanted bytes lie.
    pub fn wanted(&self) -> Range<usize> {
        let begin = (self.offset_bytes % PAGE_BYTES) as usize;
        begin..begin + self.len_bytes
    }

    /// It was answered from the hit.
    pub fn served(self) {
        let image = &self.handle.image;
        add(&image.counters.read_hits, 1);
        image
            .latencies()
            .note(Timed::Read, Outcome::Hit, self.begun);
        self.handle.read_ahead(&self.follow);
    }

    /// Answers with what was read ahead and kept, or by verifying and fetching.
    pub fn finish(self, done: ReadDone) {
        let handle = self.handle;
        let pages = pages_touched(self.offset_bytes, self.len_bytes as u64);
        let kept = handle.read_kept(self.offset_bytes, self.len_bytes, &pages, done);
        let Some(done) = kept else {
            let image = &handle.image;
            add(&image.counters.read_hits, 1);
            image
                .latencies()
                .note(Timed::Read, Outcome::Hit, self.begun);
            return handle.read_ahead(&self.follow);
        };
        let missed = match self.follow.around {
            true => Outcome::Around,
            false => Outcome::Miss,
        };
        let (image, begun) = (handle.image.clone(), self.begun);
        let answer = move |result: Result<ReadBytes>| {
            let outcome = match result {
                Ok(bytes) => {
                    done(Ok(bytes.bytes()));
                    if bytes.from_flash {
                        Outcome::Hit
                    } else {
                        missed
                    }
                }
                Err(error) => {
                    image.tell_failed("read", &error);
                    done(Err(error));
                    Outcome::Failed
                }
            };
            image.latencies().note(Timed::Read, outcome, begun);
        };
        let parked = handle.image.store_executor().park("read", answer);
        handle.read_slowly(SlowRead {
            offset_bytes: self.offset_bytes,
            len_bytes: self.len_bytes,
            pages,
            around: self.follow.around.then_some(self.follow.stream),
            parked,
        });
        handle.read_ahead(&self.follow);
    }
}
