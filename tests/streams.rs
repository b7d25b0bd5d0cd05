//! Sequential streams: what they cost the store, and that long ones go around the cache.

mod world;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use world::files::{MIB, assert_same, check_pattern, open, pattern, read_at, write_at};
use world::{PATIENCE, World, flashside, wait_until, within};

fn direct(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_DIRECT);
    options.open(path).expect("open with O_DIRECT")
}

/// Reads `len` bytes from `at` on in steps of `step`, comparing everything.
fn read_all(file: &File, tag: u64, at: u64, len: u64, step: usize) {
    let end = at + len;
    let mut at = at;
    while at < end {
        let part = (end - at).min(step as u64) as usize;
        let got = read_at(file, at, part).expect("read");
        assert_same(&got, &pattern(tag, at, part), at);
        at += part as u64;
    }
}

fn counter(world: &World, name: &str, counter: &str) -> u64 {
    let status = world.status();
    let images = status["images"].as_array().expect("images is a list");
    let image = images.iter().find(|image| image["name"] == name);
    image.map_or(0, |image: &Value| image[counter].as_u64().expect("a count"))
}

fn resident(world: &World, name: &str) -> u64 {
    counter(world, name, "resident_bytes")
}

/// Cold streams cost the store hardly more than they read, in requests much larger than the reads, into
/// the cache and around it.
fn a_cold_stream_is_cheap(flags: &[&str]) {
    let len = 24 * MIB;
    let images = [("a", len), ("b", len), ("c", len)];
    let Some(world) = World::with_images(&images, |world| {
        world.flags(flags);
    }) else {
        return;
    };
    for ((name, _), tag) in images.iter().zip(1..) {
        let path = world.mnt(name);
        match tag {
            1 => read_all(&direct(&path), tag, 0, len, 65536),
            2 => read_all(&direct(&path), tag, 512, len - 512, 32 * 1024),
            _ => read_all(&direct(&path), tag, 0, len, MIB as usize),
        }
        let bytes = counter(&world, name, "store_read_bytes");
        let requests = counter(&world, name, "store_read_requests");
        println!("{name}: {bytes} bytes of {len} in {requests} requests");
        assert!(bytes <= len + len / 20, "{name}: {bytes} bytes for {len}");
        assert!(requests <= len / MIB * 2, "{name}: {requests} requests");
    }
}

#[test]
fn a_cold_stream_costs_the_store_hardly_more_than_it_reads() {
    a_cold_stream_is_cheap(&[]);
}

#[test]
fn a_stream_around_the_cache_costs_the_store_hardly_more_than_it_reads() {
    a_cold_stream_is_cheap(&["--stream-bypass", "1M"]);
}

/// Four streams through one handle, with random reads between them.
fn several_streams_are_cheap(flags: &[&str]) {
    let (len, part) = (64 * MIB, 8 * MIB);
    let Some(world) = World::with_images(&[("disk", len)], |world| {
        world.flags(flags);
    }) else {
        return;
    };
    let file = direct(&world.mnt("disk"));
    let step = 65536;
    let mut random = 0;
    for at in (0..part).step_by(step) {
        for stream in 0..4 {
            read_all(&file, 1, stream * part + at, step as u64, step);
        }
        if at > MIB {
            random += 1;
            let place = 32 * MIB + random * 7919 % 512 * 65536;
            read_all(&file, 1, place, 4096, 4096);
        }
    }
    let bytes = counter(&world, "disk", "store_read_bytes");
    let requests = counter(&world, "disk", "store_read_requests");
    let wanted = 4 * part + random * 65536;
    println!("{bytes} bytes of {wanted} in {requests} requests, {random} random");
    // Each stream reads ahead past the end of its part, at most a window.
    assert!(bytes <= wanted + wanted / 20 + 4 * 8 * MIB, "{bytes} bytes");
    let merged = requests - random;
    assert!(merged <= 4 * part / MIB * 4, "{merged} requests");
}

#[test]
fn several_streams_of_one_handle_are_read_ahead_each() {
    several_streams_are_cheap(&[]);
}

#[test]
fn several_streams_around_the_cache_are_read_ahead_each() {
    several_streams_are_cheap(&["--stream-bypass", "1M"]);
}

