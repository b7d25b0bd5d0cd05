//! Threads for calls that may block, and the rule that every wait ends (rule 12).
//!
//! A job is two closures: `work` blocks on a thread of the executor; `done` gets its result, or the
//! deadline's error, exactly once, from whichever thread comes first. A job may bring a third,
//! `fallback`: an answer from memory for when the store hangs.
//!
//! The number of threads and of queued jobs is bounded. A call that hangs keeps its thread and
//! what it borrowed until the kernel lets go; when every thread hangs and the queue is full, jobs
//! fail at once. One watcher thread looks after all waits; it sleeps while nothing is pending.
//!
//! # Locking
//! `queue` and `pending` are never held together, nor while a closure runs.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Error, Result};

/// How often the watcher looks while jobs are pending.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Failing is logged this often at most.
const FAILING_LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Stack of a worker; store calls recurse nowhere.
const STACK_BYTES: usize = 512 * 1024;

/// What bounds an executor.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Threads at most; each may be inside one blocking call.
    pub threads_max: usize,
    /// Jobs waiting for a thread at most; past it jobs fail with [`Error::Overloaded`].
    pub queue_max: usize,
    /// A job older than this is logged once.
    pub warn_after: Duration,
    /// When nothing has completed for this long, jobs with a fallback answer from it.
    pub fallback_after: Duration,
    /// A job older than this fails with [`Error::Deadline`].
    pub deadline: Duration,
}

/// Whether the other side answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Responding,
    /// The latest call ended with an error that tells of the other side, not of the request.
    Failing,
    /// Calls wait and none has completed for `fallback_after`.
    Hanging,
}

/// A bounded pool of threads for blocking calls. Dropping it lets idle threads end and abandons
/// those that hang.
pub struct Executor {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    limits: Limits,
    queue: Mutex<Queue>,
    work_ready: Condvar,
    pending: Mutex<BTreeMap<u64, Pending>>,
    watcher_wanted: Condvar,
    watcher_asleep: AtomicBool,
    next_id: AtomicU64,
    hanging: AtomicBool,
    failing: AtomicBool,
    /// Milliseconds since `epoch` of the latest line about failing.
    told_failing_ms: AtomicU64,
    /// Milliseconds since `epoch` of the latest completion.
    completed_ms: AtomicU64,
    epoch: Instant,
    closing: AtomicBool,
}

struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

type Job = Box<dyn FnOnce() + Send>;

struct Pending {
    what: &'static str,
    begun: Instant,
    warned: bool,
    answer: Arc<dyn Answer>,
}

/// The part of a job that the watcher can end.
trait Answer: Send + Sync {
    fn expire(&self, after: Duration);
    fn fall_back(&self);
}

type Done<T> = Box<dyn FnOnce(Result<T>) + Send>;
type Fallback<T> = Box<dyn FnOnce() -> Option<T> + Send>;

struct Cell<T> {
    done: Mutex<Option<Done<T>>>,
    fallback: Mutex<Option<Fallback<T>>>,
    expired: AtomicBool,
}

impl<T> Cell<T> {
    fn answer(&self, result: Result<T>) {
        let done = self.done.lock().take();
        if let Some(done) = done {
            done(result);
        }
    }
}

impl<T: Send> Answer for Cell<T> {
    fn expire(&self, after: Duration) {
        self.expired.store(true, Ordering::Release);
        self.answer(Err(Error::Deadline(after.as_secs())));
    }

    fn fall_back(&self) {
        let fallback = self.fallback.lock().take();
        if let Some(value) = fallback.and_then(|fallback| fallback()) {
            self.answer(Ok(value));
        }
    }
}

impl Executor {
    /// An executor whose threads are called `name-N`. Threads start when first needed.
    pub fn new(name: &'static str, limits: Limits) -> Executor {
        Executor {
            shared: Arc::new(Shared {
                name,
                limits,
                queue: Mutex::new(Queue {
                    jobs: VecDeque::new(),
                    threads: 0,
                    idle: 0,
                }),
                work_ready: Condvar::new(),
                pending: Mutex::new(BTreeMap::new()),
                watcher_wanted: Condvar::new(),
                watcher_asleep: AtomicBool::new(false),
                next_id: AtomicU64::new(0),
                hanging: AtomicBool::new(false),
                failing: AtomicBool::new(false),
                told_failing_ms: AtomicU64::new(0),
                completed_ms: AtomicU64::new(0),
                epoch: Instant::now(),
                closing: AtomicBool::new(false),
            }),
        }
    }

