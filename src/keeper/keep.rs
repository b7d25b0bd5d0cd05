//! The keeper's one loop: waits for what servers say, for their ends, for signals and for time, and does
//! what follows. Everything that happens to a mount happens here, one thing after the other.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::SIGHUP;

use super::failure::{self, Failures};
use super::holdings::Holdings;
use super::program::Typed;
use super::refusing::Refusing;
use super::server::{Phase, Server};
use super::upgrade::{Candidate, Upgrade};
use super::{Error, MADE_ROOM, signals};
use crate::config::Config;
use crate::handover::Message;
use crate::handover::message::{Begin, Outcome, Standing, State};
use crate::mount;

/// A server that was given the mount has to serve within this.
const TAKE_PATIENCE: Duration = Duration::from_secs(120);
/// One that shall make room has to end within this.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// A standby that fails is tried again after this.
const STANDBY_PAUSE: Duration = Duration::from_secs(5);
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
    told: Option<Standing>,
}

impl<'a, R: FnOnce()> Keeper<'a, R> {
    /// Starts the first server.
    pub fn new(
        config: &'a Config,
        typed: Typed,
        background: bool,
        ready: R,
    ) -> Result<Keeper<'a, R>, Error> {
        let mut keeper = Keeper {
            config,
            typed,
            background,
            ready: Some(ready),
            signals: signals::watch().map_err(Error::Start)?,
            holdings: None,
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
        match () {
            () if !self.config.fence => NO_FENCE_INTERVAL,
            () if self.serving.is_none() && self.refusing.is_none() => self.failures.pause(),
            () if waits || self.upgrade.is_some() => SLEEP_WAITING,
            () if self.wants_standby() => until(self.standby_after),
            () => SLEEP_MAX,
        }
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

    fn signalled(&mut self) -> Option<Result<ExitCode, Error>> {
        let mut numbers = [0; 16];
        let got = self.signals.read(&mut numbers).unwrap_or(0);
        for number in &numbers[..got] {
            match i32::from(*number) {
                SIGHUP => self.try_again(),
                // Nothing was promised to anybody yet.
                _ if self.ready.is_some() => return Some(Ok(ExitCode::from(128 + number))),
                _ => self.unmount(*number),
            }
        }
        None
    }

    /// Unmounts on a thread of its own: that may take a while, and servers may die meanwhile.
    fn unmount(&mut self, signal: u8) {
        let mountpoint = self.config.mountpoint.clone();
        log::info!("signal {signal}: unmounting {}", mountpoint.display());
        self.ending = true;
        let unmount = move || {
            if let Err(error) = mount::unmount(&mountpoint) {
                log::error!("cannot unmount {}: {error}", mountpoint.display());
            }
        };
        let thread = thread::Builder::new().name("unmount".into());
        if let Err(error) = thread.spawn(unmount) {
            log::error!("cannot unmount: {error}");
        }
    }

    /// Gives servers another chance.
    fn try_again(&mut self) {
        if self.refusing.take().is_some() {
            log::info!("told to try again");
            self.failures.forget();
            self.succeed();
        }
        self.standby_after = Instant::now();
    }

    /// Hears all that a server has to say.
    fn listen(&mut self, role: Role) -> Option<Result<ExitCode, Error>> {
        while let Some((message, descriptors)) = self.server(role).and_then(Server::hear) {
            let outcome = self.said(role, message, descriptors);
            if outcome.is_some() {
                return outcome;
            }
        }
        None
    }

    fn said(
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
    fn is_warm(&mut self, role: Role) {
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

    /// The first server has opened what it needs: now there can be a mount.
    fn make_mount(&mut self) -> Option<Result<ExitCode, Error>> {
        match Holdings::make(self.config) {
            Ok(holdings) => self.holdings = Some(holdings),
            Err(error) => return Some(Err(error)),
        }
        self.hand_over();
        None
    }

    /// Gives the mount to the server that shall serve.
    fn hand_over(&mut self) {
        let standing = self.standing();
        if let (Some(server), Some(holdings)) = (&mut self.serving, &mut self.holdings) {
            server.tell(&Message::Standing(standing), &[]);
            holdings.hand_to(server);
            server.is(Phase::Taking);
        }
    }

    /// The mount is served.
    fn serves(&mut self) {
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
        }
    }

    /// A server's process is gone: what it said last counts, then somebody goes on.
    fn ended(&mut self, role: Role) -> Option<Result<ExitCode, Error>> {
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

    fn serving_ended(
        &mut self,
        status: ExitStatus,
        why: Option<String>,
        (phase, since): (Phase, Instant),
    ) -> Option<Result<ExitCode, Error>> {
        self.serving = None;
        let drained = self.draining.take();
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

    fn mount_ended(&self, status: ExitStatus, why: Option<String>) -> Result<ExitCode, Error> {
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
    fn failed(&mut self, why: String) {
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
    fn succeed(&mut self) {
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
        None
    }

    fn wants_standby(&self) -> bool {
        let serving = self.serving.as_ref();
        let serves = serving.is_some_and(|server| server.phase == Phase::Serving);
        serves && self.standby.is_none() && self.draining.is_none() && !self.ending
    }

    fn start_standby(&mut self) {
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

    fn standing(&self) -> Standing {
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
    fn tell_standing(&mut self) {
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

    fn begin_upgrade(&mut self, program: &std::path::Path) -> Result<(), String> {
        if self.candidate.is_some() || self.draining.is_some() {
            return Err("an upgrade is already being tried".into());
        }
        let candidate = Candidate::start(program, &self.typed, &self.begin())?;
        log::info!("an upgrade to {} is being tried", program.display());
        self.candidate = Some(candidate);
        Ok(())
    }

    /// The new program has come up: it takes over if it fits.
    fn judge_candidate(&mut self) {
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
    fn abandon_candidate(&mut self, status: &ExitStatus) {
        self.upgrades += 1;
        let failed = format!("the server ended meanwhile ({status}); try again");
        self.outcome = Some(Outcome {
            number: self.upgrades,
            failed: Some(failed.clone()),
            ..Outcome::default()
        });
        self.refuse_candidate(failed);
    }

    fn refuse_candidate(&mut self, why: String) {
        if let Some(candidate) = self.candidate.take() {
            candidate.server.put_down();
            log::warn!("the upgrade is refused: {why}");
            self.answer_upgrade(Some(why));
        }
    }

    fn answer_upgrade(&self, refused: Option<String>) {
        if let Some(server) = &self.serving {
            server.tell(&Message::Upgrading { refused }, &[]);
        }
    }

    /// At the end: no process and no mount stays.
    fn clear_away(&mut self) {
        put_down(self.standby.take());
        put_down(self.candidate.take().map(|candidate| candidate.server));
        put_down(self.serving.take());
        let held = self.holdings.take();
        let is_over = held.as_ref().is_none_or(Holdings::is_over);
        drop(held);
        let cleared = match (is_over, self.ready.is_some()) {
            (false, true) => mount::unmount(&self.config.mountpoint),
            _ => Ok(()),
        };
        if let Err(error) = cleared {
            log::warn!(
                "{} stays mounted: {error}",
                self.config.mountpoint.display()
            );
        }
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
