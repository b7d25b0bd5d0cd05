//! What servers are started from: the program, pinned by a descriptor so that a replaced file does not hit
//! a take-over, and what was typed for the mount.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::config::FileText;

/// A program to start.
pub struct Program {
    file: File,
}

impl Program {
    /// The program at `path` as it is now.
    pub fn open(path: &Path) -> io::Result<Program> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
            .open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        Ok(Program { file })
    }

    /// A path to start it by, good in this process and in one that has inherited the descriptor.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.raw()))
    }

    /// Must be inherited by what is started: the interpreter of a script opens it again.
    pub fn raw(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// What every server of a mount is started with.
pub struct Typed {
    pub program: Program,
    /// What was typed after `mount`.
    pub arguments: Vec<OsString>,
    /// Where relative paths begin; without any, servers hold no directory.
    pub directory: Option<File>,
    /// The configuration file. Read once, so that a file changed meanwhile does not hit a take-over.
    pub file: Option<FileText>,
}

impl Typed {
    /// This process's own program and arguments. `directory` is where its relative paths begin.
    pub fn by_this_process(directory: Option<&str>, file: Option<FileText>) -> io::Result<Typed> {
        let open = |path| {
            let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags).open(path)
        };
        let arguments = std::env::args_os().skip_while(|word| word != "mount");
        Ok(Typed {
            program: Program::open(Path::new("/proc/self/exe"))?,
            arguments: arguments.skip(1).collect(),
            directory: directory.map(open).transpose()?,
            file,
        })
    }
}
