//! One run of fio.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::running::Running;

/// What a job may take beyond its running time.
const PATIENCE: Duration = Duration::from_secs(120);

/// One job. Always O_DIRECT.
#[derive(Clone, Debug)]
pub struct Job {
    pub file: PathBuf,
    /// fio's word: `randread`, `write`, …
    pub rw: &'static str,
    /// Opened O_RDWR even if it only reads.
    pub read_write: bool,
    pub block: u64,
    pub offset: u64,
    /// The part of the file that is used, from the offset on.
    pub size: u64,
    pub depth: u32,
    pub jobs: u32,
    pub fdatasync: bool,
    /// `None`: once through `size`, each block once.
    pub runtime: Option<Duration>,
}

/// What it did, all of its threads together.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub ios: f64,
    pub iops: f64,
    pub bytes: f64,
    pub bytes_per_second: f64,
    /// From submission to completion, µs; with the fdatasync where there is one.
    pub p50_us: f64,
    pub p99_us: f64,
    /// Processor time of fio's threads, user and system.
    pub cpu_us: f64,
}

impl Job {
    /// Random reads of 1 MiB that touch every byte of `file` once.
    pub fn all_of(file: &Path, bytes: u64) -> Job {
        Job {
            file: file.to_owned(),
            rw: "randread",
            read_write: false,
            block: 1 << 20,
            offset: 0,
            size: bytes,
            depth: 4,
            jobs: 1,
            fdatasync: false,
            runtime: None,
        }
    }

    /// Runs it; `output` is a file that it may write to.
    pub fn run(&self, output: &Path) -> Result<Outcome> {
        let mut command = Command::new("fio");
        command.args(self.flags());
        command.stdout(File::create(output)?);
        let child = Running::spawn(command)?;
        let deadline = self.runtime.unwrap_or_default() + PATIENCE;
        let status = child.wait("fio", deadline)?;
        let text = fs::read_to_string(output)?;
        if !status.success() {
            bail!("fio on {:?} ended {status}: {}", self.file, text.trim());
        }
        outcome(&text).with_context(|| format!("what fio said of {:?}", self.file))
    }

    fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = [
            "--name=lane",
            "--direct=1",
            "--ioengine=libaio",
            "--thread",
            "--group_reporting",
            "--disk_util=0", // these two shorten its start
            "--clocksource=clock_gettime",
            "--randrepeat=0",
            "--fallocate=none",
            "--lat_percentiles=1",
            "--clat_percentiles=0",
            "--percentile_list=50:99",
            "--output-format=json",
        ]
        .map(str::to_owned)
        .into();
        let file = self.file.display();
        flags.push(format!("--filename={file}"));
        flags.extend(self.pattern());
        flags.push(format!("--bs={}", self.block));
        flags.push(format!("--blockalign={}", self.block));
        flags.push(format!("--offset={}", self.offset));
        flags.push(format!("--size={}", self.size));
        flags.push(format!("--iodepth={}", self.depth));
        flags.push(format!("--numjobs={}", self.jobs));
        if let Some(time) = self.runtime {
            flags.push(format!("--runtime={}ms", time.as_millis()));
            flags.extend(["--time_based", "--norandommap"].map(str::to_owned));
        }
        flags
    }

    /// A mix of reads and writes with no writes in it is how fio reads through an O_RDWR descriptor.
    fn pattern(&self) -> Vec<String> {
        let rw = match (self.read_write, self.rw) {
            (true, "randread") => "randrw",
            (true, "read") => "rw",
            (_, rw) => rw,
        };
        let mut flags = vec![format!("--rw={rw}")];
        if matches!(rw, "randrw" | "rw") {
            flags.push("--rwmixread=100".into());
        }
        if self.fdatasync {
            flags.push("--fdatasync=1".into());
        }
        flags
    }
}

/// fio's JSON comes after its warnings.
fn outcome(text: &str) -> Result<Outcome> {
    let json = text.find("\n{").map_or(text, |start| &text[start + 1..]);
    let all: Value = serde_json::from_str(json).context("not JSON")?;
    let job = &all["jobs"][0];
    let way = match number(&job["write"]["total_ios"])? > 0.0 {
        true => &job["write"],
        false => &job["read"],
    };
    let late = |percent: &str| -> Result<f64> {
        let sync = &job["sync"]["lat_ns"]["percentile"][percent];
        let own = number(&way["lat_ns"]["percentile"][percent])?;
        Ok((own + sync.as_f64().unwrap_or(0.0)) / 1e3)
    };
    let busy = number(&job["usr_cpu"])? + number(&job["sys_cpu"])?;
    Ok(Outcome {
        ios: number(&way["total_ios"])?,
        iops: number(&way["iops"])?,
        bytes: number(&way["io_bytes"])?,
        bytes_per_second: number(&way["bw_bytes"])?,
        p50_us: late("50.000000")?,
        p99_us: late("99.000000")?,
        // Both are of the sum of all threads' running times: percent, and ms.
        cpu_us: busy / 100.0 * number(&job["job_runtime"])? * 1e3,
    })
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context("a number is missing")
}
