//! How long requests and store calls take: histograms with fixed buckets, for `/metrics`.
//!
//! # Locking
//! None, and no allocation: relaxed atomics in fixed arrays. A reader may see a count without its time,
//! which the next look makes good.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Upper bounds of the buckets, in nanoseconds; what takes longer is in one more.
pub const BOUNDS_NS: [u64; 17] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// A guest's read on the daemon plane, from the request to its answer.
    Read,
    /// A guest's write, from the moment there is memory for it.
    Write,
    /// A guest's fsync, or the close of what it wrote.
    Flush,
    /// One read of the store, without waiting for a thread.
    StoreRead,
    /// One write to the store, without waiting for a thread.
    StoreWrite,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered from flash, or from what was read ahead into memory.
    Hit,
    /// Waited for the store.
    Miss,
    /// Waited for the store on behalf of a long stream, which is not put on flash.
    Around,
    /// What is not a guest's read, and went well.
    Done,
    /// Ended with an error.
    Failed,
}

/// Every pair that is counted.
pub const PAIRS: [(Timed, Outcome); 12] = [
    (Timed::Read, Outcome::Hit),
    (Timed::Read, Outcome::Miss),
    (Timed::Read, Outcome::Around),
    (Timed::Read, Outcome::Failed),
    (Timed::Write, Outcome::Done),
    (Timed::Write, Outcome::Failed),
    (Timed::Flush, Outcome::Done),
    (Timed::Flush, Outcome::Failed),
    (Timed::StoreRead, Outcome::Done),
    (Timed::StoreRead, Outcome::Failed),
    (Timed::StoreWrite, Outcome::Done),
    (Timed::StoreWrite, Outcome::Failed),
];

const TIMED: usize = 5;
const OUTCOMES: usize = 5;
const BUCKETS: usize = BOUNDS_NS.len() + 1;

/// The histograms of a mount.
#[derive(Default)]
pub struct Latencies {
    series: [[Series; OUTCOMES]; TIMED],
}

#[derive(Default)]
struct Series {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

/// One histogram as it was at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    pub timed: Timed,
    pub outcome: Outcome,
    /// By bucket, not added up.
    pub counts: [u64; BUCKETS],
    pub sum_ns: u64,
}

impl Outcome {
    /// For labels: a documented interface.
    pub fn text(self) -> &'static str {
        match self {
            Outcome::Hit => "hit",
            Outcome::Miss => "miss",
            Outcome::Around => "around",
            Outcome::Done => "done",
            Outcome::Failed => "failed",
        }
    }

    /// [`Outcome::Done`] or [`Outcome::Failed`].
    pub fn of<T, E>(result: &Result<T, E>) -> Outcome {
        match result {
            Ok(_) => Outcome::Done,
            Err(_) => Outcome::Failed,
        }
    }
}

impl Latencies {
    /// Counts what began at `begun` and has just ended.
    pub fn note(&self, timed: Timed, outcome: Outcome, begun: Instant) {
        self.add(timed, outcome, begun.elapsed());
    }

    fn add(&self, timed: Timed, outcome: Outcome, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NS.partition_point(|bound| *bound < ns);
        let series = &self.series[timed as usize][outcome as usize];
        series.counts[bucket].fetch_add(1, Ordering::Relaxed);
        series.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Does a store call and counts how long it took.
    pub fn time<T, E>(&self, timed: Timed, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let begun = Instant::now();
        let result = call();
        self.note(timed, Outcome::of(&result), begun);
        result
    }

    /// All histograms as they are now.
    pub fn look(&self) -> Vec<Histogram> {
        let histogram = |(timed, outcome): (Timed, Outcome)| {
            let series = &self.series[timed as usize][outcome as usize];
            Histogram {
                timed,
                outcome,
                counts: std::array::from_fn(|at| series.counts[at].load(Ordering::Relaxed)),
                sum_ns: series.sum_ns.load(Ordering::Relaxed),
            }
        };
        PAIRS.into_iter().map(histogram).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(took: Duration) -> Vec<usize> {
        let latencies = Latencies::default();
        latencies.add(Timed::Flush, Outcome::Done, took);
        let all = latencies.look();
        let flush = all.iter().find(|one| one.timed == Timed::Flush);
        let counts = flush.expect("it is there").counts;
        (0..BUCKETS).filter(|at| counts[*at] == 1).collect()
    }

    #[test]
    fn a_time_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        assert_eq!(buckets(Duration::ZERO), [0]);
        assert_eq!(buckets(Duration::from_micros(50)), [0]);
        assert_eq!(buckets(Duration::from_nanos(50_001)), [1]);
        assert_eq!(buckets(Duration::from_secs(10)), [16]);
        assert_eq!(buckets(Duration::from_secs(600)), [17]);
    }

    #[test]
    fn what_is_counted_is_found_under_its_own_pair_alone() {
        for (timed, outcome) in PAIRS {
            let latencies = Latencies::default();
            latencies.add(timed, outcome, Duration::from_millis(3));
            for one in latencies.look() {
                let mine = (one.timed, one.outcome) == (timed, outcome);
                assert_eq!(one.counts.iter().sum::<u64>(), u64::from(mine));
                assert_eq!(one.sum_ns, if mine { 3_000_000 } else { 0 });
            }
        }
    }
}
