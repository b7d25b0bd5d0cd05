//! What waits for a thread of an executor, and which of it goes next.
//!
//! # Invariants
//! - A guest's job goes before readahead, readahead before warming.
//! - Readahead and warming together leave at least a quarter of the threads to guests (where there is more
//!   than one thread at all), readahead alone takes half of them at most.
//! - Warming begins only while no guest's job queues, [`WARM_MAX`] jobs at most, and one at a time while
//!   guests' jobs are under way: a link that is full of warming is slow for them as well.
//!
//! # Locking
//! The queue is never held while a job runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use log::Level;

use crate::logs;

use super::{Limits, STACK_BYTES, Shared};

/// Warming jobs under way at most, of 1 MiB each.
pub const WARM_MAX: usize = 4;

/// Who waits for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A guest, or whoever else asked and waits.
    Guest,
    /// Nobody yet: a stream will come here.
    Ahead,
    /// Nobody: the cache is being filled on an operator's word.
    Warm,
}

impl Class {
    /// In the order of their numbers.
    pub const ALL: [Class; 3] = [Class::Guest, Class::Ahead, Class::Warm];

    /// For labels: a documented interface.
    pub fn text(self) -> &'static str {
        match self {
            Class::Guest => "guest",
            Class::Ahead => "readahead",
            Class::Warm => "warm",
        }
    }
}

/// Names a job that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub(super) u64);

/// What is to be done, told the class it goes as: it may have been promoted.
pub(super) type Job = Box<dyn FnOnce(Class) + Send>;

/// The queues of the three classes.
pub(super) struct Queue {
    jobs: [VecDeque<(Ticket, Job)>; 3],
    running: [usize; 3],
    ahead_max: usize,
    warm_max: usize,
    /// Readahead and warming together.
    background_max: usize,
    pub threads: usize,
    pub idle: usize,
}

impl Queue {
    pub fn new(limits: &Limits) -> Queue {
        let threads = limits.threads_max;
        Queue {
            jobs: [const { VecDeque::new() }; 3],
            running: [0; 3],
            ahead_max: (threads / 2).max(1),
            warm_max: (threads / 4).clamp(1, WARM_MAX),
            background_max: (threads - threads.div_ceil(4)).max(1),
            threads: 0,
            idle: 0,
        }
    }

    /// Jobs of a class that wait for a thread, and that have one.
    pub fn load(&self, class: Class) -> (usize, usize) {
        let class = class as usize;
        (self.jobs[class].len(), self.running[class])
    }

    fn queued(&self) -> usize {
        self.jobs.iter().map(VecDeque::len).sum()
    }

    /// The next job that may begin; counted as under way.
    fn next(&mut self) -> Option<(Class, Job)> {
        let class = self.next_class()?;
        let (_, job) = self.jobs[class as usize].pop_front()?;
        self.running[class as usize] += 1;
        Some((class, job))
    }

    fn next_class(&self) -> Option<Class> {
        Class::ALL
            .into_iter()
            .find(|class| !self.jobs[*class as usize].is_empty() && self.may_begin(*class))
    }

    fn may_begin(&self, class: Class) -> bool {
        let [guest, ahead, warm] = self.running;
        let background_fits = ahead + warm < self.background_max;
        let warm_max = if guest > 0 { 1 } else { self.warm_max };
        match class {
            Class::Guest => true,
            Class::Ahead => ahead < self.ahead_max && background_fits,
            Class::Warm => warm < warm_max && background_fits,
        }
    }
}

impl Shared {
    /// Queues a job; gives it back when the queue is full.
    pub(super) fn push(
        self: &Arc<Self>,
        class: Class,
        ticket: Ticket,
        job: Job,
    ) -> Result<(), Job> {
        let mut queue = self.queue.lock();
        let jobs = &mut queue.jobs[class as usize];
        if jobs.len() >= self.limits.queue_max {
            return Err(job);
        }
        jobs.push_back((ticket, job));
        if queue.idle > 0 {
            self.work_ready.notify_one();
        }
        let wanted = queue.may_begin(class) && queue.queued() > queue.idle;
        if wanted && queue.threads < self.limits.threads_max {
            queue.threads += 1;
            let number = queue.threads;
            drop(queue);
            self.spawn(number);
        }
        Ok(())
    }

