//! The table of metrics as Prometheus' text format, by the encoder of prometheus-client.
//!
//! That library writes OpenMetrics, which differs in three things, and they are left out here: the line
//! with the unit, the end mark, and the suffix `_total`, which OpenMetrics has in a counter's samples but
//! not in its name. So a counter is handed over under its whole name, with its value as a plain number.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Facts;
use super::definitions::{self, Definition, Kind, Sample, Value};

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics.
pub fn render(facts: Facts) -> String {
    let mountpoint = facts.status.mountpoint.clone();
    let labels = [("mountpoint".into(), mountpoint.into())];
    let mut registry = Registry::with_labels(labels.into_iter());
    registry.register_collector(Box::new(Metrics(facts)));
    let mut out = String::new();
    text::encode_registry(&mut out, &registry).expect("a String takes everything");
    out
}

#[derive(Debug)]
struct Metrics(Facts);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        definitions::ALL
            .iter()
            .try_for_each(|metric| encode(&mut encoder, metric, &self.0))
    }
}

/// A metric without samples is left out.
fn encode(encoder: &mut DescriptorEncoder<'_>, metric: &Definition, facts: &Facts) -> fmt::Result {
    let samples = (metric.samples)(facts);
    if samples.is_empty() {
        return Ok(());
    }
    let kind = match metric.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
    };
    let mut encoder = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
    let mut one = |sample: &Sample| encode_sample(&mut encoder, metric, sample);
    samples.iter().try_for_each(&mut one)
}

fn encode_sample(
    encoder: &mut MetricEncoder<'_>,
    metric: &Definition,
    sample: &Sample,
) -> fmt::Result {
    let values = sample.labels.iter().map(String::as_str);
    let labels: Vec<(&str, &str)> = metric.labels.iter().copied().zip(values).collect();
    let mut encoder = encoder.encode_family(&labels)?;
    match &sample.value {
        Value::Number(number) => encoder.encode_gauge(number),
        Value::Histogram {
            sum_seconds,
            count,
            buckets,
        } => encoder.encode_histogram::<NoLabelSet>(*sum_seconds, *count, buckets, None),
    }
}
