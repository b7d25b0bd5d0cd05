//! What a run found, and the file that keeps it: `bench/results.json` in the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::arguments::Settings;
use crate::compare::Comparison;
use crate::machine::{self, Machine};
use crate::scratch::Scratch;

#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Seconds since 1970.
    pub time: u64,
    pub version: String,
    pub machine: Machine,
    pub settings: Settings,
    pub comparisons: Vec<Comparison>,
    pub facts: Vec<Fact>,
    /// One for each round of the cold part.
    pub cold_load: Vec<Load>,
}

/// What is not a row on lanes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Fact {
    pub name: String,
    /// For people.
    pub measured: String,
    pub target: Option<String>,
    pub met: Option<bool>,
    /// The same for programs.
    pub values: serde_json::Value,
}

/// The load average of the last minute around a round. Our own jobs are in it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Load {
    pub before: f64,
    pub after: f64,
}

impl Load {
    pub fn now() -> Load {
        let load = machine::load();
        Load {
            before: load,
            after: load,
        }
    }

    pub fn until_now(self) -> Load {
        Load {
            after: machine::load(),
            ..self
        }
    }
}

impl Report {
    pub fn new(settings: &Settings, scratch: &Scratch) -> Result<Report> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        Ok(Report {
            time: now.as_secs(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: Machine::describe(scratch.dir(), scratch.stores())?,
            settings: settings.clone(),
            comparisons: Vec::new(),
            facts: Vec::new(),
            cold_load: Vec::new(),
        })
    }

    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path(), text + "\n").with_context(|| format!("cannot write {:?}", path()))
    }

    /// The last run's.
    pub fn load() -> Result<Report> {
        let text = fs::read_to_string(path())
            .with_context(|| format!("no results in {:?}: run benches/run.sh first", path()))?;
        serde_json::from_str(&text).context("the results are of another version")
    }
}

pub fn path() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_flashside"));
    let target = binary.ancestors().nth(2).unwrap_or(Path::new("target"));
    target.join("bench/results.json")
}
