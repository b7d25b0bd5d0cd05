//! Planes: which way the open handles of an image are read, and who may join them.
//!
//! The kernel takes one way per file at a time: where a handle reads the cache file directly
//! (passthrough), all others must too, through the same backing id, and where one goes through the
//! daemon, all others must. A mix would be EIO. So every open takes a [`Seat`] before its answer goes
//! out, and gives it back after its release has come in.
//!
//! # Invariants
//! - An image has seats on the daemon plane or a [`Way`] for direct reading, never both.
//! - A writer sits before it looks whether the image is immutable, and whoever makes an image immutable
//!   looks for writers after that is written down: one of them sees the other.
//!
//! # After a hand-over
//! The kernel's side of it goes on: seats are taken again as they were ([`Seats::sit_carried`]), before
//! requests are served, so that opens meet what the kernel would insist on. Where the version that is read directly
//! is not the image's any more, or its cache was lost, opens are ESTALE until the last old reader has
//! closed: a daemon-plane handle or another backing id would be EIO in the kernel.
//!
//! # Locking
//! `seats` is held for lookups, `state` for bookkeeping; neither while a way is closed.

use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::Mutex;

use crate::store::{Error, ImageId, Result};

use super::hold::HeldImage;
use super::status::PlaneStatus;

/// How a handle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// The kernel reads the cache file.
    Passthrough,
    /// Every request comes to the daemon.
    Daemon(Why),
}

/// Why a handle is on the daemon plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Writing,
    NotImmutable,
    Off,
    NotAllowed,
    OtherHandle,
    NotWhole,
    NotVerified,
    Changed,
    NoRoom,
    Frozen,
    Failed,
}

impl Why {
    const ALL: [Why; 11] = [
        Why::Writing,
        Why::NotImmutable,
        Why::Off,
        Why::NotAllowed,
        Why::OtherHandle,
        Why::NotWhole,
        Why::NotVerified,
        Why::Changed,
        Why::NoRoom,
        Why::Frozen,
        Why::Failed,
    ];

    /// A number for it, to be carried to the next server.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The reason of a number.
    pub fn of_number(number: u8) -> Option<Why> {
        Why::ALL.get(usize::from(number)).copied()
    }

    /// For status: a documented interface.
    pub fn text(self) -> &'static str {
        match self {
            Why::Writing => "open for writing",
            Why::NotImmutable => "not immutable",
            Why::Off => "passthrough is off",
            Why::NotAllowed => "the system does not allow passthrough",
            Why::OtherHandle => "another handle is on the daemon plane",
            Why::NotWhole => "not wholly on flash",
            Why::NotVerified => "not verified yet",
            Why::Changed => "changed a moment ago",
            Why::NoRoom => "too much of the cache is pinned",
            Why::Frozen => "a reader of an earlier mount has the cache file",
            Why::Failed => "the cache device failed",
        }
    }
}

/// What the kernel knows a cache file by; closed when dropped.
pub trait Backing: Send + Sync {
    fn id(&self) -> u32;
}

/// The way by which all passthrough handles of an image read.
pub struct Way {
    // In this order when dropped: nothing new reads the file when the hold ends.
    pub backing: Box<dyn Backing>,
    pub held: HeldImage,
}

/// The seats of all images that are open.
#[derive(Default)]
pub struct Seats {
    seats: DashMap<ImageId, Arc<Planes>>,
}

/// The seats of one image.
#[derive(Default)]
struct Planes {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Handles on the daemon plane, by reason.
    daemon: [u64; Why::ALL.len()],
    writers: u64,
    direct: Option<Direct>,
}

struct Direct {
    way: Way,
    handles: u64,
}

/// The place of one open handle; given back when dropped.
pub struct Seat {
    seats: Arc<Seats>,
    id: ImageId,
    planes: Option<Arc<Planes>>,
    plane: Plane,
    write: bool,
    backing: Option<u32>,
}

impl Seat {
    pub fn plane(&self) -> Plane {
        self.plane
    }

    /// The backing id, on the passthrough plane.
    pub fn backing(&self) -> Option<u32> {
        self.backing
    }
}

impl Seats {
    /// A seat for a writer; EPERM while the image is read directly.
    pub fn sit_to_write(self: &Arc<Self>, id: ImageId) -> Result<Seat> {
        let planes = self.of(id);
        let mut state = planes.state.lock();
        if state.direct.is_some() {
            return Err(Error::from_errno(libc::EPERM));
        }
        state.writers += 1;
        state.add(Why::Writing);
        drop(state);
        Ok(self.seat(id, planes, Plane::Daemon(Why::Writing), None, true))
    }

    /// A seat for a reader that has to go through the daemon because of `why`, or does not have to.
    /// `None`: it may try to read directly and then [`Seats::sit_directly`]. ESTALE where the image is
    /// read directly and has changed since.
    pub fn sit_to_read(self: &Arc<Self>, id: ImageId, why: Option<Why>) -> Result<Option<Seat>> {
        let planes = self.of(id);
        let mut state = planes.state.lock();
        let backing = state.join()?;
        let plane = match (backing, why) {
            (Some(_), _) => Plane::Passthrough,
            (None, Some(why)) => Plane::Daemon(why),
            (None, None) if state.has_daemon() => Plane::Daemon(Why::OtherHandle),
            (None, None) => return Ok(None),
        };
        if let Plane::Daemon(why) = plane {
            state.add(why);
        }
        drop(state);
        Ok(Some(self.seat(id, planes, plane, backing, false)))
    }

