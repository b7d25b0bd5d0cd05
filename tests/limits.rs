//! The cache keeps its limit and lives with bad flash: eviction under load, a filesystem that runs
//! full, fails or vanishes. The cache is an optimisation: I/O gets slower, never wrong.

mod world;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use world::World;
use world::files::{MIB, assert_same, check_pattern, make_image, open, pattern, read_at, write_at};
use world::loopfs::{Type, space};
use world::rng::Rng;

/// Looks at the cache directory all the time and remembers the worst.
struct Watch {
    stop: Arc<AtomicBool>,
    used_max: Arc<AtomicU64>,
    free_permille_min: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn on(dir: &Path) -> Watch {
        let watch = Watch {
            stop: Default::default(),
            used_max: Default::default(),
            free_permille_min: Arc::new(AtomicU64::new(1000)),
            thread: None,
        };
        let (stop, used, free) = (
            watch.stop.clone(),
            watch.used_max.clone(),
            watch.free_permille_min.clone(),
        );
        let dir = dir.to_owned();
        let look = move || {
            while !stop.load(Ordering::Relaxed) {
                used.fetch_max(world::disk_usage(&dir), Ordering::Relaxed);
                let (total, available) = space(&dir);
                free.fetch_min(available * 1000 / total, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        Watch {
            thread: Some(std::thread::spawn(look)),
            ..watch
        }
    }

    /// The most bytes used and the least free space in thousandths.
    fn end(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("ended once");
        thread.join().expect("the watcher does not panic");
        (
            self.used_max.load(Ordering::Relaxed),
            self.free_permille_min.load(Ordering::Relaxed),
        )
    }
}

/// Reads and writes all over the images from four threads; every read is compared.
fn load(world: &World, images: u64, len: u64, seed: u64, steps: usize) {
    std::thread::scope(|scope| {
        for image in 0..images {
            for side in 0..2 {
                let path = world.mnt(format!("disk{image}"));
                scope.spawn(move || side_of(&path, image, side, len, seed, steps));
            }
        }
    });
}

/// One of two threads on an image: keeps to its half, writes what the pattern says anyway.
fn side_of(path: &Path, tag: u64, side: u64, len: u64, seed: u64, steps: usize) {
    let (file, mut rng) = (open(path, side == 1), Rng::new(seed ^ (tag * 2 + side)));
    for _ in 0..steps {
        let at = (side * len / 2 + rng.below(len / 2 - 200_000)) & !511;
        let n = (rng.below(200_000) & !511) as usize + 512;
        let want = pattern(tag, at, n);
        if rng.one_in(3) {
            write_at(&file, at, &want).expect("write");
        } else {
            assert_same(&read_at(&file, at, n).expect("read"), &want, at);
        }
    }
}

fn make_images(world: &World, images: u64, len: u64) {
    for image in 0..images {
        make_image(&world.store(format!("disk{image}")), image, len);
    }
}

#[test]
fn the_cache_never_exceeds_its_limit() {
    let Some(mut world) = World::new() else {
        return;
    };
    make_images(&world, 2, 32 * MIB);
    world.limit("20M").start();
    let watch = Watch::on(world.cache());
    load(&world, 2, 32 * MIB, Rng::announced(21).next(), 200);
    let (used, _) = watch.end();
    assert!(used <= 20 * MIB, "{used} bytes used of {}", 20 * MIB);
    assert!(used >= 10 * MIB, "it caches: {used} bytes used");
    let status = world.status();
    assert_eq!(status["pool"]["limit_bytes"], 20 * MIB);
    assert!(status["pool"]["used_bytes"].as_u64() <= Some(20 * MIB));
}

/// A smaller limit than the last time: the cache shrinks to it.
#[test]
fn eviction_keeps_the_limit_after_a_restart() {
    let Some(mut world) = World::new() else {
        return;
    };
    make_images(&world, 1, 40 * MIB);
    world.limit("64M").start();
    check_pattern(&world.mnt("disk0"), 0, 40 * MIB);
    world.unmount();
    world.limit("16M").start();
    let watch_from = world.cache().to_owned();
    check_pattern(&world.mnt("disk0"), 0, 40 * MIB);
    let watch = Watch::on(&watch_from);
    load(&world, 1, 40 * MIB, 22, 120);
    let (used, _) = watch.end();
    assert!(used <= 16 * MIB, "{used} bytes used of {}", 16 * MIB);
}

fn a_tenth_stays_free(kind: Type, mib: u64) {
    let _turn = world::alone();
    let Some(mut world) = World::new() else {
        return;
    };
    if !world.no_limit().loop_cache(kind, mib) {
        return;
    }
    let len = mib * MIB * 3 / 4;
    make_images(&world, 2, len);
    world.start();
    let watch = Watch::on(world.cache());
    check_pattern(&world.mnt("disk0"), 0, len);
    load(&world, 2, len, Rng::announced(23).next(), 150);
    let (used, free_permille) = watch.end();
    assert!(free_permille >= 100, "only {free_permille} ‰ left free");
    assert!(used >= mib * MIB / 4, "it caches: {used} bytes used");
}

#[test]
fn a_tenth_of_an_ext4_cache_filesystem_stays_free() {
    a_tenth_stays_free(Type::Ext4, 96);
}

#[test]
fn a_tenth_of_an_xfs_cache_filesystem_stays_free() {
    a_tenth_stays_free(Type::Xfs, 320);
}

/// A world on a 64 MiB cache filesystem with two warm images.
fn world_on_small_flash() -> Option<World> {
    let mut world = World::new()?;
    if !world.no_limit().loop_cache(Type::Ext4, 64) {
        return None;
    }
    make_images(&world, 2, 24 * MIB);
    world.start();
    check_pattern(&world.mnt("disk0"), 0, 8 * MIB - 512);
    Some(world)
}

/// All that a guest does, once more, then the truth in the store.
fn goes_on(world: &mut World, seed: u64) {
    load(world, 2, 24 * MIB, seed, 40);
    for image in 0..2 {
        check_pattern(&world.mnt(format!("disk{image}")), image, 24 * MIB);
        let file = open(&world.mnt(format!("disk{image}")), false);
        write_at(&file, MIB, &pattern(image, MIB, 70_000)).expect("write");
        file.sync_all().expect("fsync");
        check_pattern(&world.store(format!("disk{image}")), image, 24 * MIB);
    }
    world.status();
}

#[test]
fn a_full_cache_filesystem_is_no_error_to_a_guest() {
    let Some(mut world) = world_on_small_flash() else {
        return;
    };
    world.loop_fs.as_ref().expect("asked for").fill("foreign");
    goes_on(&mut world, 31);
    world.remount();
    goes_on(&mut world, 32);
    let foreign = world
        .loop_fs
        .as_ref()
        .expect("asked for")
        .path()
        .join("foreign");
    std::fs::remove_file(foreign).expect("unlink");
    goes_on(&mut world, 33);
    world.unmount();
}

/// ext4 after a device error: the journal is aborted, the filesystem read-only.
#[test]
fn a_cache_filesystem_that_turns_read_only_is_no_error_to_a_guest() {
    let Some(mut world) = world_on_small_flash() else {
        return;
    };
    let aborted = world.loop_fs.as_ref().expect("asked for").remount("abort");
    if let Err(why) = aborted {
        return println!("skipped: {why}");
    }
    goes_on(&mut world, 41);
    world.unmount();
}

#[test]
fn a_cache_directory_that_vanishes_is_no_error_to_a_guest() {
    let Some(mut world) = world_on_small_flash() else {
        return;
    };
    let hidden = PathBuf::from(world.cache());
    std::fs::remove_dir_all(&hidden).expect("rm -r");
    goes_on(&mut world, 51);
    world.unmount();
    std::fs::create_dir_all(&hidden).expect("mkdir");
    world.start();
    goes_on(&mut world, 52);
}
