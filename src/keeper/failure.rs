//! Servers that fail: how often in a row, and when it is time for the next.

use std::time::{Duration, Instant};

/// After so many failures in a row no other server is tried.
const FAILURES_MAX: u32 = 3;
/// A server that crashes sooner than this after it began to serve has failed.
const PROVEN_AFTER: Duration = Duration::from_secs(10);
/// Between a failed server and the next.
const PAUSE: Duration = Duration::from_millis(300);

/// Failures in a row.
#[derive(Default)]
pub struct Failures {
    in_a_row: u32,
    pause_until: Option<Instant>,
}

impl Failures {
    /// Another failure; true when it was one too many.
    pub fn one_more(&mut self) -> bool {
        self.in_a_row += 1;
        self.pause_until = Some(Instant::now() + PAUSE);
        self.in_a_row >= FAILURES_MAX
    }

    /// All is well again.
    pub fn forget(&mut self) {
        *self = Failures::default();
    }

    /// How long to wait before the next try.
    pub fn pause(&self) -> Duration {
        let until = self.pause_until.unwrap_or_else(Instant::now);
        until.saturating_duration_since(Instant::now())
    }
}

/// True for a server that has served for long enough, to be replaced without a thought.
pub fn is_proven(serving_since: Instant) -> bool {
    serving_since.elapsed() >= PROVEN_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_failure_in_a_row_is_one_too_many() {
        let mut failures = Failures::default();
        assert_eq!(failures.pause(), Duration::ZERO);
        assert!(!failures.one_more());
        assert!(!failures.one_more());
        assert!(failures.pause() > Duration::ZERO);
        failures.forget();
        assert!(!failures.one_more());
        assert!(!failures.one_more());
        assert!(failures.one_more());
    }
}
