//! What the keeper is told from outside, by signals, and its own end.

use std::io::Read;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use signal_hook::consts::{SIGHUP, SIGUSR1};

use super::{Keeper, put_down};
use crate::handover::Message;
use crate::keeper::Error;
use crate::keeper::holdings::Holdings;
use crate::keeper::server::Phase;
use crate::mount;

impl<R: FnOnce()> Keeper<'_, R> {
    pub(super) fn signalled(&mut self) -> Option<Result<ExitCode, Error>> {
        let mut numbers = [0; 16];
        let got = self.signals.read(&mut numbers).unwrap_or(0);
        for number in &numbers[..got] {
            match i32::from(*number) {
                SIGHUP => self.try_again(),
                SIGUSR1 => {
                    if self.leave() {
                        return Some(Ok(ExitCode::SUCCESS));
                    }
                }
                _ if self.leaving => {} // systemd asks once more
                // Nothing was promised to anybody yet.
                _ if self.ready.is_some() && !self.took_on => {
                    return Some(Ok(ExitCode::from(128 + number)));
                }
                _ => self.unmount(*number),
            }
        }
        None
    }

    /// Unmounts on a thread of its own: that may take a while, and servers may die meanwhile.
    pub(super) fn unmount(&mut self, signal: u8) {
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

    /// Makes room for another keeper, which is about to be started. True where no server has to end first.
    pub(super) fn leave(&mut self) -> bool {
        if !self.holdings.as_ref().is_some_and(Holdings::is_stored) {
            log::warn!(
                "signal {SIGUSR1}: nobody holds the mount for another keeper; it goes on here"
            );
            return false;
        }
        log::info!("leaving the mount to another keeper");
        self.leaving = true;
        let serving = self.serving.as_ref();
        let Some(server) = serving.filter(|server| server.phase == Phase::Serving) else {
            return true;
        };
        server.tell(&Message::Drain, &[]);
        self.draining = Some(Instant::now());
        false
    }

    /// Gives servers another chance.
    pub(super) fn try_again(&mut self) {
        if self.refusing.take().is_some() {
            log::info!("told to try again");
            self.failures.forget();
            self.succeed();
        }
        self.standby_after = Instant::now();
    }

    /// At the end: no process and no mount stays.
    pub(super) fn clear_away(&mut self) {
        put_down(self.standby.take());
        put_down(self.candidate.take().map(|candidate| candidate.server));
        put_down(self.serving.take());
        let mut held = self.holdings.take();
        let stays = self.leaving || (self.took_on && self.ready.is_some());
        if stays && !held.as_ref().is_some_and(Holdings::is_over) {
            if let Some(held) = held.take() {
                held.leave();
            }
            return;
        }
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
