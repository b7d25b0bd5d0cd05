//! A queue of keys by their short names: 5 bytes each, in pieces, so that it never doubles and gives
//! back what it does not need. At most two pieces are not full: 10 KiB.

use std::collections::VecDeque;

use super::groups::{SHORT_BYTES, Short};

/// Names in a piece.
const PIECE_NAMES: usize = 1024;

type Piece = Box<[[u8; SHORT_BYTES]; PIECE_NAMES]>;

/// First in, first out.
#[derive(Default)]
pub struct Queue {
    pieces: VecDeque<Piece>,
    /// Names already taken from the first piece.
    taken: usize,
    len: usize,
}

impl Queue {
    /// Adds a name at the end.
    pub fn push(&mut self, short: Short) {
        let at = (self.taken + self.len) % PIECE_NAMES;
        if at == 0 {
            self.pieces
                .push_back(Box::new([[0; SHORT_BYTES]; PIECE_NAMES]));
        }
        if let Some(piece) = self.pieces.back_mut() {
            piece[at] = short.to_bytes();
            self.len += 1;
        }
    }

    /// Takes the oldest name.
    pub fn pop(&mut self) -> Option<Short> {
        if self.len == 0 {
            return None;
        }
        let short = Short::from_bytes(self.pieces.front()?[self.taken]);
        self.taken += 1;
        self.len -= 1;
        if self.taken == PIECE_NAMES || self.len == 0 {
            self.pieces.pop_front();
            self.taken = 0;
            if self.pieces.len() < self.pieces.capacity() / 4 {
                self.pieces.shrink_to(self.pieces.len() * 2);
            }
        }
        Some(short)
    }

    /// Names in it.
    pub fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(number: u64) -> Short {
        let [a, b, c, d, e, ..] = number.to_le_bytes();
        Short::from_bytes([a, b, c, d, e])
    }

    #[test]
    fn names_come_out_in_the_order_they_went_in() {
        let mut queue = Queue::default();
        let (mut pushed, mut popped) = (0, 0);
        for round in [1, 1024, 5000, 0, 3, 1023, 2048] {
            (0..round).for_each(|_| {
                queue.push(short(pushed));
                pushed += 1;
            });
            assert_eq!(queue.len() as u64, pushed - popped);
            while queue.len() > round as usize / 2 {
                assert_eq!(queue.pop(), Some(short(popped)));
                popped += 1;
            }
        }
        while let Some(found) = queue.pop() {
            assert_eq!(found, short(popped));
            popped += 1;
        }
        assert_eq!((popped, queue.len(), queue.pieces.len()), (pushed, 0, 0));
    }
}
