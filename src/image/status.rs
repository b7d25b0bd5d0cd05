//! What `status` says of one image: a documented interface (docs/OPERATIONS.md). Units last in
//! every name; counters count since the daemon started.

use serde::{Deserialize, Serialize};

/// Handles of an image that are on one plane for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneStatus {
    /// `daemon` or `passthrough`.
    pub plane: String,
    pub handles: u64,
    /// Why not passthrough; empty for that.
    pub reason: String,
}

/// One image that is in use or on flash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// Path below the mount point, as it was last opened.
    pub name: String,
    /// The image id.
    pub id: String,
    pub size_bytes: u64,
    /// On flash and valid.
    pub resident_bytes: u64,
    /// Newer on flash than in the store.
    pub dirty_bytes: u64,
    /// Not to be evicted.
    pub pinned_bytes: u64,
    /// `daemon`, `passthrough`, or `closed` where nobody has it open.
    pub plane: String,
    /// Open handles.
    pub handles: u64,
    /// The same by plane, with the reason where it is the daemon's.
    #[serde(default)]
    pub planes: Vec<PlaneStatus>,
    pub reads: u64,
    /// Reads served wholly from flash.
    pub read_hits: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub store_read_bytes: u64,
    pub store_read_requests: u64,
    pub store_write_bytes: u64,
    pub store_write_requests: u64,
    /// Pages whose bytes on flash did not match their checksum.
    pub checksum_mismatches: u64,
}

/// How far the warming of an image is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmStatus {
    /// To be warmed: whole blocks.
    pub total_bytes: u64,
    /// Of these on flash and verified.
    pub ready_bytes: u64,
    /// Of these on flash.
    pub resident_bytes: u64,
    /// Read from the store for it.
    pub fetched_bytes: u64,
    /// Why it ended; nothing while it goes on.
    pub end: Option<WarmEnd>,
    pub error: Option<String>,
}

/// Why warming ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WarmEnd {
    Complete,
    /// The cache is full of what must stay.
    Full,
    /// The caller hung up, or the mount ends.
    Interrupted,
    /// The store failed.
    Store,
    /// The cache device failed.
    Flash,
    /// Guests write to it faster than it gets whole, or a reader of an earlier mount has its cache file.
    Busy,
}
