//! The keeper's one loop: waits for what servers say, for their ends, for signals and for time, and does
//! what follows ([`words`], [`succession`], [`orders`], [`upgrading`]). Everything that happens to a mount
//! happens on this thread, one thing after the other.

mod orders;
mod succession;
mod upgrading;
mod words;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::failure::{self, Failures};
use super::holdings::Holdings;
use super::program::Typed;
use super::refusing::Refusing;
use super::server::{Phase, Server};
use super::systemd::{Left, Life};
use super::upgrade::{Candidate, Upgrade};
use super::{Error, signals};
use crate::config::Config;
use crate::handover::message::{Begin, Outcome, Standing};

/// A server that was given the mount has to serve within this.
const TAKE_PATIENCE: Duration = Duration::from_secs(120);
/// One that shall make room has to end within this.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// Longest sleep while something has a deadline.
const SLEEP_WAITING: Duration = Duration::from_millis(500);
/// Longest sleep; nothing depends on it.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// How often a half-dead server is looked for, in tests.
const NO_FENCE_INTERVAL: Duration = Duration::from_millis(1);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Has the mount or is about to get it.
    Serving,
    Standby,
    Candidate,
}

const ROLES: [Role; 3] = [Role::Serving, Role::Standby, Role::Candidate];

/// What was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    Signal,
    Said(Role),
    Ended(Role),
    Request,
    Question,
}

/// A mount and its servers.
pub struct Keeper<'a, R> {
    config: &'a Config,
    typed: Typed,
    background: bool,
    /// Called when the mount answers for the first time.
    ready: Option<R>,
    signals: UnixStream,
    holdings: Option<Holdings>,
    serving: Option<Server>,
    standby: Option<Server>,
    candidate: Option<Candidate>,
    failures: Failures,
    /// No standby is started before.
    standby_after: Instant,
    standby_trouble: Option<String>,
    upgrade: Option<Upgrade>,
    /// What came of the last one.
    outcome: Option<Outcome>,
    upgrades: u64,
    /// The serving one was told to make room.
    draining: Option<Instant>,
    refusing: Option<Refusing>,
    ending: bool,
    /// The mount was there before this keeper.
    took_on: bool,
    /// Told to end without the mount ending: another keeper goes on.
    leaving: bool,
    life: Life,
    told: Option<Standing>,
}

