//! What goes over the control socket. Field names are a documented interface.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::status::PoolStatus;
use crate::handover::message::State;
use crate::image::status::ImageStatus;

/// One mount: the answer to `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    /// Absolute.
    pub mountpoint: String,
    /// Absolute.
    pub store: String,
    pub store_state: StoreState,
    /// Process id of who stands for the mount: signals and service managers mean this one.
    pub pid: u32,
    /// Process id of the server that answers now.
    pub serving_pid: u32,
    /// Servers that took over from one before.
    pub restarts: u64,
    /// Requests that the kernel sent again after a take-over.
    pub resent_requests: u64,
    pub handover: State,
    /// Why no other server waits.
    pub handover_reason: Option<String>,
    pub pool: PoolStatus,
    pub images: Vec<ImageStatus>,
}

/// How the store does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreState {
    #[default]
    Responding,
    /// Calls wait and none completes.
    Hanging,
    /// It answers, with errors.
    Failing,
}

/// The body of `POST /v1/upgrade`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// The program to hand over to, absolute.
    pub program: PathBuf,
}

/// The answer to `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub name: String,
    pub version: String,
}

/// The body of `POST /v1/images/PATH/warm`: which bytes of the image; all without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmRequest {
    pub from_bytes: u64,
    /// Without it, the end of the image.
    pub to_bytes: Option<u64>,
}

/// The body of `POST /v1/images/PATH/set`; what is not there is left alone. The answer is an empty
/// object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SetRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub immutable: Option<bool>,
}

/// The answer to `POST /v1/images/PATH/evict`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    pub evicted_bytes: u64,
    /// Still on flash: pinned, dirty, or read again meanwhile.
    pub left_bytes: u64,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub error: String,
}

impl MountStatus {
    /// The image with this path below the mount point; a leading slash does not matter.
    pub fn image(&self, name: &str) -> Option<&ImageStatus> {
        let wanted = name.trim_start_matches('/');
        self.images
            .iter()
            .find(|image| image.name.trim_start_matches('/') == wanted)
    }
}

impl Version {
    /// This program's.
    pub fn own() -> Version {
        Version {
            name: env!("CARGO_PKG_NAME").into(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// A path as JSON can hold it: what is not UTF-8 is replaced.
pub fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
