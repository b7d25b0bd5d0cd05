//! The steps of an upgrade. What is tried and gone back to is in [`crate::keeper::upgrade`].

use std::path::Path;
use std::process::ExitStatus;
use std::time::Instant;

use super::{Keeper, put_down};
use crate::handover::Message;
use crate::handover::message::Outcome;
use crate::keeper::server::Phase;
use crate::keeper::upgrade::Candidate;

impl<R: FnOnce()> Keeper<'_, R> {
    pub(super) fn begin_upgrade(&mut self, program: &Path) -> Result<(), String> {
        if self.candidate.is_some() || self.draining.is_some() {
            return Err("an upgrade is already being tried".into());
        }
        let candidate = Candidate::start(program, &self.typed, &self.begin())?;
        log::info!("an upgrade to {} is being tried", program.display());
        self.candidate = Some(candidate);
        Ok(())
    }

    /// The new program has come up: it takes over if it fits.
    pub(super) fn judge_candidate(&mut self) {
        let serving = self
            .serving
            .as_ref()
            .filter(|server| server.phase == Phase::Serving);
        let Some(serving) = serving.and_then(|server| server.hello.clone()) else {
            return self.refuse_candidate("no server serves now; try again".into());
        };
        let Some(candidate) = self.candidate.take() else {
            return;
        };
        if let Some(misfit) = candidate.misfit(&serving) {
            self.candidate = Some(candidate);
            return self.refuse_candidate(misfit);
        }
        self.upgrades += 1;
        let (server, upgrade) = candidate.accept(&mut self.typed, &serving, self.upgrades);
        put_down(self.standby.take());
        self.standby = Some(server);
        self.upgrade = Some(upgrade);
        self.answer_upgrade(None);
        self.draining = Some(Instant::now());
        if let Some(server) = &self.serving {
            server.tell(&Message::Drain, &[]);
        }
    }

    /// Who asked was told nothing and asks the next server.
    pub(super) fn abandon_candidate(&mut self, status: &ExitStatus) {
        self.upgrades += 1;
        let failed = format!("the server ended meanwhile ({status}); try again");
        self.outcome = Some(Outcome {
            number: self.upgrades,
            failed: Some(failed.clone()),
            ..Outcome::default()
        });
        self.refuse_candidate(failed);
    }

    pub(super) fn refuse_candidate(&mut self, why: String) {
        if let Some(candidate) = self.candidate.take() {
            candidate.server.put_down();
            log::warn!("the upgrade is refused: {why}");
            self.answer_upgrade(Some(why));
        }
    }

    pub(super) fn answer_upgrade(&self, refused: Option<String>) {
        if let Some(server) = &self.serving {
            server.tell(&Message::Upgrading { refused }, &[]);
        }
    }
}
