//! What the project wants to reach, and whether it does.

use crate::compare::Figures;
use crate::lane::{DAEMON, PASSTHROUGH};
use crate::rows::{Access, KIB, MIB, Row};

/// One thing that has to hold.
#[derive(Clone, Copy)]
enum Wanted {
    /// IOPS or MB/s to the native file's, at least.
    Ratio(f64),
    /// Median latency to the native file's, at most.
    P50Times(f64),
    /// Median latency beyond the native file's, in µs, at most.
    P50Plus(f64),
    /// Processor time for an I/O to the native file's, at most.
    CpuTimes(f64),
    /// IOPS to those of the aligned row, at least.
    OfAligned(f64),
}

/// Fills in what is wanted of this row on this lane, and whether it is so.
pub fn judge(row: &Row, figures: &mut Figures) {
    let wanted = wanted(row, &figures.lane);
    if wanted.is_empty() {
        return;
    }
    let texts: Vec<String> = wanted.iter().map(|wanted| wanted.text()).collect();
    figures.target = Some(texts.join(", "));
    let found: Option<Vec<f64>> = wanted.iter().map(|wanted| wanted.found(figures)).collect();
    let Some(found) = found else {
        return; // not measured
    };
    let missed: Vec<String> = wanted
        .iter()
        .zip(found)
        .filter(|(wanted, found)| !wanted.is_met(*found))
        .map(|(wanted, found)| wanted.show(found))
        .collect();
    figures.met = Some(missed.is_empty());
    figures.missed = (!missed.is_empty()).then(|| missed.join(", "));
}

fn wanted(row: &Row, lane: &str) -> Vec<Wanted> {
    use Wanted::*;
    let one_reader = row.access == Access::RandomRead && row.jobs == 1;
    match (lane, row.block, row.depth) {
        (PASSTHROUGH, ..) => vec![Ratio(0.95), P50Times(1.1), CpuTimes(1.15)],
        (DAEMON, .., 1) if one_reader => vec![P50Plus(25.0)],
        (DAEMON, _, 32) if one_reader && row.offset != 0 => vec![OfAligned(0.9)],
        (DAEMON, block, 32) if one_reader && block == 4 * KIB => vec![Ratio(0.7), CpuTimes(2.0)],
        (DAEMON, block, _) if block == 64 * KIB => vec![Ratio(0.7)],
        (DAEMON, MIB, _) => vec![Ratio(0.9)],
        _ => vec![],
    }
}

impl Wanted {
    fn text(self) -> String {
        match self {
            Wanted::Ratio(least) => format!("ratio ≥ {least:.2}"),
            Wanted::P50Times(most) => format!("p50 ≤ {most}×"),
            Wanted::P50Plus(most) => format!("p50 ≤ +{most} µs"),
            Wanted::CpuTimes(most) => format!("CPU ≤ {most}×"),
            Wanted::OfAligned(least) => format!("≥ {least} of aligned"),
        }
    }

    fn found(self, figures: &Figures) -> Option<f64> {
        match self {
            Wanted::Ratio(_) => figures.ratio.map(|ratio| ratio.median),
            Wanted::P50Times(_) => figures.p50_ratio,
            Wanted::P50Plus(_) => figures.p50_over_native_us,
            Wanted::CpuTimes(_) => figures.cpu_ratio,
            Wanted::OfAligned(_) => figures.ratio_to_aligned.map(|ratio| ratio.median),
        }
    }

    fn is_met(self, found: f64) -> bool {
        match self {
            Wanted::Ratio(least) | Wanted::OfAligned(least) => found >= least,
            Wanted::P50Times(most) | Wanted::P50Plus(most) | Wanted::CpuTimes(most) => {
                found <= most
            }
        }
    }

    fn show(self, found: f64) -> String {
        match self {
            Wanted::Ratio(_) => format!("ratio {found:.2}"),
            Wanted::P50Times(_) => format!("p50 {found:.2}×"),
            Wanted::P50Plus(_) => format!("p50 {found:+.0} µs"),
            Wanted::CpuTimes(_) => format!("CPU {found:.2}×"),
            Wanted::OfAligned(_) => format!("{found:.2} of aligned"),
        }
    }
}
