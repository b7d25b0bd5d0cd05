//! The rig: what the crash tests share. A scratch directory, the daemon as a child process, sectors
//! whose content says where and when they were written, and a small seeded random generator.
//!
//! Touches only its scratch directory, the mounts made in it and the processes it started.

#![allow(dead_code)] // each crash test uses its own part

pub mod buffer;
pub mod daemon;
#[path = "../world/group.rs"]
pub mod group;
pub mod rng;
pub mod scratch;
pub mod stamp;
pub mod watchdog;
pub mod xattr;

pub use buffer::Aligned;
pub use daemon::Launch;
pub use rng::Rng;
pub use scratch::Scratch;

use std::path::Path;
use std::process::Command;

/// Why this machine cannot run a test that mounts, or `None` where it can.
pub fn missing(programs: &[&str]) -> Option<String> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root".into());
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("needs /dev/fuse".into());
    }
    programs
        .iter()
        .find(|program| !installed(program))
        .map(|program| format!("needs {program}"))
}

fn installed(program: &str) -> bool {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).exists())
}

/// A number from the environment, or its default.
pub fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs a program to its end; its standard output, or what it said against it.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} {args:?}: {}", said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A path as text; the rig makes all its paths itself.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("the rig's paths are UTF-8")
}
