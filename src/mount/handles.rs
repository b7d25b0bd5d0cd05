//! What the kernel means by a file handle: a number for each open file or directory.
//!
//! *Locking*: the map's guard is never held while an item is used or dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;

/// Open items by number. Numbers are never used again.
pub struct Handles<T> {
    items: DashMap<u64, Arc<T>>,
    next: AtomicU64,
    closed: AtomicBool,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Handles {
            items: DashMap::new(),
            next: AtomicU64::new(1),
            closed: AtomicBool::new(false),
        }
    }
}

impl<T> Handles<T> {
    /// Gives `item` a number. After [`Handles::close`] nobody could give it back: it is returned.
    pub fn insert(&self, item: Arc<T>) -> Result<u64, Arc<T>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.items.insert(number, item);
        if self.closed.load(Ordering::SeqCst) {
            return self.remove(number).map_or(Ok(number), Err);
        }
        Ok(number)
    }

    pub fn get(&self, number: u64) -> Option<Arc<T>> {
        self.items.get(&number).map(|item| item.value().clone())
    }

    pub fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.items.remove(&number).map(|(_, item)| item)
    }

    /// Takes out everything; later insertions fail.
    pub fn close(&self) -> Vec<Arc<T>> {
        self.closed.store(true, Ordering::SeqCst);
        let numbers: Vec<u64> = self.items.iter().map(|item| *item.key()).collect();
        numbers
            .into_iter()
            .filter_map(|number| self.remove(number))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_closing_nothing_stays_behind() {
        let handles = Handles::default();
        let one = handles.insert(Arc::new("a")).expect("open");
        assert_eq!(handles.get(one).as_deref(), Some(&"a"));
        assert_eq!(handles.close().len(), 1);
        assert!(handles.insert(Arc::new("b")).is_err());
        assert!(handles.close().is_empty());
    }
}
