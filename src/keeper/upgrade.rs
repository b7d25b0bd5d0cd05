//! Another program for a mount: tried beside the one that serves, and taken only if it fits.

use std::path::Path;
use std::time::{Duration, Instant};

use super::program::{Program, Typed};
use super::server::Server;
use crate::config::FileText;
use crate::handover::message::{self, Begin, Hello, Outcome};

/// A new program that has not said hello then is none of ours.
const HELLO_PATIENCE: Duration = Duration::from_secs(20);

/// A program that is being tried.
pub struct Candidate {
    pub server: Server,
    program: Program,
    file: Option<FileText>,
}

/// An upgrade that was begun.
pub struct Upgrade {
    /// What served before, to go back to.
    before: (Program, Option<FileText>),
    begun: Instant,
    /// What will be told of it.
    pub outcome: Outcome,
    /// The new program serves.
    pub done: bool,
}

impl Candidate {
    /// Starts the program at `path` with the configuration file as it is now. The error is a sentence.
    pub fn start(path: &Path, typed: &Typed, begin: &Begin) -> Result<Candidate, String> {
        let cannot = |error| format!("cannot run {}: {error}", path.display());
        let program = Program::open(path).map_err(cannot)?;
        let file = typed.file.as_ref().map(|file| FileText::read(&file.path));
        let file = file.transpose().map_err(|error| error.to_string())?;
        let server = Server::start(typed, &program, file.as_ref(), begin).map_err(cannot)?;
        Ok(Candidate {
            server,
            program,
            file,
        })
    }

    /// Why it cannot follow on the server that said `serving`, if so; known once it has said hello.
    pub fn misfit(&self, serving: &Hello) -> Option<String> {
        let hello = self.server.hello.as_ref()?;
        let version = &hello.version;
        if hello.link != message::VERSION {
            return Some(format!(
                "version {version} speaks another language with its keeper ({}, not {}): unmount and mount \
                 again to use it",
                hello.link,
                message::VERSION
            ));
        }
        (hello.ledger != serving.ledger).then(|| {
            format!(
                "version {version} keeps the state of a mount in another form ({}, not {}): unmount and \
                 mount again to use it",
                hello.ledger, serving.ledger
            )
        })
    }

    /// True for one that should have said hello by now.
    pub fn is_late(&self) -> bool {
        self.server.hello.is_none() && self.server.since.elapsed() >= HELLO_PATIENCE
    }

    /// The mount goes on with it from now.
    pub fn accept(self, typed: &mut Typed, from: &Hello, number: u64) -> (Server, Upgrade) {
        let hello = self.server.hello.clone().unwrap_or_default();
        let program = std::mem::replace(&mut typed.program, self.program);
        let file = std::mem::replace(&mut typed.file, self.file);
        let upgrade = Upgrade {
            before: (program, file),
            begun: Instant::now(),
            outcome: Outcome {
                number,
                from: from.version.clone(),
                to: hello.version,
                ..Outcome::default()
            },
            done: false,
        };
        (self.server, upgrade)
    }
}

impl Upgrade {
    /// The old program shall serve again, because the new one failed.
    pub fn go_back(&mut self, typed: &mut Typed, why: &str) {
        std::mem::swap(&mut typed.program, &mut self.before.0);
        std::mem::swap(&mut typed.file, &mut self.before.1);
        let failed = format!("version {} failed: {why}", self.outcome.to);
        self.outcome.failed.get_or_insert(failed);
    }

    /// Some server serves: what came of it, the first time.
    pub fn served(&mut self) -> Option<Outcome> {
        if self.done {
            return None;
        }
        self.outcome.pause_ms = self.begun.elapsed().as_millis() as u64;
        self.done = true;
        Some(self.outcome.clone())
    }
}
