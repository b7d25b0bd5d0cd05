//! The keeper: the process that a mount belongs to. It mounts, holds every descriptor of the connection,
//! and starts *servers*, of which one serves; when that one ends before the mount does, the next goes on.
//!
//! Small and dull on purpose: it knows nothing of images or inodes, holds what it is given, waits, and does
//! little else, so that it need not be replaced while the mount lives.
//!
//! May touch: the mount table, the control socket's file, processes that it started.
//!
//! # Order of steps
//! Mount: a first server opens store and cache, so that what is refused is refused before there is a mount;
//! then control socket, mount, INIT, all descriptors; the server takes them and serves; then a *standby* is
//! started, ready up to the cache.
//! A server's end: its process is gone with all its threads and their system calls (that is the fence for
//! what it wrote); what it said last is read to the end; the standby takes over; a new standby is started.
//! Another keeper under systemd: this one is told to leave (SIGUSR1), its server makes room, it ends and the mount
//! stays; or it is killed, and systemd kills its servers. The next keeper takes on what [`systemd`] holds.
//! The mount's end: the server has seen it, flushed and ended; the standby ends; the socket's file goes.
//!
//! # Invariants
//! At most one process serves. No descriptor of the connection is closed while there is a mount: the
//! kernel would fail the requests that were taken through it.

mod failure;
mod holdings;
mod keep;
mod program;
mod refusing;
mod server;
mod signals;
mod socket;
pub mod systemd;
mod upgrade;

use std::io;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

pub use self::program::Typed;
pub use self::socket::{ControlSocket, remove_socket};
use crate::config::Config;

/// What a server ends with that has made room for another.
pub const MADE_ROOM: i32 = 3;

/// The first Linux that can send again what a dead server has not answered.
const RESEND_SINCE: (u32, u32) = (6, 9);

/// Why there is no mount, or how it ended. One sentence each.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another daemon answers at {}: wait until it has ended, or stop it", .0.display())]
    InUse(PathBuf),
    #[error("cannot make the control socket {}: {error}; look at its directory", path.display())]
    Socket { path: PathBuf, error: io::Error },
    #[error("cannot mount {}: {error}", mountpoint.display())]
    Mount {
        mountpoint: PathBuf,
        error: io::Error,
    },
    #[error("cannot start a server: {0}")]
    Start(io::Error),
    #[error(
        "cannot go on with the mount that another version of flashside has left ({0}): install that one again, or unmount"
    )]
    Left(io::Error),
    /// In the server's words.
    #[error("{0}")]
    Refused(String),
    #[error(
        "the server ended before the mount answered ({0}); run it with --foreground to see why"
    )]
    Died(ExitStatus),
    #[error("the server ended while it flushed {} ({status}); the cache drops what is in doubt", mountpoint.display())]
    EndedBadly {
        mountpoint: PathBuf,
        status: ExitStatus,
    },
}

/// Why this mount cannot be handed over, if so.
pub fn why_not(config: &Config) -> Option<&'static str> {
    // SAFETY: geteuid takes nothing and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    match () {
        () if !config.handover => Some("handover is off"),
        () if config.portable_session => Some("portable-session is on"),
        () if !is_root => Some("only root's mounts can be handed over"),
        () if kernel_version().is_none_or(|version| version < RESEND_SINCE) => {
            Some("the kernel cannot send requests again; Linux 6.9 can")
        }
        () => None,
    }
}

/// Keeps a mount until it is gone: a new one, or the one that an earlier keeper has `left`. `ready` is called
/// once, when it answers; in the `background` that is when servers let go of the terminal too.
pub fn run(
    config: &Config,
    typed: Typed,
    background: bool,
    left: Option<systemd::Left>,
    ready: impl FnOnce(),
) -> Result<ExitCode, Error> {
    keep::Keeper::new(config, typed, background, left, ready)?.keep()
}

fn kernel_version() -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    version_of(&text)
}

fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_their_first_two_numbers() {
        assert_eq!(version_of("6.18.0-rc1+\n"), Some((6, 18)));
        assert_eq!(version_of("6.9-custom"), Some((6, 9)));
        assert!(version_of("6.1.0-40-amd64") < Some(RESEND_SINCE));
        assert_eq!(version_of("plan 9"), None);
    }
}
