//! `flashside status`: what the daemons of this host say, as tables or JSON.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Args;
use hyper::StatusCode;
use serde::Serialize;

use super::watch::{self, Watched};
use super::{Error, table};
use crate::config::units::Span;
use crate::control::find::{self, Place};
use crate::control::model::{MountStatus, path_text};
use crate::control::{ClientError, client};
use crate::image::status::ImageStatus;

/// A daemon that has not answered then is said not to.
const DEADLINE: Duration = Duration::from_secs(5);
/// A file below the mount that has not been looked up then is not waited for.
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(2);
/// Looking more often would cost more than it tells.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Show mounts, their caches and images
#[derive(Args)]
#[command(long_about = "Show mounts, their caches and images.\n\n\
    Without IMAGE every mount of this host is shown. The daemon is asked over its control socket, \
    so the answer comes also while the store hangs. Counters count since the daemon started. The \
    fields of --json are explained in docs/OPERATIONS.md.")]
pub struct Status {
    /// Path of an image below a mount: /srv/vms/web.img
    image: Option<PathBuf>,
    /// Print JSON: one object, or an array where there are several mounts
    #[arg(long)]
    json: bool,
    /// Show this mount only
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    mountpoint: Option<PathBuf>,
    /// Show what happens per second, again and again, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    /// How often --watch looks: 500ms, 1s, 10s
    #[arg(long, value_name = "TIME", default_value = "1s", requires = "watch")]
    interval: Span,
}

impl Status {
    pub fn run(self) -> Result<ExitCode, Error> {
        if self.watch {
            return self.watch();
        }
        match (&self.image, &self.mountpoint) {
            (Some(image), _) => self.show_image(image),
            (None, Some(mountpoint)) => self.show_one(mountpoint),
            (None, None) => self.show_all(),
        }
    }

    fn watch(&self) -> Result<ExitCode, Error> {
        if self.interval.0 < INTERVAL_MIN {
            let sentence = "--interval must be at least 100ms, for example 1s";
            return Err(Error::Arguments(sentence.into()));
        }
        let watched = match self.image.as_ref().or(self.mountpoint.as_ref()) {
            Some(path) => self.watched(path)?,
            None => Watched::All,
        };
        watch::watch(&watched, self.interval.0)
    }

    /// The mount or the image at `path`.
    fn watched(&self, path: &Path) -> Result<Watched, Error> {
        let place = find::place_of(path).map_err(Error::MountTable)?;
        match (place, &self.mountpoint) {
            (Some(place), _) if place.below.as_os_str().is_empty() => {
                Ok(Watched::One(place.mountpoint))
            }
            (_, Some(mountpoint)) => Err(Error::NotAMount(mountpoint.clone())),
            (None, None) => Err(Error::NotInAMount(path.to_path_buf())),
            (Some(place), None) => {
                let wanted = path_text(&place.below);
                let inode = inode_of(place.mountpoint.join(&place.below));
                let prefix = inode.map(|inode| format!("{inode:x}-"));
                let is_wanted = move |name: &str, id: &str| {
                    let same = prefix.as_ref().is_some_and(|prefix| id.starts_with(prefix));
                    same || name == wanted
                };
                Ok(Watched::Image(place.mountpoint, Box::new(is_wanted)))
            }
        }
    }

    fn show_image(&self, path: &Path) -> Result<ExitCode, Error> {
        let place = find::place_of(path).map_err(Error::MountTable)?;
        let place = place.ok_or_else(|| Error::NotInAMount(path.to_path_buf()))?;
        if place.below.as_os_str().is_empty() {
            return self.show_one(&place.mountpoint);
        }
        let image = ask_image(&place)?.ok_or_else(|| Error::UnknownImage(path.to_path_buf()))?;
        self.print(&image, || table::image(&image))
    }

    fn show_one(&self, mountpoint: &Path) -> Result<ExitCode, Error> {
        let place = find::place_of(mountpoint).map_err(Error::MountTable)?;
        match place {
            Some(place) if place.below.as_os_str().is_empty() => {
                let status = ask(&place.mountpoint)?;
                self.print(&status, || table::mount(&status))
            }
            _ => Err(Error::NotAMount(mountpoint.to_path_buf())),
        }
    }

    /// Every mount; one that does not answer is told on stderr and does not hide the others.
    fn show_all(&self) -> Result<ExitCode, Error> {
        let mountpoints = find::mountpoints().map_err(Error::MountTable)?;
        if let [only] = mountpoints.as_slice() {
            return self.show_one(only);
        }
        let (mut statuses, mut code) = (Vec::new(), ExitCode::SUCCESS);
        for mountpoint in &mountpoints {
            match ask(mountpoint) {
                Ok(status) => statuses.push(status),
                Err(error) => {
                    eprintln!("flashside: {error}");
                    code = ExitCode::FAILURE;
                }
            }
        }
        self.print(&statuses, || {
            table::mounts(&statuses, mountpoints.is_empty())
        })?;
        Ok(code)
    }

    fn print(
        &self,
        json: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<ExitCode, Error> {
        let text = match self.json {
            true => serde_json::to_string_pretty(json).expect("numbers and texts become JSON"),
            false => text(),
        };
        let _ = writeln!(io::stdout(), "{text}"); // a reader that went away is no failure
        Ok(ExitCode::SUCCESS)
    }
}

fn ask(mountpoint: &Path) -> Result<MountStatus, Error> {
    let socket = find::socket_of(mountpoint).ok_or_else(|| dead(mountpoint))?;
    client::status(&socket, DEADLINE).map_err(|error| not_answered(mountpoint, error))
}

/// By name; where the daemon knows the image by another name (a hard link, a renamed directory), by
/// inode number.
fn ask_image(place: &Place) -> Result<Option<ImageStatus>, Error> {
    let mountpoint = &place.mountpoint;
    let socket = find::socket_of(mountpoint).ok_or_else(|| dead(mountpoint))?;
    let named = client::image(&socket, &path_text(&place.below), DEADLINE);
    if let Some(image) = named.map_err(|error| not_answered(mountpoint, error))? {
        return Ok(Some(image));
    }
    let Some(inode) = inode_of(mountpoint.join(&place.below)) else {
        return Ok(None);
    };
    let prefix = format!("{inode:x}-");
    let images = ask(mountpoint)?.images;
    Ok(images
        .into_iter()
        .find(|image| image.id.starts_with(&prefix)))
}

/// The inode number of a file below a mount; `None` where there is none or the store hangs.
fn inode_of(path: PathBuf) -> Option<u64> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(path.metadata().map(|about| about.ino()).ok()));
    told.recv_timeout(LOOK_UP_DEADLINE).ok()?
}

pub(super) fn dead(mountpoint: &Path) -> Error {
    Error::DeadDaemon(mountpoint.to_path_buf())
}

pub(super) fn not_answered(mountpoint: &Path, error: ClientError) -> Error {
    match error {
        ClientError::NobodyListens(_) => dead(mountpoint),
        ClientError::Refused { status, message } if status == StatusCode::SERVICE_UNAVAILABLE => {
            Error::NotServed(message)
        }
        error => Error::NoAnswer {
            mountpoint: mountpoint.to_path_buf(),
            error,
        },
    }
}
