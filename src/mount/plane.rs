//! Which plane an open gets: the kernel reads the cache file itself (passthrough), or every request
//! comes to the daemon.
//!
//! Passthrough is for a reader of an immutable image that is whole on flash and verified, where nobody
//! has it open on the daemon plane. Who may sit where is decided in [`crate::image::plane`]; this is
//! the way there.
//!
//! # Order of steps
//! 1. A writer takes its seat.
//! 2. The store opens the image as the caller; its settings say whether it is immutable.
//! 3. The image joins its cache, which compares versions.
//! 4. A reader takes a seat, or prepares a way for direct reading first: verified, held, registered
//!    with the kernel.
//! 5. The answer goes out. The seat is given back when the kernel has released the file.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::answer::{Answer, Opened};
use super::backing::Backings;
use super::core::{Core, with};
use super::files::Opening;
use super::nodes::Inode;
use crate::config::{Config, Rules};
use crate::image::immutable::Immutability;
use crate::image::plane::{Backing, Seat, Way, Why};
use crate::image::{Handle, HeldImage};
use crate::store::{Attr, Caller, Error, OpenMode, Result, StoreFile};

/// What decides about planes, for a whole mount.
pub struct Planes {
    /// False: the configuration says no.
    pub auto: bool,
    pub rules: Rules,
    /// The kernel has agreed to passthrough on this connection.
    negotiated: AtomicBool,
    backings: OnceLock<Arc<Backings>>,
}

/// What an open found in the store.
pub struct Found {
    file: Arc<dyn StoreFile>,
    attr: Attr,
    seat: SeatWanted,
}

/// A registered file that this process may not take back.
struct OutOfReach(u32);

impl Backing for OutOfReach {
    fn id(&self) -> u32 {
        self.0
    }
}

enum SeatWanted {
    /// A writer has it already.
    Taken(Seat),
    /// A reader, and why it has to go through the daemon, if it has to.
    Reader(Option<Why>),
}

impl Found {
    /// Joins the image to be truncated.
    pub fn join(self, core: &Core, inode: &Arc<Inode>) -> Result<(Arc<Handle>, Option<Seat>)> {
        let handle = core.join(inode, self.file, &self.attr, super::stat::FOR_TRUNCATION)?;
        match self.seat {
            SeatWanted::Taken(seat) => Ok((handle, Some(seat))),
            SeatWanted::Reader(_) => Ok((handle, None)),
        }
    }
}

impl Planes {
    pub fn new(config: &Config) -> Planes {
        Planes {
            auto: config.passthrough,
            rules: config.rules.clone(),
            negotiated: AtomicBool::new(false),
            backings: OnceLock::new(),
        }
    }

    /// What INIT led to: FUSE_PASSTHROUGH with a stack depth of 1, or not.
    pub fn negotiated(&self, agreed: bool) {
        self.negotiated.store(agreed, Ordering::Release);
    }

    /// The session is up; `device` is a descriptor of its connection. Tells once where the system does
    /// not allow passthrough.
    pub fn begin(&self, device: io::Result<OwnedFd>) {
        let tried = match self.negotiated.load(Ordering::Acquire) {
            true => device.and_then(Backings::new),
            false => Err(io::ErrorKind::Unsupported.into()),
        };
        match tried {
            Ok(backings) => drop(self.backings.set(backings)),
            Err(_) if !self.auto => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => log::info!(
                "no kernel passthrough (it takes root): immutable images are read through the daemon"
            ),
            Err(error) => log::info!(
                "no kernel passthrough here ({error}): immutable images are read through the daemon"
            ),
        }
    }

    /// Why no image is read directly, if so.
    fn why_never(&self) -> Option<Why> {
        match (self.auto, self.backings.get()) {
            (false, _) => Some(Why::Off),
            (true, None) => Some(Why::NotAllowed),
            (true, Some(_)) => None,
        }
    }

    /// What the kernel knows a file by that a server before has registered.
    fn carried(&self, id: u32) -> Box<dyn Backing> {
        match self.backings.get() {
            Some(backings) => backings.carried(id),
            None => Box::new(OutOfReach(id)),
        }
    }

    /// Takes back what servers before have registered and no handle reads by: `left` have been closed, `used`
    /// are those of open handles. Before requests are served.
    pub fn take_back(&self, left: &[u32], used: &[u32]) {
        for id in left.iter().filter(|id| !used.contains(id)) {
            drop(self.carried(*id));
        }
        if let Some(backings) = self.backings.get() {
            backings.take_back_lost(used);
        }
    }

