//! What the keeper does when a server dies, is upgraded or cannot start, and what happens without it.
//! Nothing is open here when it happens; tests/takeover has everything open.

mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use world::files::{MIB, check_pattern, errno_of};
use world::{PATIENCE, World, flashside, unmount_by, wait_until, within};

/// A served mount with an image of a MiB, `disk`, once a standby waits.
fn kept() -> Option<World> {
    kept_with(|_| {})
}

fn kept_with(prepare: impl FnOnce(&mut World)) -> Option<World> {
    let world = World::with_images(&[("disk", MIB)], prepare)?;
    if world.status()["handover"] == "off" {
        println!(
            "skipped: no hand-over here: {}",
            world.status()["handover_reason"]
        );
        return None;
    }
    wait_until(PATIENCE, "a standby", || {
        world.status()["handover"] == "ready"
    });
    Some(world)
}

fn serving(world: &World) -> i32 {
    pid(&world.status(), "serving_pid")
}

fn pid(status: &Value, field: &str) -> i32 {
    let pid = status[field].as_i64().expect("a process id");
    i32::try_from(pid).expect("a process id")
}

/// SIGKILL for the server, which belongs to this world.
fn kill_server(world: &World) -> i32 {
    let pid = serving(world);
    assert!(world.daemon().group().members().contains(&pid));
    // SAFETY: a plain system call; the process belongs to the daemon that this test started.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    pid
}

/// `flashside upgrade` of this world to `program`.
fn upgrade(world: &World, program: &Path) -> Output {
    let mut command = flashside();
    command.arg("upgrade").arg(world.mountpoint());
    command.arg("--program").arg(program);
    within(PATIENCE * 2, "upgrade", move || command.output()).expect("flashside runs")
}

fn refused(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains(words), "{words:?} is not in {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
}

/// The program of this build, run with `setting` in its environment.
fn program_with(world: &World, setting: &str) -> PathBuf {
    let script = world.scratch("program");
    let program = env!("CARGO_BIN_EXE_flashside");
    let text = format!("#!/bin/sh\n{setting} exec {program} \"$@\"\n");
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
    script
}

#[test]
fn a_killed_server_is_replaced_and_the_mount_goes_on() {
    let Some(mut world) = kept() else { return };
    let before = world.status();
    for round in 1..=3 {
        let killed = kill_server(&world);
        check_pattern(&world.mnt("disk"), 1, MIB);
        let status = world.status();
        assert_ne!(pid(&status, "serving_pid"), killed);
        assert_eq!(status["restarts"], round);
        assert_eq!(status["pid"], before["pid"]);
    }
    fs::write(world.mnt("new"), b"written later").expect("write");
    world.unmount();
    let stored = fs::read(world.store("new")).expect("the store's file");
    assert_eq!(stored, b"written later");
}

#[test]
fn the_last_umount_between_two_servers_ends_everything() {
    let Some(mut world) = kept() else { return };
    kill_server(&world);
    let output = unmount_by(&["umount"], &world.mountpoint());
    assert!(output.status.success(), "{output:?}");
    world.daemon.take().expect("started").expect_clean_exit();
}

#[test]
fn sigterm_to_the_server_hands_over() {
    let Some(mut world) = kept() else { return };
    let pid = serving(&world);
    // SAFETY: a plain system call; the process belongs to the daemon that this test started.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    wait_until(PATIENCE, "another server", || serving(&world) != pid);
    check_pattern(&world.mnt("disk"), 1, MIB);
    world.unmount();
}

#[test]
fn an_upgrade_goes_on_with_another_program() {
    let Some(mut world) = kept() else { return };
    let copy = world.scratch("flashside-new");
    fs::copy(env!("CARGO_BIN_EXE_flashside"), &copy).expect("a copy of the program");
    let before = serving(&world);
    let output = upgrade(&world, &copy);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("handed over to") && said.contains(" ms"),
        "{said}"
    );
    let now = serving(&world);
    assert_ne!(now, before);
    let program = fs::read_link(format!("/proc/{now}/exe")).expect("it runs");
    assert_eq!(program, fs::canonicalize(&copy).expect("there"));
    check_pattern(&world.mnt("disk"), 1, MIB);
    fs::remove_file(&copy).expect("the file is not needed any more");
    wait_until(PATIENCE, "a standby", || {
        world.status()["handover"] == "ready"
    });
    kill_server(&world);
    check_pattern(&world.mnt("disk"), 1, MIB);
    world.unmount();
}

