//! `flashside set`: says what holds for an image.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use serde_json::json;

use super::Error;
use super::image;
use crate::control::model::SetRequest;

/// Set what holds for an image
#[derive(Args)]
#[command(
    long_about = "Set what holds for an image.\n\n\
        It is kept in the store with the image: it follows renames, holds for every host, and goes when \
        the image is removed.",
    after_help = "Keys:\n  \
        immutable=1   nobody writes the image; once it is wholly on flash, the kernel reads it there by \
        itself\n  \
        immutable=0   it may be written again\n\n\
        Example:\n  flashside set /srv/vms/golden/base.qcow2 immutable=1"
)]
pub struct Set {
    /// Path of an image below a mount: /srv/vms/golden/base.qcow2
    image: PathBuf,
    /// What to set
    #[arg(required = true, value_name = "KEY=VALUE")]
    settings: Vec<Setting>,
}

/// One thing to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    Immutable(bool),
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Setting, String> {
        match text.split_once('=') {
            Some(("immutable", "1")) => Ok(Setting::Immutable(true)),
            Some(("immutable", "0")) => Ok(Setting::Immutable(false)),
            Some(("immutable", _)) => Err("immutable is 0 or 1".into()),
            _ => Err("write for example immutable=1".into()),
        }
    }
}

impl Set {
    pub fn run(self) -> Result<ExitCode, Error> {
        let mut wanted = SetRequest::default();
        for setting in &self.settings {
            match setting {
                Setting::Immutable(immutable) => wanted.immutable = Some(*immutable),
            }
        }
        image::each(std::slice::from_ref(&self.image), |image, stop| {
            image.act("set", &json!(wanted), stop, |_| ())
        })
    }
}