/// Fills a 64 MiB cache with two images, runs `load` and gives the part of their bytes that is gone, in
/// thousandths.
fn evicted_by(bypass: &str, load: impl FnOnce(&World)) -> Option<u64> {
    let images = [("a", 40 * MIB), ("b", 40 * MIB), ("backup", 160 * MIB)];
    let world = World::with_images(&images, |world| {
        world.limit("64M").flags(&["--stream-bypass", bypass]);
    })?;
    for name in ["a", "b"] {
        let path = world.mnt(name);
        let mut command = flashside();
        command.arg("warm").arg(path);
        let _ = within(PATIENCE, "warm", move || command.output()).expect("warm");
    }
    let others = || resident(&world, "a") + resident(&world, "b");
    let before = others();
    assert!(before > 50 * MIB, "the cache is full: {before} bytes");
    load(&world);
    let after = others();
    let gone = before.saturating_sub(after) * 1000 / before;
    println!("{before} bytes of others before, {after} after: {gone} ‰ evicted");
    Some(gone)
}

/// A backup reads an image much larger than the cache.
fn read_backup(world: &World) {
    read_all(&direct(&world.mnt("backup")), 3, 0, 160 * MIB, MIB as usize);
    let bytes = counter(world, "backup", "store_read_bytes");
    assert!(bytes <= 168 * MIB, "{bytes} bytes read for 160 MiB");
}

#[test]
fn a_full_backup_read_evicts_less_than_2_percent_of_the_others() {
    let _turn = world::alone();
    if let Some(gone) = evicted_by("512K", read_backup) {
        assert!(gone < 20, "{gone} ‰ evicted");
    }
}

/// As a backup with eight requests under way does it: they arrive in any order.
#[test]
fn a_backup_that_reads_in_parallel_evicts_less_than_2_percent_of_the_others() {
    let _turn = world::alone();
    let read = |world: &World| {
        let file = direct(&world.mnt("backup"));
        let (next, len) = (AtomicU64::new(0), 160 * MIB);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(128 << 10, Ordering::AcqRel);
                        if at >= len {
                            return;
                        }
                        read_all(&file, 3, at, 128 << 10, 128 << 10);
                    }
                });
            }
        });
        let bytes = counter(world, "backup", "store_read_bytes");
        println!("{bytes} bytes read for {len}");
        assert!(bytes <= len + len / 20, "{bytes} bytes read for {len}");
    };
    if let Some(gone) = evicted_by("512K", read) {
        assert!(gone < 20, "{gone} ‰ evicted");
    }
}

#[test]
fn without_the_bypass_a_backup_empties_the_cache() {
    let _turn = world::alone();
    if let Some(gone) = evicted_by("off", read_backup) {
        assert!(gone > 200, "{gone} ‰ evicted");
    }
}

#[test]
fn a_long_sequential_write_evicts_less_than_2_percent_of_the_others() {
    let _turn = world::alone();
    let write = |world: &World| {
        let file = open(&world.mnt("backup"), true);
        for at in (0..160).map(|at| at * MIB) {
            write_at(&file, at, &pattern(9, at, MIB as usize)).expect("write");
        }
        file.sync_all().expect("fsync");
        drop(file);
        check_pattern(&world.store("backup"), 9, 160 * MIB);
        check_pattern(&world.mnt("backup"), 9, 160 * MIB);
    };
    if let Some(gone) = evicted_by("512K", write) {
        assert!(gone < 20, "{gone} ‰ evicted");
    }
}

/// A stream around the cache reads and changes what is on flash there, and leaves it there.
#[test]
fn what_is_on_flash_serves_a_long_stream_and_stays() {
    let len = 32 * MIB;
    let Some(world) = World::with_images(&[("disk", len)], |world| {
        world.flags(&["--stream-bypass", "1M"]);
    }) else {
        return;
    };
    let (path, mut command) = (world.mnt("disk"), flashside());
    command.arg("warm").arg(&path).args(["--range", "8M-16M"]);
    let done = within(PATIENCE, "warm", move || command.output()).expect("warm");
    assert!(done.status.success(), "warming is exempt: {done:?}");
    assert_eq!(resident(&world, "disk"), 8 * MIB);
    read_all(&direct(&path), 1, 0, len, MIB as usize);
    let bytes = counter(&world, "disk", "store_read_bytes");
    assert_eq!(bytes, len, "8 MiB came from flash");
    let there = resident(&world, "disk");
    assert!((8 * MIB..=12 * MIB).contains(&there), "{there} resident");
    let file = open(&path, true);
    for at in (0..len).step_by(MIB as usize) {
        write_at(&file, at, &pattern(5, at, MIB as usize)).expect("write");
    }
    let after = resident(&world, "disk");
    assert!((8 * MIB..=14 * MIB).contains(&after), "{after} resident");
    check_pattern(&path, 5, len);
    let read = |at: u64| read_all(&file, 5, at, 4096, 4096);
    let before = counter(&world, "disk", "store_read_bytes");
    (8..16).for_each(|mib| read(mib * MIB + 8192));
    let asked = counter(&world, "disk", "store_read_bytes");
    assert_eq!(asked, before, "what was on flash was changed there");
}

