//! Rows measured on lanes, in turns: in every round each row once on each lane, and another lane first.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::arguments::Settings;
use crate::lane::{Lane, NATIVE, Sample};
use crate::report::Load;
use crate::rows::Row;
use crate::scratch::Scratch;
use crate::spread::Spread;
use crate::targets;
use crate::{interrupt, say};

/// Rows measured on the same lanes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Comparison {
    pub title: String,
    pub rows: Vec<Compared>,
    /// One for each round.
    pub load: Vec<Load>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Compared {
    pub name: String,
    pub unit: String,
    pub lanes: Vec<Figures>,
}

/// A row on a lane. Ratios are to the native file in the same round; numbers without a spread are medians.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    pub lane: String,
    /// Why there are none.
    pub problem: Option<String>,
    pub rate: Option<Spread>,
    pub ratio: Option<Spread>,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p50_over_native_us: Option<f64>,
    pub p50_ratio: Option<f64>,
    pub cpu_us: Option<f64>,
    pub cpu_ratio: Option<f64>,
    /// To the same lane's row at multiples of the block, in the same round.
    pub ratio_to_aligned: Option<Spread>,
    /// Of all rounds: reads the daemon had to go to the store for, and bytes that came from there.
    pub misses: u64,
    pub store_read_bytes: u64,
    pub target: Option<String>,
    pub met: Option<bool>,
    /// What is not as the target says.
    pub missed: Option<String>,
    /// One for each round.
    pub samples: Vec<Sample>,
}

/// What was measured of one row on one lane, round by round.
#[derive(Default)]
struct Taken {
    samples: Vec<Sample>,
    problem: Option<String>,
}

/// Measures everything; what a lane cannot serve is left out.
pub fn compare(
    title: &str,
    rows: &[Row],
    lanes: &[Lane],
    scratch: &Scratch,
    settings: &Settings,
) -> Result<Comparison> {
    let mut taken: Vec<Vec<Taken>> = Vec::new();
    taken.resize_with(rows.len(), || {
        lanes.iter().map(|_| Taken::default()).collect()
    });
    let mut load = Vec::new();
    for round in 0..settings.rounds as usize {
        say(&format!(
            "{title}: round {} of {}",
            round + 1,
            settings.rounds
        ));
        let before = Load::now();
        for (row, taken) in rows.iter().zip(&mut taken) {
            for turn in 0..lanes.len() {
                let at = (turn + round) % lanes.len();
                take(&mut taken[at], row, &lanes[at], scratch, settings)?;
            }
        }
        load.push(before.until_now());
    }
    let rows = conclude(rows, lanes, taken);
    Ok(Comparison {
        title: title.to_owned(),
        rows,
        load,
    })
}

/// One sample more. After writes, waits until what they left behind is done.
fn take(
    taken: &mut Taken,
    row: &Row,
    lane: &Lane,
    scratch: &Scratch,
    settings: &Settings,
) -> Result<()> {
    if !lane.serves(row) || taken.problem.is_some() {
        return Ok(());
    }
    match lane.measure(row, scratch, settings)? {
        Ok(sample) => taken.samples.push(sample),
        Err(problem) => taken.problem = Some(problem),
    }
    if row.access.writes() {
        scratch.sync()?;
        interrupt::sleep(settings.calm)?;
    }
    Ok(())
}

fn conclude(rows: &[Row], lanes: &[Lane], taken: Vec<Vec<Taken>>) -> Vec<Compared> {
    let native = lanes.iter().position(|lane| lane.name == NATIVE);
    let mut compared = Vec::new();
    for (row, of_row) in rows.iter().zip(&taken) {
        let aligned = row.aligned();
        let aligned = aligned.and_then(|aligned| rows.iter().position(|row| *row == aligned));
        let mut figures = Vec::new();
        for (at, lane) in lanes.iter().enumerate() {
            if !lane.serves(row) {
                continue;
            }
            let native = native.map_or(&[][..], |native| &of_row[native].samples);
            let aligned = aligned.map_or(&[][..], |aligned| &taken[aligned][at].samples);
            let mut lane = figures_of(lane.name, &of_row[at], native, aligned);
            targets::judge(row, &mut lane);
            figures.push(lane);
        }
        compared.push(Compared {
            name: row.name(),
            unit: row.unit().to_owned(),
            lanes: figures,
        });
    }
    compared
}

fn figures_of(lane: &str, taken: &Taken, native: &[Sample], aligned: &[Sample]) -> Figures {
    let mut figures = Figures {
        lane: lane.to_owned(),
        problem: taken.problem.clone(),
        ..Figures::default()
    };
    if taken.problem.is_some() {
        return figures; // what earlier rounds gave is not sure to have been this lane
    }
    let own = &taken.samples;
    let beside = |of: fn(&Sample, &Sample) -> f64, others: &[Sample]| {
        let values: Vec<f64> = own
            .iter()
            .zip(others)
            .map(|(own, other)| of(own, other))
            .collect();
        Spread::of(values)
    };
    let rates: fn(&Sample, &Sample) -> f64 = |own, other| own.rate / other.rate;
    let median = |of: fn(&Sample) -> f64| Spread::median_of(own.iter().map(of));
    figures.rate = Spread::of(own.iter().map(|sample| sample.rate));
    figures.p50_us = median(|sample| sample.p50_us);
    figures.p99_us = median(|sample| sample.p99_us);
    figures.cpu_us = median(|sample| sample.cpu_us);
    if lane != NATIVE {
        let middle = |spread: Option<Spread>| spread.map(|spread| spread.median);
        figures.ratio = beside(rates, native);
        figures.p50_over_native_us =
            middle(beside(|own, native| own.p50_us - native.p50_us, native));
        figures.p50_ratio = middle(beside(|own, native| own.p50_us / native.p50_us, native));
        figures.cpu_ratio = middle(beside(|own, native| own.cpu_us / native.cpu_us, native));
    }
    figures.ratio_to_aligned = beside(rates, aligned);
    figures.misses = own.iter().map(|sample| sample.misses).sum();
    figures.store_read_bytes = own.iter().map(|sample| sample.store_read_bytes).sum();
    figures.samples = own.clone();
    figures
}
