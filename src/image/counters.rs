//! What an image counts, for status.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the mount; kept over closes while something of the image is cached.
#[derive(Default)]
pub struct Counters {
    pub reads: AtomicU64,
    pub read_hits: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub write_bytes: AtomicU64,
    pub store_read_bytes: AtomicU64,
    pub store_read_requests: AtomicU64,
    pub store_write_bytes: AtomicU64,
    pub store_write_requests: AtomicU64,
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
