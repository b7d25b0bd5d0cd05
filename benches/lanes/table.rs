//! A report as people read it: on the terminal, and as it stands in docs/PERFORMANCE.md.

use std::collections::BTreeSet;

use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent, presets};

use crate::compare::{Comparison, Figures};
use crate::lane::NATIVE;
use crate::report::{Fact, Load, Report};
use crate::spread::Spread;

const HEAD: [&str; 10] = [
    "row",
    "lane",
    "rate",
    "ratio to native",
    "p50 µs",
    "p99 µs",
    "CPU µs/IO",
    "CPU ×",
    "target",
    "met",
];

pub fn terminal(report: &Report) -> String {
    render(report, presets::UTF8_HORIZONTAL_ONLY)
}

pub fn markdown(report: &Report) -> String {
    render(report, presets::ASCII_MARKDOWN)
}

fn render(report: &Report, preset: &str) -> String {
    let mut text = format!("{}\n", setting(report));
    for comparison in &report.comparisons {
        let title = match comparison.title.as_str() {
            "sessions" => "Session loops",
            _ => "Warm lanes",
        };
        text += &format!("\n{title}. {}\n\n", around(&comparison.load));
        text += &format!(
            "{}\n\n{}\n",
            lanes(comparison, preset),
            notes(comparison, report)
        );
    }
    if !report.facts.is_empty() {
        text += &format!("\nOther figures. {}\n\n", around(&report.cold_load));
        text += &format!("{}\n", facts(&report.facts, preset));
    }
    text
}

fn setting(report: &Report) -> String {
    let settings = &report.settings;
    format!(
        "{}. Rounds: {}; {} s a job, images of {} MiB, flashside {}.",
        report.machine.text(),
        settings.rounds,
        settings.runtime.as_secs_f64(),
        settings.image_bytes >> 20,
        report.version
    )
}

/// The load average, which says how quiet the machine was.
fn around(load: &[Load]) -> String {
    let before = Spread::of(load.iter().map(|load| load.before));
    let after = Spread::of(load.iter().map(|load| load.after));
    match (before, after) {
        (Some(before), Some(after)) => format!(
            "Load average {:.1} to {:.1} before the rounds, {:.1} to {:.1} after them.",
            before.min, before.max, after.min, after.max
        ),
        _ => String::new(),
    }
}

fn lanes(comparison: &Comparison, preset: &str) -> Table {
    let mut table = empty(preset, &HEAD);
    for row in &comparison.rows {
        for (at, figures) in row.lanes.iter().enumerate() {
            let name = if at == 0 { row.name.as_str() } else { "" };
            table.add_row(line(name, &row.unit, figures));
        }
    }
    for column in [2, 4, 5, 6, 7] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn line(name: &str, unit: &str, figures: &Figures) -> Vec<String> {
    let mut cells = vec![name.to_owned(), figures.lane.clone()];
    if figures.problem.is_some() {
        cells.extend(["–"; 6].map(str::to_owned)); // the note below the table says why
    } else {
        let rate = figures
            .rate
            .map(|rate| format!("{:.0} {unit}", rate.median));
        let more = figures.p50_over_native_us;
        let more = more.map_or(String::new(), |more| format!(" ({more:+.0})"));
        cells.push(rate.unwrap_or_default());
        cells.push(spread(figures.ratio, 2));
        cells.push(format!("{}{more}", one(figures.p50_us, 0)));
        cells.push(one(figures.p99_us, 0));
        cells.push(one(figures.cpu_us, 1));
        cells.push(one(figures.cpu_ratio, 2));
    }
    let target = figures.target.clone().unwrap_or_default();
    let reached = match (&figures.problem, &figures.target) {
        (Some(_), Some(_)) => "not measured".into(),
        _ => met(figures.met, figures.missed.as_deref()),
    };
    cells.extend([target, reached]);
    cells
}

fn facts(facts: &[Fact], preset: &str) -> Table {
    let mut table = empty(preset, &["what", "measured", "target", "met"]);
    for fact in facts {
        let target = fact.target.clone().unwrap_or_default();
        let (name, measured) = (fact.name.clone(), fact.measured.clone());
        table.add_row([name, measured, target, met(fact.met, None)]);
    }
    table
}

/// What the figures are to be read with.
fn notes(comparison: &Comparison, report: &Report) -> String {
    let figures = || comparison.rows.iter().flat_map(|row| &row.lanes);
    let misses: u64 = figures().map(|figures| figures.misses).sum();
    let bytes: u64 = figures().map(|figures| figures.store_read_bytes).sum();
    let warm = match (misses, bytes) {
        (0, 0) => {
            "every read that reached a daemon was a hit, and nothing was read from the store".into()
        }
        _ => {
            format!("NOT ALL WARM: {misses} reads were no hits, {bytes} bytes came from the store")
        }
    };
    let twice = match report.machine.store {
        None => {
            "Writes are write-through, store directory on the same disk: every write goes to the disk twice."
        }
        Some(_) => "Writes are write-through, store directory on another disk.",
    };
    let small = figures().any(|figures| figures.lane == NATIVE);
    let sectors = match small && report.machine.disk.contains("sectors of 512 B") {
        true => "",
        false => " Rows without native: the disk takes no I/O of less than 4096 bytes.",
    };
    let problems: BTreeSet<String> = figures().filter_map(problem).collect();
    let problems: String = problems
        .iter()
        .map(|problem| format!("\n\n{problem}"))
        .collect();
    format!(
        "Median (least–greatest) of the rounds; p50 in brackets: beyond native's. CPU is client and daemon. \
         During these rows {warm}. {twice}{sectors}{problems}"
    )
}

/// Why a lane has no figures.
fn problem(figures: &Figures) -> Option<String> {
    let why = figures.problem.as_ref()?;
    Some(format!("Lane {}: {why}.", figures.lane))
}

fn met(met: Option<bool>, missed: Option<&str>) -> String {
    match (met, missed) {
        (None, _) => String::new(),
        (Some(true), _) => "yes".into(),
        (Some(false), None) => "no".into(),
        (Some(false), Some(missed)) => format!("no: {missed}"),
    }
}

/// Median, least and greatest.
pub fn spread(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or(String::new(), |spread| {
        let Spread { median, min, max } = spread;
        format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
    })
}

fn one(value: Option<f64>, digits: usize) -> String {
    value.map_or(String::new(), |value| format!("{value:.digits$}"))
}

/// Nothing is wrapped: a terminal does that, and markdown must not be.
fn empty(preset: &str, head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(preset);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head);
    for between in [
        TableComponent::HorizontalLines,
        TableComponent::MiddleIntersections,
        TableComponent::LeftBorderIntersections,
        TableComponent::RightBorderIntersections,
    ] {
        table.remove_style(between);
    }
    table
}
