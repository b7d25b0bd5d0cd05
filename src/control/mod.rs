//! Control: HTTP and JSON over a unix socket.
//!
//! The daemon's side is [`server`], fed by a [`Source`] whose status never waits for the store; the command
//! line's side is [`client`], which finds the daemon with [`find`]. What goes over the wire is in
//! [`model`] and documented in docs/OPERATIONS.md.

pub mod actions;
pub mod client;
pub mod daemon;
pub mod find;
pub mod metrics;
pub mod model;
pub mod request;
pub mod server;

pub use client::ClientError;
pub use daemon::Daemon;
use metrics::Facts;
pub use model::MountStatus;
pub use request::{Lines, Reply, Request};
pub use server::Server;

use std::path::Path;

use crate::handover::message::Outcome;

/// Where the server gets what it tells.
pub trait Source: Send + Sync {
    /// The state of the mount now. Waits for no store and no device.
    fn status(&self) -> MountStatus;
    /// What metrics are read from, now. Waits for no store and no device.
    fn facts(&self) -> Facts;
    /// Tells an image to do something. Returns at once; the answer may come later, from any thread.
    fn act(&self, request: Request, reply: Reply);
    /// Hands the mount over to `program`; returns when that has begun. The error is a sentence.
    fn upgrade(&self, program: &Path) -> Result<(), String>;
    /// What came of the last upgrade.
    fn upgraded(&self) -> Option<Outcome>;
}