    /// A seat for a reader that has prepared a way, or could not. Another may have been faster.
    pub fn sit_directly(
        self: &Arc<Self>,
        id: ImageId,
        way: std::result::Result<Way, Why>,
    ) -> Result<Seat> {
        let planes = self.of(id);
        let mut state = planes.state.lock();
        let (plane, backing, unused) = match (state.join()?, way) {
            (Some(backing), way) => (Plane::Passthrough, Some(backing), way.ok()),
            (None, Ok(way)) if state.has_daemon() => {
                (Plane::Daemon(Why::OtherHandle), None, Some(way))
            }
            (None, Ok(way)) => {
                let backing = way.backing.id();
                state.direct = Some(Direct { way, handles: 1 });
                (Plane::Passthrough, Some(backing), None)
            }
            (None, Err(why)) => (Plane::Daemon(why), None, None),
        };
        if let Plane::Daemon(why) = plane {
            state.add(why);
        }
        drop(state);
        drop(unused);
        Ok(self.seat(id, planes, plane, backing, false))
    }

    /// The seat of a handle that reads directly since before this process: by the way that `way`
    /// makes where it is the first. Called before anybody else can sit down. The kernel goes on by `backing` whatever
    /// has become of the image, so nothing refuses the seat.
    pub fn sit_carried(
        self: &Arc<Self>,
        id: ImageId,
        backing: u32,
        way: impl FnOnce() -> Way,
    ) -> Seat {
        let way = (!self.is_read_directly(id)).then(way);
        let planes = self.of(id);
        let mut state = planes.state.lock();
        match (&mut state.direct, way) {
            (Some(direct), _) => direct.handles += 1,
            (direct, Some(way)) => *direct = Some(Direct { way, handles: 1 }),
            (None, None) => {}
        }
        drop(state);
        self.seat(id, planes, Plane::Passthrough, Some(backing), false)
    }

    /// True while the kernel reads the image's cache file.
    pub fn is_read_directly(&self, id: ImageId) -> bool {
        self.with(id, |state| state.direct.is_some())
            .unwrap_or(false)
    }

    /// True while somebody has the image open for writing.
    pub fn is_written(&self, id: ImageId) -> bool {
        self.with(id, |state| state.writers > 0).unwrap_or(false)
    }

    /// For status: the handles by plane and reason.
    pub fn status(&self, id: ImageId) -> Vec<PlaneStatus> {
        self.with(id, |state| state.status()).unwrap_or_default()
    }

    fn of(&self, id: ImageId) -> Arc<Planes> {
        self.seats.entry(id).or_default().clone()
    }

    fn with<T>(&self, id: ImageId, look: impl FnOnce(&State) -> T) -> Option<T> {
        let planes = self.seats.get(&id)?.value().clone();
        let state = planes.state.lock();
        Some(look(&state))
    }

    fn seat(
        self: &Arc<Self>,
        id: ImageId,
        planes: Arc<Planes>,
        plane: Plane,
        backing: Option<u32>,
        write: bool,
    ) -> Seat {
        Seat {
            seats: self.clone(),
            id,
            planes: Some(planes),
            plane,
            write,
            backing,
        }
    }
}

impl State {
    fn add(&mut self, why: Why) {
        self.daemon[why as usize] += 1;
    }

    fn has_daemon(&self) -> bool {
        self.daemon.iter().any(|handles| *handles > 0)
    }

    /// Joins those who read directly, if there are any.
    fn join(&mut self) -> Result<Option<u32>> {
        let Some(direct) = &mut self.direct else {
            return Ok(None);
        };
        if !direct.way.held.is_current() {
            return Err(Error::from_errno(libc::ESTALE));
        }
        direct.handles += 1;
        Ok(Some(direct.way.backing.id()))
    }

    /// One seat less; gives the way that nobody reads by any more.
    fn leave(&mut self, plane: Plane, write: bool) -> Option<Way> {
        self.writers -= u64::from(write);
        match plane {
            Plane::Daemon(why) => self.daemon[why as usize] -= 1,
            Plane::Passthrough => {
                let direct = self.direct.as_mut()?;
                direct.handles -= 1;
                if direct.handles == 0 {
                    return self.direct.take().map(|direct| direct.way);
                }
            }
        }
        None
    }

    fn status(&self) -> Vec<PlaneStatus> {
        let direct = self.direct.iter().map(|direct| PlaneStatus {
            plane: "passthrough".to_owned(),
            handles: direct.handles,
            reason: String::new(),
        });
        let daemon = Why::ALL.into_iter().map(|why| PlaneStatus {
            plane: "daemon".to_owned(),
            handles: self.daemon[why as usize],
            reason: why.text().to_owned(),
        });
        direct
            .chain(daemon.filter(|plane| plane.handles > 0))
            .collect()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(planes) = self.planes.take() else {
            return;
        };
        let unused = planes.state.lock().leave(self.plane, self.write);
        drop(unused);
        drop(planes);
        self.seats.seats.remove_if(&self.id, |_, planes| {
            let state = planes.state.lock();
            Arc::strong_count(planes) == 1 && state.direct.is_none() && !state.has_daemon()
        });
    }
}
