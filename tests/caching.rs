//! What is cached stays cached, and only as long as it is true: hits, warm restarts, changes of
//! the store behind our back, damage on flash.

mod world;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use world::World;
use world::files::{
    BLOCK, MIB, age, assert_same, check_pattern, make_image, open, open_read, pattern, read_at,
    write_at,
};
use world::rng::Rng;

/// A started world whose store holds `disk`, `len` bytes of pattern 1, old enough to be trusted.
fn world_with_disk(len: u64, prepare: impl FnOnce(&mut World)) -> Option<World> {
    let mut world = World::new()?;
    make_image(&world.store("disk"), 1, len);
    age(&[&world.store("disk")]);
    prepare(&mut world);
    world.start();
    Some(world)
}

fn store_reads(world: &World) -> u64 {
    world.count("disk", "store_read_bytes")
}

#[test]
fn a_second_read_asks_the_store_for_nothing() {
    let len = 8 * MIB;
    let Some(world) = world_with_disk(len, |_| ()) else {
        return;
    };
    check_pattern(&world.mnt("disk"), 1, len);
    let cold = store_reads(&world);
    assert!(
        (len..=len + len / 20).contains(&cold),
        "{cold} bytes read cold"
    );
    check_pattern(&world.mnt("disk"), 1, len);
    assert_eq!(store_reads(&world), cold, "the second read came from flash");
    let image = world.image_status("disk");
    assert_eq!(image["size_bytes"], len);
    assert_eq!(image["resident_bytes"], len);
    assert_eq!(image["dirty_bytes"], 0);
    assert!(image["read_hits"].as_u64() > Some(0), "{image:#}");
}

/// 64 readers want the same block of a slow store at once; the store is asked once, by its own
/// account and by ours.
fn many_readers_of_one_cold_block(open: impl Fn(&Path) -> File) {
    let Some(mut world) = world_with_disk(4 * MIB, |world| {
        world.faulty_store();
    }) else {
        return;
    };
    let path = world.mnt("disk");
    let readers: Vec<File> = (0..64).map(|_| open(&path)).collect();
    world.faults().set(json!({"delay_ms": 150}));
    world.faults().clear_log();
    let start = Barrier::new(readers.len());
    std::thread::scope(|scope| {
        for (n, file) in readers.iter().enumerate() {
            let start = &start;
            scope.spawn(move || {
                let at = 2 * MIB + (n as u64 % 16) * 4096;
                start.wait();
                let got = read_at(file, at, 4096).expect("read");
                assert_same(&got, &pattern(1, at, 4096), at);
            });
        }
    });
    assert_eq!(world.count("disk", "store_read_requests"), 1);
    let requests = world.faults().requests();
    let covered: u64 = requests.iter().filter_map(|line| read_len(line)).sum();
    assert_eq!(covered, BLOCK, "{requests:?}");
}

#[test]
fn a_block_is_fetched_once_however_many_wait() {
    many_readers_of_one_cold_block(open_read);
}

#[test]
fn sixty_four_readers_of_one_cold_block_make_exactly_1_store_request() {
    many_readers_of_one_cold_block(|path| open(path, true));
}

/// The length in a `read inode offset length` line of the faulty store's log.
fn read_len(line: &str) -> Option<u64> {
    let mut words = line.split_whitespace();
    (words.next() == Some("read")).then(|| words.nth(2).and_then(|len| len.parse().ok()))?
}

/// Random reads and a few writes over a slow store: no block is fetched twice while it fits.
#[test]
fn random_reads_fetch_each_block_at_most_once() {
    let len = 8 * MIB;
    let Some(mut world) = world_with_disk(len, |world| {
        world.faulty_store();
    }) else {
        return;
    };
    world.faults().heal();
    world.faults().clear_log();
    let path = world.mnt("disk");
    let seed = Rng::announced(11).next();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let path = &path;
            scope.spawn(move || {
                let (file, mut rng) = (open_read(path), Rng::new(seed ^ thread));
                for _ in 0..300 {
                    let at = rng.below(len - 40_000);
                    let n = rng.below(40_000) as usize;
                    let got = read_at(&file, at, n).expect("read");
                    assert_same(&got, &pattern(1, at, n), at);
                }
            });
        }
    });
    let requests = world.faults().requests();
    let fetched: u64 = requests.iter().filter_map(|line| read_len(line)).sum();
    assert!(fetched <= len, "{fetched} bytes fetched of {len}");
}

