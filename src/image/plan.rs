//! How to get pages that are asked for: which are resident, which are on their way, which have to be
//! fetched. Worked out under the lanes' lock, where the fetches to begin are registered at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cache::pagemap::State;
use crate::cache::{PAGE_BYTES, PAGES_PER_BLOCK, Pages, blocks_of};
use crate::io::Buffer;

use super::Image;
use super::fetch::{Fetch, missing_runs};
use super::lanes;

/// What is asked for besides the pages.
pub struct Wish {
    /// Fetches to begin at most.
    pub begin_max: usize,
    /// The cache takes what is fetched.
    pub fill: bool,
    /// Blocks are fetched as a whole, not just the pages asked for.
    pub whole_blocks: bool,
    /// What is kept in memory need not be fetched.
    pub use_kept: bool,
}

/// Where pages come from.
#[derive(Default)]
pub struct Plan {
    pub resident: Vec<Pages>,
    /// In memory: the fetch that brought them, its bytes, the pages.
    pub kept: Vec<(Arc<Fetch>, Arc<Buffer>, Pages)>,
    /// To be begun now.
    pub begin: Vec<Arc<Fetch>>,
    /// Under way.
    pub join: Vec<(Arc<Fetch>, Pages)>,
    /// The first page that is missing and not begun, as there was too much to begin.
    pub not_begun: Option<u64>,
}

impl Plan {
    /// Waits for `wanted` from `fetch`, once for consecutive blocks.
    fn add_join(&mut self, fetch: &Arc<Fetch>, wanted: Pages) {
        match self.join.last_mut() {
            Some((last, pages)) if Arc::ptr_eq(last, fetch) && pages.end == wanted.start => {
                pages.end = wanted.end;
            }
            _ => self.join.push((fetch.clone(), wanted)),
        }
    }
}

impl Image {
    /// Works out how to get `pages`, and registers the fetches that have to be begun.
    pub(super) fn plan(&self, pages: &Pages, wish: &Wish) -> Plan {
        let entry = self.entry();
        let era = entry.as_ref().map(|entry| entry.era());
        let state = |pages: &Pages| {
            entry
                .as_ref()
                .map_or(State::Missing, |entry| entry.state(pages))
        };
        let end_of_image = self.size_bytes().div_ceil(PAGE_BYTES);
        let blocks_max = super::fetch::blocks_max(self.fetching_bytes().load(Ordering::Acquire));
        self.lanes.with(|lanes| {
            let mut plan = Plan::default();
            let mut runs: Vec<Pages> = Vec::new();
            for block in blocks_of(pages) {
                let base = block * PAGES_PER_BLOCK;
                let wanted = pages.start.max(base)..pages.end.min(base + PAGES_PER_BLOCK);
                if state(&wanted) != State::Missing {
                    plan.resident.push(wanted);
                } else if let Some((fetch, bytes)) =
                    lanes.kept_bytes(&wanted, era).filter(|_| wish.use_kept)
                {
                    plan.kept.push((fetch, bytes, wanted));
                } else if let Some(fetch) = lanes.fetches.get(&block) {
                    plan.add_join(fetch, wanted);
                } else if wish.whole_blocks {
                    let whole = base..(base + PAGES_PER_BLOCK).min(end_of_image);
                    let pages = missing_in(&whole, &wanted, &state);
                    add_to_runs(&mut runs, &pages, blocks_max);
                } else {
                    add_to_runs(&mut runs, &wanted, blocks_max);
                }
            }
            plan.not_begun = runs.get(wish.begin_max).map(|run| run.start);
            plan.begin = runs
                .into_iter()
                .take(wish.begin_max)
                .map(|run| register(lanes, run, wish.fill))
                .collect();
            plan
        })
    }
}

/// What to fetch of a block: from its first to its last missing page, and all that is wanted.
fn missing_in(whole: &Pages, wanted: &Pages, state: &impl Fn(&Pages) -> State) -> Pages {
    let runs = missing_runs(whole, |page| state(&(page..page + 1)));
    let first = runs.first().map_or(wanted.start, |run| run.start);
    let end = runs.last().map_or(wanted.end, |run| run.end);
    first.min(wanted.start)..end.max(wanted.end)
}

/// Adds `pages` to the last run where they follow it and the run stays small enough.
fn add_to_runs(runs: &mut Vec<Pages>, pages: &Pages, blocks_max: u64) {
    let fits = |run: &Pages| {
        let blocks = blocks_of(&(run.start..pages.end));
        run.end == pages.start && blocks.end - blocks.start <= blocks_max
    };
    match runs.last_mut() {
        Some(run) if fits(run) => run.end = pages.end,
        _ => runs.push(pages.clone()),
    }
}

fn register(lanes: &mut lanes::State, pages: Pages, fill: bool) -> Arc<Fetch> {
    let fetch = Arc::new(Fetch::new(pages.clone(), lanes.taken(&pages), fill));
    for block in blocks_of(&pages) {
        lanes.fetches.insert(block, fetch.clone());
    }
    fetch
}
