//! The switches of the faulty store: a small JSON file outside the tree, looked at before every
//! request, so that a test turns a fault on by replacing the file. Without the file nothing fails.
//!
//! Touches: that file, and the log of reads it may name.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;

/// What goes wrong now.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Uid 0 gets EACCES wherever it opens, lists or changes something, as under root squash.
    pub refuse_root: bool,
    /// Reading file content fails with EIO.
    pub eio_reads: bool,
    /// Writing, resizing and fsync fail with EIO.
    pub eio_writes: bool,
    /// Every request fails with EIO.
    pub eio_all: bool,
    /// Changes fail with EROFS, opens for writing too.
    pub read_only: bool,
    /// Every request waits this long first, in milliseconds.
    pub delay_ms: u64,
    /// A change of names or of extended attributes is answered so many milliseconds after it was made.
    pub late_changes_ms: u64,
    /// The first write of content at this offset, in bytes, …
    pub slow_write_at: Option<u64>,
    /// … is made so many milliseconds after it came; `landed` is logged then.
    pub slow_write_ms: u64,
    /// A line is added to this file for each request: `look`, `open`, `change`, `write`, or
    /// `read inode offset length` once content was read.
    pub log_requests: Option<PathBuf>,
}

/// What a request is about to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Look at names and attributes.
    Look,
    /// Open a file for reading, or list a directory.
    Open,
    /// Open a file for writing, change names or attributes.
    Change,
    Read,
    Write,
}

/// The switch file and what it said last.
pub struct Switch {
    file: PathBuf,
    last: Mutex<(Option<Stamp>, Faults)>,
    /// The slow write of this version of the file has come.
    slow_came: AtomicBool,
}

/// Tells two versions of the file apart: inode, size, mtime in nanoseconds.
type Stamp = (u64, u64, i64, i64);

impl Switch {
    pub fn new(file: PathBuf) -> Switch {
        Switch {
            file,
            last: Mutex::new((None, Faults::default())),
            slow_came: AtomicBool::new(false),
        }
    }

    /// To be called between a change and its answer.
    pub fn answer_late(&self) {
        std::thread::sleep(Duration::from_millis(self.current().late_changes_ms));
    }

    /// To be called around a write at `offset`.
    pub fn write<T>(&self, offset: u64, write: impl FnOnce() -> T) -> T {
        let faults = self.current();
        let meant = faults.slow_write_at == Some(offset);
        if !meant || self.slow_came.swap(true, Ordering::SeqCst) {
            return write();
        }
        std::thread::sleep(Duration::from_millis(faults.slow_write_ms));
        let result = write();
        note(&faults, "landed\n");
        result
    }

    /// Waits and fails as the switches say for a request of `uid`; the error is an errno.
    pub fn pass(&self, uid: u32, act: Act) -> Result<(), i32> {
        let faults = self.current();
        match act {
            Act::Look => note(&faults, "look\n"),
            Act::Open => note(&faults, "open\n"),
            Act::Change => note(&faults, "change\n"),
            Act::Write => note(&faults, "write\n"),
            Act::Read => {}
        }
        std::thread::sleep(Duration::from_millis(faults.delay_ms));
        let changes = matches!(act, Act::Change | Act::Write);
        if faults.eio_all
            || (faults.eio_reads && act == Act::Read)
            || (faults.eio_writes && act == Act::Write)
        {
            return Err(libc::EIO);
        }
        if faults.refuse_root && uid == 0 && matches!(act, Act::Open | Act::Change) {
            return Err(libc::EACCES);
        }
        if faults.read_only && changes {
            return Err(libc::EROFS);
        }
        Ok(())
    }

    /// Notes one read of content.
    pub fn note_read(&self, ino: u64, offset_bytes: u64, len_bytes: u64) {
        let line = format!("read {ino} {offset_bytes} {len_bytes}\n");
        note(&self.current(), &line);
    }

    fn current(&self) -> Faults {
        let stamp = fs::metadata(&self.file)
            .ok()
            .map(|m| (m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
        let mut last = self.last.lock().expect("nothing panics under this lock");
        if last.0 != stamp {
            *last = (stamp, self.read());
            self.slow_came.store(false, Ordering::SeqCst);
        }
        last.1.clone()
    }

    fn read(&self) -> Faults {
        let Ok(text) = fs::read_to_string(&self.file) else {
            return Faults::default();
        };
        serde_json::from_str(&text).unwrap_or_else(|error| {
            eprintln!("faulty_store: {}: {error}", self.file.display());
            Faults::default()
        })
    }
}

fn note(faults: &Faults, line: &str) {
    let Some(log) = &faults.log_requests else {
        return;
    };
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(log) {
        let _ = file.write_all(line.as_bytes());
    }
}