#[test]
fn an_upgrade_that_does_not_fit_is_refused_before_anything_changes() {
    let Some(mut world) = kept_with(|world| {
        let config = world.scratch("test.toml");
        fs::write(&config, "log-level = \"info\"\n").expect("a configuration");
        world.flags(&["--config", &config.display().to_string()]);
    }) else {
        return;
    };
    let config = world.scratch("test.toml");
    let before = serving(&world);
    let other = program_with(&world, "FLASHSIDE_TEST_LEDGER_VERSION=4711");
    refused(&upgrade(&world, &other), "in another form (4711");
    refused(
        &upgrade(&world, Path::new("/bin/true")),
        "no flashside server",
    );
    refused(&upgrade(&world, &world.scratch("nowhere")), "cannot run");
    fs::write(&config, "log-level = \"loud\"\n").expect("a configuration");
    let same = Path::new(env!("CARGO_BIN_EXE_flashside"));
    refused(&upgrade(&world, same), "`loud`");
    assert_eq!(serving(&world), before);
    // What the file says now is nothing to a crash.
    kill_server(&world);
    check_pattern(&world.mnt("disk"), 1, MIB);
    world.unmount();
}

#[test]
fn an_upgrade_that_fails_goes_back_to_the_old_program() {
    let Some(mut world) = kept() else { return };
    let failing = program_with(&world, "FLASHSIDE_TEST_FAIL=1");
    refused(&upgrade(&world, &failing), "told to fail");
    check_pattern(&world.mnt("disk"), 1, MIB);
    wait_until(PATIENCE, "a standby", || {
        world.status()["handover"] == "ready"
    });
    kill_server(&world);
    check_pattern(&world.mnt("disk"), 1, MIB);
    world.unmount();
}

#[test]
fn three_servers_that_fail_make_errors_and_no_hang_until_told_to_try_again() {
    let Some(mut world) = kept() else { return };
    let (cache, away) = (world.cache().to_owned(), world.scratch("away"));
    fs::rename(&cache, &away).expect("the cache is gone");
    kill_server(&world);
    let disk = world.mnt("disk");
    let read = within(PATIENCE, "a refusal", move || fs::read(disk));
    assert_eq!(errno_of(&read), libc::EIO);
    let mut status = flashside();
    status
        .arg("status")
        .arg("--mountpoint")
        .arg(world.mountpoint());
    let output = within(PATIENCE, "status", move || status.output()).expect("flashside runs");
    refused(&output, "no server can be started");
    fs::rename(&away, &cache).expect("the cache is back");
    world.daemon().signal(libc::SIGHUP);
    wait_until(PATIENCE, "a server", || fs::read(world.mnt("disk")).is_ok());
    check_pattern(&world.mnt("disk"), 1, MIB);
    world.unmount();
}

#[test]
fn a_mount_that_no_server_serves_can_be_unmounted() {
    let Some(mut world) = kept() else { return };
    fs::rename(world.cache(), world.scratch("away")).expect("the cache is gone");
    kill_server(&world);
    let disk = world.mnt("disk");
    let read = within(PATIENCE, "a refusal", move || fs::read(disk));
    assert_eq!(errno_of(&read), libc::EIO);
    world.daemon().signal(libc::SIGTERM);
    world.daemon.take().expect("started").expect_clean_exit();
}

#[test]
fn without_its_keeper_a_server_goes_on_and_ends_with_the_mount() {
    let Some(mut world) = kept() else { return };
    let (server, keeper) = (serving(&world), world.daemon().pid());
    world.daemon().signal(libc::SIGKILL);
    wait_until(PATIENCE, "the server to know", || {
        world.status()["handover"] == "off"
    });
    let members = world.daemon().group().members();
    assert_eq!(
        members,
        [server],
        "the standby ends, the keeper {keeper} too"
    );
    check_pattern(&world.mnt("disk"), 1, MIB);
    let output = unmount_by(&["umount"], &world.mountpoint());
    assert!(output.status.success(), "{output:?}");
    let group = || world.daemon().group().members().is_empty();
    wait_until(PATIENCE, "the server ends", group);
    let socket = flashside::config::socket::path_for(&world.mountpoint()).expect("a path");
    assert!(!socket.exists(), "{} stays behind", socket.display());
    world.daemon.take();
}

#[test]
fn without_hand_over_one_process_serves_and_says_why() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.flags(&["--handover", "off"]).start();
    let status = world.status();
    assert_eq!(status["handover"], "off");
    assert_eq!(status["handover_reason"], "handover is off");
    assert_eq!(status["pid"], status["serving_pid"]);
    assert_eq!(world.daemon().group().members().len(), 1);
    let said = world.daemon().said();
    assert!(said.contains("no hand-over"), "{said}");
    world.unmount();
}
