//! `flashside serve`: one server of a mount, started by its keeper and by nobody else.
//!
//! # Order of steps
//! Hear what to serve, open the store, say hello. Then, when told: open the cache, take on what the server
//! before left, serve. At the end flush, record as clean, end with 0. What prevents any of it is told to the
//! keeper, which tells the user. The end of the link before the mount is ours is our end; after that we
//! serve on, and end with the mount.
//!
//! # Signals
//! SIGTERM makes room for the next server; without a keeper it unmounts. SIGINT and SIGHUP are the
//! terminal's and meant for the keeper.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use clap::Args;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use super::stack::{self, Ground, Stack};
use super::{Error, background, logging, mount};
use crate::config::{Config, FileText};
use crate::handover::message::{self, Begin, Hello, Message};
use crate::handover::{Came, Inheritance, Kept, Ledger, Link, Negotiated, ledger};
use crate::keeper;
use crate::mount::{self as face, Brake};

/// The keeper's first word comes at once.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);
/// What is in hand gets this long when another server shall go on; the rest is sent to it again.
const DRAIN_PATIENCE: Duration = Duration::from_millis(20);
/// For tests: says another version of the ledger than ours.
const LEDGER_VERSION: &str = "FLASHSIDE_TEST_LEDGER_VERSION";
/// For tests: fails when it is given the mount.
const FAIL: &str = "FLASHSIDE_TEST_FAIL";

/// Serve a mount for its keeper
#[derive(Args)]
pub struct Serve {
    /// The keeper's end
    #[arg(long)]
    link: RawFd,
    #[command(flatten)]
    mount: mount::Mount,
}

/// What has come from the keeper on the way to serving.
#[derive(Default)]
struct Given {
    devices: Vec<OwnedFd>,
    files: HashMap<u64, OwnedFd>,
}

/// What to serve, and with what.
struct Taken {
    negotiated: Negotiated,
    succeeds: bool,
    ledger: Ledger,
    listener: UnixListener,
}

impl Serve {
    /// Runs until the mount is gone or another server shall go on.
    pub fn run(self) -> Result<ExitCode, Error> {
        prepare_process();
        // SAFETY: the keeper has left this descriptor for us and nobody else here knows it.
        let link = unsafe { OwnedFd::from_raw_fd(self.link) };
        let link = Link::new(link).map_err(Error::Start)?;
        match serve(self.mount, &link) {
            Ok(code) => Ok(code),
            Err(error) => {
                let why = error.to_string();
                log::debug!("told the keeper: {why}");
                if link.send(&Message::Refused { why }, &[]).is_err() {
                    return Err(error); // nobody else to tell
                }
                Ok(ExitCode::FAILURE)
            }
        }
    }
}

fn serve(mount: mount::Mount, link: &Link) -> Result<ExitCode, Error> {
    let (begin, file) = begin(link)?;
    let config = mount.as_server(&begin, file.as_ref())?;
    logging::start(config.log_level);
    if begin.syslog {
        logging::switch_to_syslog();
    }
    let ground = Ground::prepare(&config)?;
    link.send(&hello(), &[]).map_err(Error::Start)?;
    let Some((stack, taken, given)) = wait_for_turn(&config, ground, link)? else {
        return Ok(ExitCode::SUCCESS);
    };
    serve_mount(&config, &begin, stack, taken, given, link)
}

fn hello() -> Message {
    let said = std::env::var(LEDGER_VERSION).ok();
    Message::Hello(Hello {
        version: env!("CARGO_PKG_VERSION").into(),
        ledger: said
            .and_then(|said| said.parse().ok())
            .unwrap_or(ledger::VERSION),
        link: message::VERSION,
    })
}

/// The first word, with the configuration file's text.
fn begin(link: &Link) -> Result<(Begin, Option<FileText>), Error> {
    let came = link.receive(Some(BEGIN_PATIENCE)).map_err(Error::Start)?;
    let Came::Message(Message::Begin(begin), files) = came else {
        return Err(Error::Start(io::ErrorKind::ConnectionAborted.into()));
    };
    let (Some(path), Some(text)) = (begin.configuration.clone(), files.into_iter().next()) else {
        return Ok((begin, None));
    };
    let mut file = FileText {
        path,
        text: String::new(),
    };
    let mut reader = std::fs::File::from(text);
    let read = io::Seek::rewind(&mut reader).and_then(|()| reader.read_to_string(&mut file.text));
    read.map_err(Error::Start)?;
    Ok((begin, Some(file)))
}

