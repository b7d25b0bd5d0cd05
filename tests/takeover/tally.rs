//! What a run did and what went wrong in it: errors, wrong answers, calls that hung.
//!
//! Touches nothing; everybody who works on the mount counts here.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A call that takes longer hangs.
pub const HANG: Duration = Duration::from_secs(30);
/// Of what goes wrong, this many lines are printed.
const LINES_MAX: u64 = 20;

/// The counters of one run, and the word that it is over.
#[derive(Default)]
pub struct Tally {
    pub calls: AtomicU64,
    pub errors: AtomicU64,
    pub mismatches: AtomicU64,
    pub hangs: AtomicU64,
    pub slowest_us: AtomicU64,
    stop: AtomicBool,
    lines: AtomicU64,
}

impl Tally {
    /// One call: timed, and counted where it fails or hangs.
    pub fn call<T>(&self, what: &str, call: impl FnOnce() -> io::Result<T>) -> Option<T> {
        let begun = Instant::now();
        let result = call();
        self.took(what, begun.elapsed());
        result.map_err(|error| self.error(what, &error)).ok()
    }

    /// A call of others ended after this time.
    pub fn took(&self, what: &str, time: Duration) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.slowest_us
            .fetch_max(time.as_micros() as u64, Ordering::Relaxed);
        if time > HANG {
            self.hang(&format!("{what} took {time:?}"));
        }
    }

    /// A call failed that should not.
    pub fn error(&self, what: &str, error: &dyn std::fmt::Display) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.say(&format!("error: {what}: {error}"));
    }

    /// A call succeeded that should not, or gave what nobody wrote.
    pub fn mismatch(&self, what: &str) {
        self.mismatches.fetch_add(1, Ordering::Relaxed);
        self.say(&format!("mismatch: {what}"));
    }

    /// Something did not happen in time.
    pub fn hang(&self, what: &str) {
        self.hangs.fetch_add(1, Ordering::Relaxed);
        self.say(&format!("hang: {what}"));
    }

    /// Nobody begins anything any more.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Errors, mismatches and hangs.
    pub fn wrong(&self) -> [u64; 3] {
        [&self.errors, &self.mismatches, &self.hangs].map(|count| count.load(Ordering::SeqCst))
    }

    fn say(&self, line: &str) {
        if self.lines.fetch_add(1, Ordering::Relaxed) < LINES_MAX {
            println!("  {line}");
        }
    }
}
