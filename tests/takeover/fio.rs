//! fio as a guest that knows what it wrote: random writes of many sizes, read back and verified, and
//! random reads of an image that it wrote before. O_DIRECT, libaio, queue depth 32, round after round.
//!
//! Touches the images that it is given, and its report in the scratch directory.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::rig::text;
use crate::tally::Tally;

/// Bytes of each of the two images.
pub const IMAGE_MIB: u64 = 32;

const COMMON: [&str; 9] = [
    "--direct=1",
    "--ioengine=libaio",
    "--iodepth=32",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
    "--fallocate=none",
    "--output-format=json",
    "--name=takeover",
];

/// Writes, before the mount, the image that [`read`] reads.
pub fn make(image: &Path, report: &Path) -> Result<(), String> {
    let write = ["--rw=write", "--bs=4k", "--do_verify=0"];
    run(image, report, &write).map(|_| ())
}

/// Random writes, then their verification, until the run is over.
pub fn write(image: &Path, report: &Path, tally: &Tally) {
    let mut round = 0;
    while !tally.is_over() {
        round += 1;
        let seed = format!("--randseed={round}");
        let write = [
            "--rw=randwrite",
            "--bsrange=4k-64k",
            "--verify_backlog=256",
            &seed,
        ];
        count("fio writing", run(image, report, &write), tally);
    }
}

/// Random reads, each verified, until the run is over.
pub fn read(image: &Path, report: &Path, tally: &Tally) {
    let mut round = 0;
    while !tally.is_over() {
        round += 1;
        let seed = format!("--randseed={round}");
        let read = ["--rw=randread", "--bs=4k", &seed];
        count("fio reading", run(image, report, &read), tally);
    }
}

/// One round; its report, or what fio said.
fn run(image: &Path, report: &Path, args: &[&str]) -> Result<Value, String> {
    let _ = std::fs::remove_file(report);
    let output = Command::new("fio")
        .args(COMMON)
        .args(args)
        .arg(format!("--size={IMAGE_MIB}M"))
        .arg(format!("--filename={}", text(image)))
        .arg(format!("--output={}", text(report)))
        .current_dir(report.parent().unwrap_or(image)) // where it leaves what it leaves
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("fio: {error}"))?;
    let told = std::fs::read_to_string(report).unwrap_or_default();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let told = told.lines().take(3).collect::<Vec<_>>().join(" ");
        return Err(format!("{}: {} {told}", output.status, said.trim()));
    }
    let json = told.find('{').map_or("", |start| &told[start..]);
    serde_json::from_str(json).map_err(|error| format!("fio's report: {error}"))
}

/// The I/Os of a round, and the longest of them.
fn count(what: &str, report: Result<Value, String>, tally: &Tally) {
    let report = match report {
        Ok(report) => report,
        Err(said) => return tally.error(what, &said),
    };
    let job = &report["jobs"][0];
    for way in ["read", "write"] {
        let longest_ns = job[way]["clat_ns"]["max"].as_f64().unwrap_or(0.0);
        tally.took(what, Duration::from_nanos(longest_ns as u64));
        let ios = job[way]["total_ios"].as_u64().unwrap_or(0);
        tally
            .calls
            .fetch_add(ios, std::sync::atomic::Ordering::Relaxed);
    }
    if job["error"].as_i64() != Some(0) {
        tally.error(what, &job["error"]);
    }
}
