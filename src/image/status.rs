//! What `flashside status` shows of an image. Plain data; see docs/OPERATIONS.md for each field.

use serde::{Deserialize, Serialize};

/// One image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    pub name: String,
    pub id: String,
    pub size_bytes: u64,
    pub resident_bytes: u64,
    pub dirty_bytes: u64,
    pub pinned_bytes: u64,
    pub plane: String,
    pub handles: u64,
    pub reads: u64,
    pub read_hits: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub store_read_bytes: u64,
    pub store_read_requests: u64,
    pub store_write_bytes: u64,
    pub store_write_requests: u64,
    pub checksum_mismatches: u64,
}
