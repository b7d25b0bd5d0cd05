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
//! Guests' work goes first: every job has a [`Class`], and the queue ([`queue`]) sees to it that work
//! nobody waits for never takes all threads.
//!
//! # Locking
//! `queue` and `pending` are never held together, nor while a closure runs.

mod load;
mod parked;
mod queue;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Error, Result};
use load::Abandoned;
pub use load::Load;
pub use parked::Parked;
use parked::{Answer, Cell, Done, Fallback};
use queue::Queue;
pub use queue::{Class, Ticket};

/// Stack of a worker; store calls recurse nowhere.
const STACK_BYTES: usize = 512 * 1024;

/// What bounds an executor.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Threads at most; each may be inside one blocking call.
    pub threads_max: usize,
    /// Jobs of one class waiting for a thread at most; past it jobs fail with [`Error::Overloaded`].
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
    /// Milliseconds since `epoch` of the latest completion.
    completed_ms: AtomicU64,
    epoch: Instant,
    closing: AtomicBool,
    load: Abandoned,
}

struct Pending {
    what: &'static str,
    begun: Instant,
    warned: bool,
    answer: Arc<dyn Answer>,
}

impl Executor {
    /// An executor whose threads are called `name-N`. Threads start when first needed.
    pub fn new(name: &'static str, limits: Limits) -> Executor {
        Executor {
            shared: Arc::new(Shared {
                name,
                limits,
                queue: Mutex::new(Queue::new(&limits)),
                work_ready: Condvar::new(),
                pending: Mutex::new(BTreeMap::new()),
                watcher_wanted: Condvar::new(),
                watcher_asleep: AtomicBool::new(false),
                next_id: AtomicU64::new(0),
                hanging: AtomicBool::new(false),
                failing: AtomicBool::new(false),
                completed_ms: AtomicU64::new(0),
                epoch: Instant::now(),
                closing: AtomicBool::new(false),
                load: Abandoned::default(),
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

    /// As [`Executor::submit`], for work of another class than a guest's.
    pub fn submit_as<T: Send + 'static>(
        &self,
        class: Class,
        what: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Ticket {
        let parked = self.register(what, Box::new(done), None);
        let ticket = Ticket(parked.id);
        parked.run_as(class, work);
        ticket
    }

    /// A guest waits for this job now: if it still queues, it goes on as a guest's.
    pub fn promote(&self, ticket: Ticket) {
        self.shared.promote(ticket);
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

    /// What it has to do now, by class, in the order of [`Class::ALL`].
    pub fn load(&self) -> [Load; 3] {
        let queue = self.shared.queue.lock();
        Class::ALL.map(|class| {
            let (queued, running) = queue.load(class);
            let abandoned = self.shared.load.now(class);
            Load {
                class,
                queued,
                running: running.saturating_sub(abandoned),
                abandoned,
            }
        })
    }

    /// Jobs that ended at their deadline since the start.
    pub fn expired(&self) -> u64 {
        self.shared.load.count()
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
        let cell = Arc::new(Cell::new(done, fallback));
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
    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn executor(threads_max: usize) -> Executor {
        Executor::new(
            "test",
            Limits {
                threads_max,
                queue_max: 64,
                warn_after: Duration::MAX,
                fallback_after: Duration::MAX,
                deadline: Duration::MAX,
            },
        )
    }

    /// Fills the executor's only thread until the sender is dropped.
    fn block(executor: &Executor) -> mpsc::Sender<()> {
        let (go_on, wait) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let work = move || {
            let _ = begun.send(());
            let _ = wait.recv();
            Ok(())
        };
        executor.submit("block", work, |_| ());
        has_begun.recv().expect("it begins");
        go_on
    }

    #[test]
    fn jobs_run_by_class_and_a_promoted_one_runs_as_a_guests() {
        let executor = executor(1);
        let go_on = block(&executor);
        let (tell, told) = mpsc::channel();
        let submit = |class, name: &'static str| {
            let tell = tell.clone();
            let work = move || {
                let _ = tell.send(name);
                Ok(())
            };
            executor.submit_as(class, "job", work, |_| ())
        };
        submit(Class::Warm, "warm");
        let wanted = submit(Class::Warm, "warm, but a guest came");
        submit(Class::Ahead, "ahead");
        submit(Class::Guest, "guest");
        executor.promote(wanted);
        drop((go_on, tell));
        let order: Vec<_> = told.iter().take(4).collect();
        let want = ["guest", "warm, but a guest came", "ahead", "warm"];
        assert_eq!(order, want);
    }

    #[test]
    fn a_call_that_hangs_past_its_deadline_is_counted_until_it_returns() {
        let mut executor = executor(2);
        let shared = Arc::get_mut(&mut executor.shared).expect("not shared yet");
        shared.limits.fallback_after = Duration::ZERO;
        shared.limits.deadline = Duration::from_millis(1);
        executor.start().expect("a watcher");
        let go_on = block(&executor);
        let guests = || executor.load()[Class::Guest as usize];
        let until = |holds: &dyn Fn() -> bool| {
            let begun = Instant::now();
            while !holds() {
                assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", guests());
                thread::sleep(Duration::from_millis(5));
            }
        };
        until(&|| guests().abandoned == 1);
        assert_eq!((guests().running, executor.expired()), (0, 1));
        drop(go_on);
        until(&|| guests().abandoned == 0 && guests().running == 0);
        assert_eq!(executor.expired(), 1);
    }

    #[test]
    fn background_work_leaves_a_thread_to_guests() {
        let executor = executor(4);
        let (go_on, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        for class in [Class::Ahead, Class::Warm].repeat(20) {
            let wait = wait.clone();
            let work = move || {
                let _ = wait.lock().recv();
                Ok(())
            };
            executor.submit_as(class, "slow", work, |_| ());
        }
        let (tell, told) = mpsc::channel();
        executor.submit("guest", || Ok(()), move |_| tell.send(()).expect("told"));
        let answered = told.recv_timeout(Duration::from_secs(10));
        drop(go_on);
        assert!(answered.is_ok(), "the guest waits for background work");
    }
}
