//! Where log lines go: stderr, and from a daemon in the background to syslog once the mount answers
//! (until then somebody waits at the terminal).

use std::ffi::CString;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use env_logger::{Builder, Env, Target};
use log::{Level, LevelFilter, Record};

/// True once log lines belong to syslog.
static TO_SYSLOG: AtomicBool = AtomicBool::new(false);
/// The name of our lines in the system's log; syslog keeps the pointer.
const IDENT: &std::ffi::CStr = c"flashside";

/// Logs to stderr, at `level` where RUST_LOG says nothing else.
pub fn start(level: LevelFilter) {
    // The FUSE library announces what we announce ourselves, and complains when a reader was killed.
    let filter = format!("{level},fuser=warn,fuser::reply=off");
    let result = Builder::from_env(Env::default().default_filter_or(filter))
        .format(write_line)
        .target(Target::Pipe(Box::new(Output)))
        .try_init();
    if let Err(error) = result {
        eprintln!("flashside: no logging: {error}");
    }
}

/// From now on lines go to syslog.
pub fn switch_to_syslog() {
    // SAFETY: IDENT lives as long as the program.
    unsafe { libc::openlog(IDENT.as_ptr(), libc::LOG_PID, libc::LOG_DAEMON) };
    TO_SYSLOG.store(true, Ordering::Release);
}

/// A line begins with one byte, its syslog priority, which [`Output`] takes off again.
fn write_line(out: &mut env_logger::fmt::Formatter, record: &Record<'_>) -> io::Result<()> {
    out.write_all(&[priority(record.level())])?;
    if TO_SYSLOG.load(Ordering::Acquire) {
        return write!(out, "{}", record.args());
    }
    let time = out.timestamp_millis();
    writeln!(out, "{time} {:<5} {}", record.level(), record.args())
}

fn priority(level: Level) -> u8 {
    let priority = match level {
        Level::Error => libc::LOG_ERR,
        Level::Warn => libc::LOG_WARNING,
        Level::Info => libc::LOG_INFO,
        Level::Debug | Level::Trace => libc::LOG_DEBUG,
    };
    priority as u8 // 0..=7
}

/// Takes whole lines from the logger, which writes each with one call.
struct Output;

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some((&priority, text)) = line.split_first() {
            if TO_SYSLOG.load(Ordering::Acquire) {
                to_syslog(priority, text);
            } else {
                io::stderr().write_all(text)?;
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn to_syslog(priority: u8, text: &[u8]) {
    if let Ok(text) = CString::new(text) {
        // SAFETY: both strings end in a NUL and the format takes exactly one string.
        unsafe { libc::syslog(i32::from(priority), c"%s".as_ptr(), text.as_ptr()) };
    }
}
