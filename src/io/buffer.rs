//! Memory that direct I/O accepts: page-aligned, zeroed once, reused.

use parking_lot::Mutex;

use super::ALIGN_BYTES;

/// One aligned unit.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Unit([u8; ALIGN_BYTES]);

/// A page-aligned byte buffer whose capacity is a whole number of pages.
pub struct Buffer {
    units: Vec<Unit>,
}

impl Buffer {
    /// A zeroed buffer of at least `len_bytes`.
    pub fn new(len_bytes: usize) -> Buffer {
        Buffer {
            units: vec![Unit([0; ALIGN_BYTES]); len_bytes.div_ceil(ALIGN_BYTES)],
        }
    }

    /// Grows to at least `len_bytes`; the content is unspecified afterwards.
    pub fn reserve(&mut self, len_bytes: usize) {
        let units = len_bytes.div_ceil(ALIGN_BYTES);
        if units > self.units.len() {
            self.units.resize(units, Unit([0; ALIGN_BYTES]));
        }
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.units.len() * ALIGN_BYTES
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `Unit` is `repr(C)` over plain bytes without padding (its size equals its
        // alignment), so the vector's memory is `capacity()` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.units.as_ptr().cast(), self.capacity()) }
    }

    /// All bytes, to write into.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len_bytes = self.capacity();
        // SAFETY: as in `bytes`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.units.as_mut_ptr().cast(), len_bytes) }
    }
}

/// Keeps a few large buffers for reuse, so that traffic neither grows nor fragments the heap.
pub struct BufferPool {
    buffer_bytes: usize,
    kept_max: usize,
    free: Mutex<Vec<Buffer>>,
}

impl BufferPool {
    /// A pool of buffers of `buffer_bytes`, of which at most `kept_max` stay allocated when unused.
    pub fn new(buffer_bytes: usize, kept_max: usize) -> BufferPool {
        BufferPool {
            buffer_bytes,
            kept_max,
            free: Mutex::new(Vec::new()),
        }
    }

    /// A buffer of at least `len_bytes`; its content is unspecified.
    pub fn take(&self, len_bytes: usize) -> Buffer {
        if len_bytes <= self.buffer_bytes / 4 {
            return Buffer::new(len_bytes);
        }
        let kept = self.free.lock().pop();
        let mut buffer = kept.unwrap_or_else(|| Buffer::new(self.buffer_bytes));
        buffer.reserve(len_bytes);
        buffer
    }

    /// Gives a buffer back.
    pub fn give(&self, buffer: Buffer) {
        if buffer.capacity() == self.buffer_bytes {
            let mut free = self.free.lock();
            if free.len() < self.kept_max {
                free.push(buffer);
            }
        }
    }
}
