//! Measures what flashside costs and gives: the same fio jobs on a plain file, on passthrough and through the
//! daemon, one after the other in every round, so that all of them meet the machine in the same mood. Prints
//! tables, writes them as JSON, asserts nothing. `benches/run.sh` builds and starts it.
//!
//! Touches one scratch directory (see [`scratch`]) and the results file. Every child and mount is gone at the end,
//! whatever the end.

mod arguments;
mod backup;
mod cold;
mod compare;
mod daemon;
mod fio;
#[path = "../../tests/world/group.rs"]
mod group;
mod idle;
mod image;
mod interrupt;
mod lane;
mod machine;
mod memory;
mod report;
mod rows;
mod running;
mod scratch;
mod sessions;
mod spread;
mod table;
mod targets;
mod warm;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use arguments::{Arguments, Section, Settings};
use report::Report;
use scratch::Scratch;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches/run.sh: {error:#}");
            ExitCode::from(if interrupt::came() { 130 } else { 1 })
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    if arguments.markdown {
        print!("{}", table::markdown(&Report::load()?));
        return Ok(());
    }
    interrupt::listen()?;
    let settings = arguments.settings();
    let report = measure(&settings)?;
    report.save()?;
    print!("{}", table::terminal(&report));
    println!("JSON in {}", report::path().display());
    Ok(())
}

/// All sections that are wanted. The scratch directory outlives whatever runs in it.
fn measure(settings: &Settings) -> Result<Report> {
    let scratch = Scratch::new(settings)?;
    let mut report = Report::new(settings, &scratch)?;
    for section in &settings.sections {
        let begun = std::time::Instant::now();
        match section {
            Section::Warm => warm::measure(&scratch, settings, &mut report)?,
            Section::Sessions => sessions::measure(&scratch, settings, &mut report)?,
            Section::Cold => cold::measure(&scratch, settings, &mut report)?,
            Section::Backup => backup::measure(&scratch, settings, &mut report)?,
            Section::Idle => idle::measure(&scratch, settings, &mut report)?,
            Section::Memory => memory::measure(&scratch, settings, &mut report)?,
        }
        scratch.clear()?;
        say(&format!("{section:?} took {:.0?}", begun.elapsed()));
    }
    Ok(report)
}

/// What is being done, to stderr.
fn say(text: &str) {
    eprintln!("\x1b[2m{text}\x1b[0m");
}
