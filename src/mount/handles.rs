//! What the kernel means by a file handle: a number for each open file or directory.
//!
//! *Locking*: the map's guard is never held while an item is used or dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;

/// Open items by number. Numbers come from the ledger, and are never used again.
pub struct Handles<T> {
    items: DashMap<u64, Arc<T>>,
    closed: AtomicBool,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Handles {
            items: DashMap::new(),
            closed: AtomicBool::new(false),
        }
    }
}

impl<T> Handles<T> {
    /// Makes `item` what `number` means. After [`Handles::close`] nobody could give it back: it is
    /// returned.
    pub fn insert(&self, number: u64, item: Arc<T>) -> Result<(), Arc<T>> {
        self.items.insert(number, item);
        if self.closed.load(Ordering::SeqCst) {
            return self.remove(number).map_or(Ok(()), Err);
        }
        Ok(())
    }

    pub fn get(&self, number: u64) -> Option<Arc<T>> {
        self.items.get(&number).map(|item| item.value().clone())
    }

    pub fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.items.remove(&number).map(|(_, item)| item)
    }

    /// Takes out everything; later insertions fail.
    pub fn close(&self) -> Vec<(u64, Arc<T>)> {
        self.closed.store(true, Ordering::SeqCst);
        let numbers: Vec<u64> = self.items.iter().map(|item| *item.key()).collect();
        numbers
            .into_iter()
            .filter_map(|number| Some((number, self.remove(number)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_closing_nothing_stays_behind() {
        let handles = Handles::default();
        handles.insert(7, Arc::new("a")).expect("open");
        assert_eq!(handles.get(7).as_deref(), Some(&"a"));
        assert_eq!(handles.close().len(), 1);
        assert!(handles.insert(8, Arc::new("b")).is_err());
        assert!(handles.close().is_empty());
    }
}
