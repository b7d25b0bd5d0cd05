//! Every metric there is: name, kind, unit, labels, help, and where its samples come from.
//!
//! A documented interface: docs/METRICS.md lists the same, which `tests/metrics.rs` checks both ways. All
//! have the label `mountpoint` besides those named here. Names follow Prometheus' rules: base units at
//! the end, `_total` after them for counters.

use std::collections::{BTreeMap, HashMap};

use super::Facts;
use crate::cache::status::DeviceStatus;
use crate::control::model::StoreState;
use crate::handover::message::State;
use crate::image::latencies::{BOUNDS_NS, Histogram, Timed};
use crate::image::status::ImageStatus;
use crate::store::executor::Load;

/// What a metric is to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    /// As in docs/METRICS.md.
    pub fn text(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One metric.
pub struct Definition {
    /// Whole, as it is scraped.
    pub name: &'static str,
    pub kind: Kind,
    /// `bytes`, `seconds`, or nothing for plain counts.
    pub unit: &'static str,
    /// Besides `mountpoint`.
    pub labels: &'static [&'static str],
    pub help: &'static str,
    /// Its samples now.
    pub samples: fn(&Facts) -> Vec<Sample>,
}

/// One line of a metric, or one histogram.
pub struct Sample {
    /// In the order of [`Definition::labels`].
    pub labels: Vec<String>,
    pub value: Value,
}

/// What a sample says.
pub enum Value {
    Number(u64),
    Histogram {
        sum_seconds: f64,
        count: u64,
        /// Upper bound in seconds, and how many lie between it and the one before.
        buckets: Vec<(f64, u64)>,
    },
}

const IMAGE: &[&str] = &["image"];
const DEVICE: &[&str] = &["device"];
const CLASS: &[&str] = &["class"];
const PLANE_OUTCOME: &[&str] = &["plane", "outcome"];
const OUTCOME: &[&str] = &["outcome"];

