//! The cache: blocks of images on local flash, with the record of what is there.
//!
//! One directory per image and cache device holds four files ([`entry`]): the data at the image's
//! own offsets, the page records, the in-doubt marks and the head. The formats are in docs/FORMAT.md
//! and at the head of the file that owns each. This room never talks to the store.

mod chunk;
pub mod claims;
pub mod commit;
pub mod device;
pub mod doubt;
pub mod entry;
pub mod head;
pub mod hit;
pub mod hold;
pub mod orphan;
pub mod pagemap;
mod places;
pub mod pool;
pub mod records;
pub mod recovery;
pub mod status;
mod unloaded;
pub mod version;
pub mod witness;

use std::io;
use std::ops::Range;
use std::path::PathBuf;

pub use entry::{Entry, Written};
pub use hit::Hit;
pub use hold::{Held, NotHeld};
pub use pool::{Pool, Room};
pub use version::Validated;

/// The unit of validity: 4 KiB of an image.
pub const PAGE_BYTES: u64 = 4096;
/// The unit of fetching and eviction: 64 KiB of an image.
pub const BLOCK_BYTES: u64 = 65536;
/// Pages of a block.
pub const PAGES_PER_BLOCK: u64 = BLOCK_BYTES / PAGE_BYTES;

/// Pages of an image, by number.
pub type Pages = Range<u64>;

/// The pages that `len_bytes` bytes at `offset_bytes` touch.
pub fn pages_touched(offset_bytes: u64, len_bytes: u64) -> Pages {
    let end = offset_bytes.saturating_add(len_bytes);
    offset_bytes / PAGE_BYTES..end.div_ceil(PAGE_BYTES)
}

/// The pages that lie wholly inside `len_bytes` bytes at `offset_bytes`; may be empty.
pub fn pages_inside(offset_bytes: u64, len_bytes: u64) -> Pages {
    let first = offset_bytes.div_ceil(PAGE_BYTES);
    let end = offset_bytes.saturating_add(len_bytes) / PAGE_BYTES;
    first..end.max(first)
}

/// The blocks that `pages` touch.
pub fn blocks_of(pages: &Pages) -> Range<u64> {
    pages.start / PAGES_PER_BLOCK..pages.end.div_ceil(PAGES_PER_BLOCK)
}

/// Why a cache device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cache directory {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    #[error("cache directory {0} is in use by another flashside; give each mount its own")]
    InUse(PathBuf),
    #[error(
        "cache directory {0} is on {1}; put it on ext4 or XFS, where a punched hole frees space"
    )]
    Unsupported(PathBuf, String),
    #[error(
        "cache directory {dir} belongs to another store ({found}); use another directory or remove {dir}/flashside"
    )]
    OtherStore { dir: PathBuf, found: String },
    #[error(
        "cache directory {0} was written by another version of flashside ({1}); remove {0}/flashside"
    )]
    Version(PathBuf, String),
}