    /// Makes a queued job a guest's.
    pub(super) fn promote(&self, ticket: Ticket) {
        let mut queue = self.queue.lock();
        for class in [Class::Ahead, Class::Warm] {
            let jobs = &mut queue.jobs[class as usize];
            let at = jobs.iter().position(|(queued, _)| *queued == ticket);
            if let Some(job) = at.and_then(|at| jobs.remove(at)) {
                queue.jobs[Class::Guest as usize].push_back(job);
                if queue.idle > 0 {
                    self.work_ready.notify_one();
                }
                return;
            }
        }
    }

    fn spawn(self: &Arc<Self>, number: usize) {
        let shared = self.clone();
        let spawned = thread::Builder::new()
            .name(format!("{}-{number}", self.name))
            .stack_size(STACK_BYTES)
            .spawn(move || shared.work());
        if let Err(error) = spawned {
            logs::say(Level::Warn, "thread", self.name, || {
                format!(
                    "cannot start a {} thread: {error}; work waits for those there are",
                    self.name
                )
            });
            self.queue.lock().threads -= 1;
        }
    }

    /// A worker's life. A job that ends may let several queued ones begin: whoever takes one wakes a
    /// sleeping thread for the next.
    fn work(self: Arc<Self>) {
        let mut queue = self.queue.lock();
        loop {
            if let Some((class, job)) = queue.next() {
                if queue.idle > 0 && queue.next_class().is_some() {
                    self.work_ready.notify_one();
                }
                drop(queue);
                job(class);
                self.completed_ms.store(self.now_ms(), Ordering::Relaxed);
                queue = self.queue.lock();
                queue.running[class as usize] -= 1;
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
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn queue(threads_max: usize) -> Queue {
        Queue::new(&Limits {
            threads_max,
            queue_max: 64,
            warn_after: Duration::MAX,
            fallback_after: Duration::MAX,
            deadline: Duration::MAX,
        })
    }

    fn add(queue: &mut Queue, class: Class, count: usize) {
        let job = || (Ticket(0), Box::new(|_| ()) as Job);
        queue.jobs[class as usize].extend((0..count).map(|_| job()));
    }

    /// The classes that may begin one after the other while none ends.
    fn begun(queue: &mut Queue) -> Vec<Class> {
        std::iter::from_fn(|| queue.next().map(|(class, _)| class)).collect()
    }

    #[test]
    fn guests_go_before_readahead_and_readahead_before_warming() {
        let mut queue = queue(8);
        add(&mut queue, Class::Warm, 1);
        add(&mut queue, Class::Ahead, 1);
        assert_eq!(begun(&mut queue), [Class::Ahead, Class::Warm]);
        queue.running = [0; 3];
        add(&mut queue, Class::Warm, 1);
        add(&mut queue, Class::Ahead, 1);
        add(&mut queue, Class::Guest, 2);
        let all = [Class::Guest, Class::Guest, Class::Ahead, Class::Warm];
        assert_eq!(begun(&mut queue), all);
    }

    #[test]
    fn readahead_and_warming_never_take_all_threads() {
        for threads in [2, 3, 4, 8, 64] {
            let mut queue = queue(threads);
            add(&mut queue, Class::Ahead, 100);
            add(&mut queue, Class::Warm, 100);
            let background = begun(&mut queue).len();
            assert!(background < threads, "{background} of {threads}");
            let ahead = queue.running[Class::Ahead as usize];
            assert!(ahead <= threads / 2, "{ahead} of {threads}");
            assert!(queue.running[Class::Warm as usize] <= WARM_MAX);
        }
    }

    #[test]
    fn one_thread_does_everything_one_by_one() {
        let mut queue = queue(1);
        add(&mut queue, Class::Ahead, 1);
        assert_eq!(begun(&mut queue), [Class::Ahead]);
    }

    #[test]
    fn warming_goes_one_by_one_while_guests_are_served() {
        let mut queue = queue(64);
        add(&mut queue, Class::Guest, 1);
        add(&mut queue, Class::Warm, 10);
        assert_eq!(begun(&mut queue), [Class::Guest, Class::Warm]);
        queue.running[Class::Guest as usize] = 0;
        assert_eq!(begun(&mut queue).len(), WARM_MAX - 1);
    }
}