    fn register(&self, held: HeldImage) -> std::result::Result<Way, Why> {
        let backings = self.backings.get().ok_or(Why::NotAllowed)?;
        let file = held.file().ok_or(Why::Failed)?;
        match backings.open(file) {
            Ok(backing) => Ok(Way { backing, held }),
            Err(error) => {
                log::debug!("the kernel does not take a cache file for passthrough: {error}");
                Err(Why::NotAllowed)
            }
        }
    }
}

impl Core {
    /// Whether nobody may write an image: the whole mount, its settings, or a rule. Blocks.
    pub fn is_immutable(&self, inode: &Inode) -> Result<bool> {
        let path = self.nodes.path(inode.nodeid);
        self.immutability().is(inode.id, &path)
    }

    /// Where it is said which images nobody writes.
    pub fn immutability(&self) -> Immutability<'_> {
        Immutability {
            store: self.store.as_ref(),
            own: self.callers.own(),
            rules: &self.planes.rules,
            read_only: self.read_only,
        }
    }

    /// Steps 1 and 2 of an open. Blocks.
    pub fn find(&self, who: &Caller, inode: &Inode, mode: OpenMode) -> Result<Found> {
        let seat = match mode.write {
            true => Some(self.images.seats.sit_to_write(inode.id)?),
            false => None,
        };
        let (file, attr) = self.open_store(who, &inode.node, mode)?;
        let seat = match seat {
            Some(_) if self.is_immutable(inode)? => return Err(Error::from_errno(libc::EPERM)),
            Some(seat) => SeatWanted::Taken(seat),
            None => SeatWanted::Reader(self.why_not(inode)?),
        };
        Ok(Found { file, attr, seat })
    }

    /// Why a reader has to go through the daemon, as far as that is known before the cache is asked.
    fn why_not(&self, inode: &Inode) -> Result<Option<Why>> {
        let never = self.planes.why_never();
        if never.is_some() {
            return Ok(never); // then the settings need not be read
        }
        Ok((!self.is_immutable(inode)?).then_some(Why::NotImmutable))
    }

    /// Steps 3 to 5.
    pub fn take_plane(
        self: &Arc<Self>,
        inode: Arc<Inode>,
        found: Found,
        opening: Opening,
        answer: Answer<Opened>,
    ) {
        inode.remember(&found.attr);
        let joined = self.join(&inode, found.file, &found.attr, opening.mode);
        with(answer, joined, |answer, handle| {
            let seat = match found.seat {
                SeatWanted::Taken(seat) => Ok(Some(seat)),
                SeatWanted::Reader(why) => self.images.seats.sit_to_read(inode.id, why),
            };
            match seat {
                Ok(Some(seat)) => answer(self.opened(inode, handle, seat, &opening)),
                Ok(None) => self.open_directly(inode, handle, opening, answer),
                Err(error) => {
                    handle.release();
                    answer(Err(error));
                }
            }
        });
    }

    /// The seat of a handle that an earlier server has opened and the daemon serves, where it sat before: the
    /// kernel does not ask again.
    pub fn carried_seat(&self, inode: &Inode, mode: OpenMode, why: Why) -> Result<Seat> {
        let seats = &self.images.seats;
        if mode.write {
            return seats.sit_to_write(inode.id);
        }
        let seat = seats.sit_to_read(inode.id, Some(why))?;
        seat.ok_or_else(|| Error::from_errno(libc::EIO))
    }

    /// The seat of a handle that the kernel serves by `backing` since an earlier server: before any other
    /// is taken, and whether or not its file can be taken on, because the kernel goes on with it. Blocks on flash.
    pub fn carried_direct_seat(&self, inode: &Inode, backing: u32) -> Seat {
        let (seats, id) = (&self.images.seats, inode.id);
        seats.sit_carried(id, backing, || Way {
            backing: self.planes.carried(backing),
            held: self.images.hold_carried(id),
        })
    }

    /// Prepares direct reading, on a flash thread, and answers with what became of it.
    fn open_directly(
        self: &Arc<Self>,
        inode: Arc<Inode>,
        handle: Arc<Handle>,
        opening: Opening,
        answer: Answer<Opened>,
    ) {
        let (core, holder) = (self.clone(), handle.clone());
        holder.hold(move |held| {
            let way = held.and_then(|held| core.planes.register(held));
            let seat = core.images.seats.sit_directly(inode.id, way);
            answer(match seat {
                Ok(seat) => core.opened(inode, handle, seat, &opening),
                Err(error) => {
                    handle.release();
                    Err(error)
                }
            });
        });
    }
}
