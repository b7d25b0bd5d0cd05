//! A wait for something an executor does: registered with a deadline, answered exactly once, by the work,
//! by the watcher, or by being dropped.
//!
//! # Locking
//! `done` and `fallback` are held to take what is in them, not while it runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use log::Level;
use parking_lot::Mutex;

use crate::logs;

use super::{Class, Error, Result, Shared, Ticket};

/// The part of a job that the watcher can end.
pub(super) trait Answer: Send + Sync {
    /// Ends the wait. Gives the class of the call that is left behind, if one had begun and this is
    /// the first time.
    fn expire(&self, after: Duration) -> Expired;
    fn fall_back(&self);
}

/// What the deadline of a job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    /// Nothing: it had ended, or its deadline had passed before.
    Nothing,
    /// A job that had not begun.
    Waiting,
    /// A call goes on without anybody who waits for it.
    Abandoned(Class),
}

/// States of a job; a call that has begun and is not abandoned is its class.
const WAITING: u8 = 0xf0;
const EXPIRED: u8 = 0xf1;
const ABANDONED: u8 = 0xf2;
const ENDED: u8 = 0xf3;

pub(super) type Done<T> = Box<dyn FnOnce(Result<T>) + Send>;
pub(super) type Fallback<T> = Box<dyn FnOnce() -> Option<T> + Send>;

pub(super) struct Cell<T> {
    done: Mutex<Option<Done<T>>>,
    fallback: Mutex<Option<Fallback<T>>>,
    state: AtomicU8,
}

impl<T> Cell<T> {
    pub fn new(done: Done<T>, fallback: Option<Fallback<T>>) -> Cell<T> {
        Cell {
            done: Mutex::new(Some(done)),
            fallback: Mutex::new(fallback),
            state: AtomicU8::new(WAITING),
        }
    }

    /// A thread takes the job; false if its deadline has passed.
    fn begin(&self, class: Class) -> bool {
        let (acquire, relaxed) = (Ordering::AcqRel, Ordering::Acquire);
        (self.state)
            .compare_exchange(WAITING, class as u8, acquire, relaxed)
            .is_ok()
    }

    /// The call has returned; true if it had been abandoned.
    fn end(&self) -> bool {
        self.state.swap(ENDED, Ordering::AcqRel) == ABANDONED
    }

    fn answer(&self, result: Result<T>) {
        let done = self.done.lock().take();
        if let Some(done) = done {
            done(result);
        }
    }
}

impl<T: Send> Answer for Cell<T> {
    fn expire(&self, after: Duration) -> Expired {
        let next = |state| match state {
            WAITING => Some(EXPIRED),
            EXPIRED | ABANDONED | ENDED => None,
            _ => Some(ABANDONED),
        };
        let before = (self.state).fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        self.answer(Err(Error::Deadline(after.as_secs())));
        match before {
            Ok(WAITING) => Expired::Waiting,
            Ok(class) => Class::ALL
                .get(usize::from(class))
                .map_or(Expired::Nothing, |class| Expired::Abandoned(*class)),
            Err(_) => Expired::Nothing,
        }
    }

    fn fall_back(&self) {
        let fallback = self.fallback.lock().take();
        if let Some(value) = fallback.and_then(|fallback| fallback()) {
            self.answer(Ok(value));
        }
    }
}

/// A wait that is registered and whose work is not begun. Dropped without an answer it ends with EIO.
pub struct Parked<T: Send + 'static> {
    pub(super) shared: Arc<Shared>,
    pub(super) what: &'static str,
    pub(super) id: u64,
    pub(super) cell: Arc<Cell<T>>,
}

impl<T: Send + 'static> Parked<T> {
    /// Runs `work` on a thread and answers with its result; drops it unrun if the deadline has passed.
    pub fn run(self, work: impl FnOnce() -> Result<T> + Send + 'static) {
        self.run_as(Class::Guest, work);
    }

    pub(super) fn run_as(self, class: Class, work: impl FnOnce() -> Result<T> + Send + 'static) {
        let ticket = Ticket(self.id);
        let shared = self.shared.clone();
        let shared_in_job = shared.clone();
        let job = Box::new(move |class| {
            if !self.cell.begin(class) {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
                logs::say(Level::Error, "panic", self.what, || {
                    format!("a {} operation panicked; its caller gets EIO", self.what)
                });
                Err(Error::from_errno(libc::EIO))
            });
            if self.cell.end() {
                shared_in_job.load.came_back(class);
            }
            shared_in_job.note(self.what, result.as_ref().err());
            self.answer(result);
        });
        if let Err(job) = shared.push(class, ticket, job) {
            drop(job); // with the parked wait inside, which answers
        }
    }

    /// Answers without work.
    pub fn answer(self, result: Result<T>) {
        self.cell.answer(result);
    }
}

impl<T: Send + 'static> Drop for Parked<T> {
    fn drop(&mut self) {
        self.shared.pending.lock().remove(&self.id);
        self.cell.answer(Err(Error::Overloaded));
    }
}
