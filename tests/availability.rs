//! A store that hangs, fails, turns read-only or dies: resident reads, listings of known names,
//! status and unmount go on, everything else ends with an error in time, and when the store is
//! well again so is the mount, without a remount.

mod world;

use std::fs::{self, File};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use world::files::{
    BLOCK, MIB, age, assert_same, check_pattern, errno_of, make_image, open, open_read, pattern,
    read_at, write_at,
};
use world::{World, long, wait_until, within};

/// Reads that hang at once in the store.
const HANGING: u64 = 120;
/// The daemon's threads stay below this.
const THREADS_MAX: usize = 150;
/// A hit may take this long on a loaded machine.
const HIT: Duration = Duration::from_secs(1);
/// What needs no store may take this long.
const SOON: Duration = Duration::from_secs(5);
const COLD: u64 = 64 * MIB;
const WARM: u64 = 8 * MIB;

/// A faulty store with `warm`, wholly resident and open, and `cold`, open and not resident.
struct Scene {
    world: World,
    warm: Arc<File>,
    cold: Arc<File>,
}

impl Scene {
    fn new(flags: &[&str]) -> Option<Scene> {
        let mut world = World::new()?;
        make_image(&world.store("warm"), 1, WARM);
        make_image(&world.store("cold"), 2, COLD);
        fs::create_dir(world.store("dir")).expect("mkdir");
        fs::write(world.store("dir/known"), b"known").expect("a file in the store");
        age(&[&world.store("warm"), &world.store("cold")]);
        world.faulty_store().flags(flags).start();
        check_pattern(&world.mnt("warm"), 1, WARM);
        names(&world);
        Some(Scene {
            warm: Arc::new(open(&world.mnt("warm"), false)),
            cold: Arc::new(open(&world.mnt("cold"), false)),
            world,
        })
    }

    /// A resident read, compared and timed.
    fn hit(&self, n: u64) {
        let at = (n * 77_777) % (WARM - 4096);
        let file = self.warm.clone();
        let got = within(HIT, "a resident read", move || read_at(&file, at, 4096));
        assert_same(&got.expect("a resident read"), &pattern(1, at, 4096), at);
    }

    /// A read that needs the store, in a thread: its result and how long it took.
    fn miss(&self, n: u64) -> JoinHandle<(std::io::Result<Vec<u8>>, Duration)> {
        let (file, at) = (self.cold.clone(), cold_place(n));
        std::thread::spawn(move || {
            let start = Instant::now();
            (read_at(&file, at, 4096), start.elapsed())
        })
    }

    /// A read that needs the store and must succeed.
    fn expect_miss(&self, n: u64) {
        let (file, at) = (self.cold.clone(), cold_place(n));
        let got = within(SOON, "a read from the store", move || {
            read_at(&file, at, 4096)
        });
        let got = got.unwrap_or_else(|e| panic!("a read from the store: {e}"));
        assert_same(&got, &pattern(2, at, 4096), at);
    }
}

/// A page of a block that nothing else touches, far from where readahead would go.
fn cold_place(n: u64) -> u64 {
    let blocks = COLD / BLOCK;
    (n * 397 % blocks) * BLOCK + 8192
}

/// Lists and stats everything there is.
fn names(world: &World) -> usize {
    let mut seen = 0;
    for dir in [world.mountpoint(), world.mnt("dir")] {
        for entry in fs::read_dir(dir).expect("readdir") {
            let path = entry.expect("an entry").path();
            fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            seen += 1;
        }
    }
    seen
}

/// As [`names`], in time.
fn names_in_time(mountpoint: std::path::PathBuf) {
    let seen = within(SOON, "ls -l of known names", move || {
        let list = |dir: &str| fs::read_dir(mountpoint.join(dir)).expect("readdir");
        list("")
            .chain(list("dir"))
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| fs::symlink_metadata(path).is_ok())
            .count()
    });
    assert_eq!(seen, 4);
}

fn join_all(
    reads: Vec<JoinHandle<(std::io::Result<Vec<u8>>, Duration)>>,
    limit: Duration,
) -> Vec<std::io::Result<Vec<u8>>> {
    wait_until(limit, "the waiting reads end", || {
        reads.iter().all(|read| read.is_finished())
    });
    let join = |read: JoinHandle<_>| read.join().expect("a read does not panic");
    reads.into_iter().map(|read| join(read).0).collect()
}

