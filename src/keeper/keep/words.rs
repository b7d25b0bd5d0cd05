//! What servers say and are told.

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use super::{Keeper, Role};
use crate::handover::Message;
use crate::handover::message::{Standing, State};
use crate::keeper::Error;
use crate::keeper::server::{Phase, Server};
use crate::keeper::systemd;

impl<R: FnOnce()> Keeper<'_, R> {
    /// Hears all that a server has to say.
    pub(super) fn listen(&mut self, role: Role) -> Option<Result<ExitCode, Error>> {
        while let Some((message, descriptors)) = self.server(role).and_then(Server::hear) {
            let outcome = self.said(role, message, descriptors);
            if outcome.is_some() {
                return outcome;
            }
        }
        None
    }

    pub(super) fn said(
        &mut self,
        role: Role,
        message: Message,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Result<ExitCode, Error>> {
        match message {
            Message::Hello(hello) => {
                let server = self.server(role)?;
                server.hello = Some(hello);
                server.is(Phase::Warm);
                self.is_warm(role);
            }
            Message::Opened => return self.make_mount(),
            Message::Serving => self.serves(),
            Message::Refused { why } => self.server(role)?.refused = Some(why),
            Message::Hold { number } => {
                let held = self.holdings.as_mut().zip(descriptors.into_iter().next());
                if let Some((holdings, file)) = held {
                    holdings.hold(number, file);
                }
            }
            Message::Pong => self.server(role)?.unanswered = false,
            Message::LetGo { number } => self.holdings.as_mut()?.let_go(number),
            Message::Upgrade { program } => {
                let refused = self.begin_upgrade(&program).err();
                if refused.is_some() {
                    self.answer_upgrade(refused);
                }
            }
            _ => {}
        }
        None
    }

    /// A server is ready, up to the cache.
    pub(super) fn is_warm(&mut self, role: Role) {
        match role {
            Role::Serving if self.holdings.is_none() => {
                if let Some(server) = &mut self.serving {
                    server.tell(&Message::Open, &[]);
                    server.is(Phase::Opening);
                }
            }
            Role::Serving => self.hand_over(),
            Role::Standby => self.standby_trouble = None,
            Role::Candidate => self.judge_candidate(),
        }
    }

    /// Tells systemd that all is well, as long as the server answers; and asks it once more.
    pub(super) fn give_sign(&mut self) {
        let serving = self.serving.as_mut();
        let serving = serving.filter(|server| server.phase == Phase::Serving);
        if serving.is_none_or(|server| server.answers_again()) {
            systemd::alive();
        }
    }

    pub(super) fn standing(&self) -> Standing {
        let state = match &self.standby {
            Some(server) if server.phase == Phase::Warm => State::Ready,
            _ => State::Starting,
        };
        Standing {
            state,
            reason: self
                .standby_trouble
                .clone()
                .filter(|_| state != State::Ready),
            upgrade: self.outcome.clone(),
        }
    }

    /// Tells the server how the hand-over stands, where that has changed.
    pub(super) fn tell_standing(&mut self) {
        let standing = self.standing();
        let server = self.serving.as_ref();
        let serving = server.filter(|server| server.phase == Phase::Serving);
        if let Some(server) = serving
            && self.told.as_ref() != Some(&standing)
        {
            server.tell(&Message::Standing(standing.clone()), &[]);
            self.told = Some(standing);
        }
    }
}
