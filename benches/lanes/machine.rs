//! The machine that was measured on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    /// The one under the caches.
    pub disk: String,
    pub filesystem: String,
    /// What the stores are on, where it is another one.
    pub store: Option<String>,
    pub fio: String,
}

impl Machine {
    /// `dir` is where the caches are, `store` where the stores are.
    pub fn describe(dir: &Path, store: &Path) -> Result<Machine> {
        let elsewhere = fs::metadata(dir)?.dev() != fs::metadata(store)?.dev();
        let both = |dir: &Path| format!("{}, {}", filesystem(dir), disk(dir));
        Ok(Machine {
            cpu: field("/proc/cpuinfo", "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.into()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory_bytes(),
            kernel: line("/proc/sys/kernel/osrelease"),
            disk: disk(dir),
            filesystem: filesystem(dir),
            store: elsewhere.then(|| both(store)),
            fio: said("fio", "--version"),
        })
    }

    /// In one sentence.
    pub fn text(&self) -> String {
        let store = self.store.as_ref();
        let store = store.map_or("store directory on the same disk".into(), |store| {
            format!("store on {store}")
        });
        format!(
            "{}, {} cores, {:.0} GiB, Linux {}; {} on {}; {store}; {}, libaio, O_DIRECT",
            self.cpu,
            self.cores,
            self.memory_bytes as f64 / (1u64 << 30) as f64,
            self.kernel,
            self.filesystem,
            self.disk,
            self.fio,
        )
    }
}

/// Processes that run or wait to, over the last minute.
pub fn load() -> f64 {
    let first = line("/proc/loadavg");
    first
        .split(' ')
        .next()
        .and_then(|load| load.parse().ok())
        .unwrap_or(0.0)
}

fn memory_bytes() -> u64 {
    let text = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kib = text
        .split(' ')
        .next()
        .and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// `vda, 252 GiB, sectors of 512 B`, with the model where it has one.
fn disk(dir: &Path) -> String {
    let Some(sys) = block_device(dir) else {
        return "no disk".into();
    };
    let name = sys
        .file_name()
        .map_or("".into(), |name| name.to_string_lossy().into_owned());
    let read = |file: &str| line(sys.join(file));
    let gib = read("size").parse::<u64>().unwrap_or(0) >> 21;
    let model = [read("device/model")]
        .into_iter()
        .find(|model| !model.is_empty());
    let model = model.map_or(String::new(), |model| format!(" ({model})"));
    let sector = read("queue/logical_block_size");
    format!("{name}{model}, {gib} GiB, sectors of {sector} B")
}

/// The directory in /sys of the whole disk that `dir` is on.
fn block_device(dir: &Path) -> Option<PathBuf> {
    let device = fs::metadata(dir).ok()?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let sys = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    match sys.join("partition").exists() {
        true => sys.parent().map(Path::to_owned),
        false => Some(sys),
    }
}

fn filesystem(dir: &Path) -> String {
    let found = Command::new("findmnt")
        .args(["-n", "-o", "FSTYPE", "-T"])
        .arg(dir)
        .output();
    // Where one is mounted over another, the last is the one that is seen.
    found.map_or(String::new(), |found| {
        let text = String::from_utf8_lossy(&found.stdout);
        text.lines().last().unwrap_or_default().trim().to_owned()
    })
}

fn said(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

fn line(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// What stands behind `key` and a colon.
fn field(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
