//! Who may touch which pages of an image, in which order.
//!
//! Writes, discards, truncates and fills that touch the same page run one after the other, in the order
//! of their arrival; all others run together. A fetch from the store reads without a lane; a write that
//! arrives meanwhile *poisons* its pages in the fetch, so that old bytes are neither filled in over new
//! ones nor handed to readers that came later.
//!
//! # Locking
//! `state` is held for bookkeeping only, and before a fetch's own state. What may start is started after
//! it is released.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::cache::{PAGES_PER_BLOCK, Pages, blocks_of};

use super::fetch::Fetch;

type Start = Box<dyn FnOnce(Lane) + Send>;

/// The order of operations of one image.
#[derive(Default)]
pub struct Lanes {
    state: Mutex<State>,
}

#[derive(Default)]
pub struct State {
    next: u64,
    active: Vec<(u64, Pages)>,
    waiting: VecDeque<(u64, Pages, Start)>,
    /// Fetches under way, by each of their blocks.
    pub fetches: HashMap<u64, Arc<Fetch>>,
    /// Fetches that have ended and are kept for a reader, by each of their blocks.
    kept: HashMap<u64, Arc<Fetch>>,
}

/// The right to touch some pages; ends when dropped.
pub struct Lane {
    lanes: Arc<Lanes>,
    id: u64,
}

impl Lanes {
    /// Calls `start` with a lane for `pages` as soon as nobody before has them: now, on this thread, or
    /// when the last of those ends, on its thread. From now on fetches under way do not count for these
    /// pages.
    pub fn enter(self: &Arc<Self>, pages: Pages, start: impl FnOnce(Lane) + Send + 'static) {
        let mut state = self.state.lock();
        state.poison(&pages);
        let id = state.number();
        if state.is_taken(&pages, state.waiting.len()) {
            state.waiting.push_back((id, pages, Box::new(start)));
            return;
        }
        state.active.push((id, pages));
        drop(state);
        start(Lane {
            lanes: self.clone(),
            id,
        });
    }

    /// A lane for those of the `wanted` pages that no write has or waits for, for the fill of a fetch.
    /// `wanted` is asked under the lock: no write can come between its answer and the lane.
    pub fn fill(self: &Arc<Self>, wanted: impl FnOnce() -> Vec<Pages>) -> (Lane, Vec<Pages>) {
        let mut state = self.state.lock();
        let wanted = wanted();
        let id = state.number();
        let waiting = state.waiting.len();
        let mut granted: Vec<Pages> = Vec::new();
        for page in wanted.into_iter().flatten() {
            if state.is_taken(&(page..page + 1), waiting) {
                continue;
            }
            match granted.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => granted.push(page..page + 1),
            }
        }
        state
            .active
            .extend(granted.iter().map(|run| (id, run.clone())));
        let lane = Lane {
            lanes: self.clone(),
            id,
        };
        (lane, granted)
    }

    /// Keeps a fetch in sight after its end: writes go on poisoning it.
    pub fn keep(&self, fetch: &Arc<Fetch>) {
        let mut state = self.state.lock();
        for block in blocks_of(&fetch.pages) {
            state.kept.insert(block, fetch.clone());
        }
    }

    /// Lets go of a kept fetch.
    pub fn unkeep(&self, fetch: &Arc<Fetch>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        forget_fetch(&mut state.kept, fetch);
    }

    /// Lets nobody find what is kept any more.
    pub fn hide_kept(&self) {
        self.state.lock().kept.clear();
    }

    /// The kept fetch that brought `block`.
    pub fn kept(&self, block: u64) -> Option<Arc<Fetch>> {
        self.state.lock().kept.get(&block).cloned()
    }

    /// Takes a fetch out of those under way.
    pub fn unregister(&self, fetch: &Arc<Fetch>) {
        forget_fetch(&mut self.state.lock().fetches, fetch);
    }

    /// Looks at, or changes, the fetches under way.
    pub fn with<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        look(&mut self.state.lock())
    }

    /// True when no operation is active or waiting.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.active.is_empty() && state.waiting.is_empty() && state.fetches.is_empty()
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// True if an active operation or one of the first `waiting` waiting ones touches `pages`.
    fn is_taken(&self, pages: &Pages, waiting: usize) -> bool {
        self.active.iter().any(|(_, taken)| overlap(taken, pages))
            || self
                .waiting
                .iter()
                .take(waiting)
                .any(|(_, taken, _)| overlap(taken, pages))
    }

    fn poison(&self, pages: &Pages) {
        self.kept.values().for_each(|fetch| fetch.poison(pages));
        let blocks = blocks_of(pages);
        if blocks.end - blocks.start > self.fetches.len() as u64 {
            self.fetches.values().for_each(|fetch| fetch.poison(pages));
        } else {
            blocks
                .filter_map(|block| self.fetches.get(&block))
                .for_each(|fetch| fetch.poison(pages));
        }
    }

    /// The kept fetch that has all of `pages`, one block or less, as they are now in the version `era`, and
    /// its bytes.
    pub fn kept_bytes(
        &self,
        pages: &Pages,
        era: Option<u64>,
    ) -> Option<(Arc<Fetch>, Arc<crate::io::Buffer>)> {
        let fetch = self.kept.get(&(pages.start / PAGES_PER_BLOCK))?;
        let bytes = fetch.bytes_of(pages, era)?;
        Some((fetch.clone(), bytes))
    }

    /// The pages that writes have or wait for, for a fetch that begins now.
    pub fn taken(&self, pages: &Pages) -> Vec<Pages> {
        let active = self.active.iter().map(|(_, taken)| taken);
        let waiting = self.waiting.iter().map(|(_, taken, _)| taken);
        active
            .chain(waiting)
            .filter(|taken| overlap(taken, pages))
            .cloned()
            .collect()
    }

    /// Ends an operation; gives the waiting ones that may start now.
    fn end(&mut self, id: u64) -> Vec<(u64, Start)> {
        self.active.retain(|(active, _)| *active != id);
        let mut ready = Vec::new();
        let mut at = 0;
        while let Some((_, pages, _)) = self.waiting.get(at) {
            if self.is_taken(pages, at) {
                at += 1;
            } else if let Some((id, pages, start)) = self.waiting.remove(at) {
                self.active.push((id, pages));
                ready.push((id, start));
            }
        }
        ready
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let ready = self.lanes.state.lock().end(self.id);
        for (id, start) in ready {
            start(Lane {
                lanes: self.lanes.clone(),
                id,
            });
        }
    }
}

