//! Sequential streams: whether the reads of a handle follow each other, and how far to read ahead.

use crate::cache::BLOCK_BYTES;

/// Where a window starts to grow.
const WINDOW_MIN_BYTES: u64 = 4 * BLOCK_BYTES;

/// What the latest reads of a handle looked like.
#[derive(Debug, Default)]
pub struct Stream {
    next_bytes: u64,
    window_bytes: u64,
    /// Everything before this has been asked for.
    ahead_bytes: u64,
}

/// What a read means for the stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Advice {
    /// The read goes on in the block where the one before ended: not a new use of it.
    pub continues_block: bool,
    /// The read does not follow the one before.
    pub jumps: bool,
    /// Bytes to read ahead, possibly none.
    pub ahead: std::ops::Range<u64>,
}

impl Stream {
    /// Takes a read into account. The window doubles with each sequential read up to `window_max_bytes`
    /// and closes at a jump; reading ahead is asked for in steps of half a window.
    pub fn read(&mut self, offset_bytes: u64, len_bytes: u64, window_max_bytes: u64) -> Advice {
        let end = offset_bytes + len_bytes;
        let sequential = offset_bytes == self.next_bytes && offset_bytes > 0;
        let continues_block = sequential && !offset_bytes.is_multiple_of(BLOCK_BYTES);
        self.next_bytes = end;
        if !sequential {
            self.window_bytes = 0;
            self.ahead_bytes = end;
            return Advice {
                continues_block,
                jumps: !sequential,
                ahead: end..end,
            };
        }
        self.window_bytes = (self.window_bytes * 2).max(len_bytes * 2);
        self.window_bytes = self.window_bytes.min(window_max_bytes);
        let target = end + self.window_bytes;
        let from = self.ahead_bytes.max(end);
        let worth_it =
            self.window_bytes >= WINDOW_MIN_BYTES && from + self.window_bytes / 2 <= target;
        if !worth_it {
            return Advice {
                continues_block,
                jumps: !sequential,
                ahead: end..end,
            };
        }
        self.ahead_bytes = target;
        Advice {
            continues_block,
            jumps: false,
            ahead: from..target,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 8 << 20;

    #[test]
    fn random_reads_ask_for_nothing() {
        let mut stream = Stream::default();
        for offset in [0, 1 << 20, 4096, 9 << 20] {
            assert!(stream.read(offset, 4096, MAX).ahead.is_empty());
        }
    }

    #[test]
    fn a_sequential_stream_asks_for_every_byte_once_and_at_most_a_window_ahead() {
        let mut stream = Stream::default();
        let (mut asked_to, mut total) = (0, 0);
        for step in 0..200 {
            let end = (step + 1) * 65536;
            let ahead = stream.read(step * 65536, 65536, MAX).ahead;
            if !ahead.is_empty() {
                assert!(ahead.start >= asked_to && ahead.end <= end + MAX);
                total += ahead.end - ahead.start;
                asked_to = ahead.end;
            }
        }
        assert!(asked_to > 200 * 65536, "the stream stays ahead");
        assert!(total <= asked_to);
    }
}