#[test]
fn a_hanging_store_stops_nobody_who_does_not_need_it() {
    let _turn = world::alone();
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    let hang = Duration::from_secs(if long() { 120 } else { 15 });
    scene.world.faults().stop();
    let mut reads: Vec<_> = (0..HANGING).map(|n| scene.miss(n)).collect();
    let start = Instant::now();
    let mut round = 0;
    while start.elapsed() < hang {
        (0..50).for_each(|n| scene.hit(round * 50 + n));
        names_in_time(scene.world.mountpoint());
        let asked = Instant::now();
        let status = scene.world.status();
        assert!(asked.elapsed() < SOON, "status took {:?}", asked.elapsed());
        if start.elapsed() > Duration::from_secs(8) {
            assert_ne!(status["store_state"], "ok", "status shows the hang");
        }
        let threads = scene.world.daemon().threads();
        assert!(threads <= THREADS_MAX, "{threads} threads");
        round += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    if let Some(n) = reads.iter().position(|read| read.is_finished()) {
        let (got, took) = reads.remove(n).join().expect("a read does not panic");
        let got = got.map(|data| data.len());
        panic!("a read that needs the store ended after {took:?}: {got:?}");
    }
    scene.world.faults().go_on();
    for (n, got) in join_all(reads, SOON * 4).into_iter().enumerate() {
        let at = cold_place(n as u64);
        let got = got.unwrap_or_else(|e| panic!("the read at {at}: {e}"));
        assert_same(&got, &pattern(2, at, 4096), at);
    }
    scene.expect_miss(HANGING + 1);
}

#[test]
fn a_read_in_a_hanging_store_fails_at_the_deadline() {
    let Some(mut scene) = Scene::new(&["--store-deadline", "5s"]) else {
        return;
    };
    scene.world.faults().stop();
    let read = scene.miss(1);
    wait_until(Duration::from_secs(9), "the deadline", || {
        read.is_finished()
    });
    let (got, took) = read.join().expect("a read does not panic");
    assert_eq!(errno_of(&got), libc::EIO);
    assert!(took >= Duration::from_secs(4), "failed after {took:?}");
    scene.hit(1);
    scene.world.faults().go_on();
    wait_until(SOON * 2, "the store is used again", || {
        let read = scene.miss(1);
        read.join().is_ok_and(|(got, _)| got.is_ok())
    });
    scene.expect_miss(2);
}

/// A write whose system call still hangs after it failed may land later: mount and store must
/// agree in the end, whichever of the two it is.
#[test]
fn a_write_that_timed_out_leaves_mount_and_store_equal() {
    let Some(mut scene) = Scene::new(&["--store-deadline", "3s"]) else {
        return;
    };
    scene.world.faults().stop();
    let file = scene.warm.clone();
    let wrote = within(SOON * 2, "a write that times out", move || {
        write_at(&file, 100_000, &[0xee; 9000])
    });
    assert_eq!(errno_of(&wrote), libc::EIO);
    scene.hit(60); // another place of the same image
    scene.world.faults().go_on();
    let file = scene.warm.clone();
    wait_until(SOON * 3, "writes go on", || {
        write_at(&file, 300_000, &pattern(1, 300_000, 512)).is_ok()
    });
    file.sync_all().expect("fsync");
    std::thread::sleep(Duration::from_millis(500));
    let got = fs::read(scene.world.mnt("warm")).expect("read");
    let stored = fs::read(scene.world.store("warm")).expect("the store's file");
    assert_same(&got, &stored, 0);
}

#[test]
fn unmount_works_while_the_store_hangs() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    scene.world.faults().stop();
    let Scene { world, warm, cold } = scene;
    drop((warm, cold));
    let mut world = world;
    let start = Instant::now();
    let mountpoint = world.mountpoint();
    let umount = within(Duration::from_secs(15), "umount", move || {
        let mut umount = std::process::Command::new("umount");
        umount.arg(mountpoint).output().expect("umount(8) runs")
    });
    assert!(umount.status.success(), "{umount:?}");
    ends(
        &mut world,
        Duration::from_secs(15).saturating_sub(start.elapsed()),
    );
}

/// Waits for the daemon to end, however it does.
fn ends(world: &mut World, limit: Duration) {
    let daemon = world.daemon.as_mut().expect("started");
    wait_until(limit, "flashside ends", || daemon.exit_status().is_some());
}

#[test]
fn sigterm_ends_a_mount_with_hanging_reads() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    scene.world.faults().stop();
    let reads: Vec<_> = (0..20).map(|n| scene.miss(n)).collect();
    std::thread::sleep(Duration::from_millis(500));
    scene.world.daemon().signal(libc::SIGTERM);
    ends(&mut scene.world, Duration::from_secs(15));
    assert!(!world::is_mounted(&scene.world.mountpoint()));
    for got in join_all(reads, SOON) {
        assert!(got.is_err(), "the store never answered");
    }
}

