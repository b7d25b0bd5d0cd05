//! Pauses, and their distribution.
//!
//! The pause of a kill is the time from the kill to the end of the I/O that met it: the longest one that was
//! in flight at the kill, or began before the successor was seen to serve. The pause of an upgrade is the
//! whole time of that I/O.

use std::time::Duration;

/// The pauses of all events of one kind, as the two probers met them.
#[derive(Default)]
pub struct Pauses {
    reads: Vec<Duration>,
    writes: Vec<Duration>,
}

impl Pauses {
    pub fn add(&mut self, read: Duration, write: Duration) {
        self.reads.push(read);
        self.writes.push(write);
    }

    /// How many events there were.
    pub fn len(&self) -> u64 {
        self.reads.len() as u64
    }

    /// Two lines: of reads of flash, of writes to the store.
    pub fn print(&mut self, event: &str) {
        print(&format!("pause of a read at a {event}"), &mut self.reads);
        print(&format!("pause of a write at a {event}"), &mut self.writes);
    }
}

/// One line on the distribution of these times.
pub fn print(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let ms = |permille| share(times, permille).as_secs_f64() * 1e3;
    println!(
        "{what}: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms (of {})",
        ms(500),
        ms(900),
        ms(990),
        ms(1000),
        times.len(),
    );
}

/// The smallest of sorted values that so many permille of them do not exceed.
fn share(sorted: &[Duration], permille: usize) -> Duration {
    let rank = (sorted.len() * permille).div_ceil(1000);
    let found = sorted.get(rank.saturating_sub(1));
    found.copied().unwrap_or_default()
}
