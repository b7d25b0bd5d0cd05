//! The settings that travel with an image: `.flashside/<image id>/settings.json` in the store.
//!
//! # Bytes
//! A JSON object: `"version": 1`; `"immutable"`: nobody writes the image. What is not there is not set.
//! Fields that this version does not know are kept when it writes the file.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Rules;
use crate::logs;
use crate::store::{Caller, ImageId, Result, Store};

const FILE: &str = "settings.json";
const VERSION: u32 = 1;

/// What an image's settings file says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageSettings {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immutable: Option<bool>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

impl Default for ImageSettings {
    fn default() -> ImageSettings {
        ImageSettings {
            version: VERSION,
            immutable: None,
            unknown: Map::new(),
        }
    }
}

impl ImageSettings {
    /// Reads what the store holds for an image; nothing is the normal case, and a store that does not
    /// let `who` look at it has none for us. Blocks.
    pub fn load(store: &dyn Store, who: &Caller, id: ImageId) -> Result<ImageSettings> {
        let bytes = match store.read_side(who, id, FILE) {
            Ok(bytes) => bytes,
            Err(error) => {
                return match error.errno() {
                    libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EACCES | libc::EPERM => {
                        Ok(ImageSettings::default())
                    }
                    _ => Err(error),
                };
            }
        };
        Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            let image = id.to_string();
            logs::say(log::Level::Warn, "settings", &image, || {
                format!(
                    "the settings of image {id} in the store are not understood and not used: {error}; set them again"
                )
            });
            ImageSettings::default()
        }))
    }

    /// Writes them to the store, durably. Blocks.
    pub fn save(&self, store: &dyn Store, who: &Caller, id: ImageId) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(std::io::Error::from)?;
        text.push(b'\n');
        store.write_side(who, id, FILE, &text)
    }

    /// Whether nobody may write the image at `path` below the mount point: by its own settings, else by
    /// the first rule that matches.
    pub fn is_immutable(&self, rules: &Rules, path: &Path) -> bool {
        let by_rule = || rules.find(path).and_then(|rule| rule.immutable);
        self.immutable.or_else(by_rule).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_kept() {
        let text = r#"{"version":2,"min":"1G","immutable":true}"#;
        let mut settings: ImageSettings = serde_json::from_str(text).expect("understood");
        assert_eq!(settings.immutable, Some(true));
        settings.immutable = Some(false);
        let written = serde_json::to_value(&settings).expect("JSON");
        let wanted = serde_json::json!({"version": 2, "min": "1G", "immutable": false});
        assert_eq!(written, wanted);
    }
}
