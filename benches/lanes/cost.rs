//! What a process has cost so far, as /proc tells it.

use std::fs;

use anyhow::{Context, Result};

/// User and system time of a process with all its threads, in µs; a clock tick is as fine as it gets.
pub fn cpu_us(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the daemon's stat")?;
    // The name in brackets may hold anything; utime and stime are the 14th and 15th field of all.
    let rest = stat.rsplit_once(')').context("no name in stat")?.1;
    let fields: Vec<f64> = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    // SAFETY: asks for a constant of the system.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Ok(fields.iter().sum::<f64>() * 1e6 / per_second)
}

/// A number of `/proc/PID/status`: `VmRSS` and `VmHWM` in KiB, `Threads`.
pub fn status(pid: u32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("no {key} in the daemon's status"))
}