impl<'a, R: FnOnce()> Keeper<'a, R> {
    /// Starts the first server.
    pub fn new(
        config: &'a Config,
        typed: Typed,
        background: bool,
        left: Option<Left>,
        ready: R,
    ) -> Result<Keeper<'a, R>, Error> {
        let took_on = left.is_some();
        let holdings = left.map(|left| Holdings::take_on(config, left));
        let mut keeper = Keeper {
            config,
            typed,
            background,
            ready: Some(ready),
            signals: signals::watch().map_err(Error::Start)?,
            holdings: holdings.transpose()?,
            serving: None,
            standby: None,
            candidate: None,
            failures: Failures::default(),
            standby_after: Instant::now(),
            standby_trouble: None,
            upgrade: None,
            outcome: None,
            upgrades: 0,
            draining: None,
            refusing: None,
            ending: false,
            took_on,
            leaving: false,
            life: Life::begin(),
            told: None,
        };
        keeper.serving = Some(keeper.start().map_err(Error::Start)?);
        Ok(keeper)
    }

    /// Keeps the mount until it is gone.
    pub fn keep(mut self) -> Result<ExitCode, Error> {
        let outcome = loop {
            let woken = self.wait().map_err(Error::Start)?;
            let outcome = woken.into_iter().find_map(|wake| self.happened(wake));
            if let Some(outcome) = outcome.or_else(|| self.on_time()) {
                break outcome;
            }
            self.tell_standing();
        };
        self.clear_away();
        outcome
    }

    fn start(&self) -> io::Result<Server> {
        let (typed, begin) = (&self.typed, self.begin());
        Server::start(typed, &typed.program, typed.file.as_ref(), &begin)
    }

    fn begin(&self) -> Begin {
        Begin {
            store: self.config.store.clone(),
            mountpoint: self.config.mountpoint.clone(),
            configuration: self.typed.file.as_ref().map(|file| file.path.clone()),
            keeper_pid: std::process::id(),
            syslog: self.background && self.ready.is_none(),
            background: self.background,
        }
    }

    fn server(&mut self, role: Role) -> Option<&mut Server> {
        match role {
            Role::Serving => self.serving.as_mut(),
            Role::Standby => self.standby.as_mut(),
            Role::Candidate => self
                .candidate
                .as_mut()
                .map(|candidate| &mut candidate.server),
        }
    }

    /// Waits for something to happen, or some time.
    fn wait(&mut self) -> io::Result<Vec<Wake>> {
        let mut watched = vec![(self.signals.as_raw_fd(), Wake::Signal)];
        for role in ROLES {
            if let Some(server) = self.server(role) {
                watched.push((server.end(), Wake::Ended(role)));
                if server.listens {
                    watched.push((server.voice(), Wake::Said(role)));
                }
            }
        }
        if let (Some(_), Some(held)) = (&self.refusing, &self.holdings) {
            let device = held.device().map(|device| device.as_raw_fd());
            watched.extend(device.map(|device| (device, Wake::Request)));
            watched.push((held.listener().as_raw_fd(), Wake::Question));
        }
        let mut woken = poll(&watched, self.patience())?;
        if !self.config.fence && self.serving.as_ref().is_some_and(Server::is_half_dead) {
            woken.push(Wake::Ended(Role::Serving));
        }
        woken.dedup();
        Ok(woken)
    }

    /// How long nothing is due.
    fn patience(&self) -> Duration {
        let is = |phase| {
            self.serving
                .as_ref()
                .is_some_and(|server| server.phase == phase)
        };
        let waits = is(Phase::Taking) || self.draining.is_some() || self.candidate.is_some();
        let until = |due: Instant| due.saturating_duration_since(Instant::now());
        let sign = self.life.due().unwrap_or(SLEEP_MAX);
        let due = match () {
            () if !self.config.fence => NO_FENCE_INTERVAL,
            () if self.serving.is_none() && self.refusing.is_none() => self.failures.pause(),
            () if waits || self.upgrade.is_some() => SLEEP_WAITING,
            () if self.wants_standby() => until(self.standby_after),
            () => SLEEP_MAX,
        };
        due.min(sign)
    }

    /// Does what follows; the outcome ends the keeper.
    fn happened(&mut self, wake: Wake) -> Option<Result<ExitCode, Error>> {
        match wake {
            Wake::Signal => self.signalled(),
            Wake::Said(role) => self.listen(role),
            Wake::Ended(role) => self.ended(role),
            Wake::Request => {
                let device = self.holdings.as_ref().and_then(Holdings::device);
                let refusing = self.refusing.as_mut().zip(device);
                let there = refusing.is_none_or(|(refusing, device)| refusing.answer(device));
                (!there).then_some(Ok(ExitCode::SUCCESS))
            }
            Wake::Question => {
                if let (Some(refusing), Some(held)) = (&self.refusing, &self.holdings) {
                    refusing.tell(held.listener());
                }
                None
            }
        }
    }

    /// What is due without anything having happened.
    fn on_time(&mut self) -> Option<Result<ExitCode, Error>> {
        if let Some(server) = &mut self.serving {
            let late = server.phase == Phase::Taking && server.since.elapsed() > TAKE_PATIENCE;
            let stuck = self
                .draining
                .is_some_and(|since| since.elapsed() > DRAIN_PATIENCE);
            if late || stuck {
                log::error!("the server does not get on: it is ended");
                server.kill();
            }
            if server.phase == Phase::Serving && failure::is_proven(server.since) {
                self.failures.forget();
                self.upgrade = None; // nothing to go back to any more
            }
        } else if self.refusing.is_none() && self.failures.pause().is_zero() {
            self.succeed();
        }
        if self.candidate.as_ref().is_some_and(Candidate::is_late) {
            self.refuse_candidate("it does not come up; is it a flashside program?".into());
        }
        self.start_standby();
        if self.life.is_due() {
            self.give_sign();
        }
        None
    }
}

fn put_down(server: Option<Server>) {
    if let Some(server) = server {
        server.put_down();
    }
}

/// Which of these can be read or have ended, after at most `patience`.
fn poll(watched: &[(RawFd, Wake)], patience: Duration) -> io::Result<Vec<Wake>> {
    let mut descriptors: Vec<libc::pollfd> = watched
        .iter()
        .map(|(descriptor, _)| libc::pollfd {
            fd: *descriptor,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let milliseconds = i32::try_from(patience.as_millis())
        .unwrap_or(i32::MAX)
        .max(1);
    let count = descriptors.len() as libc::nfds_t;
    // SAFETY: the array lives through the call and is as long as said.
    let ready = unsafe { libc::poll(descriptors.as_mut_ptr(), count, milliseconds) };
    if ready < 0 {
        return match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            error => Err(error),
        };
    }
    let ready = descriptors
        .iter()
        .zip(watched)
        .filter(|(descriptor, _)| descriptor.revents != 0);
    Ok(ready.map(|(_, (_, wake))| *wake).collect())
}
