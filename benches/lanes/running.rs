//! A child process that does not outlive whoever holds it.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::interrupt;

/// A child process; killed and waited for when dropped. It also dies if this process is killed, and Ctrl-C does
/// not reach it: only its holder ends it.
pub struct Running(Child);

impl Running {
    pub fn spawn(mut command: Command) -> Result<Running> {
        command.stdin(Stdio::null()).process_group(0);
        // SAFETY: prctl is async-signal-safe and touches nothing of ours.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn();
        Ok(Running(
            child.with_context(|| format!("cannot run {name}"))?,
        ))
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
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
