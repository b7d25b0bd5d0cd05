//! One thread of the session: takes requests, answers what lies on flash, hands the rest on.
//!
//! # One round
//! 1. Take the requests that wait, up to a bound. A read whose pages are all on flash is begun on the
//!    engine; everything else goes to its operation, which answers when it is done.
//! 2. A lone read is done at once instead: it costs less than to begin it and to wait.
//! 3. Hand to the kernel what was begun, answer what has ended.
//! 4. With nothing left to do, sleep until a request comes or a read ends.
//!
//! # Waiting
//! Nothing here waits but for requests and for flash. The one exception is a write for which there is no
//! memory: the thread answers what it has begun, gives its turn to a spare and waits without it
//! ([`super::turns`]).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use super::device::{Device, Received};
use super::dispatch::dispatch;
use super::reply::{Reply, head};
use super::request::Request;
use super::slots::{Slot, Slots};
use super::turns::Turns;
use super::wire::{InHeader, ReadIn, WRITE_HEAD_BYTES, WRITE_KILL_SUIDGID, WriteIn, opcode};
use crate::image::{Begun, Hit, PendingRead};
use crate::io::sync::read_now;
use crate::io::{Buffer, Engine, Read};
use crate::mount::answer::errno;
use crate::mount::core::Core;
use crate::store::Error;

/// Requests taken in one round.
const ROUND_MAX: usize = 32;
/// A lone read up to this is done at once; a longer one would keep requests waiting that come meanwhile.
const AT_ONCE_BYTES_MAX: usize = 64 << 10;
/// Longest sleep; nothing depends on it.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// How long the end of a session waits for flash to end what was begun.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a WRITE's payload at most; the kernel insists on room for it.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// A request is taken in so that a WRITE's payload begins with a page.
const REQUEST_AT: usize = 4096 - WRITE_HEAD_BYTES;

/// A read of flash under way.
struct UnderWay {
    reply: Reply,
    slot: Slot,
    hit: Hit,
    pending: PendingRead,
}

/// One thread's state.
pub struct Worker {
    core: Arc<Core>,
    device: Arc<Device>,
    turns: Arc<Turns>,
    engine: Box<dyn Engine>,
    slots: Slots,
    /// By ticket.
    under_way: Vec<Option<UnderWay>>,
    free_tickets: Vec<u32>,
    request: Buffer,
}

/// What became of a round or a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Went {
    /// There was something to do.
    Busy,
    /// No request waited.
    Idle,
    /// The thread has given its turn away.
    Aside,
    /// The mount is gone.
    Ended,
}

impl Worker {
    /// A worker for the calling thread, with `ring` on an io_uring if the system lets us.
    pub fn new(core: Arc<Core>, device: Device, turns: Arc<Turns>, ring: bool) -> Worker {
        Worker {
            core,
            device: Arc::new(device),
            turns,
            engine: crate::io::engine::new(ring),
            slots: Slots::new(),
            under_way: Vec::new(),
            free_tickets: Vec::new(),
            request: Buffer::new(4096 + PAYLOAD_BYTES_MAX),
        }
    }

    /// Serves until the mount is gone.
    pub fn run(mut self) {
        while self.turns.take() {
            if self.serve() == Went::Ended {
                self.turns.end();
            }
        }
        if !self.finish_all() {
            log::warn!("flash does not end reads that were begun; their memory is left to it");
            std::mem::forget(self);
        }
    }

    /// Serves while it has the turn.
    fn serve(&mut self) -> Went {
        loop {
            let went = self.round();
            match went {
                Went::Aside | Went::Ended => return went,
                Went::Busy => drop(self.finish_some()),
                Went::Idle if self.finish_some() => {}
                Went::Idle => self.engine.wait(Some(self.device.raw()), SLEEP_MAX),
            }
        }
    }

    /// Takes the requests that wait.
    fn round(&mut self) -> Went {
        let mut lone = None;
        for taken in 0..ROUND_MAX {
            let len = match self
                .device
                .receive(&mut self.request.bytes_mut()[REQUEST_AT..])
            {
                Received::Request(len) => len,
                Received::Ended => return Went::Ended,
                Received::Nothing if taken == 0 => return Went::Idle,
                Received::Nothing => break,
            };
            if let Some(read) = lone.take() {
                self.begin(read);
            }
            match self.serve_one(len) {
                (_, Went::Aside) => return Went::Aside,
                (Some(read), _) if taken == 0 && self.is_worth_doing_at_once(&read) => {
                    lone = Some(read);
                }
                (Some(read), _) => self.begin(read),
                (None, _) => {}
            }
        }
        if let Some(mut read) = lone {
            let order = order(&mut read, 0);
            // SAFETY: the hit keeps the file open; the slot is ours and large enough.
            let result = unsafe { read_now(&order) };
            self.finish(read, &result);
        }
        Went::Busy
    }

    fn is_worth_doing_at_once(&self, read: &UnderWay) -> bool {
        let nothing_else = self.free_tickets.len() == self.under_way.len();
        nothing_else && read.hit.len_bytes() <= AT_ONCE_BYTES_MAX
    }

    /// Serves the request just received, which is `len` bytes long; gives back a read that has to be
    /// done. A panic ends the request alone: its reply is dropped, and says EIO.
    fn serve_one(&mut self, len: usize) -> (Option<UnderWay>, Went) {
        let buffer = std::mem::replace(&mut self.request, Buffer::new(0));
        let bytes = &buffer.bytes()[REQUEST_AT..][..len];
        let served = catch_unwind(AssertUnwindSafe(|| match Request::parse(bytes) {
            Some(request) => self.take_on(request),
            None => {
                log::error!("the kernel sent a request that is not whole");
                (None, Went::Busy)
            }
        }));
        self.request = buffer;
        served.unwrap_or_else(|_| {
            log::error!("an operation panicked; its caller gets EIO");
            (None, Went::Busy)
        })
    }

