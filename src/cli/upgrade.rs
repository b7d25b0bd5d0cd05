//! `flashside upgrade`: a mount goes on with another program, and its users notice a pause at most.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::Error;
use crate::config::{self, FileText};
use crate::control::{ClientError, client, find};
use crate::handover::message::Outcome;

/// A hand-over that has not ended then is said to go on.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often the outcome is asked for.
const INTERVAL: Duration = Duration::from_millis(50);
/// One question waits this long: between two servers nobody answers.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Let a mount go on with another version of the program
#[derive(Args)]
#[command(
    long_about = "Let a mount go on with another version of the program.\n\n\
        The new program is started and checked first, with the configuration file as it is now; one \
        that does not fit is refused and nothing changes. Then it takes over: open files stay open, \
        requests wait for some milliseconds. If it fails, the old program serves again.",
    after_long_help = "Example, after the package was upgraded:\n    flashside upgrade /srv/vms"
)]
pub struct Upgrade {
    /// The mount; may be left out where there is one only
    #[arg(value_name = "MOUNTPOINT")]
    mount: Option<PathBuf>,
    /// The same, as other commands have it
    #[arg(long, value_name = "DIR", conflicts_with = "mount")]
    mountpoint: Option<PathBuf>,
    /// The mount of this configuration file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mount", "mountpoint"])]
    config: Option<PathBuf>,
    /// Hand over to this program [default: the one that runs this command]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

impl Upgrade {
    /// Prints what came of it in one line.
    pub fn run(self) -> Result<ExitCode, Error> {
        let mountpoint = self.mountpoint()?;
        let program = match &self.program {
            Some(program) => std::path::absolute(program).map_err(Error::Start)?,
            None => std::env::current_exe().map_err(Error::Start)?,
        };
        let socket = find::socket_of(&mountpoint);
        let socket = socket.ok_or_else(|| Error::DeadDaemon(mountpoint.clone()))?;
        let failed = |error| Error::NotUpgraded {
            mountpoint: mountpoint.clone(),
            error,
        };
        let before = client::upgraded(&socket, ANSWER_DEADLINE).map_err(failed)?;
        client::upgrade(&socket, &program).map_err(failed)?;
        let outcome = wait(&socket, before.as_ref()).map_err(failed)?;
        report(&mountpoint, &outcome)
    }

    fn mountpoint(&self) -> Result<PathBuf, Error> {
        let all = find::mountpoints().map_err(Error::MountTable)?;
        let configured = self.config.as_deref().map(configured).transpose()?;
        let typed = self.mount.as_ref().or(self.mountpoint.as_ref());
        let Some(wanted) = configured.as_ref().or(typed) else {
            return match all.as_slice() {
                [only] => Ok(only.clone()),
                several => Err(Error::WhichMount(several.len())),
            };
        };
        let place = find::place_of(wanted).map_err(Error::MountTable)?;
        match place {
            Some(place) if place.below.as_os_str().is_empty() => Ok(place.mountpoint),
            _ => Err(Error::NotAMount(wanted.clone())),
        }
    }
}

/// The mount point that a configuration file names.
fn configured(file: &Path) -> Result<PathBuf, Error> {
    let settings = FileText::read(file)?.settings()?;
    Ok(settings.mountpoint.ok_or_else(|| config::Error::NoPlace {
        what: "mountpoint",
        path: file.to_path_buf(),
    })?)
}

/// Waits until the servers tell of another upgrade than the one `before`.
fn wait(socket: &Path, before: Option<&Outcome>) -> Result<Outcome, ClientError> {
    let end = Instant::now() + DEADLINE;
    loop {
        match client::upgraded(socket, ANSWER_DEADLINE) {
            Ok(Some(now)) if Some(now.number) != before.map(|before| before.number) => {
                return Ok(now);
            }
            Err(error @ ClientError::Refused { .. }) => return Err(error),
            _ if Instant::now() >= end => return Err(ClientError::Deadline(DEADLINE)),
            _ => thread::sleep(INTERVAL),
        }
    }
}

fn report(mountpoint: &Path, outcome: &Outcome) -> Result<ExitCode, Error> {
    let (from, to, pause) = (&outcome.from, &outcome.to, outcome.pause_ms);
    if let Some(why) = &outcome.failed {
        let why = format!("{why}; {from} serves again, after a pause of {pause} ms");
        return Err(Error::NotUpgraded {
            mountpoint: mountpoint.to_path_buf(),
            error: ClientError::NotDone(why),
        });
    }
    println!(
        "{}: {from} handed over to {to}, with a pause of {pause} ms",
        mountpoint.display()
    );
    Ok(ExitCode::SUCCESS)
}
