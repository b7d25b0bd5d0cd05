//! What `status` says of the cache pool: a documented interface (docs/OPERATIONS.md).

use serde::{Deserialize, Serialize};

/// The cache pool of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Sum of the devices' limits.
    pub limit_bytes: u64,
    /// Sum of what the devices hold.
    pub used_bytes: u64,
    pub devices: Vec<DeviceStatus>,
}

/// One cache device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// The directory as configured, absolute.
    pub dir: String,
    /// `healthy`, `suspect` or `failed`.
    pub state: String,
    /// Space the cache may take there.
    pub limit_bytes: u64,
    /// Space the cache takes there, as the filesystem counts it.
    pub used_bytes: u64,
}
