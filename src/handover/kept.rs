//! A server's view of its keeper: what it last said, and the way to tell it something. A thread of its
//! own (`link`) listens, so that the keeper gets its answer whatever else the server does.
//!
//! *Locking*: each lock is held for bookkeeping only; sends happen outside.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::Holder;
use super::link::{Came, Link};
use super::message::{Message, Standing};

/// A new program has this long to come up and be found good.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(30);

/// The keeper, where there is one.
pub struct Kept {
    keeper: Option<Keeper>,
    standing: Mutex<Standing>,
    asked: Mutex<Option<Sender<Option<String>>>>,
}

struct Keeper {
    link: Link,
    pid: u32,
    there: AtomicBool,
}

impl Kept {
    /// No keeper, and why.
    pub fn alone(reason: &str) -> Arc<Kept> {
        let standing = Standing {
            reason: Some(reason.to_owned()),
            ..Standing::default()
        };
        Arc::new(Kept {
            keeper: None,
            standing: Mutex::new(standing),
            asked: Mutex::default(),
        })
    }

    /// The keeper at the other end of `link`, which has told already how the hand-over stands.
    pub fn by(pid: u32, link: Link, standing: Standing) -> Arc<Kept> {
        let there = AtomicBool::new(true);
        Arc::new(Kept {
            keeper: Some(Keeper { link, pid, there }),
            standing: Mutex::new(standing),
            asked: Mutex::default(),
        })
    }

    /// Starts to listen. `drain` is called when this process shall make room for another, `gone` when the
    /// keeper has ended.
    pub fn listen(
        self: &Arc<Self>,
        drain: impl Fn() + Send + 'static,
        gone: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let kept = self.clone();
        let listen = move || {
            while let Some(message) = kept.next() {
                kept.heard(message, &drain);
            }
            kept.left_alone();
            gone();
        };
        let thread = thread::Builder::new().name("link".into());
        thread.stack_size(256 * 1024).spawn(listen).map(drop)
    }

    fn next(&self) -> Option<Message> {
        let keeper = self.keeper.as_ref()?;
        loop {
            match keeper.link.receive(None) {
                Ok(Came::Message(message, _)) => return Some(message),
                Ok(Came::Nothing) => {}
                Ok(Came::End) => return None,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    log::debug!("the keeper says what is not understood: {error}");
                }
                Err(error) => {
                    log::warn!("the keeper cannot be heard: {error}");
                    return None;
                }
            }
        }
    }

    fn heard(&self, message: Message, drain: &impl Fn()) {
        match message {
            Message::Ping => self.say(&Message::Pong, &[]),
            Message::Standing(standing) => *self.standing.lock() = standing,
            Message::Upgrading { refused } => {
                let asked = self.asked.lock().take();
                let _ = asked.map(|asked| asked.send(refused)); // who asked may have gone
            }
            Message::Drain => drain(),
            _ => {}
        }
    }

    fn left_alone(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.there.store(false, Ordering::Release);
        }
        *self.standing.lock() = Standing {
            reason: Some("the keeper is gone: mount again when the guests can pause".into()),
            ..Standing::default()
        };
        self.asked.lock().take();
    }

    /// True while somebody is there to start another server.
    pub fn is_kept(&self) -> bool {
        let keeper = self.keeper.as_ref();
        keeper.is_some_and(|keeper| keeper.there.load(Ordering::Acquire))
    }

    /// The process that stands for the mount: the keeper, or this one.
    pub fn pid(&self) -> u32 {
        match &self.keeper {
            Some(keeper) if self.is_kept() => keeper.pid,
            _ => std::process::id(),
        }
    }

    /// How the hand-over stands.
    pub fn standing(&self) -> Standing {
        self.standing.lock().clone()
    }

    /// Tells the keeper something; one that does not listen any more is as good as gone.
    pub fn say(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) {
        let Some(keeper) = self.keeper.as_ref().filter(|_| self.is_kept()) else {
            return;
        };
        if let Err(error) = keeper.link.send(message, descriptors) {
            log::warn!("the keeper cannot be told something: {error}");
        }
    }

    /// Asks for a hand-over to `program`; returns once it has begun. The error is a sentence.
    pub fn upgrade(&self, program: &Path) -> Result<(), String> {
        if !self.is_kept() {
            let why = self.standing().reason.unwrap_or_default();
            return Err(format!("there is no other server to hand over to: {why}"));
        }
        let (tell, told) = mpsc::channel();
        if self.asked.lock().replace(tell).is_some() {
            return Err("an upgrade is already being tried".into());
        }
        let program = program.to_path_buf();
        self.say(&Message::Upgrade { program }, &[]);
        let answer = told.recv_timeout(UPGRADE_PATIENCE);
        self.asked.lock().take();
        match answer {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(why),
            Err(_) => Err("the keeper does not answer; try again".into()),
        }
    }
}

impl Holder for Kept {
    fn hold(&self, number: u64, file: BorrowedFd<'_>) {
        self.say(&Message::Hold { number }, &[file.as_fd()]);
    }

    fn let_go(&self, number: u64) {
        self.say(&Message::LetGo { number }, &[]);
    }
}
