//! An image named on the command line: which mount holds it, and telling that mount's daemon what to do
//! with it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::Error;
use super::status::{dead, not_answered};
use crate::control::{ClientError, client, find};

/// Exit code of a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// An image and the daemon that has it.
pub struct Image {
    /// As it was typed.
    pub path: PathBuf,
    mountpoint: PathBuf,
    /// Below the mount point.
    name: String,
    socket: PathBuf,
}

impl Image {
    /// Finds the mount that holds `path`; asks nobody.
    pub fn find(path: &Path) -> Result<Image, Error> {
        let place = find::place_of(path).map_err(Error::MountTable)?;
        let place = place.ok_or_else(|| Error::NotInAMount(path.to_path_buf()))?;
        if place.below.as_os_str().is_empty() {
            return Err(Error::NotAnImage(path.to_path_buf()));
        }
        let name = place.below.to_str().ok_or_else(|| Error::NotDone {
            path: path.to_path_buf(),
            message: "only names that are UTF-8 can be told to the daemon".into(),
        })?;
        let socket = find::socket_of(&place.mountpoint);
        Ok(Image {
            path: path.to_path_buf(),
            name: name.to_owned(),
            socket: socket.ok_or_else(|| dead(&place.mountpoint))?,
            mountpoint: place.mountpoint,
        })
    }

    /// Has the daemon do `verb`; `line` gets each JSON object of its answer. False if `stop` was set before
    /// it was done.
    pub fn act(
        &self,
        verb: &str,
        body: &Value,
        stop: &AtomicBool,
        line: impl FnMut(Value),
    ) -> Result<bool, Error> {
        match client::act(&self.socket, &self.name, verb, body, stop, line) {
            Ok(()) => Ok(true),
            Err(ClientError::Stopped) => Ok(false),
            Err(ClientError::NotDone(message)) => Err(Error::NotDone {
                path: self.path.clone(),
                message,
            }),
            Err(error) => Err(not_answered(&self.mountpoint, error)),
        }
    }
}

/// Does `work` to one image after the other, until Ctrl-C. What fails is told on stderr and does not stop
/// the rest; `work` answers whether all was done.
pub fn each(
    paths: &[PathBuf],
    mut work: impl FnMut(&Image, &AtomicBool) -> Result<bool, Error>,
) -> Result<ExitCode, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, stop.clone()).map_err(Error::Start)?;
    let mut code = ExitCode::SUCCESS;
    for path in paths {
        match Image::find(path).and_then(|image| work(&image, &stop)) {
            Ok(true) => {}
            Ok(false) => code = ExitCode::FAILURE,
            Err(error) if paths.len() == 1 => return Err(error),
            Err(error) => {
                eprintln!("flashside: {error}");
                code = ExitCode::FAILURE;
            }
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(ExitCode::from(INTERRUPTED));
        }
    }
    Ok(code)
}