    /// Starts the watcher; without it no deadline ends a job. Fails where threads cannot be made.
    pub fn start(&self) -> std::io::Result<()> {
        let shared = self.shared.clone();
        thread::Builder::new()
            .name(format!("{}-watch", shared.name))
            .stack_size(STACK_BYTES)
            .spawn(move || shared.watch())?;
        Ok(())
    }

    /// Runs `work` on a thread and gives its result to `done`. If the deadline passes first, `done`
    /// gets [`Error::Deadline`] and the result is dropped; a job whose deadline passed before a
    /// thread took it is dropped unrun.
    pub fn submit<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        self.enqueue(what, Box::new(work), Box::new(done), None);
    }

    /// As [`Executor::submit`]; while the store hangs, `fallback` answers instead if it can.
    pub fn submit_or<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
        fallback: impl FnOnce() -> Option<T> + Send + 'static,
    ) {
        if self.health() == Health::Hanging {
            let mut fallback = Some(fallback);
            if let Some(value) = fallback.take().and_then(|fallback| fallback()) {
                return done(Ok(value));
            }
            return self.enqueue(what, Box::new(work), Box::new(done), None);
        }
        self.enqueue(
            what,
            Box::new(work),
            Box::new(done),
            Some(Box::new(fallback)),
        );
    }

    /// Whether calls complete.
    pub fn health(&self) -> Health {
        if self.shared.hanging.load(Ordering::Relaxed) {
            Health::Hanging
        } else if self.shared.failing.load(Ordering::Relaxed) {
            Health::Failing
        } else {
            Health::Responding
        }
    }

    /// Registers a wait whose work comes later, with [`Parked::run`] or [`Parked::answer`]; the deadline
    /// runs from now.
    pub fn park<T: Send + 'static>(
        &self,
        what: &'static str,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Parked<T> {
        self.register(what, Box::new(done), None)
    }

    fn enqueue<T: Send + 'static>(
        &self,
        what: &'static str,
        work: Box<dyn FnOnce() -> Result<T> + Send>,
        done: Done<T>,
        fallback: Option<Fallback<T>>,
    ) {
        self.register(what, done, fallback).run(work);
    }

    fn register<T: Send + 'static>(
        &self,
        what: &'static str,
        done: Done<T>,
        fallback: Option<Fallback<T>>,
    ) -> Parked<T> {
        let shared = &self.shared;
        let cell = Arc::new(Cell {
            done: Mutex::new(Some(done)),
            fallback: Mutex::new(fallback),
            expired: AtomicBool::new(false),
        });
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        shared.pending.lock().insert(
            id,
            Pending {
                what,
                begun: Instant::now(),
                warned: false,
                answer: cell.clone(),
            },
        );
        if shared.watcher_asleep.load(Ordering::Acquire) {
            let _pending = shared.pending.lock();
            shared.watcher_wanted.notify_one();
        }
        Parked {
            shared: shared.clone(),
            what,
            id,
            cell,
        }
    }
}

/// A wait that is registered and whose work is not begun. Dropped without an answer it ends with EIO.
pub struct Parked<T: Send + 'static> {
    shared: Arc<Shared>,
    what: &'static str,
    id: u64,
    cell: Arc<Cell<T>>,
}

impl<T: Send + 'static> Parked<T> {
    /// Runs `work` on a thread and answers with its result; drops it unrun if the deadline has passed.
    pub fn run(self, work: impl FnOnce() -> Result<T> + Send + 'static) {
        let shared = self.shared.clone();
        let shared_in_job = shared.clone();
        let job = Box::new(move || {
            if self.cell.expired.load(Ordering::Acquire) {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
                log::error!("a {} operation panicked; its caller gets EIO", self.what);
                Err(Error::from_errno(libc::EIO))
            });
            shared_in_job.note(self.what, result.as_ref().err());
            self.answer(result);
        });
        if let Err(job) = shared.push(job) {
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

impl Drop for Executor {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        let _queue = self.shared.queue.lock();
        self.shared.work_ready.notify_all();
        drop(_queue);
        let _pending = self.shared.pending.lock();
        self.shared.watcher_wanted.notify_all();
    }
}

