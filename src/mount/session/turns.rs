//! Who serves: one thread leads and watches for requests; when more wait than it can take at once,
//! helpers join it until they find nothing to do. The others are spares. A thread that is about to wait
//! for something other than requests gives its turn to a spare, so that requests never wait with it.
//!
//! One watcher, because a lone request then always wakes the same thread, whose caches are warm; helpers
//! only under load, because each wake-up costs more than a small read.
//!
//! *Locking*: `state` is held for bookkeeping only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// The turns of one session.
pub struct Turns {
    helpers_max: usize,
    wary_until: Instant,
    stopped: AtomicBool,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    led: bool,
    helpers: usize,
    helpers_wanted: usize,
    ended: bool,
}

/// What a thread serves as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Leader,
    Helper,
}

impl Turns {
    /// One leader and at most `helpers_max` helpers. Until `wary_until` wake-ups may go to a process
    /// that is dead, so nobody relies on them.
    pub fn new(helpers_max: usize, wary_until: Instant) -> Turns {
        Turns {
            helpers_max,
            wary_until,
            stopped: AtomicBool::new(false),
            state: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// Waits for a turn; `None` when there is nothing to serve any more.
    pub fn take(&self) -> Option<Turn> {
        let mut state = self.state.lock();
        loop {
            if state.ended {
                return None;
            }
            if !state.led {
                state.led = true;
                return Some(Turn::Leader);
            }
            if state.helpers_wanted > 0 {
                state.helpers_wanted -= 1;
                state.helpers += 1;
                return Some(Turn::Helper);
            }
            self.freed.wait(&mut state);
        }
    }

    /// Gives a turn back; a spare takes the leader's.
    pub fn give(&self, turn: Turn) {
        let mut state = self.state.lock();
        match turn {
            Turn::Leader => {
                state.led = false;
                self.freed.notify_one();
            }
            Turn::Helper => state.helpers -= 1,
        }
    }

    /// More requests wait than the caller can take: another thread should help.
    pub fn call_for_help(&self) {
        let mut state = self.state.lock();
        if state.helpers + state.helpers_wanted < self.helpers_max {
            state.helpers_wanted += 1;
            self.freed.notify_one();
        }
    }

    /// True while wake-ups may be lost.
    pub fn is_wary(&self) -> bool {
        Instant::now() < self.wary_until
    }

    /// From now on nobody takes a request.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The session is over.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spare_leads_when_the_leader_steps_aside_and_all_end_together() {
        let turns = Turns::new(1, Instant::now());
        assert_eq!(turns.take(), Some(Turn::Leader));
        std::thread::scope(|scope| {
            let spare = scope.spawn(|| turns.take());
            turns.give(Turn::Leader);
            assert_eq!(spare.join().expect("it ends"), Some(Turn::Leader));
            let waiting = scope.spawn(|| turns.take());
            turns.end();
            assert_eq!(waiting.join().expect("it ends"), None);
        });
    }

    #[test]
    fn helpers_come_when_called_and_only_so_many() {
        let turns = Turns::new(1, Instant::now());
        assert_eq!(turns.take(), Some(Turn::Leader));
        turns.call_for_help();
        turns.call_for_help();
        assert_eq!(turns.take(), Some(Turn::Helper));
        turns.call_for_help();
        assert_eq!(turns.state.lock().helpers_wanted, 0);
        turns.give(Turn::Helper);
        turns.call_for_help();
        assert_eq!(turns.take(), Some(Turn::Helper));
    }
}
