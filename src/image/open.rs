//! An image that the daemon itself has opened, for work that no guest asked for: as any open it joins the
//! image and compares versions (rule 7), and it is closed when dropped.

use std::ops::Deref;
use std::sync::Arc;

use crate::store::{Attr, ImageId, Result, StoreFile};

use super::handle::Handle;
use super::images::Images;

/// An open of the daemon's own.
pub struct OpenImage(Arc<Handle>);

impl Deref for OpenImage {
    type Target = Arc<Handle>;

    fn deref(&self) -> &Arc<Handle> {
        &self.0
    }
}

impl Drop for OpenImage {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Images {
    /// Joins `file`, just opened for reading with attributes `attr`, to its image. Blocks on flash. ESTALE where the image has
    /// changed under those who read it directly.
    pub fn open_for_daemon(
        self: &Arc<Self>,
        name: &str,
        file: Arc<dyn StoreFile>,
        attr: &Attr,
    ) -> Result<OpenImage> {
        Ok(OpenImage(self.open(name, file, attr, false)?))
    }

    /// Drops all of an image that is on flash and may go; gives the bytes dropped and the bytes left.
    /// Blocks on flash.
    pub fn evict(&self, id: ImageId) -> (u64, u64) {
        if let Some(image) = self.open.get(&id) {
            image.lanes.hide_kept(); // in memory, and so not read from the store again
        }
        let Some(entry) = self.shared.pool.known(id) else {
            return (0, 0);
        };
        let (mut evicted, mut next) = (0, 0);
        while let Some(block) = entry.next_resident(next) {
            evicted += entry.give_up(block);
            next = block + 1;
        }
        let left = entry.resident_bytes();
        self.shared.pool.note_dropped(&entry, evicted);
        drop(entry);
        self.shared.pool.forget_if_empty(id);
        self.shared.nudge();
        (evicted, left)
    }
}
