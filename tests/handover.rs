//! The moments in which a server's death is dangerous, met on purpose: the store has done what it was asked
//! and has not said so yet; the store is still to do what the dead server asked. Each moment comes with its
//! control: the same scene with the safeguard off shows the damage.
//!
//! The run under load is the takeover test's.

mod world;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::json;

use world::files::{
    MIB, age, assert_same, get_xattr, make_image, open, pattern, read_at, set_xattr, write_at,
};
use world::{PATIENCE, World, wait_until};

/// The store says that long after it was done what it was asked.
const LATE: Duration = Duration::from_millis(1000);
/// The write of the dead server reaches the store's disk that long after it was sent.
const SLOW: Duration = Duration::from_millis(3000);
/// Where that write goes.
const PLACE: u64 = 256 << 10;
const PAGE: usize = 4096;
/// An extended attribute of nobody's.
const ATTRIBUTE: &str = "user.handover";

/// A world over a store that can fail, served by a server with a standby; `None` where there is none.
fn world(flags: &[&str]) -> Option<World> {
    let mut world = World::new()?;
    make_image(&world.store("disk"), 1, MIB);
    fs::write(world.store("file"), b"file").expect("a file");
    fs::write(world.store("other"), b"other").expect("a file");
    fs::write(world.store("victim"), b"victim").expect("a file");
    fs::write(world.store("onto"), b"onto").expect("a file");
    fs::create_dir(world.store("empty")).expect("a directory");
    set_xattr(&world.store("other"), ATTRIBUTE, "1").expect("an attribute");
    age(&[&world.store("onto")]);
    world.faulty_store().flags(flags).start();
    world.faults().heal();
    if world.server().is_none() {
        println!("skipped: no hand-over here");
        return None;
    }
    world.wait_for_standby();
    Some(world)
}

/// A change of names, and how the store shows that it is done.
struct Change {
    what: &'static str,
    make: fn(&Path) -> io::Result<()>,
    done: fn(&Path) -> bool,
    /// What it answers when it is made a second time.
    again: i32,
}

const CHANGES: [Change; 10] = [
    Change {
        what: "create excl",
        make: |dir| File::create_new(dir.join("created")).map(drop),
        done: |dir| dir.join("created").exists(),
        again: libc::EEXIST,
    },
    Change {
        what: "mkdir",
        make: |dir| fs::create_dir(dir.join("directory")),
        done: |dir| dir.join("directory").exists(),
        again: libc::EEXIST,
    },
    Change {
        what: "mknod",
        make: |dir| make_fifo(&dir.join("fifo")),
        done: |dir| dir.join("fifo").exists(),
        again: libc::EEXIST,
    },
    Change {
        what: "symlink",
        make: |dir| symlink("nowhere", dir.join("symlink")),
        done: |dir| dir.join("symlink").is_symlink(),
        again: libc::EEXIST,
    },
    Change {
        what: "link",
        make: |dir| fs::hard_link(dir.join("file"), dir.join("link")),
        done: |dir| dir.join("link").exists(),
        again: libc::EEXIST,
    },
    Change {
        what: "setxattr",
        make: |dir| set_new(&dir.join("file")),
        done: |dir| get_xattr(&dir.join("file"), ATTRIBUTE).is_ok(),
        again: libc::EEXIST,
    },
    Change {
        what: "removexattr",
        make: |dir| remove_xattr(&dir.join("other")),
        done: |dir| get_xattr(&dir.join("other"), ATTRIBUTE).is_err(),
        again: libc::ENODATA,
    },
    Change {
        what: "rename onto another file",
        make: |dir| fs::rename(dir.join("other"), dir.join("onto")),
        done: |dir| !dir.join("other").exists(),
        again: libc::ENOENT,
    },
    Change {
        what: "unlink",
        make: |dir| fs::remove_file(dir.join("victim")),
        done: |dir| !dir.join("victim").exists(),
        again: libc::ENOENT,
    },
    Change {
        what: "rmdir",
        make: |dir| fs::remove_dir(dir.join("empty")),
        done: |dir| !dir.join("empty").exists(),
        again: libc::ENOENT,
    },
];

/// Kills the server when the store has made the change and has not answered; what the caller is told.
fn killed_before_the_answer(world: &mut World, change: &Change) -> io::Result<()> {
    world.wait_for_standby();
    let server = world.server().expect("a server");
    let late_ms = LATE.as_millis() as u64;
    world.faults().set(json!({ "late_changes_ms": late_ms }));
    let (mountpoint, make) = (world.mountpoint(), change.make);
    let caller = thread::spawn(move || make(&mountpoint));
    let done = || (change.done)(&world.store(""));
    wait_until(PATIENCE, change.what, done);
    world.kill_known_server(server);
    world.faults().heal();
    wait_until(PATIENCE, change.what, || caller.is_finished());
    caller.join().expect("a call does not panic")
}