/// The table.
pub const ALL: &[Definition] = &[
    gauge(
        "flashside_build_info",
        "",
        &["version"],
        "Always 1; the label says which version serves.",
        |_| vec![sample([env!("CARGO_PKG_VERSION")], 1)],
    ),
    counter(
        "flashside_restarts_total",
        "",
        &[],
        "Servers that took over from one before, since the mount was made.",
        |facts| vec![sample([], facts.status.restarts)],
    ),
    counter(
        "flashside_resent_requests_total",
        "",
        &[],
        "Requests that the kernel sent again after a take-over, since the mount was made.",
        |facts| vec![sample([], facts.status.resent_requests)],
    ),
    gauge(
        "flashside_handover_state",
        "",
        &["state"],
        "1 for the state of the hand-over (ready: a standby waits; starting; off: no other server will come), 0 for the \
         others.",
        handover_state,
    ),
    gauge(
        "flashside_store_state",
        "",
        &["state"],
        "1 for the state the store is in (responding, hanging, failing), 0 for the others.",
        store_state,
    ),
    gauge(
        "flashside_store_operations_running",
        "",
        CLASS,
        "Store operations under way, by class: guest, readahead, warm.",
        |facts| loads(facts, |load| load.running),
    ),
    gauge(
        "flashside_store_operations_queued",
        "",
        CLASS,
        "Store operations that wait for a thread.",
        |facts| loads(facts, |load| load.queued),
    ),
    gauge(
        "flashside_store_operations_abandoned",
        "",
        CLASS,
        "Store calls that have not returned though their deadline has passed; each keeps a thread.",
        |facts| loads(facts, |load| load.abandoned),
    ),
    counter(
        "flashside_store_operations_expired_total",
        "",
        &[],
        "Store operations that ended at store-deadline with EIO.",
        |facts| vec![sample([], facts.store_expired)],
    ),
    gauge(
        "flashside_pool_limit_bytes",
        "bytes",
        &[],
        "What the cache may take, all devices together.",
        |facts| vec![sample([], facts.status.pool.limit_bytes)],
    ),
    gauge(
        "flashside_pool_used_bytes",
        "bytes",
        &[],
        "What the cache takes.",
        |facts| vec![sample([], facts.status.pool.used_bytes)],
    ),
    gauge(
        "flashside_device_limit_bytes",
        "bytes",
        DEVICE,
        "What the cache may take on this device.",
        |facts| devices(facts, |device| device.limit_bytes),
    ),
    gauge(
        "flashside_device_used_bytes",
        "bytes",
        DEVICE,
        "What the cache takes on this device.",
        |facts| devices(facts, |device| device.used_bytes),
    ),
    gauge(
        "flashside_device_state",
        "",
        &["device", "state"],
        "1 for the state the device is in (healthy, suspect), 0 for the other.",
        device_states,
    ),
    histogram(
        "flashside_read_seconds",
        PLANE_OUTCOME,
        "Reads of guests: hit (flash or memory), miss (waited for the store), around (of a long stream, not put on \
         flash), failed. Reads on the passthrough plane are the kernel's and not seen.",
        |facts| times(facts, Timed::Read, &["daemon"]),
    ),
    histogram(
        "flashside_write_seconds",
        PLANE_OUTCOME,
        "Writes of guests: done (the store has taken them) or failed.",
        |facts| times(facts, Timed::Write, &["daemon"]),
    ),
    histogram(
        "flashside_flush_seconds",
        PLANE_OUTCOME,
        "Flushes of guests, and closes of what they wrote: done (durable in the store) or failed.",
        |facts| times(facts, Timed::Flush, &["daemon"]),
    ),
    histogram(
        "flashside_store_read_seconds",
        OUTCOME,
        "Single reads of the store, without the wait for a thread: done or failed.",
        |facts| times(facts, Timed::StoreRead, &[]),
    ),
    histogram(
        "flashside_store_write_seconds",
        OUTCOME,
        "Single writes to the store, without the wait for a thread: done or failed.",
        |facts| times(facts, Timed::StoreWrite, &[]),
    ),
    gauge(
        "flashside_image_size_bytes",
        "bytes",
        IMAGE,
        "Size of the image.",
        |facts| images(facts, |image| image.size_bytes),
    ),
    gauge(
        "flashside_image_resident_bytes",
        "bytes",
        IMAGE,
        "On flash and valid.",
        |facts| images(facts, |image| image.resident_bytes),
    ),
    gauge(
        "flashside_image_dirty_bytes",
        "bytes",
        IMAGE,
        "Newer on flash than in the store; 0 under write-through.",
        |facts| images(facts, |image| image.dirty_bytes),
    ),
    gauge(
        "flashside_image_pinned_bytes",
        "bytes",
        IMAGE,
        "Not to be evicted.",
        |facts| images(facts, |image| image.pinned_bytes),
    ),
    gauge(
        "flashside_image_handles",
        "",
        &["image", "plane"],
        "Open handles by plane: daemon, passthrough.",
        handles,
    ),
    counter(
        "flashside_image_reads_total",
        "",
        IMAGE,
        "Reads of guests on the daemon plane.",
        |facts| images(facts, |image| image.reads),
    ),
    counter(
        "flashside_image_read_hits_total",
        "",
        IMAGE,
        "Reads that waited for no store.",
        |facts| images(facts, |image| image.read_hits),
    ),
    counter(
        "flashside_image_read_bytes_total",
        "bytes",
        IMAGE,
        "Read by guests on the daemon plane.",
        |facts| images(facts, |image| image.read_bytes),
    ),
    counter(
        "flashside_image_writes_total",
        "",
        IMAGE,
        "Writes of guests.",
        |facts| images(facts, |image| image.writes),
    ),
    counter(
        "flashside_image_write_bytes_total",
        "bytes",
        IMAGE,
        "Written by guests.",
        |facts| images(facts, |image| image.write_bytes),
    ),
    counter(
        "flashside_image_store_read_requests_total",
        "",
        IMAGE,
        "Reads sent to the store.",
        |facts| images(facts, |image| image.store_read_requests),
    ),
    counter(
        "flashside_image_store_read_bytes_total",
        "bytes",
        IMAGE,
        "Read from the store.",
        |facts| images(facts, |image| image.store_read_bytes),
    ),
    counter(
        "flashside_image_store_write_requests_total",
        "",
        IMAGE,
        "Writes sent to the store.",
        |facts| images(facts, |image| image.store_write_requests),
    ),
    counter(
        "flashside_image_store_write_bytes_total",
        "bytes",
        IMAGE,
        "Written to the store.",
        |facts| images(facts, |image| image.store_write_bytes),
    ),
    counter(
        "flashside_image_checksum_mismatches_total",
        "",
        IMAGE,
        "Pages whose bytes on flash did not match their checksum; they were fetched again.",
        |facts| images(facts, |image| image.checksum_mismatches),
    ),
];

type Samples = fn(&Facts) -> Vec<Sample>;