    fn take_on(&mut self, mut request: Request<'_>) -> (Option<UnderWay>, Went) {
        let header = request.header;
        let reply = Reply::new(&self.device, header.unique);
        match header.opcode {
            opcode::READ => match request.take::<ReadIn>() {
                Some(asked) => (self.read(&asked, reply), Went::Busy),
                None => (None, Went::Busy),
            },
            opcode::WRITE => (None, self.write(&header, request, reply)),
            _ => {
                dispatch(&self.core, request, reply);
                (None, Went::Busy)
            }
        }
    }

    /// A read: answered, handed on, or given back if its pages are on flash.
    fn read(&mut self, asked: &ReadIn, reply: Reply) -> Option<UnderWay> {
        let file = match self.core.file(asked.fh) {
            Ok(file) => file,
            Err(error) => {
                reply.refuse(errno(&error));
                return None;
            }
        };
        let begun = file.handle.begin_read(asked.offset, asked.size as usize);
        let (hit, pending) = match begun {
            Begun::Hit(hit, pending) => (hit, pending),
            Begun::Slow(pending) => {
                pending.finish(reply.read());
                return None;
            }
            Begun::End => {
                reply.bytes(&[]);
                return None;
            }
        };
        match self.slot(hit.len_bytes()) {
            Some(slot) => Some(UnderWay {
                reply,
                slot,
                hit,
                pending,
            }),
            None => {
                pending.finish(reply.read());
                None
            }
        }
    }

    /// A slot, waited for if all are in use; `None` when no slot is that large.
    fn slot(&mut self, pages_bytes: usize) -> Option<Slot> {
        loop {
            if let Some(slot) = self.slots.take(pages_bytes) {
                return Some(slot);
            }
            if !self.finish_some() {
                if self.free_tickets.len() == self.under_way.len() {
                    return None;
                }
                self.engine.wait(None, SLEEP_MAX);
            }
        }
    }

    fn write(&mut self, header: &InHeader, mut request: Request<'_>, reply: Reply) -> Went {
        let Some(asked) = request.take::<WriteIn>() else {
            return Went::Busy;
        };
        let Some(data) = request.bytes(asked.size as usize) else {
            return Went::Busy;
        };
        let file = match self.core.file(asked.fh) {
            Ok(file) => file,
            Err(error) => {
                reply.refuse(errno(&error));
                return Went::Busy;
            }
        };
        // Without FUSE_HANDLE_KILLPRIV_V2 the flag does not come, and the kernel leaves set-uid
        // alone in direct writes.
        let strips_set_id = header.uid != 0 || asked.write_flags & WRITE_KILL_SUIDGID != 0;
        let (permit, went) = match file.handle.try_permit(data.len()) {
            Some(permit) => (Some(permit), Went::Busy),
            None => {
                self.step_aside();
                (file.handle.permit(data.len()), Went::Aside)
            }
        };
        let answer = reply.written();
        match permit {
            Some(permit) => {
                self.core
                    .write_to(&file, asked.offset, data, permit, strips_set_id, answer);
            }
            None => answer(Err(Error::Overloaded)),
        }
        went
    }

    /// Leaves serving to a spare: what was begun is answered, and no wake-up is swallowed.
    fn step_aside(&mut self) {
        self.engine.unwatch();
        self.finish_all();
        self.turns.give();
    }

    /// Begins a read on the engine, or does it now if that is full.
    fn begin(&mut self, mut read: UnderWay) {
        let ticket = self.free_tickets.pop().unwrap_or_else(|| {
            self.under_way.push(None);
            (self.under_way.len() - 1) as u32
        });
        let order = order(&mut read, ticket);
        // SAFETY: `under_way` keeps the hit, which keeps the file open, and the slot until the end is told.
        if unsafe { self.engine.begin(order) } {
            self.under_way[ticket as usize] = Some(read);
            return;
        }
        self.free_tickets.push(ticket);
        // SAFETY: as above, until the return.
        let result = unsafe { read_now(&order) };
        self.finish(read, &result);
    }

    /// Hands over what was begun and answers what has ended; true if there was something.
    fn finish_some(&mut self) -> bool {
        self.engine.submit();
        let mut any = false;
        while let Some((ticket, result)) = self.engine.ended() {
            any = true;
            if let Some(read) = self.under_way[ticket as usize].take() {
                self.free_tickets.push(ticket);
                self.finish(read, &result);
            }
        }
        any
    }

    /// Answers everything begun; false when flash does not end it in time.
    fn finish_all(&mut self) -> bool {
        let deadline = Instant::now() + END_PATIENCE;
        loop {
            self.finish_some();
            if self.free_tickets.len() == self.under_way.len() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            self.engine.wait(None, Duration::from_secs(1));
        }
    }

    /// Answers a read that has ended, from its slot if the bytes are good.
    fn finish(&mut self, read: UnderWay, result: &io::Result<u32>) {
        let UnderWay {
            reply,
            mut slot,
            hit,
            pending,
        } = read;
        if hit.is_valid(result) {
            let wanted = pending.wanted();
            let head = head(reply.unique(), 0, wanted.len());
            reply.whole(slot.reply(head.as_bytes(), wanted));
            pending.served();
        } else {
            pending.finish(reply.read());
        }
        self.slots.give(slot);
    }
}

/// The order to the engine.
fn order(read: &mut UnderWay, ticket: u32) -> Read {
    Read {
        file: read.hit.file(),
        offset_bytes: read.hit.offset_bytes(),
        to: read.slot.pages(),
        len_bytes: read.hit.len_bytes() as u32,
        ticket,
    }
}
