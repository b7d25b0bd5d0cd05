//! A server as its keeper sees it: a process, a link to it, and how far it is.

use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::program::{Program, Typed};
use crate::config::FileText;
use crate::handover::message::{Begin, Hello};
use crate::handover::{Came, Link, Message};

/// A process that was killed is gone after this, or hangs in the store.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// How far a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It opens the store.
    Starting,
    /// Ready, up to the cache.
    Warm,
    /// The first of a mount: it opens the cache.
    Opening,
    /// It was given the mount.
    Taking,
    Serving,
}

/// A server. Dropping it closes the link, which ends one that does not serve.
pub struct Server {
    child: Child,
    pidfd: OwnedFd,
    link: Link,
    /// False once all it said was read and its end is closed.
    pub listens: bool,
    pub phase: Phase,
    /// When it came into this phase.
    pub since: Instant,
    pub hello: Option<Hello>,
    /// Why it cannot, in its words.
    pub refused: Option<String>,
    /// It was asked whether it answers, and has not.
    pub unanswered: bool,
}

impl Server {
    /// Starts `program` with what was typed.
    pub fn start(
        typed: &Typed,
        program: &Program,
        file: Option<&FileText>,
        begin: &Begin,
    ) -> io::Result<Server> {
        let (ours, theirs) = Link::pair()?;
        let child = command(typed, program, theirs.as_fd().as_raw_fd()).spawn()?;
        drop(theirs);
        let server = Server {
            pidfd: pidfd(&child)?,
            child,
            link: ours,
            listens: true,
            phase: Phase::Starting,
            since: Instant::now(),
            hello: None,
            refused: None,
            unanswered: false,
        };
        let text = file.map(in_memory).transpose()?;
        let attached: Vec<BorrowedFd<'_>> = text.iter().map(AsFd::as_fd).collect();
        server.tell(&Message::Begin(begin.clone()), &attached);
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable once the process has ended with all its threads.
    pub fn end(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }

    /// Readable when it says something.
    pub fn voice(&self) -> RawFd {
        self.link.as_fd().as_raw_fd()
    }

    pub fn is(&mut self, phase: Phase) {
        (self.phase, self.since) = (phase, Instant::now());
    }

    /// Says something. One that cannot be told is about to end, which is seen elsewhere.
    pub fn tell(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) {
        if let Err(error) = self.link.send(message, descriptors) {
            log::debug!("server {} cannot be told: {error}", self.pid());
        }
    }

    /// What it has said, if anything.
    pub fn hear(&mut self) -> Option<(Message, Vec<OwnedFd>)> {
        loop {
            match self.link.receive(Some(Duration::ZERO)) {
                Ok(Came::Message(message, descriptors)) => return Some((message, descriptors)),
                Ok(Came::Nothing) => return None,
                Ok(Came::End) => self.listens = false,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => continue,
                Err(error) => {
                    log::warn!("server {} cannot be heard: {error}", self.pid());
                    self.listens = false;
                }
            }
            return None;
        }
    }

    /// False where it has not answered since it was asked last; asks again.
    pub fn answers_again(&mut self) -> bool {
        let answers = !self.unanswered;
        if answers {
            self.unanswered = true;
            self.tell(&Message::Ping, &[]);
        }
        answers
    }

    /// How it ended, once it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// True where its first thread has ended and others are still in system calls. For tests.
    pub fn is_half_dead(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        stat.is_ok_and(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('Z'))
        })
    }

    /// Ends it by force.
    pub fn kill(&mut self) {
        if let Err(error) = self.child.kill() {
            log::debug!("server {} cannot be killed: {error}", self.pid());
        }
    }

    /// Ends it and waits for that, but not long.
    pub fn put_down(mut self) {
        self.kill();
        let end = Instant::now() + KILL_PATIENCE;
        while self.status().is_none() && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// `flashside serve`, with the link and the program's descriptor left open for it.
fn command(typed: &Typed, program: &Program, link: RawFd) -> Command {
    let mut command = Command::new(program.path());
    command
        .arg0("flashside")
        .args(["serve", "--link", &link.to_string()])
        .args(&typed.arguments)
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let inherited = [link, program.raw()];
    let directory = typed.directory.as_ref().map(AsRawFd::as_raw_fd);
    let prepare = move || {
        // SAFETY: system calls on numbers and a C string only.
        let moved = unsafe {
            for descriptor in inherited {
                libc::fcntl(descriptor, libc::F_SETFD, 0);
            }
            match directory {
                Some(directory) => libc::fchdir(directory),
                None => libc::chdir(c"/".as_ptr()),
            }
        };
        match moved {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec only system calls are made, no memory is allocated.
    unsafe { command.pre_exec(prepare) };
    command
}

fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the child is not reaped yet, so its number is its own.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    match RawFd::try_from(raw) {
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(raw) if raw >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The text as a descriptor to pass on.
fn in_memory(file: &FileText) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string.
    let raw = unsafe { libc::memfd_create(c"flashside-config".as_ptr(), libc::MFD_CLOEXEC) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    let mut memory = unsafe { std::fs::File::from_raw_fd(raw) };
    memory.write_all(file.text.as_bytes())?;
    memory.rewind()?;
    Ok(memory.into())
}
