//! Log lines about what may happen a thousand times a second: the first is said, what follows is counted
//! and said once.
//!
//! A line belongs to a kind (what went wrong) and a subject (an image, a device). The first of them is
//! logged at once. Those that follow within [`WINDOW`] are counted; at its end one line says the first of
//! them and how many there were, and the next window is twice as long, up to [`WINDOW_MAX`]. A window in which
//! nothing came ends it.
//!
//! May touch: the log, and a thread that lives only while something is held back.
//!
//! # Locking
//! `HELD` is held for bookkeeping, not while a line is logged.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use log::Level;
use parking_lot::Mutex;

/// The first window.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Something that goes on for hours is said this often.
pub const WINDOW_MAX: Duration = Duration::from_secs(600);
/// Subjects remembered at most; past it those of one kind share one window.
const SUBJECTS_MAX: usize = 1024;

static HELD: Mutex<Option<Held>> = Mutex::new(None);

type Key = (&'static str, String);

/// What was said a moment ago.
#[derive(Default)]
struct Held {
    recent: HashMap<Key, Recent>,
    teller_lives: bool,
}

struct Recent {
    begun: Instant,
    window: Duration,
    level: Level,
    left_out: u64,
    /// The first that was left out.
    line: String,
}

/// Logs `line`, unless one of this kind about this subject was logged a moment ago: then it is counted.
pub fn say(level: Level, kind: &'static str, subject: &str, line: impl Fn() -> String) {
    let (say_now, start_teller) = {
        let mut held = HELD.lock();
        let held = held.get_or_insert_default();
        let say_now = held.take(level, kind, subject, &line, Instant::now());
        let start_teller = !say_now && !held.teller_lives;
        held.teller_lives |= start_teller;
        (say_now, start_teller)
    };
    if say_now {
        log::log!(level, "{}", line());
    }
    if start_teller
        && thread::Builder::new()
            .name("log".into())
            .spawn(tell_rest)
            .is_err()
    {
        HELD.lock().get_or_insert_default().teller_lives = false; // the next one tries again
    }
}

/// The thread's life: says what was left out when its window ends; ends when there is nothing.
fn tell_rest() {
    loop {
        let next = {
            let mut held = HELD.lock();
            let held = held.get_or_insert_default();
            let next = held.next_due();
            held.teller_lives = next.is_some();
            next
        };
        let Some(next) = next else { return };
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let due = match HELD.lock().as_mut() {
            Some(held) => held.due(Instant::now()),
            None => Vec::new(),
        };
        for (level, line) in due {
            log::log!(level, "{line}");
        }
    }
}

impl Held {
    /// Takes a line into account; true if it is to be said now.
    fn take(
        &mut self,
        level: Level,
        kind: &'static str,
        subject: &str,
        line: impl Fn() -> String,
        now: Instant,
    ) -> bool {
        let key = self.key(kind, subject, now);
        let new = Recent {
            begun: now,
            window: WINDOW,
            level,
            left_out: 0,
            line: String::new(),
        };
        match self.recent.get_mut(&key) {
            Some(recent) if recent.is_over(now) => *recent = new,
            Some(recent) => {
                if recent.left_out == 0 {
                    recent.line = line();
                }
                recent.left_out += 1;
                return false;
            }
            None => drop(self.recent.insert(key, new)),
        }
        true
    }

    /// The subject's own window, or that of all others when there are too many.
    fn key(&mut self, kind: &'static str, subject: &str, now: Instant) -> Key {
        let key = (kind, subject.to_owned());
        if self.recent.len() < SUBJECTS_MAX || self.recent.contains_key(&key) {
            return key;
        }
        self.recent.retain(|_, recent| !recent.is_over(now));
        match self.recent.len() < SUBJECTS_MAX {
            true => key,
            false => (kind, String::new()),
        }
    }

    /// When the first window ends in which something was left out.
    fn next_due(&self) -> Option<Instant> {
        let held_back = self.recent.values().filter(|recent| recent.left_out > 0);
        held_back.map(Recent::end).min()
    }

    /// What is to be said at `now`; its next window begins.
    fn due(&mut self, now: Instant) -> Vec<(Level, String)> {
        let recent = self.recent.values_mut();
        let due = recent.filter(|recent| recent.left_out > 0 && recent.end() <= now);
        due.map(|recent| (recent.level, recent.summary(now)))
            .collect()
    }
}

impl Recent {
    fn end(&self) -> Instant {
        self.begun + self.window
    }

    /// Nothing came in its window.
    fn is_over(&self, now: Instant) -> bool {
        self.left_out == 0 && now >= self.end()
    }

    fn summary(&mut self, now: Instant) -> String {
        let line = std::mem::take(&mut self.line);
        let count = std::mem::take(&mut self.left_out);
        let seconds = self.window.as_secs();
        self.begun = now;
        self.window = (self.window * 2).min(WINDOW_MAX);
        match count {
            1 => line,
            _ => format!("{line}; {count} like this in {seconds} s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(held: &mut Held, subject: &str, now: Instant) -> bool {
        held.take(
            Level::Warn,
            "read",
            subject,
            || format!("{subject}: bad"),
            now,
        )
    }

    #[test]
    fn the_first_is_said_and_a_thousand_are_counted() {
        let (mut held, begin) = (Held::default(), Instant::now());
        assert!(take(&mut held, "a", begin));
        assert_eq!(held.next_due(), None);
        for _ in 0..1000 {
            assert!(!take(&mut held, "a", begin));
        }
        assert!(take(&mut held, "b", begin));
        let end = begin + WINDOW;
        assert_eq!(held.next_due(), Some(end));
        assert!(held.due(begin).is_empty());
        let said = held.due(end);
        assert_eq!(
            said,
            [(Level::Warn, "a: bad; 1000 like this in 10 s".into())]
        );
        assert_eq!(held.next_due(), None);
    }

    #[test]
    fn windows_grow_while_it_goes_on_and_begin_anew_after_a_quiet_one() {
        let (mut held, begin) = (Held::default(), Instant::now());
        assert!(take(&mut held, "a", begin));
        let mut now = begin;
        for seconds in [10, 20, 40, 80, 160, 320, 600, 600] {
            assert!(!take(&mut held, "a", now));
            now += Duration::from_secs(seconds);
            assert_eq!(held.due(now).len(), 1, "after {seconds} s");
        }
        now += WINDOW_MAX;
        assert!(take(&mut held, "a", now));
        assert!(!take(&mut held, "a", now + WINDOW / 2));
        assert_eq!(held.due(now + WINDOW).len(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut held, begin) = (Held::default(), Instant::now());
        for number in 0..5 * SUBJECTS_MAX {
            take(&mut held, &number.to_string(), begin);
        }
        assert!(held.recent.len() <= SUBJECTS_MAX + 1);
        assert!(take(&mut held, "later", begin + WINDOW));
        assert!(held.recent.len() <= SUBJECTS_MAX + 1);
    }
}
