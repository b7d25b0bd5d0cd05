//! Sequential streams of a handle: which of its requests follow each other, how far to read ahead, and
//! whether a stream is so long that it goes around the cache.
//!
//! A fixed table per handle. A request belongs to the stream that ends where it begins; one that belongs
//! to none begins a stream of its own and takes the place of the one unused for longest. Requests of one
//! stream that arrive in another order make two streams, which become one when the gap between them is
//! closed; until then what lies next to a long stream counts as part of it.
//!
//! # Invariants
//! - A stream is long only by what was asked for without a gap.
//! - Looking at a request allocates nothing and takes one pass over the table.

use std::ops::Range;

use crate::cache::BLOCK_BYTES;

/// Where a window starts to grow.
const WINDOW_MIN_BYTES: u64 = 4 * BLOCK_BYTES;
/// What a stream that goes around the cache reads ahead at most: it is kept in memory.
const AROUND_WINDOW_BYTES: u64 = 8 << 20;
/// A request within this of a long stream's end counts as part of it.
const NEAR_BYTES: u64 = 4 << 20;
/// Streams of one handle.
const STREAMS: usize = 16;
/// A stream of more than one request gives its place up as late as if it had been used so many requests
/// later: random reads beside a stream do not push it out.
const GRACE: u64 = 256;

/// Names a stream of a handle; never used again.
pub type StreamId = u64;

/// What the latest requests of a handle looked like.
#[derive(Debug, Default)]
pub struct Streams {
    table: [Stream; STREAMS],
    /// Requests seen; the clock of the table and the source of names.
    clock: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// 0 is an empty place.
    id: StreamId,
    begin_bytes: u64,
    next_bytes: u64,
    window_bytes: u64,
    /// Everything before this has been asked for.
    ahead_bytes: u64,
    used: u64,
}

/// What is configured for streams.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Window of one stream at most, in bytes.
    pub window_max_bytes: u64,
    /// A stream longer than this goes around the cache; `u64::MAX` for never.
    pub around_bytes: u64,
}

/// What a request means.
#[derive(Debug, PartialEq, Eq)]
pub struct Advice {
    /// The stream it belongs to.
    pub stream: StreamId,
    /// It goes on in the block where the one before ended: not a new use of it.
    pub continues_block: bool,
    /// The stream that lost its place to this one.
    pub ended: Option<StreamId>,
    /// The stream is long: what it brings is not kept on flash.
    pub around: bool,
    /// Bytes to read ahead, possibly none.
    pub ahead: Range<u64>,
}

impl Streams {
    /// Takes a request into account. The window doubles with each sequential request up to its limit and
    /// half the stream's own length; reading ahead is asked for in steps of half a window.
    pub fn follow(&mut self, offset_bytes: u64, len_bytes: u64, policy: &Policy) -> Advice {
        self.clock += 1;
        let end = offset_bytes + len_bytes;
        let going_on = self
            .table
            .iter()
            .position(|stream| stream.id != 0 && stream.next_bytes == offset_bytes);
        let Some(at) = going_on else {
            return self.begin(offset_bytes, end, policy);
        };
        self.table[at].next_bytes = end;
        self.table[at].used = self.clock;
        let ended = self.join_next(at);
        let around = self.is_long_at(offset_bytes, policy);
        let stream = &mut self.table[at];
        Advice {
            stream: stream.id,
            continues_block: !offset_bytes.is_multiple_of(BLOCK_BYTES),
            ended,
            around,
            ahead: stream.grow(len_bytes, around, policy),
        }
    }

    /// What was to be read ahead of `stream` from `from_bytes` on was not begun: it is asked for again.
    pub fn not_begun(&mut self, stream: StreamId, from_bytes: u64) {
        if let Some(stream) = self.table.iter_mut().find(|known| known.id == stream) {
            stream.ahead_bytes = stream.ahead_bytes.min(from_bytes);
        }
    }

    /// True while the stream has its place.
    pub fn is_alive(&self, stream: StreamId) -> bool {
        self.table.iter().any(|known| known.id == stream)
    }

    /// True where a long stream is, or was or will be with a few requests in another order.
    fn is_long_at(&self, offset_bytes: u64, policy: &Policy) -> bool {
        policy.around_bytes < u64::MAX
            && self.table.iter().any(|stream| {
                stream.next_bytes - stream.begin_bytes > policy.around_bytes
                    && offset_bytes + NEAR_BYTES >= stream.next_bytes
                    && offset_bytes <= stream.next_bytes + NEAR_BYTES
            })
    }

