//! One image: reads, writes, flush, discard, and the order of their steps.

use std::sync::Arc;

use crate::store::{Attr, Error, ImageId, StoreFile};

/// All images in use or cached.
pub struct Images {}

/// What an operation ends with; called exactly once, from any thread.
pub type Done<T> = Box<dyn FnOnce(Result<T, Error>) + Send>;
/// As [`Done`] for a read: the bytes are only valid during the call.
pub type ReadDone = Box<dyn FnOnce(Result<&[u8], Error>) + Send>;

/// One open of an image.
pub struct Handle {}

impl Images {
    /// Joins `file`, just opened with attributes `attr`, to its image. `name` is for people.
    /// Blocks on flash, never on the store.
    pub fn open(
        self: &Arc<Self>,
        _name: &str,
        _file: Arc<dyn StoreFile>,
        _attr: &Attr,
        _read: bool,
        _write: bool,
    ) -> Arc<Handle> {
        todo!()
    }

    /// The store object is gone for good (its last link was removed): forget what is cached of it,
    /// now or when its last handle closes.
    pub fn removed(&self, _id: ImageId) {}

    /// The image now has this name; for status.
    pub fn renamed(&self, _id: ImageId, _name: &str) {}

    /// The size we know an open image to have: newer than attributes read while a write runs.
    pub fn known_size(&self, _id: ImageId) -> Option<u64> {
        None
    }

    /// Bytes of an image on flash, for `user.flashside.resident`.
    pub fn resident_bytes(&self, _id: ImageId) -> Option<u64> {
        None
    }
}

impl Handle {
    pub fn read(self: &Arc<Self>, _offset_bytes: u64, _len_bytes: usize, _done: ReadDone) {}
    pub fn write(self: &Arc<Self>, _offset_bytes: u64, _data: &[u8], _done: Done<()>) {}
    /// FLUSH (rule 2): returns when every write acknowledged before is durable.
    pub fn flush(self: &Arc<Self>, _data_only: bool, _done: Done<()>) {}
    /// close(2) of one descriptor: a flush if this handle wrote since its last one, else nothing.
    pub fn close(self: &Arc<Self>, _done: Done<()>) {}
    pub fn truncate(self: &Arc<Self>, _size_bytes: u64, _done: Done<()>) {}
    pub fn allocate(self: &Arc<Self>, _mode: i32, _offset: u64, _len: u64, _done: Done<()>) {}
    pub fn seek(self: &Arc<Self>, _offset_bytes: u64, _whence: i32, _done: Done<u64>) {}
    pub fn copy_to(
        self: &Arc<Self>,
        _offset_bytes: u64,
        _target: &Arc<Handle>,
        _target_offset_bytes: u64,
        _len_bytes: u64,
        _done: Done<u64>,
    ) {
    }
    /// The last close: the handle takes part in nothing any more.
    pub fn release(self: &Arc<Self>) {}
    pub fn id(&self) -> ImageId {
        todo!()
    }
}
