//! Images that lie on the devices and have not been loaded yet. A mount loads all of them before it
//! answers; the successor of a server that died loads what somebody asks for, and the rest when it serves.
//!
//! # Invariants
//! - An image waits, or is being loaded by one thread, or is none of ours any more.
//! - Nobody touches the files of an image before it is loaded.
//! - Nothing is inserted into a device or evicted from it before all its images are loaded, because
//!   what they occupy is not known: see [`super::device::Device::set_loaded`].
//!
//! # Locking
//! `state` is held for lookups only. Who wants an image that another is loading waits for `changed`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::store::ImageId;

use super::device::Device;

#[derive(Default)]
pub(super) struct Unloaded {
    state: Mutex<State>,
    changed: Condvar,
    /// All are loaded and known to their devices: nobody has to ask any more.
    over: AtomicBool,
}

#[derive(Default)]
struct State {
    waiting: HashMap<ImageId, Arc<Device>>,
    loading: HashSet<ImageId>,
    /// Somebody tells the devices that all is loaded.
    ending: bool,
}

impl Unloaded {
    /// `id` lies on `device`.
    pub fn add(&self, id: ImageId, device: &Arc<Device>) {
        self.state.lock().waiting.insert(id, device.clone());
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Takes an image to load it; [`Unloaded::loaded`] has to follow. `None` where there is nothing to
    /// do; while another loads it, waits for that.
    pub fn take(&self, id: ImageId) -> Option<Arc<Device>> {
        let mut state = self.state.lock();
        while state.loading.contains(&id) {
            self.changed.wait(&mut state);
        }
        let device = state.waiting.remove(&id)?;
        state.loading.insert(id);
        Some(device)
    }

    /// Takes any image to load it.
    pub fn take_any(&self) -> Option<(ImageId, Arc<Device>)> {
        let mut state = self.state.lock();
        let id = *state.waiting.keys().next()?;
        let device = state.waiting.remove(&id)?;
        state.loading.insert(id);
        Some((id, device))
    }

    /// The image taken before is loaded, or gone.
    pub fn loaded(&self, id: ImageId) {
        self.state.lock().loading.remove(&id);
        self.changed.notify_all();
    }

    /// With none left, waits for those being loaded and does `end`, once; others wait for it.
    pub fn end(&self, end: impl FnOnce()) {
        let mut state = self.state.lock();
        while state.ending || !state.loading.is_empty() {
            if self.is_over() {
                return;
            }
            self.changed.wait(&mut state);
        }
        if self.is_over() {
            return;
        }
        state.ending = true;
        drop(state);
        end();
        self.over.store(true, Ordering::Release);
        self.state.lock().ending = false;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_once_and_everybody_waits_for_that() {
        let unloaded = Unloaded::default();
        let ended = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    unloaded.end(|| {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                        ended.fetch_add(1, Ordering::SeqCst);
                    });
                    assert!(unloaded.is_over());
                    assert_eq!(ended.load(Ordering::SeqCst), 1);
                });
            }
        });
    }
}
