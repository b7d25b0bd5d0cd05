//! Caching modules: the algorithms that decide which block leaves the cache.
//!
//! A module sees block keys and answers with keys. It never touches data, so a bad decision costs
//! speed and never content.

mod ghost;
mod groups;
mod queue;
pub mod s3fifo;

/// A block of an image, as the pool numbers them; opaque to modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub u64);

/// What the framework knows of a block's use since it was last asked.
pub trait Heat {
    /// Uses counted, 0 to 3; `None` when the block is not resident any more, and then the module
    /// has to forget it.
    fn heat(&self, key: Key) -> Option<u8>;
    /// Sets the count.
    fn set_heat(&self, key: Key, heat: u8);
}

/// An eviction algorithm over the blocks of one pool.
pub trait Module: Send {
    /// The block became resident; it is not known to the module at this time.
    fn inserted(&mut self, key: Key);
    /// Picks a resident block to evict and forgets it; `None` when it knows no block.
    fn victim(&mut self, heat: &dyn Heat) -> Option<Key>;
    /// Forgets every block that is not resident any more. Called when many went at once, by another
    /// way than [`Module::victim`].
    fn sweep(&mut self, heat: &dyn Heat);
    /// Blocks it keeps account of.
    fn len(&self) -> usize;
    /// True when it keeps account of no block.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
