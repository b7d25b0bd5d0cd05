//! Why a configuration is refused: one sentence each, saying what, which path, what to do.

use std::io;
use std::path::PathBuf;

/// A refusal. Nothing was touched when one is returned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store {} does not exist: create it, or mount the storage that holds it", .0.display())]
    StoreMissing(PathBuf),
    #[error("the store {} is not a directory: give the directory that holds the images", .0.display())]
    StoreNotDirectory(PathBuf),
    #[error("the mount point {} does not exist: create it with mkdir", .0.display())]
    MountpointMissing(PathBuf),
    #[error("the mount point {} is not a directory: give an empty directory", .0.display())]
    MountpointNotDirectory(PathBuf),
    #[error("the mount point {} is not empty: give an empty directory", .0.display())]
    MountpointNotEmpty(PathBuf),
    #[error("the mount point {} is already a mount of type {fs_type}: unmount it or give another directory", path.display())]
    MountpointMounted { path: PathBuf, fs_type: String },
    #[error("the mount point {} lies in the store {}: give a directory outside the store", mountpoint.display(), store.display())]
    MountpointInStore { mountpoint: PathBuf, store: PathBuf },
    #[error("the store {} lies under the mount point {}: give a mount point elsewhere", store.display(), mountpoint.display())]
    StoreUnderMountpoint { store: PathBuf, mountpoint: PathBuf },
    #[error("the cache directory {} does not exist: create it on a local flash filesystem", .0.display())]
    CacheMissing(PathBuf),
    #[error("the cache {} is not a directory: give a directory on a local flash filesystem", .0.display())]
    CacheNotDirectory(PathBuf),
    #[error("the cache directory {} lies in the store {}: give a directory on local flash", cache.display(), store.display())]
    CacheInStore { cache: PathBuf, store: PathBuf },
    #[error("the store {} lies in the cache directory {}: give a cache directory of its own", store.display(), cache.display())]
    StoreInCache { store: PathBuf, cache: PathBuf },
    #[error("the cache directory {} lies under the mount point {}: give a directory elsewhere", cache.display(), mountpoint.display())]
    CacheUnderMountpoint { cache: PathBuf, mountpoint: PathBuf },
    #[error("the cache directory {} is given twice: give each directory once", .0.display())]
    CacheTwice(PathBuf),
    #[error("the limit of the cache directory {} is {limit_bytes} bytes, and its filesystem has only {filesystem_bytes}: give less, or a share like 80%", dir.display())]
    LimitTooLarge {
        dir: PathBuf,
        limit_bytes: u64,
        filesystem_bytes: u64,
    },
    #[error("the limit of the cache directory {} is {limit_bytes} bytes: give at least 16M", dir.display())]
    LimitTooSmall { dir: PathBuf, limit_bytes: u64 },
    #[error("the limits of the cache directories on the filesystem of {} add up to {limit_bytes} bytes, and it has only {filesystem_bytes}: give each a limit with @", dir.display())]
    LimitsTooLarge {
        dir: PathBuf,
        limit_bytes: u64,
        filesystem_bytes: u64,
    },
    #[error("cannot read {}: {error}; correct its path or its permissions", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("the configuration {} is wrong{place}: {message}", path.display())]
    Configuration {
        path: PathBuf,
        /// ` in line N`, or nothing.
        place: String,
        message: String,
    },
    #[error("the configuration {} is for the {what} {}, not {}: correct it, or name another with --config", path.display(), configured.display(), typed.display())]
    OtherPlace {
        what: &'static str,
        path: PathBuf,
        configured: PathBuf,
        typed: PathBuf,
    },
    #[error("the configuration {} names no {what}: add `{what} = \"/a/directory\"`, or give STORE and MOUNTPOINT", path.display())]
    NoPlace { what: &'static str, path: PathBuf },
    #[error("{key} must be {wanted}")]
    Value {
        key: &'static str,
        wanted: &'static str,
    },
    #[error("the path of the control socket {} is too long: set XDG_RUNTIME_DIR to a shorter one", .0.display())]
    SocketPathTooLong(PathBuf),
}

impl Error {
    pub(super) fn value(key: &'static str, wanted: &'static str) -> Error {
        Error::Value { key, wanted }
    }
}
