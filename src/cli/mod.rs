//! The command line: one file per subcommand. `mount` runs the daemon; everything else is a client of
//! the control socket.

pub mod background;
pub mod error;
pub mod evict;
pub mod image;
pub mod logging;
pub mod mount;
pub mod rates;
pub mod serve;
pub mod set;
pub mod signals;
pub mod stack;
pub mod status;
pub mod table;
pub mod unit;
pub mod upgrade;
pub mod warm;
pub mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use error::Error;

#[derive(Parser)]
#[command(
    name = "flashside",
    version,
    about = "Caches VM disks of shared storage on local flash, as a FUSE filesystem",
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Mount(Box<mount::Mount>),
    Status(status::Status),
    Warm(warm::Warm),
    Evict(evict::Evict),
    Set(set::Set),
    Unit(unit::Unit),
    Upgrade(upgrade::Upgrade),
    #[command(hide = true)]
    Serve(Box<serve::Serve>),
}

/// Does what the arguments ask (the first is the program's name). The error is one sentence.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode, Error> {
    let parsed = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => return explain(&error),
    };
    match parsed.command {
        Command::Mount(mount) => mount.run(),
        Command::Status(status) => status.run(),
        Command::Warm(warm) => warm.run(),
        Command::Evict(evict) => evict.run(),
        Command::Set(set) => set.run(),
        Command::Unit(unit) => unit.run(),
        Command::Upgrade(upgrade) => upgrade.run(),
        Command::Serve(serve) => serve.run(),
    }
}

/// Help goes out as it is; what was mistyped becomes one sentence.
fn explain(error: &clap::Error) -> Result<ExitCode, Error> {
    if !error.use_stderr() || is_bare_call(error) {
        let _ = error.print(); // nobody left to tell
        return Ok(ExitCode::from(if error.use_stderr() { 2 } else { 0 }));
    }
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    let sentence = words.join(" ");
    let sentence = sentence.strip_prefix("error: ").unwrap_or(&sentence);
    Err(Error::Arguments(sentence.to_owned()))
}

fn is_bare_call(error: &clap::Error) -> bool {
    error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn mistyped_arguments_are_told_in_one_sentence() {
        for typed in [
            "flashside mount",
            "flashside mount /a /b --cahce /c",
            "flashside mout",
        ] {
            let words = typed.split(' ').map(OsString::from);
            let error = run(words).expect_err("refused").to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
