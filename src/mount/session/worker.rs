//! One thread of the session: takes requests, answers what lies on flash, hands the rest on.
//!
//! # One round
//! 1. Take the requests that wait, up to a small bound: flash should have work before the next are
//!    taken. A read whose pages are all on flash is begun on the engine; everything else goes to its
//!    operation, which answers when it is done.
//! 2. Hand to the kernel what was begun, answer what has ended.
//! 3. With nothing left to do, sleep until a request comes or a read ends.
//!
//! A lone read is not done on the spot: that would save some 5 of 130 µs, and keep a request that comes
//! meanwhile waiting for all of its time.
//!
//! # Waiting
//! Nothing here waits but for requests and for flash. The one exception is a write for which there is no
//! memory: the thread answers what it has begun, gives its turn to a spare and waits without it
//! ([`super::turns`]).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;
use zerocopy::IntoBytes;

use super::device::{Device, Received};
use super::dispatch::dispatch;
use super::reply::{Reply, head};
use super::request::Request;
use super::slots::{Slot, Slots};
use super::turns::{Turn, Turns};
use super::wire::{InHeader, ReadIn, WRITE_HEAD_BYTES, WRITE_KILL_SUIDGID, WriteIn, opcode};
use crate::image::{Begun, Hit, PendingRead};
use crate::io::resident::keep_resident;
use crate::io::sync::read_now;
use crate::io::{Buffer, Engine, Read};
use crate::logs;
use crate::mount::answer::errno;
use crate::mount::core::Core;
use crate::mount::once::is_sent_again;
use crate::store::Error;

/// Requests taken in one round.
const ROUND_MAX: usize = 8;
/// A helper that finds nothing to do for so long steps back.
const HELPER_PATIENCE: Duration = Duration::from_millis(5);
/// Longest sleep; nothing depends on it.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// Longest sleep while a wake-up may have gone to a dead server's poll, and once nothing is taken any more.
const SLEEP_WARY: Duration = Duration::from_millis(5);
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
    /// The request's memory is there and stays: see [`crate::io::resident`].
    is_resident: bool,
    turn: Turn,
    /// A helper that was not needed looks once more before it leaves.
    retiring: bool,
}

/// What became of a round or a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Went {
    /// More requests may wait.
    Busy,
    /// No more requests wait.
    Dry,
    /// The thread has given its turn away.
    Aside,
    /// The mount is gone.
    Ended,
}

impl Worker {
    /// A worker for the calling thread, with `ring` on an io_uring if the system lets us. Fails without
    /// memory.
    pub fn new(
        core: Arc<Core>,
        device: Arc<Device>,
        turns: Arc<Turns>,
        ring: bool,
    ) -> io::Result<Worker> {
        Ok(Worker {
            core,
            device,
            turns,
            engine: crate::io::engine::new(ring),
            slots: Slots::new()?,
            under_way: Vec::new(),
            free_tickets: Vec::new(),
            request: Buffer::new(4096 + PAYLOAD_BYTES_MAX),
            is_resident: false,
            turn: Turn::Leader,
            retiring: false,
        })
    }

    /// Serves until the mount is gone.
    pub fn run(mut self) {
        while let Some(turn) = self.turns.take() {
            self.turn = turn;
            self.be_resident();
            if self.serve() == Went::Ended {
                self.turns.end();
            }
        }
        if !self.answer_all() {
            log::warn!("flash does not end reads that were begun; their memory is left to it");
            std::mem::forget(self);
        }
    }

    /// A spare that never serves needs no memory.
    fn be_resident(&mut self) {
        if !std::mem::replace(&mut self.is_resident, true) {
            keep_resident(self.request.bytes_mut());
        }
    }

    /// Serves while it has the turn.
    fn serve(&mut self) -> Went {
        self.retiring = false;
        loop {
            let went = self.round();
            self.retiring &= went == Went::Dry && self.nothing_under_way();
            match went {
                Went::Aside | Went::Ended => return went,
                Went::Busy => {
                    self.turns.call_for_help();
                    self.engine.submit();
                    self.answer_ended();
                }
                Went::Dry if self.retiring => {
                    self.turns.give(self.turn);
                    return Went::Aside;
                }
                Went::Dry => {
                    if !self.answer_ended() && !self.sleep() {
                        // Once more without watching: a wake-up may have come to this thread that no
                        // other has got.
                        self.engine.unwatch();
                        self.retiring = true;
                        continue;
                    }
                    self.answer_ended();
                }
            }
        }
    }

