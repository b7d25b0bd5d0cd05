//! The daemon as the control socket sees it: asks the rooms below what they know, none of which waits,
//! and hands on what images are told to do.

use std::path::Path;
use std::sync::Arc;

use super::Source;
use super::actions::Actions;
use super::metrics::Facts;
use super::model::{MountStatus, StoreState, path_text};
use super::request::{Reply, Request};
use crate::cache::Pool;
use crate::config::Config;
use crate::handover::message::Outcome;
use crate::handover::{Kept, Ledger};
use crate::image::Images;
use crate::store::Store;
use crate::store::executor::{Executor, Health};

/// The parts of a running mount.
pub struct Daemon {
    mountpoint: String,
    store: String,
    executor: Arc<Executor>,
    pool: Arc<Pool>,
    images: Arc<Images>,
    actions: Actions,
    kept: Arc<Kept>,
    ledger: Arc<Ledger>,
}

impl Daemon {
    pub fn new(
        config: &Config,
        store: Arc<dyn Store>,
        executor: Arc<Executor>,
        pool: Arc<Pool>,
        images: Arc<Images>,
        kept: Arc<Kept>,
        ledger: Arc<Ledger>,
    ) -> Daemon {
        Daemon {
            mountpoint: path_text(&config.mountpoint),
            store: path_text(&config.store),
            actions: Actions::new(config, store, executor.clone(), images.clone()),
            executor,
            pool,
            images,
            kept,
            ledger,
        }
    }
}

impl Source for Daemon {
    fn status(&self) -> MountStatus {
        let standing = self.kept.standing();
        MountStatus {
            mountpoint: self.mountpoint.clone(),
            store: self.store.clone(),
            store_state: match self.executor.health() {
                Health::Responding => StoreState::Responding,
                Health::Hanging => StoreState::Hanging,
                Health::Failing => StoreState::Failing,
            },
            pid: self.kept.pid(),
            serving_pid: std::process::id(),
            restarts: self.ledger.restarts(),
            resent_requests: self.ledger.resent_requests(),
            handover: standing.state,
            handover_reason: standing.reason,
            pool: self.pool.status(),
            images: self.images.status(),
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            status: self.status(),
            latencies: self.images.latencies(),
            store_load: self.executor.load().into(),
            store_expired: self.executor.expired(),
        }
    }

    fn act(&self, request: Request, reply: Reply) {
        self.actions.act(request, reply);
    }

    fn upgrade(&self, program: &Path) -> Result<(), String> {
        // The next server waits for the end of every call of this one.
        if self.executor.health() == Health::Hanging {
            return Err("the store hangs; try again when it answers".into());
        }
        self.kept.upgrade(program)
    }

    fn upgraded(&self) -> Option<Outcome> {
        self.kept.standing().upgrade
    }
}
