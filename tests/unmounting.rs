//! Every way out: what was written is in the store, and no process, mount or socket stays.

mod world;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use world::files::{MIB, assert_same, get_xattr, open, pattern, write_at};
use world::{PATIENCE, World, is_mounted, unmount_by, wait_until, within};

/// Writes without fsync, leaves by `leave`, and looks at what is left.
fn leaves_nothing_behind(leave: impl FnOnce(&World)) {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start();
    let file = fs::File::create(world.mnt("disk")).expect("create");
    write_at(&file, 12_345, &pattern(1, 12_345, 3 * MIB as usize)).expect("write");
    drop(file);
    let socket = get_xattr(&world.mountpoint(), "user.flashside.control").expect("its path");
    assert!(
        fs::metadata(&socket).is_ok(),
        "{socket} is there while it runs"
    );
    leave(&world);
    world.daemon.take().expect("started").expect_clean_exit();
    assert!(!is_mounted(&world.mountpoint()));
    assert!(fs::metadata(&socket).is_err(), "{socket} stays behind");
    let stored = fs::read(world.store("disk")).expect("the store's file");
    assert_same(
        &stored[12_345..],
        &pattern(1, 12_345, 3 * MIB as usize),
        12_345,
    );
    world.start();
    let again = fs::read(world.mnt("disk")).expect("read");
    assert_same(&again, &stored, 0);
}

#[test]
fn umount_leaves_nothing_behind() {
    leaves_nothing_behind(|world| {
        let output = unmount_by(&["umount"], &world.mountpoint());
        assert!(output.status.success(), "{output:?}");
    });
}

#[test]
fn fusermount_leaves_nothing_behind() {
    if Command::new("fusermount3").arg("-V").output().is_err() {
        return println!("skipped: needs fusermount3");
    }
    leaves_nothing_behind(|world| {
        let output = unmount_by(&["fusermount3", "-u"], &world.mountpoint());
        assert!(output.status.success(), "{output:?}");
    });
}

#[test]
fn sigterm_leaves_nothing_behind() {
    leaves_nothing_behind(|world| world.daemon().signal(libc::SIGTERM));
}

#[test]
fn sigint_leaves_nothing_behind() {
    leaves_nothing_behind(|world| world.daemon().signal(libc::SIGINT));
}

#[test]
fn sigterm_while_an_image_is_open_keeps_what_was_written() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start();
    fs::write(world.mnt("disk"), b"").expect("create");
    let file = open(&world.mnt("disk"), false);
    write_at(&file, 0, &pattern(2, 0, MIB as usize)).expect("write");
    world.daemon().signal(libc::SIGTERM);
    world.daemon.take().expect("started").expect_clean_exit();
    assert!(!is_mounted(&world.mountpoint()));
    assert!(write_at(&file, 0, b"too late").is_err());
    let stored = fs::read(world.store("disk")).expect("the store's file");
    assert_same(&stored, &pattern(2, 0, MIB as usize), 0);
}

#[test]
fn a_busy_mount_refuses_umount_and_goes_on() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start();
    let file = fs::File::create(world.mnt("disk")).expect("create");
    let output = unmount_by(&["umount"], &world.mountpoint());
    assert!(!output.status.success());
    write_at(&file, 0, b"still here").expect("write");
    assert_eq!(fs::read(world.mnt("disk")).expect("read"), b"still here");
    drop(file);
    world.unmount();
}

/// Without `--foreground` the command returns when the mount answers, and the daemon goes on.
#[test]
fn a_background_mount_answers_when_the_command_returns() {
    let Some(world) = World::new() else {
        return;
    };
    fs::write(world.store("disk"), b"here").expect("an image in the store");
    let mut command = world.mount_command();
    let output = within(PATIENCE, "mount", move || command.output());
    let output = output.expect("flashside runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read(world.mnt("disk")).expect("read"), b"here");
    let pid = world.status()["pid"].as_u64().expect("a pid");
    let output = unmount_by(&["umount"], &world.mountpoint());
    assert!(output.status.success(), "{output:?}");
    let process = PathBuf::from(format!("/proc/{pid}/fd"));
    let ended = || fs::read_dir(&process).map_or(true, |mut fds| fds.next().is_none());
    wait_until(PATIENCE, "the daemon ends", ended);
}

/// umount returns before the daemon has settled what was just written; the next mount waits for it
/// instead of finding the cache in use.
#[test]
fn a_mount_can_be_made_again_at_once() {
    let Some(world) = World::new() else {
        return;
    };
    for round in 0..3u8 {
        let mut command = world.mount_command();
        let output = within(PATIENCE, "mount", move || command.output());
        let output = output.expect("flashside runs");
        assert!(output.status.success(), "round {round}: {output:?}");
        fs::write(world.mnt("disk"), [round; 4096]).expect("write");
        assert_eq!(fs::read(world.mnt("disk")).expect("read"), [round; 4096]);
        let output = unmount_by(&["umount"], &world.mountpoint());
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(fs::read(world.store("disk")).expect("read"), [2; 4096]);
}

/// `--read-only` shows everything and changes nothing.
#[test]
fn a_read_only_mount_changes_nothing() {
    let Some(mut world) = World::new() else {
        return;
    };
    fs::write(world.store("disk"), b"fixed").expect("an image in the store");
    world.flags(&["--read-only"]).start();
    assert_eq!(fs::read(world.mnt("disk")).expect("read"), b"fixed");
    let wrote = fs::write(world.mnt("disk"), b"new").expect_err("read-only");
    assert_eq!(wrote.raw_os_error(), Some(libc::EROFS));
    let removed = fs::remove_file(world.mnt("disk")).expect_err("read-only");
    assert_eq!(removed.raw_os_error(), Some(libc::EROFS));
    world.unmount();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(fs::read(world.store("disk")).expect("read"), b"fixed");
}
