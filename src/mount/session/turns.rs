//! Who serves: of the threads of a session a few serve at once, the others are spares. A thread that is
//! about to wait for something other than requests gives its turn to a spare, so that requests never
//! wait with it.
//!
//! *Locking*: `state` is held for bookkeeping only.

use parking_lot::{Condvar, Mutex};

/// The turns of one session.
pub struct Turns {
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    free: usize,
    ended: bool,
}

impl Turns {
    /// As many threads as `at_once` may serve together.
    pub fn new(at_once: usize) -> Turns {
        Turns {
            state: Mutex::new(State {
                free: at_once,
                ended: false,
            }),
            freed: Condvar::new(),
        }
    }

    /// Waits for a turn; false when there is nothing to serve any more.
    pub fn take(&self) -> bool {
        let mut state = self.state.lock();
        while state.free == 0 && !state.ended {
            self.freed.wait(&mut state);
        }
        if state.ended {
            return false;
        }
        state.free -= 1;
        true
    }

    /// Gives a turn to a spare.
    pub fn give(&self) {
        self.state.lock().free += 1;
        self.freed.notify_one();
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
    fn a_spare_serves_when_a_turn_is_given_and_all_end_together() {
        let turns = Turns::new(1);
        assert!(turns.take());
        std::thread::scope(|scope| {
            let spare = scope.spawn(|| turns.take());
            turns.give();
            assert!(spare.join().expect("it ends"));
            let waiting = scope.spawn(|| turns.take());
            turns.end();
            assert!(!waiting.join().expect("it ends"));
        });
    }
}
