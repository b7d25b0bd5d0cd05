//! A limit on a whole test: when it passes, the daemons it started are killed, so that every call
//! that hangs in their mounts returns, and the test ends with an error instead of never.

use std::sync::Mutex;
use std::time::{Duration, Instant};

static CHILDREN: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Kills the group that `pid` leads when time is up. To be called before it is waited for.
pub fn watch(pid: u32) {
    CHILDREN.lock().expect("no panic while held").push(pid);
}

/// `pid` has ended; to be called before it is waited for.
pub fn forget(pid: u32) {
    let mut children = CHILDREN.lock().expect("no panic while held");
    children.retain(|child| *child != pid);
}

/// Starts the clock for this test process.
pub fn start(limit: Duration) {
    let begin = Instant::now();
    std::thread::spawn(move || {
        while begin.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(500));
        }
        eprintln!("the test has taken more than {limit:?}: killing what it started");
        for child in CHILDREN.lock().expect("no panic while held").iter() {
            super::group::send(*child as i32, libc::SIGKILL);
        }
        std::thread::sleep(Duration::from_secs(20));
        std::process::exit(101);
    });
}
