//! The lanes: the ways by which the same I/O reaches a file.
//!
//! A figure is only a lane's if the I/O really took it. Of a warm lane the daemon's own counters say so: every
//! read a hit, nothing read from the store; of passthrough status says `passthrough`, and the daemon sees no reads.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::arguments::Settings;
use crate::daemon::{Daemon, ImageCounters};
use crate::fio::Job;
use crate::rows::Row;
use crate::scratch::Scratch;
use crate::warm;

/// The lane that all others are compared with.
pub const NATIVE: &str = "native";
pub const PASSTHROUGH: &str = "passthrough";
pub const DAEMON: &str = "daemon";

pub struct Lane<'a> {
    pub name: &'static str,
    pub file: PathBuf,
    pub way: Way<'a>,
    /// False where the disk below refuses I/O that is not in whole pages.
    pub small_sectors: bool,
}

pub enum Way<'a> {
    /// No flashside.
    Native,
    /// Opened O_RDWR.
    Daemon(&'a Daemon),
    /// Opened O_RDONLY; the handle keeps the image on passthrough. Or the reason why it is not.
    Passthrough(&'a Daemon, Result<File, String>),
}

/// What one job gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// IOPS or MB/s, as the row is counted.
    pub rate: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Processor time for an I/O, client and daemon together.
    pub cpu_us: f64,
    /// Reads that the daemon saw.
    pub reads: u64,
    /// Of these, not wholly served from flash.
    pub misses: u64,
    pub store_read_bytes: u64,
}

impl Lane<'_> {
    /// Whether this lane has the row at all.
    pub fn serves(&self, row: &Row) -> bool {
        let writable = !matches!(self.way, Way::Passthrough(..));
        (writable || !row.access.writes()) && (self.small_sectors || !row.needs_small_sectors())
    }

    pub fn opens_to_write(&self) -> bool {
        !matches!(self.way, Way::Passthrough(..))
    }

    /// Measures `row` once; a sentence instead where the lane cannot be taken.
    pub fn measure(
        &self,
        row: &Row,
        scratch: &Scratch,
        settings: &Settings,
    ) -> Result<Result<Sample, String>> {
        let job = row.job(self, settings.image_bytes, settings.runtime);
        match &self.way {
            Way::Native => self.native(row, &job, scratch).map(Ok),
            Way::Daemon(daemon) => {
                warm::ensure(daemon, &self.file, scratch, settings)?;
                Ok(Ok(self.through(daemon, row, &job, scratch)?))
            }
            Way::Passthrough(_, Err(why)) => Ok(Err(why.clone())),
            Way::Passthrough(daemon, Ok(_)) => {
                let sample = self.through(daemon, row, &job, scratch)?;
                let plane = daemon.image(&self.file)?.plane;
                Ok(match (plane == PASSTHROUGH, sample.reads) {
                    (true, 0) => Ok(sample),
                    (true, reads) => {
                        Err(format!("not on passthrough: the daemon saw {reads} reads"))
                    }
                    (false, _) => Err(format!("not on passthrough: status says {plane}")),
                })
            }
        }
    }

    fn native(&self, row: &Row, job: &Job, scratch: &Scratch) -> Result<Sample> {
        let counters = ImageCounters::default();
        let outcome = job.run(&scratch.flash("fio.json"))?;
        Ok(sample(row, outcome, 0.0, [&counters, &counters]))
    }

    fn through(&self, daemon: &Daemon, row: &Row, job: &Job, scratch: &Scratch) -> Result<Sample> {
        let before = daemon.image(&self.file)?;
        let busy = daemon.cpu_us();
        let outcome = job.run(&scratch.flash("fio.json"))?;
        let busy = daemon.cpu_us() - busy;
        let after = daemon.image(&self.file)?;
        Ok(sample(row, outcome, busy, [&before, &after]))
    }
}

fn sample(
    row: &Row,
    outcome: crate::fio::Outcome,
    daemon_cpu_us: f64,
    [before, after]: [&ImageCounters; 2],
) -> Sample {
    let reads = after.reads - before.reads;
    let hits = after.read_hits - before.read_hits;
    Sample {
        rate: match row.unit() {
            "IOPS" => outcome.iops,
            _ => outcome.bytes_per_second / 1e6,
        },
        p50_us: outcome.p50_us,
        p99_us: outcome.p99_us,
        cpu_us: (outcome.cpu_us + daemon_cpu_us) / outcome.ios.max(1.0),
        reads,
        misses: reads.saturating_sub(hits),
        store_read_bytes: after.store_read_bytes - before.store_read_bytes,
    }
}

/// A lane on a file that nobody serves.
pub fn native(file: &Path) -> Lane<'static> {
    Lane {
        name: NATIVE,
        file: file.to_owned(),
        way: Way::Native,
        small_sectors: crate::image::takes_sectors(file),
    }
}