    /// Sleeps until there is something to do; false for a helper that nobody needed.
    fn sleep(&mut self) -> bool {
        let stopped = self.turns.is_stopped();
        let patience = match self.turn {
            Turn::Leader if stopped || self.turns.is_wary() => SLEEP_WARY,
            Turn::Leader => SLEEP_MAX,
            Turn::Helper => HELPER_PATIENCE,
        };
        let watched = (!stopped).then_some(self.device.raw());
        let woken = self.engine.wait(watched, patience);
        woken || self.turn == Turn::Leader || !self.nothing_under_way()
    }

    /// Takes the requests that wait.
    fn round(&mut self) -> Went {
        for _ in 0..ROUND_MAX {
            if self.turns.is_stopped() {
                return Went::Dry;
            }
            let len = match self
                .device
                .receive(&mut self.request.bytes_mut()[REQUEST_AT..])
            {
                Received::Request(len) => len,
                Received::Ended => return Went::Ended,
                Received::Nothing => return Went::Dry,
            };
            match self.serve_one(len) {
                (_, Went::Aside) => return Went::Aside,
                (Some(read), _) => self.begin(read),
                (None, _) => {}
            }
        }
        Went::Busy
    }

    fn nothing_under_way(&self) -> bool {
        self.free_tickets.len() == self.under_way.len()
    }

    /// Serves the request just received, which is `len` bytes long; gives back a read that has to be
    /// done. A panic ends the request alone: its reply is dropped, and says EIO.
    fn serve_one(&mut self, len: usize) -> (Option<UnderWay>, Went) {
        let buffer = std::mem::replace(&mut self.request, Buffer::new(0));
        let bytes = &buffer.bytes()[REQUEST_AT..][..len];
        let served = catch_unwind(AssertUnwindSafe(|| match Request::parse(bytes) {
            Some(request) => self.take_on(request),
            None => {
                let line = || "the kernel sent a request that is not whole".to_owned();
                logs::say(Level::Error, "request", "", line);
                (None, Went::Busy)
            }
        }));
        self.request = buffer;
        served.unwrap_or_else(|_| {
            let line = || "an operation panicked; its caller gets EIO".to_owned();
            logs::say(Level::Error, "panic", "", line);
            (None, Went::Busy)
        })
    }

    fn take_on(&mut self, mut request: Request<'_>) -> (Option<UnderWay>, Went) {
        let header = request.header;
        if is_sent_again(header.unique) {
            self.core.legacy.ledger.resent();
        }
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
            if self.nothing_under_way() {
                return None;
            }
            self.engine.wait(None, SLEEP_MAX);
            self.answer_ended();
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

    /// Leaves serving to a spare: what was begun is answered. A wake-up that came to this thread is made
    /// good: the next leader looks first, and so does a helper that comes for a helper.
    fn step_aside(&mut self) {
        self.answer_all();
        self.engine.unwatch();
        self.turns.give(self.turn);
        if self.turn == Turn::Helper {
            self.turns.call_for_help();
        }
    }

    /// Begins a read on the engine, or does it now if that is full.
    fn begin(&mut self, read: UnderWay) {
        if !self.engine.overlaps() {
            self.turns.call_for_help(); // this thread is about to wait for flash
        }
        let ticket = self.free_tickets.pop().unwrap_or_else(|| {
            self.under_way.push(None);
            (self.under_way.len() - 1) as u32
        });
        let order = self.order(&read, ticket);
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

    /// Answers what has ended; true if there was something.
    fn answer_ended(&mut self) -> bool {
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
    fn answer_all(&mut self) -> bool {
        let deadline = Instant::now() + END_PATIENCE;
        while !self.nothing_under_way() {
            if Instant::now() >= deadline {
                return false;
            }
            self.engine.wait(None, Duration::from_secs(1));
            self.answer_ended();
        }
        true
    }

    /// Answers a read that has ended, from its slot if the bytes are good.
    fn finish(&mut self, read: UnderWay, result: &io::Result<u32>) {
        let UnderWay {
            reply,
            slot,
            hit,
            pending,
        } = read;
        if hit.is_valid(result) {
            let wanted = pending.wanted();
            let head = head(reply.unique(), 0, wanted.len());
            reply.whole(self.slots.reply(&slot, head.as_bytes(), wanted));
            pending.served();
        } else {
            pending.finish(reply.read());
        }
        self.slots.give(slot);
    }

    /// The order to the engine.
    fn order(&mut self, read: &UnderWay, ticket: u32) -> Read {
        Read {
            file: read.hit.file(),
            offset_bytes: read.hit.offset_bytes(),
            to: self.slots.pages(&read.slot),
            len_bytes: read.hit.len_bytes() as u32,
            ticket,
        }
    }
}
