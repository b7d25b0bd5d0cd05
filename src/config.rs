//! What was typed, made into one validated [`Config`]. Reads the configuration file and looks at the
//! directories it names; changes nothing.

use std::path::PathBuf;
use std::time::Duration;

/// Everything a mount needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store's directory, absolute.
    pub store: PathBuf,
    /// Where the images appear, absolute.
    pub mountpoint: PathBuf,
    /// The cache devices; empty means no cache.
    pub caches: Vec<CacheDevice>,
    pub read_only: bool,
    /// A store operation fails after this (rule 12).
    pub store_deadline: Duration,
    /// Readahead window of one handle at most, in bytes.
    pub readahead_max_bytes: u64,
    /// Memory for writes on their way to the store, in bytes.
    pub write_buffer_bytes: usize,
    /// Threads that may be inside a store call.
    pub store_threads: usize,
    /// Threads that read requests from the kernel.
    pub fuse_threads: usize,
    /// Who may set `user.flashside.*` besides root.
    pub control_uids: Vec<u32>,
    /// Run store operations as this user and group instead of the caller.
    pub store_user: Option<(u32, u32)>,
    pub simulate: Simulate,
    /// For tests: false makes in-doubt marks volatile, which breaks rule 3a on purpose.
    pub in_doubt_marks: bool,
}

/// One cache device as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDevice {
    /// The directory given by the user, absolute.
    pub dir: PathBuf,
    /// Space the cache may take, in bytes, as the filesystem counts it.
    pub limit_bytes: u64,
}

/// A made-up store: what a slower one would be like, and one that refuses to serve a page twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Simulate {
    /// Added to every store operation.
    pub latency: Duration,
    /// Bytes per second of all reads and writes together; `None` is unlimited.
    pub bandwidth: Option<u64>,
    /// A file that records which pages were read; reading one again is EIO.
    pub once: Option<PathBuf>,
}

/// Where control sockets and witnesses lie while the host runs.
pub fn runtime_dir() -> PathBuf {
    // SAFETY: geteuid only returns a number.
    let is_root = unsafe { libc::geteuid() } == 0;
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !is_root => PathBuf::from(dir).join("flashside"),
        _ => PathBuf::from("/run/flashside"),
    }
}
