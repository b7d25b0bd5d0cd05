//! The watcher of an executor: who warns, who answers from memory, whose time is up; and whether the other
//! side responds, fails or hangs. One thread, asleep while nothing is pending.
//!
//! # Locking
//! `pending` is never held while a closure runs.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use log::Level;

use super::{Error, Shared};
use crate::logs;

/// How often the watcher looks while jobs are pending.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

impl Shared {
    pub(super) fn watch(&self) {
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
        for answer in late {
            self.load.expired(answer.expire(self.limits.deadline));
        }
    }

    /// Takes the end of a call into account.
    pub(super) fn note(&self, what: &str, error: Option<&Error>) {
        let failure = error.filter(|error| error.tells_of_the_store());
        let Some(error) = failure else {
            let was_failing = error.is_none()
                && self.failing.load(Ordering::Relaxed)
                && self.failing.swap(false, Ordering::Relaxed);
            if was_failing {
                logs::say(Level::Info, "works", self.name, || {
                    format!("the {} answers without errors again", self.name)
                });
            }
            return;
        };
        self.failing.store(true, Ordering::Relaxed);
        logs::say(Level::Warn, "failing", self.name, || {
            format!("the {} answers with errors: {what}: {error}", self.name)
        });
    }

    /// One log line when the store stops answering and one when it is back.
    fn set_hanging(&self, hanging: bool) {
        if self.hanging.swap(hanging, Ordering::Relaxed) != hanging {
            if hanging {
                logs::say(Level::Warn, "hanging", self.name, || {
                    format!(
                        "the {} does not answer: cached data is served, the rest waits up to {} s",
                        self.name,
                        self.limits.deadline.as_secs()
                    )
                });
            } else {
                logs::say(Level::Info, "answers", self.name, || {
                    format!("the {} answers again", self.name)
                });
            }
        }
    }
}
