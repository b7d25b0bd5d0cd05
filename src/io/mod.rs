//! Input and output on local flash: aligned memory, files opened for direct I/O, holes.
//!
//! Knows nothing of images or caches. Together with the libc calls of the store and the mount, the
//! only place with `unsafe`.

pub mod buffer;
pub mod engine;
pub mod file;
pub mod region;
pub mod resident;
pub mod ring;
pub mod sync;

pub use buffer::{Buffer, BufferPool};
pub use engine::{Engine, Read};
pub use file::DirectFile;

/// Direct I/O is done in units of this many bytes at least; also the page of an image.
pub const ALIGN_BYTES: usize = 4096;
