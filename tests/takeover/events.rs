//! What happens to the serving process: it is killed with SIGKILL, or replaced by `flashside upgrade`. And
//! when that is over: another process serves, and I/O that began after that was seen is done.
//!
//! Touches the daemon's processes: only what status names as serving and what is in the daemon's group.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::pauses::Pauses;
use crate::prober::Probes;
use crate::rig::daemon::Daemon;
use crate::rig::{Rng, text};
use crate::scene::Plan;
use crate::serving::{Serving, State};
use crate::tally::{HANG, Tally};

/// Between an event that is over and the next one, at most.
const REST_MAX_MS: u64 = 300;
/// How often status is asked whether it is over.
const LOOK: Duration = Duration::from_millis(5);

/// What is done to the serving process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Kill,
    Upgrade,
}

/// Whoever does it.
pub struct Hand<'a> {
    pub daemon: &'a Daemon,
    pub serving: &'a Serving,
    pub reads: &'a Probes,
    pub writes: &'a Probes,
    pub tally: &'a Tally,
}

impl Hand<'_> {
    /// What is planned, upgrades spread evenly; the pauses of the kills and of the upgrades. Ends early when
    /// an event is not over in time.
    pub fn run(&self, plan: &Plan, rng: &mut Rng) -> [Pauses; 2] {
        let mut pauses = [Pauses::default(), Pauses::default()];
        let (upgrades, events) = (plan.upgrades, plan.kills + plan.upgrades);
        for number in 0..events {
            // The last of each group of so many is an upgrade.
            let upgraded = |events_done: u64| events_done * upgrades / events;
            let event = match upgraded(number + 1) > upgraded(number) {
                true => Event::Upgrade,
                false => Event::Kill,
            };
            if plan.until_wrong && self.tally.wrong() != [0; 3] {
                break;
            }
            std::thread::sleep(Duration::from_millis(rng.below(REST_MAX_MS)));
            match self.one(event) {
                Ok((read, write)) => pauses[event as usize].add(read, write),
                Err(what) => {
                    self.tally.hang(&format!("event {number}: {what}"));
                    break;
                }
            }
        }
        pauses
    }

    /// One event; the pauses that the reading and the writing prober met.
    fn one(&self, event: Event) -> Result<(Duration, Duration), String> {
        let before = self.wait("no status", || self.serving.state())?;
        let begun = Instant::now();
        match event {
            Event::Kill => self.kill(before)?,
            Event::Upgrade => self.upgrade()?,
        }
        let other = |state: &State| state.pid != before.pid;
        self.wait("nobody serves", || self.serving.state().filter(other))?;
        let seen = Instant::now();
        let done = || self.reads.done_since(seen) && self.writes.done_since(seen);
        self.wait("no I/O", || done().then_some(()))?;
        let pause = |probes: &Probes| {
            let (begin, end) = probes.met(begun, seen).unwrap_or((begun, begun));
            match event {
                Event::Kill => end - begun,
                // Its command does much before anybody has to wait.
                Event::Upgrade => end - begin,
            }
        };
        Ok((pause(self.reads), pause(self.writes)))
    }

    fn kill(&self, serving: State) -> Result<(), String> {
        if !self.daemon.group().members().contains(&serving.pid) {
            return Err(format!("{} is none of its processes", serving.pid));
        }
        // SAFETY: a plain system call; the process is of the group that this test started.
        unsafe { libc::kill(serving.pid, libc::SIGKILL) };
        Ok(())
    }

    /// To the same binary.
    fn upgrade(&self) -> Result<(), String> {
        let output = Command::new(crate::rig::daemon::program())
            .args(["upgrade", text(self.daemon.mountpoint())])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("flashside upgrade: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let done = output.status.success().then_some(());
        done.ok_or_else(|| format!("flashside upgrade: {said}"))
    }

    fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, String> {
        let begun = Instant::now();
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if begun.elapsed() > HANG {
                return Err(format!("{what} within {HANG:?}"));
            }
            std::thread::sleep(LOOK);
        }
    }
}