const fn gauge(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    samples: Samples,
) -> Definition {
    let kind = Kind::Gauge;
    Definition {
        name,
        kind,
        unit,
        labels,
        help,
        samples,
    }
}

const fn counter(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    samples: Samples,
) -> Definition {
    let kind = Kind::Counter;
    Definition {
        name,
        kind,
        unit,
        labels,
        help,
        samples,
    }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    samples: Samples,
) -> Definition {
    let (kind, unit) = (Kind::Histogram, "seconds");
    Definition {
        name,
        kind,
        unit,
        labels,
        help,
        samples,
    }
}

fn sample<const N: usize>(labels: [&str; N], number: u64) -> Sample {
    Sample {
        labels: labels.map(str::to_owned).into(),
        value: Value::Number(number),
    }
}

fn store_state(facts: &Facts) -> Vec<Sample> {
    let states = [
        (StoreState::Responding, "responding"),
        (StoreState::Hanging, "hanging"),
        (StoreState::Failing, "failing"),
    ];
    let one = |(state, text)| sample([text], u64::from(facts.status.store_state == state));
    states.map(one).into()
}

fn handover_state(facts: &Facts) -> Vec<Sample> {
    let states = [
        (State::Ready, "ready"),
        (State::Starting, "starting"),
        (State::Off, "off"),
    ];
    let one = |(state, text)| sample([text], u64::from(facts.status.handover == state));
    states.map(one).into()
}

fn loads(facts: &Facts, value: impl Fn(&Load) -> usize) -> Vec<Sample> {
    let one = |load: &Load| sample([load.class.text()], value(load) as u64);
    facts.store_load.iter().map(one).collect()
}

fn devices(facts: &Facts, value: impl Fn(&DeviceStatus) -> u64) -> Vec<Sample> {
    let one = |device: &DeviceStatus| sample([&device.dir], value(device));
    facts.status.pool.devices.iter().map(one).collect()
}

fn device_states(facts: &Facts) -> Vec<Sample> {
    let states = |device: &DeviceStatus| {
        ["healthy", "suspect"]
            .map(|state| sample([&device.dir, state], u64::from(device.state == state)))
    };
    facts.status.pool.devices.iter().flat_map(states).collect()
}

/// One sample per image. Two images may have had one name (one of them was replaced): then their ids tell
/// them apart, as no two samples of a metric may have the same labels.
fn images(facts: &Facts, value: impl Fn(&ImageStatus) -> u64) -> Vec<Sample> {
    let names = names(&facts.status.images);
    let each = facts.status.images.iter().zip(&names);
    each.map(|(image, name)| sample([name], value(image)))
        .collect()
}

fn handles(facts: &Facts) -> Vec<Sample> {
    let names = names(&facts.status.images);
    let mut samples = Vec::new();
    for (image, name) in facts.status.images.iter().zip(&names) {
        let mut planes = BTreeMap::from([("daemon", 0), ("passthrough", 0)]);
        for plane in &image.planes {
            *planes.entry(&plane.plane).or_default() += plane.handles;
        }
        samples.extend(
            planes
                .into_iter()
                .map(|(plane, count)| sample([name, plane], count)),
        );
    }
    samples
}

fn names(images: &[ImageStatus]) -> Vec<String> {
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for image in images {
        *uses.entry(&image.name).or_default() += 1;
    }
    let name = |image: &ImageStatus| match uses[image.name.as_str()] {
        1 => image.name.clone(),
        _ => format!("{} ({})", image.name, image.id),
    };
    images.iter().map(name).collect()
}

/// The histograms of what is timed; `labels` come before the outcome.
fn times(facts: &Facts, timed: Timed, labels: &[&str]) -> Vec<Sample> {
    let mine = facts.latencies.iter().filter(|one| one.timed == timed);
    mine.map(|one| Sample {
        labels: (labels.iter().copied())
            .chain([one.outcome.text()])
            .map(str::to_owned)
            .collect(),
        value: in_seconds(one),
    })
    .collect()
}

fn in_seconds(histogram: &Histogram) -> Value {
    let bounds = BOUNDS_NS.iter().map(|ns| *ns as f64 / 1e9);
    let bounds = bounds.chain([f64::INFINITY]);
    Value::Histogram {
        sum_seconds: histogram.sum_ns as f64 / 1e9,
        count: histogram.counts.iter().sum(),
        buckets: bounds.zip(histogram.counts).collect(),
    }
}