#[test]
fn the_cache_is_warm_after_a_clean_restart() {
    let len = 8 * MIB;
    let Some(mut world) = world_with_disk(len, |_| ()) else {
        return;
    };
    check_pattern(&world.mnt("disk"), 1, len);
    world.remount();
    check_pattern(&world.mnt("disk"), 1, len);
    assert_eq!(store_reads(&world), 0, "everything came from flash");
}

#[test]
fn the_cache_is_warm_after_kill_9() {
    let len = 16 * MIB;
    let Some(mut world) = world_with_disk(len, |_| ()) else {
        return;
    };
    check_pattern(&world.mnt("disk"), 1, len);
    world.kill9();
    world.start();
    check_pattern(&world.mnt("disk"), 1, len);
    let refetched = store_reads(&world);
    assert!(
        refetched <= len / 20,
        "{refetched} bytes of {len} fetched again"
    );
}

/// Killed in the middle of writes to a small part of the image, a moment after the last fsync:
/// what nobody wrote stays, and nothing stale is served.
#[test]
fn most_of_the_cache_stays_after_kill_9_under_writes() {
    let len = 64 * MIB;
    let Some(mut world) = world_with_disk(len, |_| ()) else {
        return;
    };
    check_pattern(&world.mnt("disk"), 1, len);
    let file = open(&world.mnt("disk"), false);
    let stop = AtomicBool::new(false);
    let mut rng = Rng::announced(12);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let at = 32 * MIB + rng.below(MIB);
                if write_at(&file, at, &rng.bytes(4096)).is_err() {
                    break;
                }
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(2500));
        world.kill9();
        stop.store(true, Ordering::Relaxed);
    });
    drop(file);
    world.start();
    let got = fs::read(world.mnt("disk")).expect("read");
    let stored = fs::read(world.store("disk")).expect("the store's file");
    assert_same(&got, &stored, 0);
    let refetched = store_reads(&world);
    assert!(
        refetched <= len / 20,
        "{refetched} bytes of {len} fetched again"
    );
}

/// Replaces 4 KiB in the middle of the store's own file.
fn change_behind_our_back(world: &World) {
    let file = open(&world.store("disk"), false);
    file.write_all_at(&[0xaa; 4096], MIB).expect("write");
    file.sync_all().expect("fsync");
}

fn sees_the_change(world: &World) {
    let got = read_at(&open_read(&world.mnt("disk")), MIB, 4096).expect("read");
    assert_same(&got, &[0xaa; 4096], MIB);
    let rest = read_at(&open_read(&world.mnt("disk")), 0, MIB as usize).expect("read");
    assert_same(&rest, &pattern(1, 0, MIB as usize), 0);
}

#[test]
fn a_change_made_while_unmounted_is_seen() {
    let Some(mut world) = world_with_disk(2 * MIB, |_| ()) else {
        return;
    };
    check_pattern(&world.mnt("disk"), 1, 2 * MIB);
    world.unmount();
    change_behind_our_back(&world);
    world.start();
    sees_the_change(&world);
}

#[test]
fn a_change_made_while_mounted_is_seen_at_the_next_open() {
    let Some(world) = world_with_disk(2 * MIB, |_| ()) else {
        return;
    };
    check_pattern(&world.mnt("disk"), 1, 2 * MIB);
    change_behind_our_back(&world);
    sees_the_change(&world);
}

/// `touch -r` puts size and mtime back; only ctime tells.
#[test]
fn a_change_that_keeps_its_mtime_is_seen() {
    let Some(mut world) = world_with_disk(2 * MIB, |_| ()) else {
        return;
    };
    check_pattern(&world.mnt("disk"), 1, 2 * MIB);
    let keep = world.scratch("keep");
    touch_like(&world.store("disk"), &keep);
    change_behind_our_back(&world);
    touch_like(&keep, &world.store("disk"));
    sees_the_change(&world);
    world.remount();
    sees_the_change(&world);
}

/// A change right after our own write, inside the 2 s in which timestamps prove nothing.
#[test]
fn a_change_soon_after_our_own_write_is_seen() {
    let Some(mut world) = world_with_disk(2 * MIB, |_| ()) else {
        return;
    };
    check_pattern(&world.mnt("disk"), 1, 2 * MIB);
    let file = open(&world.mnt("disk"), false);
    write_at(&file, 0, &pattern(1, 0, 4096)).expect("write");
    file.sync_all().expect("fsync");
    drop(file);
    let keep = world.scratch("keep");
    touch_like(&world.store("disk"), &keep);
    world.unmount();
    change_behind_our_back(&world);
    touch_like(&keep, &world.store("disk"));
    world.start();
    sees_the_change(&world);
}