impl Shared {
    /// Queues a job; gives it back when the queue is full.
    fn push(self: &Arc<Self>, job: Job) -> std::result::Result<(), Job> {
        let mut queue = self.queue.lock();
        if queue.jobs.len() >= self.limits.queue_max {
            return Err(job);
        }
        queue.jobs.push_back(job);
        if queue.idle > 0 {
            self.work_ready.notify_one();
        }
        if queue.jobs.len() > queue.idle && queue.threads < self.limits.threads_max {
            queue.threads += 1;
            let number = queue.threads;
            drop(queue);
            self.spawn(number);
        }
        Ok(())
    }

    fn spawn(self: &Arc<Self>, number: usize) {
        let shared = self.clone();
        let spawned = thread::Builder::new()
            .name(format!("{}-{number}", self.name))
            .stack_size(STACK_BYTES)
            .spawn(move || shared.work());
        if let Err(error) = spawned {
            log::warn!("cannot start a {} thread: {error}", self.name);
            self.queue.lock().threads -= 1;
        }
    }

    fn work(self: Arc<Self>) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                self.completed_ms.store(self.now_ms(), Ordering::Relaxed);
                queue = self.queue.lock();
            } else if self.closing.load(Ordering::Acquire) {
                queue.threads -= 1;
                return;
            } else {
                queue.idle += 1;
                self.work_ready.wait(&mut queue);
                queue.idle -= 1;
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn watch(&self) {
        while !self.closing.load(Ordering::Acquire) {
            {
                let mut pending = self.pending.lock();
                if pending.is_empty() {
                    self.set_hanging(false);
                    self.watcher_asleep.store(true, Ordering::Release);
                    self.watcher_wanted.wait(&mut pending);
                    self.watcher_asleep.store(false, Ordering::Release);
                }
            }
            thread::sleep(WATCH_INTERVAL);
            self.look();
        }
    }

    /// One round of the watcher: who warns, who falls back, whose time is up.
    fn look(&self) {
        let now = Instant::now();
        let since_completion = self
            .now_ms()
            .saturating_sub(self.completed_ms.load(Ordering::Relaxed));
        let mut late = Vec::new();
        let mut fall_back = Vec::new();
        let mut hanging = false;
        {
            let mut pending = self.pending.lock();
            for job in pending.values_mut() {
                let age = now.duration_since(job.begun);
                if age < self.limits.fallback_after {
                    break; // in order of submission: the rest is younger
                }
                if u128::from(since_completion) >= self.limits.fallback_after.as_millis() {
                    hanging = true;
                    fall_back.push(job.answer.clone());
                }
                if age >= self.limits.warn_after && !job.warned {
                    job.warned = true;
                    log::debug!("{} has waited {} s for the store", job.what, age.as_secs());
                }
                if age >= self.limits.deadline {
                    late.push(job.answer.clone());
                }
            }
        }
        self.set_hanging(hanging);
        fall_back.iter().for_each(|answer| answer.fall_back());
        late.iter()
            .for_each(|answer| answer.expire(self.limits.deadline));
    }

    /// Takes the end of a call into account: one log line when failing begins, at most every
    /// [`FAILING_LINE_INTERVAL`].
    fn note(&self, what: &str, error: Option<&Error>) {
        let failure = error.filter(|error| error.tells_of_the_store());
        let Some(error) = failure else {
            if error.is_none() && self.failing.load(Ordering::Relaxed) {
                self.failing.store(false, Ordering::Relaxed);
            }
            return;
        };
        let was_failing = self.failing.swap(true, Ordering::Relaxed);
        let now = self.now_ms().max(1);
        let told = self.told_failing_ms.load(Ordering::Relaxed);
        let due = told == 0 || u128::from(now - told.min(now)) >= FAILING_LINE_INTERVAL.as_millis();
        if !was_failing && due {
            self.told_failing_ms.store(now, Ordering::Relaxed);
            log::warn!("the {} answers with errors: {what}: {error}", self.name);
        }
    }

    /// One log line when the store stops answering and one when it is back.
    fn set_hanging(&self, hanging: bool) {
        if self.hanging.swap(hanging, Ordering::Relaxed) != hanging {
            if hanging {
                log::warn!(
                    "the {} does not answer: cached data is served, the rest waits up to {} s",
                    self.name,
                    self.limits.deadline.as_secs()
                );
            } else {
                log::info!("the {} answers again", self.name);
            }
        }
    }
}