#[test]
fn a_change_that_was_made_but_not_answered_succeeds_once() {
    let Some(mut world) = world(&[]) else {
        return;
    };
    for change in &CHANGES {
        let told = killed_before_the_answer(&mut world, change);
        told.unwrap_or_else(|error| panic!("{}: {error}", change.what));
        assert!((change.done)(&world.mountpoint()), "{}", change.what);
        // The next one is told the truth again.
        let again = (change.make)(&world.mountpoint());
        let errno = again.expect_err(change.what).raw_os_error();
        assert_eq!(errno, Some(change.again), "{} again", change.what);
    }
    assert_eq!(fs::read(world.mnt("onto")).expect("read"), b"other");
    let status = world.status();
    let restarts = status["restarts"].as_u64().expect("a number");
    assert_eq!(restarts, CHANGES.len() as u64);
    assert!(status["resent_requests"].as_u64() >= Some(restarts));
    world.unmount();
}

/// The control: without the table each of them is refused as if somebody else had been first.
#[test]
fn without_the_table_a_change_is_refused_that_was_made() {
    let Some(mut world) = world(&["--unsafe-no-exactly-once"]) else {
        return;
    };
    for change in &CHANGES {
        let told = killed_before_the_answer(&mut world, change);
        let errno = told.expect_err(change.what).raw_os_error();
        assert_eq!(errno, Some(change.again), "{}", change.what);
    }
}

/// A page is written, slowly; the server dies in it; the page is written again through its successor. What
/// the store holds in the end, when all that was sent has reached it.
fn stored_after_a_slow_write(world: &mut World) -> Vec<u8> {
    // Known before: a program that is started closes its copy of the file, and that waits for the write.
    let server = world.server().expect("a server");
    let slow_ms = SLOW.as_millis() as u64;
    let faults = json!({ "slow_write_at": PLACE, "slow_write_ms": slow_ms });
    world.faults().set(faults);
    world.faults().clear_log();
    let path = world.mnt("disk");
    let first = thread::spawn(move || {
        let file = open(&path, true);
        write_at(&file, PLACE, &pattern(2, PLACE, PAGE)).map(|()| file)
    });
    let sent = |world: &World, line| {
        let requests = world.faulty.as_ref().expect("a faulty store").requests();
        requests.iter().any(|request| request == line)
    };
    wait_until(PATIENCE, "the write is sent", || sent(world, "write"));
    thread::sleep(Duration::from_millis(100)); // it is taken, and sleeps
    world.kill_known_server(server);
    wait_until(PATIENCE, "the first write", || first.is_finished());
    let file = first.join().expect("no panic").expect("the first write");
    write_at(&file, PLACE, &pattern(3, PLACE, PAGE)).expect("the second write");
    file.sync_all().expect("fsync");
    wait_until(PATIENCE, "the slow write lands", || sent(world, "landed"));
    thread::sleep(Duration::from_millis(100)); // its bytes are there
    let store = File::open(world.store("disk")).expect("the store's file");
    read_at(&store, PLACE, PAGE).expect("read")
}

#[test]
fn a_write_of_a_dead_server_never_lands_after_its_successors() {
    let Some(mut world) = world(&[]) else {
        return;
    };
    let stored = stored_after_a_slow_write(&mut world);
    assert_same(&stored, &pattern(3, PLACE, PAGE), PLACE);
    let seen = read_at(&open(&world.mnt("disk"), true), PLACE, PAGE);
    assert_same(&seen.expect("read"), &pattern(3, PLACE, PAGE), PLACE);
}

/// The control: a successor that does not wait for the dead server's calls is overtaken by one.
#[test]
fn without_the_fence_a_write_of_a_dead_server_lands_last() {
    let Some(mut world) = world(&["--unsafe-no-fence"]) else {
        return;
    };
    let stored = stored_after_a_slow_write(&mut world);
    assert_same(&stored, &pattern(2, PLACE, PAGE), PLACE);
}

fn make_fifo(path: &Path) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: a C string.
    done(unsafe { libc::mknod(path.as_ptr(), libc::S_IFIFO | 0o644, 0) })
}

fn set_new(path: &Path) -> io::Result<()> {
    let (path, name) = (c_path(path), c_path(Path::new(ATTRIBUTE)));
    let (value, flags) = (b"1".as_ptr().cast(), libc::XATTR_CREATE);
    // SAFETY: two C strings, and a value of the length given.
    done(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value, 1, flags) })
}

fn remove_xattr(path: &Path) -> io::Result<()> {
    let (path, name) = (c_path(path), c_path(Path::new(ATTRIBUTE)));
    // SAFETY: two C strings.
    done(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) })
}

fn c_path(path: &Path) -> std::ffi::CString {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

fn done(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
