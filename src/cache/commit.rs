//! Making records durable: the order that keeps rule 3, in one place.
//!
//! # Order of steps
//! 1. Close the sequence: later inserts get the next one. Wait for the inserts still in it.
//! 2. fdatasync of the data: every byte that a record up to the sequence claims is durable.
//! 3. fdatasync of the records.
//! 4. The head with the new `committed`: from now on these records count after a power cut.
//! 5. Clear the in-doubt marks of the regions whose writes the store has made durable before step 1.
//!
//! Were 4 before 2, a power cut could leave records that claim bytes that never arrived; were 5
//! before 3, it could revive the record of a page that was dropped.

use std::io;
use std::sync::atomic::Ordering;

use parking_lot::{Condvar, Mutex};

use super::entry::Entry;

/// Counts the inserts under way per commit sequence.
pub(super) struct Gate {
    state: Mutex<State>,
    left: Condvar,
}

struct State {
    seq: u32,
    inside: u32,
    /// Inserts still inside sequences before `seq`.
    inside_before: u32,
}

/// An insert under way in one sequence.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    seq: u32,
}

impl Gate {
    pub(super) fn new(seq: u32) -> Gate {
        Gate {
            state: Mutex::new(State {
                seq,
                inside: 0,
                inside_before: 0,
            }),
            left: Condvar::new(),
        }
    }

    /// Begins an insert.
    pub(super) fn enter(&self) -> Pass<'_> {
        let mut state = self.state.lock();
        state.inside += 1;
        Pass {
            gate: self,
            seq: state.seq,
        }
    }

    /// Closes the open sequence and waits until its inserts have ended; gives its number. Each insert
    /// ends with its flash I/O.
    pub(super) fn seal(&self) -> u32 {
        let mut state = self.state.lock();
        while state.inside_before > 0 {
            self.left.wait(&mut state);
        }
        let sealed = state.seq;
        state.seq += 1;
        state.inside_before = std::mem::take(&mut state.inside);
        while state.inside_before > 0 {
            self.left.wait(&mut state);
        }
        sealed
    }
}

impl Pass<'_> {
    /// The sequence that the insert's records carry.
    pub(super) fn seq(&self) -> u32 {
        self.seq
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        if self.seq == state.seq {
            state.inside -= 1;
        } else {
            state.inside_before -= 1;
            self.gate.left.notify_all();
        }
    }
}

impl Entry {
    /// True when there is something to commit.
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire) && !self.disowned.load(Ordering::Acquire)
    }

    /// Takes the regions in doubt that were not written for `quiet`. The caller makes the store
    /// durable and then calls [`Entry::commit`] with them, or drops them with [`Entry::drop_regions`].
    pub fn quiet_regions(&self, quiet: std::time::Duration) -> Vec<u32> {
        self.files()
            .map_or(Vec::new(), |files| files.doubt.take_quiet(quiet))
    }

    /// Regions in doubt now.
    pub fn doubtful_regions(&self) -> Vec<u32> {
        self.files()
            .map_or(Vec::new(), |files| files.doubt.marked())
    }

    /// Makes everything inserted so far durable and clears the marks of `regions`, whose writes are
    /// durable in the store.
    pub fn commit(&self, regions: &[u32]) -> io::Result<()> {
        let Some(files) = self.files() else {
            return Ok(());
        };
        self.pending.store(false, Ordering::Release);
        let sealed = self.gate.seal();
        files.data.sync()?;
        files.records.sync()?;
        self.version.update(&files, |head| {
            head.committed = head.committed.max(sealed);
            true
        })?;
        files.doubt.clear(regions)?;
        self.recount();
        Ok(())
    }

    /// A store fsync failed: what the store holds in these regions is unknown, so the cache forgets
    /// them (rule 3a). Their marks stay on flash until a later commit.
    pub fn drop_regions(&self, regions: &[u32]) {
        let pages_per_region = super::doubt::REGION_BYTES / super::PAGE_BYTES;
        for region in regions {
            let first = u64::from(*region) * pages_per_region;
            self.drop_pages(&(first..first + pages_per_region));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_seal_waits_for_the_inserts_inside() {
        let gate = Gate::new(5);
        let pass = gate.enter();
        std::thread::scope(|scope| {
            let sealing = scope.spawn(|| gate.seal());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!sealing.is_finished());
            let later = gate.enter();
            assert_eq!((pass.seq(), later.seq()), (5, 6));
            drop(pass);
            assert_eq!(sealing.join().expect("sealed"), 5);
        });
    }
}
