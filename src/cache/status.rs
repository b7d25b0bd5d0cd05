//! What `flashside status` shows of the cache. Plain data; see docs/OPERATIONS.md for each field.

use serde::{Deserialize, Serialize};

/// The pool as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub limit_bytes: u64,
    pub used_bytes: u64,
    pub devices: Vec<DeviceStatus>,
}

/// One cache device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    pub dir: String,
    /// `healthy` or `suspect`.
    pub state: String,
    pub limit_bytes: u64,
    pub used_bytes: u64,
}
