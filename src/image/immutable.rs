//! Which images nobody writes: those of a read-only mount, those whose settings say so, those that a
//! rule of the configuration names. Asking and changing.
//!
//! # Order of steps of a change
//! Look who has the image open; write the settings; look again. An open that came in between has either
//! been seen, and then the settings are written back, or reads the new settings ([`super::plane`]).

use std::path::Path;

use crate::config::Rules;
use crate::logs;
use crate::store::{Caller, Error, ImageId, Result, Store};

use super::images::Images;
use super::settings::ImageSettings;

/// Where it is said.
pub struct Immutability<'a> {
    pub store: &'a dyn Store,
    /// The daemon's identity: settings are no business of whoever opens the image.
    pub own: Caller,
    pub rules: &'a Rules,
    /// The whole mount.
    pub read_only: bool,
}

/// Why it cannot be changed: one sentence each.
#[derive(Debug, thiserror::Error)]
pub enum NotSet {
    #[error("it is open for writing: close it everywhere, then set immutable=1")]
    Written,
    #[error("it is being read directly from flash: close it everywhere, then set immutable=0")]
    ReadDirectly,
    #[error("the mount is read-only: set it where the store is mounted for writing")]
    ReadOnly,
    #[error("its settings cannot be kept in the store: {0}")]
    Store(#[from] Error),
}

impl NotSet {
    /// As an errno, with the sentence in the log.
    pub fn logged(self, path: &Path) -> Error {
        let name = path.to_string_lossy();
        logs::say(log::Level::Warn, "immutable", &name, || {
            format!("image {name}: immutable is not changed: {self}")
        });
        match self {
            NotSet::Written | NotSet::ReadDirectly => Error::from_errno(libc::EBUSY),
            NotSet::ReadOnly => Error::from_errno(libc::EROFS),
            NotSet::Store(error) => error,
        }
    }
}

impl Immutability<'_> {
    /// Whether nobody may write the image at `path` below the mount point. Blocks.
    pub fn is(&self, id: ImageId, path: &Path) -> Result<bool> {
        if self.read_only {
            return Ok(true);
        }
        let settings = ImageSettings::load(self.store, &self.own, id)?;
        Ok(settings.is_immutable(self.rules, path))
    }

    /// Says so in the image's settings, or the contrary, or nothing any more (`None`). Blocks.
    pub fn set(
        &self,
        images: &Images,
        id: ImageId,
        path: &Path,
        immutable: Option<bool>,
    ) -> std::result::Result<(), NotSet> {
        if self.read_only {
            return Err(NotSet::ReadOnly);
        }
        let before = ImageSettings::load(self.store, &self.own, id)?;
        let mut settings = before.clone();
        settings.immutable = immutable;
        let will_be = settings.is_immutable(self.rules, path);
        nobody_minds(images, id, will_be)?;
        settings.save(self.store, &self.own, id)?;
        nobody_minds(images, id, will_be).inspect_err(|_| {
            if let Err(error) = before.save(self.store, &self.own, id) {
                log::warn!(
                    "image {}: its settings stay changed: {error}",
                    path.display()
                );
            }
        })
    }
}

fn nobody_minds(images: &Images, id: ImageId, immutable: bool) -> std::result::Result<(), NotSet> {
    match immutable {
        true if images.seats.is_written(id) => Err(NotSet::Written),
        false if images.seats.is_read_directly(id) => Err(NotSet::ReadDirectly),
        _ => Ok(()),
    }
}
