//! What keeper and server say to each other over their [`Link`](super::Link): JSON, because both may be
//! of different builds. A word that one does not know is passed over.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The words below and their order; a server of another version is not started.
pub const VERSION: u32 = 1;

/// One message. What comes with descriptors says which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum Message {
    /// Keeper, first of all: what to serve. Comes with the text of the configuration file if there is one.
    Begin(Begin),
    /// Server: ready to take over, up to the cache.
    Hello(Hello),
    /// Keeper: open the cache, so that a refusal comes before the mount is made.
    Open,
    /// Server: the cache is open.
    Opened,
    /// Keeper: descriptors of the connection. They come with it.
    Devices,
    /// Keeper: open files of the store by handle number. They come with it, in this order.
    Files { numbers: Vec<u64> },
    /// Keeper, after the descriptors: serve. Comes with the ledger and the control socket.
    Take {
        passthrough: bool,
        resend: bool,
        succeeds: bool,
    },
    /// Server: the mount answers.
    Serving,
    /// Server: why it cannot; it ends then.
    Refused { why: String },
    /// Server: hold this file of an open handle. It comes with it.
    Hold { number: u64 },
    /// Server: the handle is closed.
    LetGo { number: u64 },
    /// Keeper: how the hand-over stands.
    Standing(Standing),
    /// Server: somebody asks for an upgrade to this program.
    Upgrade { program: PathBuf },
    /// Keeper: the upgrade goes on, or why it does not. `Drain` follows the former.
    Upgrading { refused: Option<String> },
    /// Keeper: stop taking requests, answer what is in hand, and end.
    Drain,
    /// Keeper: do you answer?
    Ping,
    /// Server: yes.
    Pong,
    /// What another build says.
    #[serde(other)]
    Unknown,
}

/// What a server is told first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Absolute.
    pub store: PathBuf,
    /// Absolute. A server never looks at it: nobody may be there to answer.
    pub mountpoint: PathBuf,
    /// Where the configuration was read, for what is said about it.
    pub configuration: Option<PathBuf>,
    /// Who keeps the mount.
    pub keeper_pid: u32,
    /// The terminal is not ours any more: log to syslog.
    pub syslog: bool,
    /// The terminal is somebody's who waits for the mount: log to syslog once it answers.
    pub background: bool,
}

/// Who a server is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The program's version.
    pub version: String,
    /// Which ledgers it reads ([`super::ledger::VERSION`]).
    pub ledger: u32,
    /// Which words it knows ([`VERSION`]).
    pub link: u32,
}

/// How the hand-over of a mount stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub state: State,
    /// Why it is off, or what is wrong.
    pub reason: Option<String>,
    /// What came of the last upgrade.
    pub upgrade: Option<Outcome>,
}

/// Whether another server waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No other server will come.
    #[default]
    Off,
    /// One is being started.
    Starting,
    /// One waits.
    Ready,
}

/// What came of an upgrade that was begun.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Counts the upgrades of this mount.
    pub number: u64,
    /// Version that served before.
    pub from: String,
    /// Version that serves now.
    pub to: String,
    /// From the last request taken to the first that could be taken again, in milliseconds.
    pub pause_ms: u64,
    /// Why the old program serves again, if so.
    pub failed: Option<String>,
}