fn touch_like(like: &Path, path: &Path) {
    let touch = Command::new("touch").arg("-r").args([like, path]).status();
    assert!(touch.is_ok_and(|status| status.success()));
}

/// A name that leads elsewhere since another host changed it may be seen this late.
const NAME_LATE: std::time::Duration = std::time::Duration::from_millis(1200);

/// ext4 gives the inode number of an unlinked file to the next one: with the old mtime put back,
/// inode, size and mtime are those of the file whose blocks are cached.
#[test]
fn another_file_with_the_same_inode_and_mtime_is_another_image() {
    let Some(mut world) = world_with_disk(2 * MIB, |_| ()) else {
        return;
    };
    check_pattern(&world.mnt("disk"), 1, 2 * MIB);
    for clean in [true, false] {
        let ino = fs::metadata(world.store("disk")).expect("stat").ino();
        let keep = world.scratch("keep");
        touch_like(&world.store("disk"), &keep);
        if clean {
            world.unmount();
        }
        fs::remove_file(world.store("disk")).expect("unlink");
        let tag = if clean { 2 } else { 3 };
        make_with_inode(&world.store("disk"), tag, 2 * MIB, ino);
        touch_like(&keep, &world.store("disk"));
        match clean {
            true => world.start(),
            false => std::thread::sleep(NAME_LATE),
        }
        check_pattern(&world.mnt("disk"), tag, 2 * MIB);
    }
}

/// Makes an image with this inode number if the filesystem gives it; parallel tests may take it.
fn make_with_inode(path: &Path, tag: u64, len: u64, ino: u64) {
    let mut others = Vec::new();
    for n in 0..20 {
        make_image(path, tag, len);
        if fs::metadata(path).expect("stat").ino() == ino {
            break;
        }
        let aside = path.with_extension(format!("aside{n}"));
        fs::rename(path, &aside).expect("rename");
        others.push(aside);
    }
    if !path.exists() {
        println!("note: the inode number was not given again");
        make_image(path, tag, len);
    }
    for other in others {
        fs::remove_file(other).expect("unlink");
    }
}

/// Bytes flipped on flash while unmounted: the checksums notice, the store has them still.
#[test]
fn damage_on_flash_is_found_and_fetched_again() {
    let len = 4 * MIB;
    let Some(mut world) = world_with_disk(len, |_| ()) else {
        return;
    };
    check_pattern(&world.mnt("disk"), 1, len);
    world.unmount();
    flip_bytes(&biggest_file(world.cache()), &[0, 70_000, 2_500_000]);
    world.start();
    check_pattern(&world.mnt("disk"), 1, len);
    let found = world.count("disk", "checksum_mismatches");
    assert!(found >= 3, "{found} mismatches counted");
    check_pattern(&world.mnt("disk"), 1, len);
    assert_eq!(world.count("disk", "checksum_mismatches"), found);
}

fn flip_bytes(path: &Path, places: &[u64]) {
    let file = open(path, false);
    for at in places {
        let mut byte = [0];
        file.read_exact_at(&mut byte, *at).expect("a cached byte");
        file.write_all_at(&[!byte[0]], *at).expect("a flipped byte");
    }
    file.sync_all().expect("fsync");
}

fn biggest_file(dir: &Path) -> PathBuf {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("the cache directory") {
            let entry = entry.expect("an entry");
            let meta = entry.metadata().expect("its metadata");
            match meta.is_dir() {
                true => dirs.push(entry.path()),
                false => files.push((meta.blocks(), entry.path())),
            }
        }
    }
    files.sort();
    files.pop().expect("the cache holds something").1
}

/// The read-only attributes for scripts say what status says.
#[test]
fn extended_attributes_tell_residency_and_plane() {
    let Some(world) = world_with_disk(MIB, |_| ()) else {
        return;
    };
    check_pattern(&world.mnt("disk"), 1, MIB);
    let get = |name: &str| world::files::get_xattr(&world.mnt("disk"), name);
    // The reader is answered first, then the cache is filled.
    world::wait_until(world::PATIENCE, "all of it is resident", || {
        get("user.flashside.resident") == Ok(MIB.to_string())
    });
    assert_eq!(get("user.flashside.dirty"), Ok("0".into()));
    assert!(get("user.flashside.plane").is_ok());
    assert_eq!(get("user.flashside.nonsense"), Err(libc::ENODATA));
}
