//! Memory that direct I/O accepts: page-aligned, zeroed once, reused.
//!
//! A large buffer costs memory only where it has been used: its zeros are the kernel's until then.

use parking_lot::Mutex;

use super::ALIGN_BYTES;

/// A page-aligned byte buffer whose capacity is a whole number of pages.
pub struct Buffer {
    /// One page more than the capacity, so that a page can begin in it.
    memory: Vec<u8>,
    begin: usize,
    capacity: usize,
}

impl Buffer {
    /// A zeroed buffer of at least `len_bytes`.
    pub fn new(len_bytes: usize) -> Buffer {
        let capacity = len_bytes.next_multiple_of(ALIGN_BYTES);
        let memory = match capacity {
            0 => Vec::new(),
            // Zeros of the allocator's making: it knows which pages of the kernel's are still zero.
            _ => vec![0; capacity + ALIGN_BYTES],
        };
        let address = memory.as_ptr() as usize;
        Buffer {
            begin: address.next_multiple_of(ALIGN_BYTES) - address,
            memory,
            capacity,
        }
    }

    /// Grows to at least `len_bytes`; the content is unspecified afterwards.
    pub fn reserve(&mut self, len_bytes: usize) {
        if len_bytes > self.capacity {
            *self = Buffer::new(len_bytes);
        }
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match self.capacity {
            0 => &[],
            capacity => &self.memory[self.begin..][..capacity],
        }
    }

    /// All bytes, to write into.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self.capacity {
            0 => &mut [],
            capacity => &mut self.memory[self.begin..][..capacity],
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_whole_pages_of_zeros_however_large() {
        for len in [0, 1, 4096, 5000, 1 << 20, (1 << 20) + 1] {
            let mut buffer = Buffer::new(len);
            assert_eq!(buffer.capacity(), len.next_multiple_of(ALIGN_BYTES));
            assert_eq!(buffer.bytes().len(), buffer.capacity());
            let aligned = (buffer.bytes().as_ptr() as usize).is_multiple_of(ALIGN_BYTES);
            assert!(len == 0 || aligned, "{len} bytes");
            assert!(buffer.bytes().iter().all(|byte| *byte == 0));
            buffer.bytes_mut().fill(7);
            buffer.reserve(len / 2);
            assert!(buffer.bytes().iter().all(|byte| *byte == 7));
            buffer.reserve(len + 1);
            assert!(buffer.capacity() > len);
        }
    }
}
