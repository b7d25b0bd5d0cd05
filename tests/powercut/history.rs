//! What the store went through: each change with the length of the device log around it, so that
//! the store's content at a cut can be made again.
//!
//! *Invariants.* `changes` is in the order in which the changes took effect; `numbers` count
//! arrivals and effects on one clock. A change that arrived after the cut is not in the store. One
//! that took effect before it is. In between, a cut may fall anywhere, and a request that was on
//! its way when the host lost power may still take effect afterwards.

use std::time::SystemTime;

use crate::rig::Rng;

/// What was done to the image.
pub enum Change {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Resize(u64),
}

/// A change, and when.
pub struct Step {
    pub change: Change,
    /// Length of the device log when the request arrived.
    pub arrived_log: u64,
    /// Length of the device log when it had taken effect.
    pub done_log: u64,
    /// Place of its arrival among all arrivals and effects.
    pub arrived: u64,
    /// Place of its effect among all arrivals and effects.
    pub done: u64,
    /// The store's time for it.
    pub time: SystemTime,
}

/// The image with its time of last change.
#[derive(Clone)]
pub struct Content {
    pub bytes: Vec<u8>,
    pub changed: SystemTime,
}

impl Content {
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Write(offset, data) => {
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                if self.bytes.len() < end {
                    self.bytes.resize(end, 0);
                }
                self.bytes[start..end].copy_from_slice(data);
            }
            Change::Zero(offset, len) => {
                let end = (offset + len).min(self.bytes.len() as u64) as usize;
                self.bytes[(*offset as usize).min(end)..end].fill(0);
            }
            Change::Resize(len) => self.bytes.resize(*len as usize, 0),
        }
    }

    fn take(&mut self, step: &Step) {
        self.apply(&step.change);
        self.changed = self.changed.max(step.time);
    }
}

/// All changes since a first content.
pub struct History {
    pub first: Content,
    pub steps: Vec<Step>,
}

impl History {
    /// A content the store can have had when the host died with `cut` bytes in the device's log.
    pub fn at(&self, cut: u64, rng: &mut Rng) -> Content {
        let mut content = self.first.clone();
        let certain = self.steps.partition_point(|step| step.done_log < cut);
        let possible = self.steps.partition_point(|step| step.done_log <= cut);
        // The moment of the cut, among the changes that the log cannot tell from it.
        let moment = certain + rng.below((possible - certain) as u64 + 1) as usize;
        let until = self.steps.get(moment).map_or(u64::MAX, |next| next.done);
        for step in &self.steps[..moment] {
            content.take(step);
        }
        for step in &self.steps[moment..] {
            let sent = step.arrived_log <= cut && step.arrived < until;
            if sent && rng.chance(50) {
                content.take(step);
            }
        }
        content
    }
}
