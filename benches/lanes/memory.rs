//! The memory of the daemon's processes together (what they share counts for each) while many read from a
//! store that takes 2 s for everything.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::arguments::Settings;
use crate::daemon::{Daemon, Options};
use crate::report::{Fact, Report};
use crate::rows::MIB;
use crate::running::Running;
use crate::scratch::Scratch;
use crate::{interrupt, say};

const SLOW: Options = Options {
    limit: "",
    flags: &["--simulate-latency", "2s"],
    config: "",
};

/// The standby is there after this.
const STANDBY_STARTS: Duration = Duration::from_secs(3);

pub fn measure(scratch: &Scratch, settings: &Settings, report: &mut Report) -> Result<()> {
    let (readers, seconds) = (settings.readers, settings.memory.as_secs());
    say(&format!(
        "memory with {readers} readers and a 2 s store, {seconds} s"
    ));
    let store = scratch.store("memory")?;
    for number in 0..readers {
        File::create(store.join(number.to_string()))?.set_len(64 * MIB)?;
    }
    let daemon = Daemon::start(scratch, "memory", &store, SLOW)?;
    interrupt::sleep(STANDBY_STARTS)?;
    let sum = |key| daemon.group().map_or(0, |group| group.sum_of(key));
    let before = sum("VmRSS");
    let mut children = Readers(Vec::new());
    for number in 0..readers {
        children.0.push(read(&daemon, number)?);
    }
    interrupt::sleep(settings.memory)?;
    let (during, peak, threads) = (sum("VmRSS"), sum("VmHWM"), sum("Threads"));
    drop(children);
    let mib = |kib: u64| kib / 1024;
    report.facts.push(Fact {
        name: format!("memory: {readers} readers, 2 s store, {seconds} s"),
        measured: format!(
            "{} MiB after the mount, {} MiB then, {} MiB at most; {threads} threads",
            mib(before),
            mib(during),
            mib(peak)
        ),
        target: None,
        met: None,
        values: json!({
            "rss_start_kib": before, "rss_kib": during, "rss_peak_kib": peak, "threads": threads,
        }),
    });
    Ok(())
}

/// Killed all at once: each waits for the store before it ends.
struct Readers(Vec<Running>);

impl Drop for Readers {
    fn drop(&mut self) {
        self.0
            .iter()
            .for_each(|reader| reader.signal(libc::SIGKILL));
    }
}

/// Someone who reads an image from its first to its last byte.
fn read(daemon: &Daemon, number: usize) -> Result<Running> {
    let mut command = Command::new("dd");
    command.arg(format!("if={}", daemon.path(&number.to_string()).display()));
    command.args(["of=/dev/null", "bs=1M", "status=none"]);
    command.stderr(Stdio::null());
    Running::spawn(command)
}
