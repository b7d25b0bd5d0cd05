//! Memory for writes on their way to the store (rule 13).
//!
//! A write that finds a quarter of the budget used up waits on its FUSE thread, which slows the writers
//! down; but some FUSE threads never wait, so that resident reads go on. Past the budget writes fail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Writers wait from this part of the budget on.
const WAIT_SHARE: usize = 4;
/// FUSE threads that never wait here.
const THREADS_SPARED: usize = 2;

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

    /// Memory for a write of `bytes`; waits for it where that stops nobody else. `None` past the
    /// budget or the deadline.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let deadline = Instant::now() + self.deadline;
        let mut state = self.state.lock();
        while state.used_bytes > 0 && state.used_bytes + bytes > self.limit_bytes / WAIT_SHARE {
            if state.waiters >= self.waiters_max {
                if state.used_bytes + bytes > self.limit_bytes {
                    return None;
                }
                break;
            }
            state.waiters += 1;
            let timed_out = self.freed.wait_until(&mut state, deadline).timed_out();
            state.waiters -= 1;
            if timed_out {
                return None;
            }
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
        self.budget.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_wait_but_the_spared_threads_go_on_to_the_limit() {
        let budget = Budget::new(400, 3, Duration::from_millis(50));
        let first = budget.take(100).expect("it fits");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.take(50).is_some());
            while budget.state.lock().waiters == 0 {
                std::thread::yield_now();
            }
            let spared = budget
                .take(300)
                .expect("a spared thread goes over the budget");
            assert!(budget.take(1).is_none(), "not past the limit");
            drop(spared);
            drop(first);
            assert!(waiting.join().expect("it ends"));
        });
    }
}
