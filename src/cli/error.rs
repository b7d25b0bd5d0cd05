//! Why a command fails: one sentence each, shown after `flashside: `.

use std::io;
use std::path::PathBuf;

use crate::control::ClientError;
use crate::{cache, config, keeper, store};

/// What a command ends with besides success.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}; see flashside --help")]
    Arguments(String),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error("cannot open the store {}: {error}", path.display())]
    Store { path: PathBuf, error: store::Error },
    #[error(transparent)]
    Cache(#[from] cache::Error),
    #[error(transparent)]
    Keeper(#[from] keeper::Error),
    #[error("cannot mount {}: {error}", mountpoint.display())]
    Mount {
        mountpoint: PathBuf,
        error: io::Error,
    },
    #[error("cannot clean away the dead mount {}: {error}; try umount -l on it", mountpoint.display())]
    DeadMount {
        mountpoint: PathBuf,
        error: io::Error,
    },
    #[error("{}: not everything reached the store before the daemon ended: {error}; the cache drops what is in doubt", mountpoint.display())]
    Shutdown {
        mountpoint: PathBuf,
        error: store::Error,
    },
    #[error("cannot start the daemon: {0}")]
    Start(io::Error),
    #[error("{}: a systemd unit takes only absolute paths without quotes, backslashes and line ends", .0.display())]
    NotForUnit(PathBuf),
    #[error("the mount did not answer within {0} s and was given up: does the store answer?")]
    NotReady(u64),
    #[error(
        "the daemon ended before the mount answered ({0}); run it with --foreground to see why"
    )]
    Died(std::process::ExitStatus),
    #[error("cannot read the mount table: {0}")]
    MountTable(io::Error),
    #[error("{} is not a flashside mount of this host; flashside status lists them", .0.display())]
    NotAMount(PathBuf),
    #[error("{} is in no flashside mount of this host; flashside status lists them", .0.display())]
    NotInAMount(PathBuf),
    #[error("{} is not in use and nothing of it is cached: open it once, or check the path", .0.display())]
    UnknownImage(PathBuf),
    #[error("the daemon of {} does not run any more: mount it again with the same command, or give it up with umount -l", .0.display())]
    DeadDaemon(PathBuf),
    #[error("{} is the mount point itself: name an image below it", .0.display())]
    NotAnImage(PathBuf),
    #[error("{}: {message}", path.display())]
    NotDone { path: PathBuf, message: String },
    /// In the keeper's words.
    #[error("{0}")]
    NotServed(String),
    #[error("{} is not upgraded: {error}", mountpoint.display())]
    NotUpgraded {
        mountpoint: PathBuf,
        error: ClientError,
    },
    #[error("this host has {0} flashside mounts: name the one to upgrade")]
    WhichMount(usize),
    #[error("{}: {error}; is it stopped, or too busy?", mountpoint.display())]
    NoAnswer {
        mountpoint: PathBuf,
        error: ClientError,
    },
}

impl Error {
    /// What the process ends with: 2 where the arguments alone are wrong, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Arguments(_) => 2,
            _ => 1,
        }
    }
}
