//! What happened per second between two looks at a mount, image by image.
//!
//! *Invariant*: counters begin at 0 with every process that serves and with every image that comes into the
//! cache, so what is less than before began anew, and so did everything of another process.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::control::MountStatus;
use crate::image::status::ImageStatus;

/// A mount at one moment.
pub struct Look {
    pub at: Instant,
    pub status: MountStatus,
}

/// What is counted, or, divided by seconds, how fast it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Activity {
    pub reads: f64,
    pub read_hits: f64,
    pub read_bytes: f64,
    pub writes: f64,
    pub write_bytes: f64,
    pub store_requests: f64,
    pub store_bytes: f64,
}

/// The activity of each image of `now` per second since `before`, in their order.
pub fn rates(before: &Look, now: &Look) -> Vec<Activity> {
    let seconds = now.at.saturating_duration_since(before.at);
    let same = serving(&before.status) == serving(&now.status);
    let known: HashMap<&str, &ImageStatus> = (before.status.images.iter())
        .filter(|_| same)
        .map(|image| (image.id.as_str(), image))
        .collect();
    let none = ImageStatus::default();
    let rate = |image: &ImageStatus| {
        let before = known.get(image.id.as_str()).copied().unwrap_or(&none);
        rate(before, image, seconds)
    };
    now.status.images.iter().map(rate).collect()
}

/// The process whose counters these are.
fn serving(status: &MountStatus) -> u32 {
    status.serving_pid
}

fn rate(before: &ImageStatus, now: &ImageStatus, time: Duration) -> Activity {
    let per_second = |counter: fn(&ImageStatus) -> u64| {
        let (before, now) = (counter(before), counter(now));
        let difference = now.checked_sub(before).unwrap_or(now);
        difference as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
    };
    Activity {
        reads: per_second(|image| image.reads),
        read_hits: per_second(|image| image.read_hits),
        read_bytes: per_second(|image| image.read_bytes),
        writes: per_second(|image| image.writes),
        write_bytes: per_second(|image| image.write_bytes),
        store_requests: per_second(|image| image.store_read_requests)
            + per_second(|image| image.store_write_requests),
        store_bytes: per_second(|image| image.store_read_bytes)
            + per_second(|image| image.store_write_bytes),
    }
}

impl Activity {
    /// All of them together.
    pub fn sum<'a>(all: impl Iterator<Item = &'a Activity>) -> Activity {
        all.fold(Activity::default(), |sum, one| Activity {
            reads: sum.reads + one.reads,
            read_hits: sum.read_hits + one.read_hits,
            read_bytes: sum.read_bytes + one.read_bytes,
            writes: sum.writes + one.writes,
            write_bytes: sum.write_bytes + one.write_bytes,
            store_requests: sum.store_requests + one.store_requests,
            store_bytes: sum.store_bytes + one.store_bytes,
        })
    }

    /// For sorting: who does most.
    pub fn operations(&self) -> f64 {
        self.reads + self.writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at: Instant, pid: u32, reads: u64) -> Look {
        let image = ImageStatus {
            id: "1-2".into(),
            reads,
            ..ImageStatus::default()
        };
        let status = MountStatus {
            serving_pid: pid,
            images: vec![image],
            ..MountStatus::default()
        };
        Look { at, status }
    }

    #[test]
    fn rates_are_differences_and_a_restart_begins_at_nothing() {
        let begin = Instant::now();
        let later = begin + Duration::from_secs(2);
        let reads = |before: &Look, now: &Look| rates(before, now)[0].reads;
        let before = look(begin, 1, 100);
        assert_eq!(reads(&before, &look(later, 1, 300)), 100.0);
        assert_eq!(reads(&before, &look(later, 1, 100)), 0.0);
        // The image left the cache and came back.
        assert_eq!(reads(&before, &look(later, 1, 10)), 5.0);
        // Another process serves, which has done more already.
        assert_eq!(reads(&before, &look(later, 2, 300)), 150.0);
    }

    #[test]
    fn an_image_that_was_not_there_begins_at_nothing() {
        let begin = Instant::now();
        let mut before = look(begin, 1, 100);
        before.status.images.clear();
        let now = look(begin + Duration::from_secs(1), 1, 7);
        assert_eq!(rates(&before, &now)[0].reads, 7.0);
    }
}
