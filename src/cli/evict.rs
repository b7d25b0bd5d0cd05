//! `flashside evict`: drops what is cached of images.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde_json::json;

use super::image::{self, Image};
use super::{Error, table};
use crate::control::model::Evicted;

/// Drop what is cached of images
#[derive(Args)]
#[command(
    long_about = "Drop what is cached of images.\n\n\
        Everything of them that is on flash and may go is dropped; pinned and dirty blocks stay. \
        Nothing is lost: the store has it, and the next read fetches it again. Images may be in use, \
        or not.",
    after_help = "Example:\n  flashside evict /srv/vms/old.img"
)]
pub struct Evict {
    /// Paths of images below a mount: /srv/vms/web.img
    #[arg(required = true)]
    image: Vec<PathBuf>,
}

impl Evict {
    pub fn run(self) -> Result<ExitCode, Error> {
        image::each(&self.image, evict)
    }
}

fn evict(image: &Image, stop: &AtomicBool) -> Result<bool, Error> {
    let mut evicted = Evicted::default();
    let done = image.act("evict", &json!({}), stop, |line| {
        evicted = serde_json::from_value(line).unwrap_or_default();
    })?;
    if done {
        let left = match evicted.left_bytes {
            0 => String::new(),
            left => format!(", {} left", table::size(left)),
        };
        let bytes = evicted.evicted_bytes;
        let shown = table::size(bytes);
        let path = image.path.display();
        let text = format!("{path}: {shown} evicted ({bytes} bytes){left}");
        let _ = writeln!(io::stdout(), "{text}"); // a reader that went away is no failure
    }
    Ok(done)
}
