//! What was typed, and the sizes and times that follow from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

/// Measure flashside beside a plain file.
#[derive(Parser)]
#[command(name = "benches/run.sh")]
pub struct Arguments {
    /// Short and rough, for CI: one round, small images
    #[arg(long)]
    quick: bool,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…")]
    only: Vec<Section>,
    /// Rounds; in each every lane of every row runs once [default: 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..1000))]
    rounds: Option<u32>,
    /// Seconds a fio job runs [default: 4]
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// MiB of the image of each lane [default: 1024]
    #[arg(long, value_parser = clap::value_parser!(u64).range(64..1 << 20))]
    image_mib: Option<u64>,
    /// Directory for caches and the plain file [default: the target directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Directory for the stores, on another disk; by default they share the caches' disk
    #[arg(long)]
    store: Option<PathBuf>,
    /// Measure nothing: print the last results as they stand in docs/PERFORMANCE.md
    #[arg(long)]
    pub markdown: bool,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// Parts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    Warm,
    Sessions,
    Cold,
    Backup,
    Idle,
    Memory,
}

/// What a run does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub quick: bool,
    pub sections: Vec<Section>,
    pub rounds: u32,
    /// One fio job.
    pub runtime: Duration,
    pub image_bytes: u64,
    /// After jobs that write, so that what they left behind is not charged to the next.
    pub calm: Duration,
    /// How long the idle and memory parts look.
    pub idle: Duration,
    pub memory: Duration,
    pub readers: usize,
    pub dir: Option<PathBuf>,
    pub store: Option<PathBuf>,
}

impl Arguments {
    pub fn settings(self) -> Settings {
        let quick = self.quick;
        let pick =
            |short: f64, long: f64| Duration::from_secs_f64(if quick { short } else { long });
        let sections = match self.only.is_empty() {
            true => Section::value_variants().to_vec(),
            false => self.only,
        };
        Settings {
            quick,
            sections,
            rounds: self.rounds.unwrap_or(if quick { 1 } else { 5 }),
            runtime: self.seconds.unwrap_or(pick(0.15, 4.0)),
            image_bytes: self.image_mib.unwrap_or(if quick { 64 } else { 1024 }) << 20,
            calm: pick(0.05, 3.0),
            idle: pick(2.0, 60.0),
            memory: pick(4.0, 150.0),
            readers: if quick { 64 } else { 512 },
            dir: self.dir,
            store: self.store,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match (0.05..=3600.0).contains(&number) {
        true => Ok(Duration::from_secs_f64(number)),
        false => Err("0.05 to 3600".to_owned()),
    }
}