/// A reader goes around the cache while a writer changes what lies ahead of it: what was acknowledged
/// before the read is what it reads.
#[test]
fn a_stream_around_the_cache_reads_what_was_written_ahead_of_it() {
    let len = 24 * MIB;
    let Some(world) = World::with_images(&[("disk", len)], |world| {
        world.flags(&["--stream-bypass", "64K", "--simulate-latency", "2ms"]);
    }) else {
        return;
    };
    let path = world.mnt("disk");
    let page = 4096u64;
    // Of each page, the generation that is acknowledged, and the one that is being written.
    let pages = (len / page) as usize;
    let acknowledged: Vec<AtomicU64> = (0..pages).map(|_| AtomicU64::new(1)).collect();
    let begun: Vec<AtomicU64> = (0..pages).map(|_| AtomicU64::new(1)).collect();
    let (done, at_page) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for side in 0..2u64 {
            let (path, begun, acknowledged) = (&path, &begun, &acknowledged);
            let (done, at_page) = (&done, &at_page);
            scope.spawn(move || {
                let file = open(path, true);
                for n in 0.. {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    let ahead = n * 7919 % 1024 * 2 + side;
                    let at = (at_page.load(Ordering::Relaxed) + ahead) % pages as u64;
                    let at = at / 2 * 2 + side; // each writer has its own pages
                    let generation = begun[at as usize].fetch_add(1, Ordering::AcqRel) + 1;
                    let data = pattern(generation, at * page, page as usize);
                    write_at(&file, at * page, &data).expect("write");
                    acknowledged[at as usize].store(generation, Ordering::Release);
                }
            });
        }
        let (path, begun, acknowledged) = (&path, &begun, &acknowledged);
        let at_page = &at_page;
        let reader = scope.spawn(move || {
            let file = direct(path);
            for step in (0..pages).step_by(16).chain((0..pages).step_by(16)) {
                at_page.store(step as u64, Ordering::Relaxed);
                read_between(&file, step, acknowledged, begun);
            }
        });
        let ended = reader.join();
        done.store(true, Ordering::Relaxed);
        ended.expect("every page was of a generation that it may be of");
    });
}

/// Reads 16 pages from `first` on; each must hold a generation between what was acknowledged before and
/// what was begun by then.
fn read_between(file: &File, first: usize, acknowledged: &[AtomicU64], begun: &[AtomicU64]) {
    let load = |generation: &AtomicU64| generation.load(Ordering::Acquire);
    let least: Vec<u64> = acknowledged[first..first + 16].iter().map(load).collect();
    let got = read_at(file, first as u64 * 4096, 16 * 4096).expect("read");
    for ((page, least), found) in (first..).zip(least).zip(got.chunks(4096)) {
        let (at, most) = (page as u64 * 4096, load(&begun[page]));
        let fits = |generation| found == pattern(generation, at, 4096);
        assert!(
            (least..=most).any(fits),
            "the page at {at} holds none of the generations {least} to {most}"
        );
    }
}

#[test]
fn a_wrong_bypass_is_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.flags(&["--stream-bypass", "no"]);
    let said = world.try_start().expect_err("refused");
    assert!(said.contains("write for example 64M, or off"), "{said}");
    let config = world.scratch("bypass.toml");
    fs::write(&config, "stream-bypass = \"off\"\n").expect("a configuration");
    let config = config.display().to_string();
    world.clear_flags().flags(&["--config", &config]).start();
    wait_until(PATIENCE, "it is mounted", || world.status()["pid"].is_u64());
    let file = File::create(world.mnt("new")).expect("create");
    file.write_all_at(b"x", 0).expect("write");
}
