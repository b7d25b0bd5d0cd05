//! Memory for writes on their way to the store (rule 13).
//!
//! A write that finds a quarter of the budget used up waits on its FUSE thread, which slows the writers
//! down. Two FUSE threads are spared: their writes wait only when the whole budget is used up, so that
//! resident reads go on beside many waiting writes. If nothing is freed for 10 s then, the store hangs, and
//! writes fail instead of stopping everybody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Writers wait from this part of the budget on.
const WAIT_SHARE: usize = 4;
/// FUSE threads that wait for the rest of the budget only, and not for long.
const THREADS_SPARED: usize = 2;
const SPARED_WAIT_MAX: Duration = Duration::from_secs(10);

/// The budget.
pub struct Budget {
    limit_bytes: usize,
    waiters_max: usize,
    deadline: Duration,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    used_bytes: usize,
    waiters: usize,
}

/// Memory in use; ends when dropped.
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit_bytes` for writes that come on `fuse_threads` threads.
    pub fn new(limit_bytes: usize, fuse_threads: usize, deadline: Duration) -> Arc<Budget> {
        Arc::new(Budget {
            limit_bytes,
            waiters_max: fuse_threads.saturating_sub(THREADS_SPARED),
            deadline,
            state: Mutex::default(),
            freed: Condvar::new(),
        })
    }

    /// Memory for a write of `bytes`, if there is some without waiting.
    pub fn try_take(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let mut state = self.state.lock();
        let limit_bytes = self.limit_bytes / WAIT_SHARE;
        if state.used_bytes > 0 && state.used_bytes + bytes > limit_bytes {
            return None;
        }
        state.used_bytes += bytes;
        Some(Permit {
            budget: self.clone(),
            bytes,
        })
    }

    /// Memory for a write of `bytes`; waits for it where that stops nobody else. `None` past the
    /// deadline.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let mut state = self.state.lock();
        let spared = state.waiters >= self.waiters_max;
        let (limit_bytes, patience) = match spared {
            true => (self.limit_bytes, self.deadline.min(SPARED_WAIT_MAX)),
            false => (self.limit_bytes / WAIT_SHARE, self.deadline),
        };
        let deadline = Instant::now() + patience;
        state.waiters += 1;
        let mut timed_out = false;
        while state.used_bytes > 0 && state.used_bytes + bytes > limit_bytes && !timed_out {
            timed_out = self.freed.wait_until(&mut state, deadline).timed_out();
        }
        state.waiters -= 1;
        if timed_out {
            return None;
        }
        state.used_bytes += bytes;
        Some(Permit {
            budget: self.clone(),
            bytes,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.state.lock().used_bytes -= self.bytes;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_wait_but_the_spared_threads_go_on() {
        let budget = Budget::new(400, 3, Duration::from_secs(60));
        let first = budget.take(100).expect("it fits");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.take(50).is_some());
            while budget.state.lock().waiters == 0 {
                std::thread::yield_now();
            }
            let spared = budget.take(300).expect("a spared thread goes on");
            assert!(!waiting.is_finished());
            drop(spared);
            drop(first);
            assert!(waiting.join().expect("it ends"));
        });
    }

    #[test]
    fn a_wait_ends_at_the_deadline_with_nothing() {
        let budget = Budget::new(400, 3, Duration::from_millis(20));
        let _all = budget.take(400).expect("it fits");
        assert!(budget.take(1).is_none());
    }
}