#[test]
fn a_store_that_answers_eio_fails_only_what_needs_it() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    scene.world.faults().set(json!({"eio_all": true}));
    for n in 0..20 {
        scene.hit(n);
        let (got, _) = scene.miss(n).join().expect("a read does not panic");
        assert_eq!(errno_of(&got), libc::EIO);
    }
    let wrote = write_at(&scene.warm, 0, &[1; 4096]);
    assert_eq!(errno_of(&wrote), libc::EIO);
    assert_eq!(scene.world.status()["store_state"], "failing");
    scene.world.faults().heal();
    (0..20).for_each(|n| scene.expect_miss(n));
    assert_eq!(scene.world.status()["store_state"], "responding");
    write_at(&scene.warm, 0, &[1; 4096]).expect("write");
    scene.warm.sync_all().expect("fsync");
    let stored = read_at(&open_read(&scene.world.store("warm")), 0, 4096);
    assert_same(&stored.expect("read"), &[1; 4096], 0);
    assert_eq!(
        fs::read(scene.world.mnt("dir/known")).expect("read"),
        b"known"
    );
}

/// After a failed write the page holds what the store holds, not what was refused.
#[test]
fn a_refused_write_leaves_mount_and_store_equal() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    scene.world.faults().set(json!({"eio_writes": true}));
    for at in [0, 70_000, 131_072 - 100] {
        let wrote = write_at(&scene.warm, at, &[0xdd; 5000]);
        assert_eq!(errno_of(&wrote), libc::EIO);
    }
    scene.world.faults().heal();
    let got = read_at(&scene.warm, 0, WARM as usize).expect("read");
    let stored = fs::read(scene.world.store("warm")).expect("the store's file");
    assert_same(&got, &stored, 0);
    check_pattern(&scene.world.mnt("warm"), 1, WARM);
}

#[test]
fn a_failed_fsync_of_the_store_is_told_to_the_guest() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    write_at(&scene.warm, 4096, &[0xcc; 4096]).expect("write");
    scene.world.faults().set(json!({"eio_writes": true}));
    assert_eq!(errno_of(&scene.warm.sync_all()), libc::EIO);
    scene.world.faults().heal();
    write_at(&scene.warm, 4096, &[0xbb; 4096]).expect("write");
    scene.warm.sync_all().expect("fsync");
    let got = fs::read(scene.world.mnt("warm")).expect("read");
    let stored = fs::read(scene.world.store("warm")).expect("the store's file");
    assert_same(&got, &stored, 0);
}

#[test]
fn a_store_that_turns_read_only_is_still_read() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    scene.world.faults().set(json!({"read_only": true}));
    let wrote = write_at(&scene.warm, 0, &[1; 4096]);
    assert!([libc::EROFS, libc::EIO].contains(&errno_of(&wrote)));
    let created = File::create(scene.world.mnt("new"));
    assert!([libc::EROFS, libc::EIO].contains(&errno_of(&created)));
    scene.hit(3);
    scene.expect_miss(3);
    check_pattern(&scene.world.mnt("warm"), 1, WARM);
    scene.world.faults().heal();
    write_at(&scene.warm, 0, &[1; 4096]).expect("write");
    fs::write(scene.world.mnt("new"), b"x").expect("create");
}

#[test]
fn a_store_that_died_and_came_back_needs_no_remount() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    scene.world.faults().kill();
    (0..20).for_each(|n| scene.hit(n));
    let (got, _) = scene.miss(1).join().expect("a read does not panic");
    assert!(got.is_err(), "nobody could have answered");
    scene.world.status();
    scene.world.faults().run();
    let world = &scene.world;
    wait_until(SOON * 2, "the store is found again", || {
        fs::read(world.mnt("dir/known")).is_ok_and(|data| data == b"known")
    });
    check_pattern(&world.mnt("cold"), 2, 4 * MIB);
    fs::write(world.mnt("new"), b"new").expect("create");
    assert_eq!(fs::read(world.store("new")).expect("read"), b"new");
    scene.hit(21);
}

/// A guest's disk stays open for weeks: its handle must find the store again as well.
#[test]
fn a_handle_outlives_the_death_of_its_store() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    scene.world.faults().kill();
    scene.hit(1);
    scene.world.faults().run();
    let scene = &scene;
    wait_until(SOON * 2, "the handle reads again", || {
        let (got, _) = scene.miss(1).join().expect("a read does not panic");
        got.is_ok()
    });
    scene.expect_miss(2);
    write_at(&scene.cold, 1000, &pattern(2, 1000, 5000)).expect("write");
    scene.cold.sync_all().expect("fsync");
}
