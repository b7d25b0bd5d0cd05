//! Metrics: the counters of status and more, as text that Prometheus reads.
//!
//! [`definitions`] is the one table of all of them, [`render`] writes it out, [`port`] serves it over TCP
//! where that is configured. The control socket serves the same at `/metrics`.

pub mod definitions;
pub mod port;
pub mod render;

use super::model::MountStatus;
use crate::image::latencies::Histogram;
use crate::store::executor::Load;

pub use port::Port;

/// What all metrics are read from: the state of a mount at one moment.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub status: MountStatus,
    pub latencies: Vec<Histogram>,
    pub store_load: Vec<Load>,
    /// Store operations that ended at their deadline.
    pub store_expired: u64,
}
