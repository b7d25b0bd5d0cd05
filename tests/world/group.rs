//! A daemon's processes: the keeper that was started and the servers that it starts. What ends the
//! daemon ends them all, and what it costs is what all of them cost. They are one process group; but the
//! first server of a daemon in the background has left it with its terminal, and is known as the
//! keeper's child.
//!
//! Touches only the groups it was given. Servers outlive their keeper on purpose, so a guard, a shell in
//! its own group, kills the whole group when this process ends without having done so (^C, kill -9).
//!
//! *Invariant.* A group is signalled only while a member is left, and soon after its leader was waited for
//! at the latest: numbers of processes are given out in a circle, so nobody else has it by then.
#![allow(dead_code)] // every test binary uses another part of it

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A killed process has ended by then, unless a store that hangs holds it.
const END: Duration = Duration::from_secs(60);

/// Kills the group unless it is told that this is done.
const GUARD: &str = r#"read -r _ || kill -9 "-$0""#;

/// One daemon's processes.
pub struct Group {
    leader: i32,
    guard: Child,
}

impl Group {
    /// `command` will lead a group of its own, and is killed when the thread that starts it ends.
    pub fn lead(command: &mut Command) {
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe and touches nothing of ours.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
    }

    /// The group of a child that [`Group::lead`] prepared.
    pub fn of(child: &Child) -> Group {
        let mut guard = Command::new("sh");
        guard
            .args(["-c", GUARD, &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        Group {
            leader: child.id() as i32,
            guard: guard.spawn().expect("a shell runs"),
        }
    }

    /// Ids of its processes that have not ended, the keeper's first.
    pub fn members(&self) -> Vec<i32> {
        members(self.leader)
    }

    /// Sends a signal to all of them, the keeper first.
    pub fn signal(&self, signal: i32) {
        send(self.leader, signal);
    }

    /// SIGKILL to all of them; returns when each has ended, so that nothing they began goes on.
    pub fn kill(&self) {
        kill(self.leader);
    }

    /// Threads of all of them.
    pub fn threads(&self) -> usize {
        let count =
            |pid: &i32| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        self.members().iter().map(count).sum()
    }

    /// CPU time that all of them used, and those that the keeper has waited for, in clock ticks.
    pub fn cpu_ticks(&self) -> u64 {
        self.members().into_iter().filter_map(cpu_ticks).sum()
    }

    /// A number of `/proc/PID/status`, such as `VmRSS` in KiB, added up. What processes share, such
    /// as the program's own pages, counts once for each: an upper bound.
    pub fn sum_of(&self, key: &str) -> u64 {
        let number = |pid| status_number(pid, key);
        self.members().into_iter().filter_map(number).sum()
    }
}

impl Drop for Group {
    /// The guard is sent home. Whoever drops this has ended the group.
    fn drop(&mut self) {
        if let Some(mut words) = self.guard.stdin.take() {
            let _ = words.write_all(b"done\n");
        }
        let _ = self.guard.wait();
    }
}

/// As [`Group::kill`], of a daemon that made its own group because it runs in the background. The keeper
/// is stopped first, so that it starts nobody while its children are looked for.
pub fn kill(leader: i32) {
    let begun = Instant::now();
    if !members(leader).is_empty() {
        signal_one(leader, libc::SIGSTOP);
    }
    let mut all = members(leader);
    while !all.is_empty() && begun.elapsed() < END {
        all.iter().for_each(|pid| signal_one(*pid, libc::SIGKILL));
        std::thread::sleep(Duration::from_millis(2));
        all.retain(|pid| stat(*pid).is_some_and(|fields| !has_ended(*pid, &fields)));
        all.extend(members(leader));
    }
}

/// As [`Group::signal`]. The keeper comes first.
pub fn send(leader: i32, signal: i32) {
    members(leader)
        .iter()
        .for_each(|pid| signal_one(*pid, signal));
}

fn signal_one(pid: i32, signal: i32) {
    // SAFETY: a plain system call; the process is of a daemon that this test started, see the invariant.
    unsafe { libc::kill(pid, signal) };
}

/// As [`Group::members`].
pub fn members(leader: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").expect("/proc");
    let ids = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found: Vec<i32> = ids.filter(|pid| belongs(*pid, leader)).collect();
    found.sort_by_key(|pid| (*pid != leader, *pid));
    found
}

/// Of the group, or a child of its leader; and not ended.
fn belongs(pid: i32, leader: i32) -> bool {
    let Some(fields) = stat(pid) else {
        return false;
    };
    let leader_text = leader.to_string();
    let related = fields[1] == leader_text || fields[2] == leader_text;
    (pid == leader || related) && !has_ended(pid, &fields)
}

/// A process that has ended and waits to be reaped does not count; one of whose threads a system call
/// has not let go yet does.
fn has_ended(pid: i32, fields: &[String]) -> bool {
    let tasks = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    matches!(fields[0].as_str(), "Z" | "X") && tasks() <= 1
}

/// utime, stime, cutime and cstime together.
fn cpu_ticks(pid: i32) -> Option<u64> {
    let fields = stat(pid)?;
    let ticks = fields[11..15].iter().map(|field| field.parse::<u64>());
    ticks.sum::<Result<u64, _>>().ok()
}

/// The fields of `/proc/PID/stat` behind the name: state, parent, group and so on.
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn status_number(pid: i32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}