/// Waits until this server is wanted, and opens the cache; `None` when the keeper is gone first.
fn wait_for_turn(
    config: &Config,
    ground: Ground,
    link: &Link,
) -> Result<Option<(Stack, Taken, Given)>, Error> {
    let (mut ground, mut stack, mut given) = (Some(ground), None, Given::default());
    loop {
        let (message, mut descriptors) = match link.receive(None).map_err(Error::Start)? {
            Came::Message(message, descriptors) => (message, descriptors),
            Came::Nothing => continue,
            Came::End => return Ok(None),
        };
        match message {
            Message::Open => {
                if let Some(ground) = ground.take() {
                    stack = Some(ground.build(config, false)?);
                }
                link.send(&Message::Opened, &[]).map_err(Error::Start)?;
            }
            Message::Devices => given.devices.append(&mut descriptors),
            Message::Files { numbers } => given.files.extend(numbers.into_iter().zip(descriptors)),
            Message::Ping => link.send(&Message::Pong, &[]).map_err(Error::Start)?,
            Message::Take {
                passthrough,
                resend,
                succeeds,
            } => {
                if std::env::var_os(FAIL).is_some() {
                    return Err(Error::Start(io::Error::other("told to fail")));
                }
                let negotiated = Negotiated {
                    passthrough,
                    resend,
                };
                let taken = taken(negotiated, succeeds, descriptors).map_err(Error::Start)?;
                if let Some(ground) = ground.take() {
                    stack = Some(ground.build(config, succeeds)?);
                }
                return Ok(stack.map(|stack| (stack, taken, given)));
            }
            _ => {}
        }
    }
}

fn taken(negotiated: Negotiated, succeeds: bool, descriptors: Vec<OwnedFd>) -> io::Result<Taken> {
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or(io::ErrorKind::InvalidInput);
    Ok(Taken {
        negotiated,
        succeeds,
        ledger: Ledger::open(next()?)?,
        listener: next()?.into(),
    })
}

fn serve_mount(
    config: &Config,
    begin: &Begin,
    stack: Stack,
    taken: Taken,
    given: Given,
    link: &Link,
) -> Result<ExitCode, Error> {
    let end = link.as_fd().try_clone_to_owned().and_then(Link::new);
    let kept = Kept::by(begin.keeper_pid, end.map_err(Error::Start)?);
    let brake: Arc<OnceLock<Option<Brake>>> = Arc::default();
    let devices = match (config.server_clones, given.devices.first()) {
        (true, Some(any)) => {
            face::devices(any.as_fd(), config.fuse_threads).map_err(Error::Start)?
        }
        _ => given.devices,
    };
    let inheritance = Inheritance {
        ledger: Arc::new(taken.ledger),
        devices,
        files: given.files,
        holder: kept.clone(),
        negotiated: taken.negotiated,
        succeeds: taken.succeeds,
    };
    listen(&kept, config, begin, &brake).map_err(Error::Start)?;
    watch_signals(kept.clone(), config, brake.clone()).map_err(Error::Start)?;
    let background = begin.background && !begin.syslog;
    let ready = |stop| {
        let _ = brake.set(stop); // the first and only time
        if background {
            background::leave_terminal();
        }
        kept.say(&Message::Serving, &[]);
    };
    stack.serve(config, inheritance, taken.listener, &kept, ready)?;
    if !kept.is_kept() {
        keeper::remove_socket(&config.control_socket);
    }
    Ok(ExitCode::SUCCESS)
}

fn listen(
    kept: &Arc<Kept>,
    config: &Config,
    begin: &Begin,
    brake: &Arc<OnceLock<Option<Brake>>>,
) -> io::Result<()> {
    let brake = brake.clone();
    let drain = move || make_room(&brake);
    let (mountpoint, keeper) = (config.mountpoint.clone(), begin.keeper_pid);
    let gone = move || {
        log::error!(
            "{}: its keeper (process {keeper}) is gone; the mount goes on and is not protected any \
             more: unmount and mount it again when its users can pause",
            mountpoint.display()
        );
    };
    kept.listen(drain, gone)
}

/// Stops taking requests and ends. What is not answered then is sent again to the next server; what was
/// answered and not settled is recovered as after any end.
fn make_room(brake: &OnceLock<Option<Brake>>) {
    if let Some(Some(brake)) = brake.get() {
        brake.stop(DRAIN_PATIENCE);
    }
    // SAFETY: ends the process; no destructor is needed for what another server takes on.
    unsafe { libc::_exit(keeper::MADE_ROOM) }
}

fn watch_signals(
    kept: Arc<Kept>,
    config: &Config,
    brake: Arc<OnceLock<Option<Brake>>>,
) -> io::Result<()> {
    let mountpoint = config.mountpoint.clone();
    let mut signals = Signals::new([SIGTERM])?;
    let watch = move || {
        for _ in signals.forever() {
            if kept.is_kept() {
                make_room(&brake);
            }
            log::info!("told to end: unmounting {}", mountpoint.display());
            if let Err(error) = face::unmount(&mountpoint) {
                log::error!("cannot unmount {}: {error}", mountpoint.display());
            }
        }
    };
    let thread = thread::Builder::new().name("signals".into());
    thread.spawn(watch).map(drop)
}

fn prepare_process() {
    stack::prepare_process();
    // SAFETY: plain numbers, and a C string that is copied.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
        // The program may have been started through a descriptor, whose number would be the name.
        libc::prctl(libc::PR_SET_NAME, c"flashside".as_ptr());
    }
}
