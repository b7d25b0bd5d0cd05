//! `flashside status` as people and monitoring use it: watched for long, and with many images.

mod world;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use world::files::{BLOCK, MIB, age, make_image, open, read_at};
use world::janitor::die_with_parent;
use world::{PATIENCE, World, alone, flashside, wait_until};

/// Images that are open or cached at once.
const MANY: usize = 500;

/// A `status --watch` in a child process, and its lines as they come. Killed when dropped.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(arguments: &[&str]) -> Watch {
        let mut command = flashside();
        command.args(["status", "--watch", "--interval", "100ms"]);
        command.args(arguments).stdout(Stdio::piped());
        let mut child = spawn(command);
        let pipe = BufReader::new(child.stdout.take().expect("a pipe"));
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let lines = pipe.lines().map_while(Result::ok);
            lines.map_while(|line| tell.send(line).ok()).for_each(drop);
        });
        Watch { child, lines }
    }

    /// Waits for a line that is wanted, and gives it.
    fn line(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if wanted(line.trim()) => return line,
                Ok(line) => said.push(line),
                Err(_) => panic!(
                    "no line that {what}; the last were {:#?}",
                    said.last_chunk::<40>()
                ),
            }
        }
    }

    /// The cells of an image's line with some number of reads per second.
    fn reading(&self, image: &str) -> Vec<String> {
        let cells =
            |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
        let line = self.line("tells of reads", |line| {
            let cells = cells(line);
            cells.first().is_some_and(|name| name == image)
                && cells[3].parse::<f64>().is_ok_and(|reads| reads > 0.0)
        });
        cells(&line)
    }

    fn interrupt(mut self) -> ExitStatus {
        // SAFETY: a child of ours, not waited for yet, so the pid is its own.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) };
        wait_until(PATIENCE, "the end", || {
            self.child.try_wait().expect("a child").is_some()
        });
        self.child.wait().expect("it has ended")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(mut command: Command) -> Child {
    die_with_parent(&mut command);
    command
        .stdin(Stdio::null())
        .spawn()
        .expect("flashside runs")
}

#[test]
fn watching_tells_rates_waits_for_a_daemon_that_starts_again_and_ends_with_0() {
    let Some(mut world) = World::with_images(&[("busy", MIB), ("idle", MIB)], |_| ()) else {
        return;
    };
    let mountpoint = world.mountpoint().to_string_lossy().into_owned();
    let watch = Watch::start(&["--mountpoint", &mountpoint]);
    for _ in 0..2 {
        watch.line("names the mount", |line| line.starts_with(&mountpoint));
        let file = open(&world.mnt("busy"), true);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reader = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                read_at(&file, 4 * BLOCK, 4096).expect("a read");
            }
        });
        let cells = watch.reading("busy");
        assert_eq!(cells.len(), 11, "{cells:?}"); // the size and the share have a unit each
        if world.status()["handover"] != "off" {
            world.wait_for_standby();
            world.kill_server();
            watch.reading("busy"); // or from before: what counts is that the reads go on
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().expect("all reads succeed");
        world.kill9();
        watch.line("waits", |line| line.contains("waiting for the daemon"));
        world.start();
    }
    watch.line("is of the new daemon", |line| line.starts_with("all "));
    assert_eq!(watch.interrupt().code(), Some(0));
    world.unmount();
}

#[test]
fn an_image_is_watched_alone() {
    let Some(world) = World::with_images(&[("a", MIB), ("b", MIB)], |_| ()) else {
        return;
    };
    for name in ["a", "b"] {
        fs::read(world.mnt(name)).expect("a read");
    }
    let watch = Watch::start(&[&world.mnt("b").to_string_lossy()]);
    watch.line("is the image's", |line| line.starts_with("b "));
    watch.line("is the image's again", |line| {
        assert!(!line.starts_with("a "), "{line}");
        line.starts_with("b ")
    });
    assert_eq!(watch.interrupt().code(), Some(0));
}

#[test]
fn on_a_terminal_one_screen_is_refreshed_in_place() {
    let Some(world) = World::with_images(&[("a", MIB)], |_| ()) else {
        return;
    };
    fs::read(world.mnt("a")).expect("a read");
    let (master, slave) = terminal(3, 30);
    let mut command = flashside();
    command.args(["status", "--watch", "--interval", "100ms", "--mountpoint"]);
    command.arg(world.mountpoint()).stdout(slave);
    let child = spawn(command);
    let (_, lines) = mpsc::channel();
    let watch = Watch { child, lines };
    let mut screen = fs::File::from(master);
    let mut said = String::new();
    let mut bytes = [0; 4096];
    while said.matches("\x1b[H").count() < 3 {
        let len = screen.read(&mut bytes).expect("it goes on");
        said.push_str(&String::from_utf8_lossy(&bytes[..len]));
    }
    let frame = said.split("\x1b[H").nth(1).expect("a whole frame");
    assert!(frame.ends_with("\x1b[J"), "{frame:?}");
    let lines: Vec<&str> = frame.split("\x1b[K").collect();
    assert_eq!(lines.len(), 3, "two lines and the rest: {frame:?}");
    assert!(
        lines.iter().all(|line| line.trim_start().len() <= 30),
        "{frame:?}"
    );
    assert_eq!(watch.interrupt().code(), Some(0));
}

#[test]
fn an_interval_that_is_too_short_or_senseless_is_refused() {
    for (arguments, words) in [
        (&["--watch", "--interval", "1ms"][..], "at least 100ms"),
        (&["--interval", "1s"][..], "--watch"),
        (&["--watch", "--json"][..], "cannot be used with"),
    ] {
        let output = flashside()
            .arg("status")
            .args(arguments)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(words),
            "{arguments:?}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

/// The figure in docs/PERFORMANCE.md is a release build's; here only that nothing is far off.
#[test]
fn status_of_500_images_takes_no_time() {
    let _alone = alone();
    let Some(mut world) = World::new() else {
        return;
    };
    let names: Vec<String> = (0..MANY)
        .map(|number| format!("image-{number:03}"))
        .collect();
    for (name, tag) in names.iter().zip(1..) {
        make_image(&world.store(name), tag, BLOCK);
    }
    let last = world.store(&names[MANY - 1]);
    age(&[&last]);
    world.start();
    let open: Vec<_> = names
        .iter()
        .map(|name| open(&world.mnt(name), true))
        .collect();
    for file in &open {
        read_at(file, 0, 4096).expect("a read");
    }
    drop(open.into_iter().skip(MANY / 2).collect::<Vec<_>>()); // open some, some only cached
    let mut times: Vec<Duration> = (0..10)
        .map(|_| {
            let begun = Instant::now();
            let status = world.status();
            let took = begun.elapsed();
            assert_eq!(status["images"].as_array().map(Vec::len), Some(MANY));
            took
        })
        .collect();
    times.sort();
    println!(
        "status --json of {MANY} images: {:?} (median of 10), {:?} at most",
        times[5], times[9]
    );
    assert!(times[5] < Duration::from_secs(2));
}

/// A pseudo terminal of this size: its master, and its slave for a child's stdout.
fn terminal(rows: u16, columns: u16) -> (OwnedFd, OwnedFd) {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let (mut master, mut slave) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: both descriptors are ours to fill; the size is only read; there is no name to fill.
    let made = unsafe { libc::openpty(&mut master, &mut slave, none, none.cast(), &size) };
    assert_eq!(made, 0, "openpty: {}", std::io::Error::last_os_error());
    // SAFETY: just made, nobody else owns them.
    unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
}
