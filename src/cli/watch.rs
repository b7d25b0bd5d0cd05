//! `flashside status --watch`: what the mounts do, once per interval. On a terminal one screen that is
//! refreshed in place; into a pipe one block per interval, an empty line after each.
//!
//! A daemon that does not answer is waited for: it may be starting again. Ctrl-C and SIGTERM end the
//! command with 0, and so does a reader that goes away.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::rates::{Look, rates};
use super::{Error, table};
use crate::control::{ClientError, MountStatus, client, find};

/// Who has not answered then is waited for in the next round.
const DEADLINE: Duration = Duration::from_secs(2);
/// How often a signal is looked for.
const STOP_INTERVAL: Duration = Duration::from_millis(20);

/// Which mounts are watched.
pub enum Watched {
    /// All of this host, also those that come.
    All,
    One(PathBuf),
    /// One image of a mount.
    Image(PathBuf, IsWanted),
}

/// Whether an image, by name and id, is the one that is watched.
pub type IsWanted = Box<dyn Fn(&str, &str) -> bool>;

/// Shows `watched` every `interval` until it is stopped.
pub fn watch(watched: &Watched, interval: Duration) -> Result<ExitCode, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).map_err(Error::Start)?;
    }
    let mut mounts = Mounts::default();
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let text = mounts.look(watched)?;
        if show(&text).is_err() {
            break; // the reader went away
        }
        next = (next + interval).max(Instant::now());
        while !stop.load(Ordering::Relaxed) && Instant::now() < next {
            thread::sleep(STOP_INTERVAL.min(next.saturating_duration_since(Instant::now())));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is known of the mounts from the round before.
#[derive(Default)]
struct Mounts {
    /// Where daemons that have answered listen: asked again without touching the mount.
    sockets: HashMap<PathBuf, PathBuf>,
    latest: HashMap<PathBuf, Look>,
}

impl Mounts {
    /// One round: the text of all mounts.
    fn look(&mut self, watched: &Watched) -> Result<String, Error> {
        let mountpoints = match watched {
            Watched::One(mountpoint) | Watched::Image(mountpoint, _) => vec![mountpoint.clone()],
            Watched::All => find::mountpoints().map_err(Error::MountTable)?,
        };
        if mountpoints.is_empty() {
            return Ok(table::mounts(&[], true));
        }
        let texts = mountpoints.into_iter().map(|mountpoint| {
            let text = self.look_at(&mountpoint, watched);
            text.unwrap_or_else(|error| waiting(&mountpoint, &error))
        });
        Ok(texts.collect::<Vec<_>>().join("\n\n"))
    }

    fn look_at(&mut self, mountpoint: &Path, watched: &Watched) -> Result<String, ClientError> {
        let status = only(watched, self.ask(mountpoint)?);
        let now = Look {
            at: Instant::now(),
            status,
        };
        let before = self.latest.get(mountpoint);
        let text = table::activity(&now.status, before.map(|before| rates(before, &now)));
        self.latest.insert(mountpoint.to_path_buf(), now);
        Ok(text)
    }

    fn ask(&mut self, mountpoint: &Path) -> Result<MountStatus, ClientError> {
        let known = self.sockets.remove(mountpoint);
        let socket = known.or_else(|| find::socket_of(mountpoint));
        let socket = socket.ok_or_else(|| ClientError::NobodyListens(mountpoint.to_path_buf()))?;
        let status = client::status(&socket, DEADLINE)?;
        self.sockets.insert(mountpoint.to_path_buf(), socket);
        Ok(status)
    }
}

/// A mount with the images that are watched.
fn only(watched: &Watched, mut status: MountStatus) -> MountStatus {
    if let Watched::Image(_, is_wanted) = watched {
        status
            .images
            .retain(|image| is_wanted(&image.name, &image.id));
    }
    status
}

fn waiting(mountpoint: &Path, error: &ClientError) -> String {
    format!("{}: waiting for the daemon: {error}", mountpoint.display())
}

fn show(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.is_terminal().then(screen).flatten() {
        Some((rows, columns)) => {
            // Home; each line cleared to its end; then everything below.
            write!(out, "\x1b[H")?;
            for line in text.lines().take(rows.saturating_sub(1)) {
                let line: String = line.chars().take(columns).collect();
                write!(out, "{line}\x1b[K\r\n")?;
            }
            write!(out, "\x1b[J")?;
        }
        None => writeln!(out, "{text}\n")?,
    }
    out.flush()
}

/// Rows and columns of the terminal on stdout.
fn screen() -> Option<(usize, usize)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `size` is ours to fill, and as large as this request says.
    let asked = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) };
    let known = asked == 0 && size.ws_row > 0 && size.ws_col > 0;
    known.then(|| (usize::from(size.ws_row), usize::from(size.ws_col)))
}
