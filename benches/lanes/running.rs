//! A child process that does not outlive whoever holds it, nor do the processes it starts.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::group::Group;
use crate::interrupt;

/// A child process and its group; killed and waited for when dropped. They also die if this process is killed,
/// and Ctrl-C does not reach them: only their holder ends them.
pub struct Running(Child, Group);

impl Running {
    pub fn spawn(mut command: Command) -> Result<Running> {
        command.stdin(Stdio::null());
        Group::lead(&mut command);
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn();
        let child = child.with_context(|| format!("cannot run {name}"))?;
        let group = Group::of(&child);
        Ok(Running(child, group))
    }

    /// All its processes.
    pub fn group(&self) -> &Group {
        &self.1
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a child of ours that is not waited for yet, so the pid is its own.
        unsafe { libc::kill(self.pid() as i32, signal) };
    }

    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Waits for its end.
    pub fn wait(mut self, what: &str, deadline: Duration) -> Result<ExitStatus> {
        interrupt::wait_for(what, deadline, || self.ended())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.1.kill();
        let _ = self.0.wait();
    }
}
