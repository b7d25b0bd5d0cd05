//! `mount` without `--foreground`: the program starts itself again as a daemon and
//! waits until the mount answers.
//!
//! # Order of steps
//! The daemon's stdout is a pipe to the waiting program, its stderr the terminal's. It refuses on
//! stderr and ends, or writes [`READY`] to the pipe and lets go of both. The pipe closing without
//! that word means the daemon has ended.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::{Error, logging};

/// Set in the daemon's environment: its stdout is the pipe.
const MARK: &str = "FLASHSIDE_BACKGROUND";
/// What the daemon writes when the mount answers.
const READY: &[u8] = b"ready\n";
/// A mount that has not answered then is given up.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Between the request to end and the end by force.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// True in the daemon that [`start`] made.
pub fn is_daemon() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts this command again as a daemon; returns when its mount answers or it gave up.
pub fn start() -> Result<ExitCode, Error> {
    let mut daemon = spawn().map_err(Error::Start)?;
    let deadline = Instant::now() + READY_DEADLINE;
    match wait_for_word(&mut daemon, READY_DEADLINE) {
        Some(word) if word == READY => Ok(ExitCode::SUCCESS),
        Some(_) => {
            let status = end(
                &mut daemon,
                deadline.saturating_duration_since(Instant::now()),
            );
            match status.and_then(|status| status.code()) {
                Some(0) => Ok(ExitCode::SUCCESS), // unmounted again before we looked
                Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))), // it has said why
                None => Err(status.map_or(Error::NotReady(READY_DEADLINE.as_secs()), Error::Died)),
            }
        }
        None => {
            end(&mut daemon, Duration::ZERO);
            Err(Error::NotReady(READY_DEADLINE.as_secs()))
        }
    }
}

fn spawn() -> io::Result<Child> {
    let mut command = Command::new(own_program());
    command
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    // SAFETY: between fork and exec only system calls are made, no memory is allocated.
    unsafe { command.pre_exec(close_others) };
    command.spawn()
}

/// By its path, so that process lists show its name; an upgrade may have removed that.
fn own_program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_default();
    match path.is_file() {
        true => path,
        false => PathBuf::from("/proc/self/exe"),
    }
}

/// No descriptor that the caller happened to leave open.
fn close_others() -> io::Result<()> {
    // SAFETY: the call touches no memory of this program.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ); // before Linux 5.11 they stay open, which is harmless
    }
    Ok(())
}

/// Everything the daemon writes until it lets go of the pipe; `None` at the deadline.
fn wait_for_word(daemon: &mut Child, deadline: Duration) -> Option<Vec<u8>> {
    let mut pipe = daemon.stdout.take()?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut word = Vec::new();
        let _ = pipe.read_to_end(&mut word); // an error is the same as silence
        let _ = tell.send(word);
    });
    told.recv_timeout(deadline).ok()
}

/// Waits for the daemon's end, asks for it after `patience`, forces it at last.
fn end(daemon: &mut Child, patience: Duration) -> Option<ExitStatus> {
    if let Some(status) = wait(daemon, patience) {
        return Some(status);
    }
    if let Ok(pid) = i32::try_from(daemon.id()) {
        // SAFETY: the child is not reaped yet, so its number is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
    if wait(daemon, END_DEADLINE).is_none() {
        let _ = daemon.kill();
        let _ = wait(daemon, END_DEADLINE);
    }
    None
}

fn wait(daemon: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Ok(Some(status)) = daemon.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// In the daemon: the mount answers. Tells the waiting program and lets go of its terminal.
pub fn ready() {
    let mut stdout = io::stdout();
    if let Err(error) = stdout.write_all(READY).and_then(|()| stdout.flush()) {
        log::warn!("nobody waits for the mount any more: {error}");
    }
    leave_terminal();
    begin_session();
}

/// From now on nobody reads what is written to the terminal: it is let go of, and log lines go to syslog.
pub fn leave_terminal() {
    logging::switch_to_syslog();
    if let Err(error) = let_go() {
        log::warn!("the daemon still holds its terminal: {error}");
    }
}

/// In the daemon: a session of its own, which the servers that it starts later share. Not before the mount
/// where systemd mounts on demand: there only its own process group gets to the mount point until something is
/// mounted.
pub fn begin_session() {
    // SAFETY: the call touches no memory of this program. An error: it leads a session already.
    unsafe { libc::setsid() };
}

/// Puts `/dev/null` in the place of stdout and stderr, and leaves the working directory.
fn let_go() -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null: File = OpenOptions::new().write(true).open("/dev/null")?;
    for descriptor in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both descriptors are open; Rust's stdout and stderr go on using the number.
        if unsafe { libc::dup2(null.as_raw_fd(), descriptor) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