fn forget_fetch(table: &mut HashMap<u64, Arc<Fetch>>, fetch: &Arc<Fetch>) {
    for block in blocks_of(&fetch.pages) {
        if table
            .get(&block)
            .is_some_and(|known| Arc::ptr_eq(known, fetch))
        {
            table.remove(&block);
        }
    }
}

/// True if two runs share a page.
pub fn overlap(a: &Pages, b: &Pages) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(lanes: &Arc<Lanes>, pages: Pages, held: &Arc<Mutex<Vec<(char, Lane)>>>, name: char) {
        let held = held.clone();
        lanes.enter(pages, move |lane| held.lock().push((name, lane)));
    }

    fn names(held: &Mutex<Vec<(char, Lane)>>) -> String {
        held.lock().iter().map(|(name, _)| *name).collect()
    }

    /// Ends one operation, outside the test's own lock.
    fn end(held: &Mutex<Vec<(char, Lane)>>, name: char) {
        let at = held.lock().iter().position(|(held, _)| *held == name);
        let lane = held.lock().remove(at.expect("it is held"));
        drop(lane);
    }

    #[test]
    fn overlapping_operations_run_in_order_of_arrival() {
        let lanes = Arc::new(Lanes::default());
        let held = Arc::new(Mutex::new(Vec::new()));
        enter(&lanes, 0..4, &held, 'a');
        enter(&lanes, 3..8, &held, 'b');
        enter(&lanes, 7..9, &held, 'c');
        enter(&lanes, 20..21, &held, 'd');
        assert_eq!(names(&held), "ad", "c waits for b, which came before it");
        end(&held, 'a');
        assert_eq!(names(&held), "db");
        end(&held, 'b');
        assert_eq!(names(&held), "dc");
    }

    #[test]
    fn a_fill_leaves_out_what_a_write_has_or_waits_for() {
        let lanes = Arc::new(Lanes::default());
        let held = Arc::new(Mutex::new(Vec::new()));
        enter(&lanes, 2..4, &held, 'a');
        enter(&lanes, 3..6, &held, 'b');
        let (lane, granted) = lanes.fill(|| vec![0..4, 4..8]);
        assert_eq!(granted, [0..2, 6..8]);
        enter(&lanes, 7..10, &held, 'c');
        assert_eq!(names(&held), "a", "the write waits for the fill");
        drop(lane);
        assert_eq!(names(&held), "ac");
    }
}