    /// A request that belongs to no stream begins one.
    fn begin(&mut self, offset_bytes: u64, end: u64, policy: &Policy) -> Advice {
        let around = self.is_long_at(offset_bytes, policy);
        let worth = |stream: &Stream| match stream.window_bytes {
            0 => stream.used,
            _ => stream.used + GRACE,
        };
        let same = |stream: &&mut Stream| {
            stream.id != 0 && stream.begin_bytes == offset_bytes && stream.next_bytes == end
        };
        let clock = self.clock;
        if let Some(stream) = self.table.iter_mut().find(same) {
            stream.used = clock; // the same request once more
            return Advice::none(stream.id, None, around, end);
        }
        let place = (0..STREAMS)
            .min_by_key(|at| worth(&self.table[*at]))
            .unwrap_or(0);
        let before = std::mem::replace(
            &mut self.table[place],
            Stream {
                id: clock,
                begin_bytes: offset_bytes,
                next_bytes: end,
                window_bytes: 0,
                ahead_bytes: end,
                used: clock,
            },
        );
        let ended = (before.id != 0).then_some(before.id);
        let joined = self.join_next(place);
        Advice::none(self.table[place].id, ended.or(joined), around, end)
    }

    /// Where a stream has reached the begin of another the two become one, with the name of the one that
    /// reads further ahead; gives the name that is lost.
    fn join_next(&mut self, at: usize) -> Option<StreamId> {
        let end = self.table[at].next_bytes;
        let next = (0..STREAMS).find(|other| {
            let stream = &self.table[*other];
            *other != at && stream.id != 0 && stream.begin_bytes == end && stream.next_bytes > end
        })?;
        let joined = std::mem::take(&mut self.table[next]);
        let stream = &mut self.table[at];
        stream.next_bytes = joined.next_bytes;
        stream.ahead_bytes = stream.ahead_bytes.max(joined.ahead_bytes);
        let lost = match joined.window_bytes > stream.window_bytes {
            true => std::mem::replace(&mut stream.id, joined.id),
            false => joined.id,
        };
        stream.window_bytes = stream.window_bytes.max(joined.window_bytes);
        Some(lost)
    }
}

impl Stream {
    /// Lets the window grow; gives what to read ahead now.
    fn grow(&mut self, len_bytes: u64, around: bool, policy: &Policy) -> Range<u64> {
        let window_max = match around {
            true => policy.window_max_bytes.min(AROUND_WINDOW_BYTES),
            false => policy.window_max_bytes,
        };
        let end = self.next_bytes;
        self.window_bytes = (self.window_bytes * 2).max(len_bytes * 2).min(window_max);
        // Never further ahead than half of what it has come: most streams of a guest are files that end soon.
        let come = end - self.begin_bytes;
        self.window_bytes = self.window_bytes.min(come / 2);
        // What lies past the length that goes around the cache is read ahead once it is known to.
        let into_cache_to = match around {
            true => u64::MAX,
            false => self
                .begin_bytes
                .saturating_add(policy.around_bytes)
                .max(end),
        };
        let target = (end + self.window_bytes).min(into_cache_to);
        let from = self.ahead_bytes.max(end);
        if self.window_bytes < WINDOW_MIN_BYTES || from + self.window_bytes / 2 > target {
            return end..end;
        }
        self.ahead_bytes = target;
        from..target
    }
}

