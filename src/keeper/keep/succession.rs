//! From one server to the next: who serves when another ends, and who waits.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use super::{Keeper, Role, put_down};
use crate::handover::Message;
use crate::keeper::holdings::Holdings;
use crate::keeper::refusing::Refusing;
use crate::keeper::server::Phase;
use crate::keeper::upgrade::Upgrade;
use crate::keeper::{Error, MADE_ROOM, failure, systemd};

/// A standby that fails is tried again after this.
const STANDBY_PAUSE: Duration = Duration::from_secs(5);

impl<R: FnOnce()> Keeper<'_, R> {
    /// The first server has opened what it needs: now there can be a mount.
    pub(super) fn make_mount(&mut self) -> Option<Result<ExitCode, Error>> {
        match Holdings::make(self.config) {
            Ok(holdings) => self.holdings = Some(holdings),
            Err(error) => return Some(Err(error)),
        }
        self.hand_over();
        None
    }

    /// Gives the mount to the server that shall serve.
    pub(super) fn hand_over(&mut self) {
        let standing = self.standing();
        if let (Some(server), Some(holdings)) = (&mut self.serving, &mut self.holdings) {
            server.tell(&Message::Standing(standing), &[]);
            holdings.hand_to(server);
            server.is(Phase::Taking);
        }
    }

    /// The mount is served.
    pub(super) fn serves(&mut self) {
        if let Some(server) = &mut self.serving {
            server.is(Phase::Serving);
            if self.ready.is_none() {
                log::info!(
                    "process {} serves {} now",
                    server.pid(),
                    self.config.mountpoint.display()
                );
            }
        }
        self.told = None;
        if let Some(outcome) = self.upgrade.as_mut().and_then(Upgrade::served) {
            self.outcome = Some(outcome);
        }
        if let Some(ready) = self.ready.take() {
            ready();
            systemd::ready();
        }
        if let Some(server) = &self.serving {
            systemd::says(&format!("process {} serves", server.pid()));
        }
    }

    /// A server's process is gone: what it said last counts, then somebody goes on.
    pub(super) fn ended(&mut self, role: Role) -> Option<Result<ExitCode, Error>> {
        let said = self.listen(role);
        let server = self.server(role)?;
        let killed = || ExitStatus::from_raw(libc::SIGKILL); // half dead, in tests
        let status = server.status().unwrap_or_else(killed);
        let why = server.refused.clone();
        let phase = (server.phase, server.since);
        match role {
            Role::Serving => said.or_else(|| self.serving_ended(status, why, phase)),
            Role::Standby => {
                self.standby = None;
                let why = why.unwrap_or_else(|| status.to_string());
                if self.standby_trouble.as_ref() != Some(&why) {
                    log::warn!("no other server can be started: {why}; trying again");
                }
                self.standby_trouble = Some(why);
                self.standby_after = Instant::now() + STANDBY_PAUSE;
                None
            }
            Role::Candidate => {
                let none_of_ours = || format!("it is no flashside server, it ended with {status}");
                self.refuse_candidate(why.unwrap_or_else(none_of_ours));
                None
            }
        }
    }

    pub(super) fn serving_ended(
        &mut self,
        status: ExitStatus,
        why: Option<String>,
        (phase, since): (Phase, Instant),
    ) -> Option<Result<ExitCode, Error>> {
        self.serving = None;
        let drained = self.draining.take();
        if self.leaving {
            return Some(Ok(ExitCode::SUCCESS));
        }
        if self.ready.is_some() {
            let error = why.map_or(Error::Died(status), Error::Refused);
            return Some(Err(error));
        }
        if self.holdings.as_ref().is_none_or(Holdings::is_over) {
            return Some(self.mount_ended(status, why));
        }
        if self.candidate.is_some() {
            self.abandon_candidate(&status);
        }
        let made_room = drained.is_some() || status.code() == Some(MADE_ROOM);
        let killed = status.signal() == Some(libc::SIGKILL);
        if made_room || killed || (phase == Phase::Serving && failure::is_proven(since)) {
            if !made_room {
                log::error!("the server ended ({status}): another one takes over");
            }
            self.failures.forget();
            self.succeed();
            return None;
        }
        let why = why.unwrap_or_else(|| status.to_string());
        self.failed(why);
        None
    }

    pub(super) fn mount_ended(
        &self,
        status: ExitStatus,
        why: Option<String>,
    ) -> Result<ExitCode, Error> {
        match (status.success(), why) {
            (true, _) => Ok(ExitCode::SUCCESS),
            (false, Some(why)) => Err(Error::Refused(why)),
            (false, None) => Err(Error::EndedBadly {
                mountpoint: self.config.mountpoint.clone(),
                status,
            }),
        }
    }

    /// The server could not serve, or crashed at once.
    pub(super) fn failed(&mut self, why: String) {
        log::error!("the server failed: {why}");
        if let Some(upgrade) = &mut self.upgrade
            && upgrade.outcome.failed.is_none()
        {
            upgrade.go_back(&mut self.typed, &why);
            log::error!("the program before the upgrade serves again");
            put_down(self.standby.take());
            self.succeed();
            return;
        }
        if !self.failures.one_more() {
            return; // on_time goes on after a pause
        }
        let device = self.holdings.as_ref().and_then(Holdings::device);
        if let Some(device) = device {
            let mountpoint = self.config.mountpoint.display();
            let why = format!(
                "no server can be started for {mountpoint}, which answers EIO: {why}; mend that and send \
                 SIGHUP to process {}, or unmount",
                std::process::id()
            );
            log::error!("{why}");
            self.refusing = Some(Refusing::begin(why, device));
        }
    }

    /// The standby becomes the server; without one, one is started.
    pub(super) fn succeed(&mut self) {
        let next = self.standby.take().map_or_else(|| self.start(), Ok);
        match next {
            Ok(server) => {
                let is_warm = server.phase == Phase::Warm;
                self.serving = Some(server);
                if is_warm {
                    self.hand_over();
                }
            }
            Err(error) => self.failed(format!("cannot start a server: {error}")),
        }
    }

    pub(super) fn wants_standby(&self) -> bool {
        let serving = self.serving.as_ref();
        let serves = serving.is_some_and(|server| server.phase == Phase::Serving);
        serves && self.standby.is_none() && self.draining.is_none() && !self.ending
    }

    pub(super) fn start_standby(&mut self) {
        if !self.wants_standby() || Instant::now() < self.standby_after {
            return;
        }
        match self.start() {
            Ok(server) => self.standby = Some(server),
            Err(error) => {
                self.standby_trouble = Some(format!("cannot start a server: {error}"));
                self.standby_after = Instant::now() + STANDBY_PAUSE;
            }
        }
    }
}
