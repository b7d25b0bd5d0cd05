//! What passes from one server of a mount to the next.
//!
//! A *keeper* mounts, holds every descriptor of the connection and starts *servers*; one serves at a time.
//! When it dies the next goes on: the kernel's requests, node numbers and open files stay what they are.
//! What the next server has to know lies in the [`ledger`], memory that both map; the open files of the
//! store are descriptors that the keeper holds as well ([`Holder`]). They speak over a [`Link`].
//!
//! Touches no room but itself: keeper and mount both speak these words.

pub mod kept;
pub mod ledger;
pub mod link;
pub mod message;

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

pub use kept::Kept;
pub use ledger::Ledger;
pub use link::{Came, Link};
pub use message::Message;

/// What a server begins with.
pub struct Inheritance {
    pub ledger: Arc<Ledger>,
    /// Descriptors of the connection, nonblocking, made by whoever mounted: one for each thread that
    /// takes requests, and a last one to tell the kernel something.
    pub devices: Vec<OwnedFd>,
    /// The open files of the store by handle number, as the server before left them.
    pub files: HashMap<u64, OwnedFd>,
    /// Who holds open files for the server that comes after.
    pub holder: Arc<dyn Holder>,
    /// What INIT led to.
    pub negotiated: Negotiated,
    /// A server served this mount before: what it left has to be taken on, and the kernel asked once
    /// to send again what was not answered.
    pub succeeds: bool,
}

/// What the kernel agreed to when the mount was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// FUSE_PASSTHROUGH with a stack depth of 1.
    pub passthrough: bool,
    /// The kernel can send again what a dead server has not answered (FUSE_NOTIFY_RESEND, Linux 6.9).
    pub resend: bool,
}

/// Keeps descriptors alive past the death of a server. Neither call waits for an answer; calls for one
/// number come in their order.
pub trait Holder: Send + Sync {
    /// `file` is the store's file of the open handle `number`. Told before the handle is answered.
    fn hold(&self, number: u64, file: BorrowedFd<'_>);
    /// The handle is closed.
    fn let_go(&self, number: u64);
}

/// Where no other server will come.
pub struct NoHolder;

impl Holder for NoHolder {
    fn hold(&self, _number: u64, _file: BorrowedFd<'_>) {}
    fn let_go(&self, _number: u64) {}
}