impl Advice {
    fn none(stream: StreamId, ended: Option<StreamId>, around: bool, end: u64) -> Advice {
        Advice {
            stream,
            continues_block: false,
            ended,
            around,
            ahead: end..end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 8 << 20;
    const STEP: u64 = 65536;
    const POLICY: Policy = Policy {
        window_max_bytes: MAX,
        around_bytes: u64::MAX,
    };

    #[test]
    fn random_reads_ask_for_nothing() {
        let mut streams = Streams::default();
        for n in 0..1000 {
            let advice = streams.follow(n * 7919 % 1000 * (1 << 20), 4096, &POLICY);
            assert!(advice.ahead.is_empty() && !advice.around);
        }
    }

    #[test]
    fn a_sequential_stream_asks_for_every_byte_once_and_at_most_a_window_ahead() {
        let mut streams = Streams::default();
        let (mut asked_to, mut total) = (0, 0);
        for step in 0..200 {
            let end = (step + 1) * STEP;
            let ahead = streams.follow(step * STEP, STEP, &POLICY).ahead;
            if !ahead.is_empty() {
                assert!(ahead.start >= asked_to && ahead.end <= end + MAX);
                total += ahead.end - ahead.start;
                asked_to = ahead.end;
            }
        }
        assert!(asked_to > 200 * STEP, "the stream stays ahead");
        assert!(total <= asked_to);
    }

    #[test]
    fn a_short_stream_reads_ahead_half_of_what_it_has_read_at_most() {
        let mut streams = Streams::default();
        for step in 0..100 {
            let end = (step + 1) * STEP;
            let ahead = streams.follow(step * STEP, STEP, &POLICY).ahead;
            assert!(ahead.is_empty() || ahead.end <= end + end / 2, "at {step}");
        }
    }

    #[test]
    fn several_streams_and_random_reads_between_them_each_stay_ahead() {
        let mut streams = Streams::default();
        let begins = [0, 1 << 30, 2 << 30, 3 << 30];
        let mut asked_to = begins;
        for step in 0..100 {
            for (begin, asked_to) in begins.iter().zip(&mut asked_to) {
                let advice = streams.follow(begin + step * STEP, STEP, &POLICY);
                if !advice.ahead.is_empty() {
                    *asked_to = advice.ahead.end;
                }
            }
            for n in 0..if step < 2 { 0 } else { 20 } {
                streams.follow((10 << 30) + (step * 20 + n) * (1 << 21), 4096, &POLICY);
            }
        }
        for (begin, asked_to) in begins.iter().zip(&asked_to) {
            assert!(*asked_to > begin + 100 * STEP, "the stream at {begin}");
        }
    }

    #[test]
    fn requests_that_arrive_in_another_order_are_one_stream() {
        let mut streams = Streams::default();
        let mut asked_to = 0;
        for pair in 0..100 {
            for step in [pair * 2 + 1, pair * 2] {
                let ahead = streams.follow(step * STEP, STEP, &POLICY).ahead;
                asked_to = asked_to.max(ahead.end);
            }
        }
        assert!(asked_to > 202 * STEP, "asked to {asked_to}");
        let live = streams.table.iter().filter(|stream| stream.id != 0);
        assert_eq!(live.count(), 1);
    }

    #[test]
    fn a_stream_goes_around_the_cache_once_it_is_long() {
        let policy = Policy {
            around_bytes: 10 * STEP,
            ..POLICY
        };
        let mut streams = Streams::default();
        let around = |streams: &mut Streams, step: u64| {
            let advice = streams.follow(step * STEP, STEP, &policy);
            assert!(!advice.around || advice.ahead.end <= (step + 1) * STEP + AROUND_WINDOW_BYTES);
            advice.around
        };
        assert!((0..10).all(|step| !around(&mut streams, step)));
        assert!((10..400).all(|step| around(&mut streams, step)));
        assert!(around(&mut streams, 410), "a little ahead of its turn");
        assert!(!around(&mut streams, 1000), "another stream begins anew");
    }

    #[test]
    fn what_was_not_begun_is_asked_for_again() {
        let mut streams = Streams::default();
        let advice = (0..).map(|step| streams.follow(step * STEP, STEP, &POLICY));
        let advice = advice.into_iter().find(|advice| !advice.ahead.is_empty());
        let advice = advice.expect("it reads ahead");
        let next = streams.table[0].next_bytes;
        streams.not_begun(advice.stream, advice.ahead.start);
        let again = streams.follow(next, STEP, &POLICY).ahead;
        assert_eq!(again.start, advice.ahead.start.max(next + STEP));
    }

    #[test]
    fn a_stream_that_lost_its_place_is_named() {
        let mut streams = Streams::default();
        let first = streams.follow(0, 4096, &POLICY).stream;
        assert!(streams.is_alive(first));
        let ended: Vec<_> = (1..=STREAMS as u64)
            .filter_map(|n| streams.follow(n << 30, 4096, &POLICY).ended)
            .collect();
        assert_eq!(ended, [first]);
        assert!(!streams.is_alive(first));
    }
}
