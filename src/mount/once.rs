//! That a request is carried out once, though the kernel may send it again to the next server.
//!
//! A [`Once`] goes with each request whose repetition would show: it notes in the ledger what was found
//! before the store is asked, and knows what an earlier server has noted. What to make of that is in
//! [`super::again`]. Nothing is asked of the store for it: the kernel has just looked up the names in
//! question, so the inode table knows what they lead to, or that they lead to nothing.

use std::sync::Arc;

use crate::handover::Ledger;
use crate::handover::ledger::calls::{Call, Findings};
use crate::store::{ImageId, Result};

/// The kernel sets this bit in the number of a request that it sends again, and wants it in the reply.
const SENT_AGAIN: u64 = 1 << 63;

/// Whether the number of a request says that it was sent before.
pub fn is_sent_again(unique: u64) -> bool {
    unique & SENT_AGAIN != 0
}

/// What is known of one request.
#[derive(Clone)]
pub struct Once {
    unique: u64,
    sent_again: bool,
    call: Option<Arc<Call>>,
}

/// What a request found, before it or an earlier server asked the store: as many as two objects.
pub type Found = [Option<ImageId>; 2];

impl Once {
    /// For a request that is never sent again.
    pub fn never_again() -> Once {
        Once {
            unique: 0,
            sent_again: false,
            call: None,
        }
    }

    /// For the request that the kernel calls `unique`. It gets a slot in the ledger if it is `guarded`.
    pub fn new(ledger: &Ledger, unique: u64, guarded: bool) -> Once {
        let sent_again = is_sent_again(unique);
        let unique = unique & !SENT_AGAIN;
        let call = guarded.then(|| ledger.calls.begin(unique, sent_again));
        Once {
            unique,
            sent_again,
            call: call.flatten().map(Arc::new),
        }
    }

    /// The number of the request, the same whenever it is sent.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// A server before may have begun with it.
    pub fn is_sent_again(&self) -> bool {
        self.sent_again
    }

    /// What an earlier server found before it asked the store and did not live to answer.
    pub fn earlier(&self) -> Option<Found> {
        let Findings(found) = self.call.as_ref()?.earlier()?;
        Some(found.map(|id| id.map(|(ino, tag)| ImageId { ino, tag })))
    }

    /// The store is about to be asked for the change, after this was found.
    pub fn asks(&self, found: Found) {
        if let Some(call) = &self.call {
            call.asks(Findings(found.map(|id| id.map(|id| (id.ino, id.tag)))));
        }
    }

    /// The store has answered; notes if it has done nothing.
    pub fn told<T>(&self, result: Result<T>) -> Result<T> {
        if let (Some(call), Err(_)) = (&self.call, &result) {
            call.refused();
        }
        result
    }

    /// The kernel is about to be told of this inode, or after all of none.
    pub fn gives(&self, nodeid: Option<u64>) {
        if let Some(call) = &self.call {
            call.gives(nodeid);
        }
    }

    /// The inode that an earlier server was about to tell the kernel of and did not, told once.
    pub fn given_before(&self) -> Option<u64> {
        self.call.as_ref()?.given()
    }
}
