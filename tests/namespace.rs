//! Names and sizes: renames, unlinks and hard links of images in use, the smallest and the largest
//! files, the longest and the strangest names.

mod world;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use world::World;
use world::files::{
    MIB, PAGE, age, assert_same, check_pattern, make_image, open, open_read, pattern, read_at,
    write_at,
};
use world::loopfs::Type;

#[test]
fn a_renamed_image_keeps_its_handles_and_its_cache() {
    let Some(mut world) = World::new() else {
        return;
    };
    make_image(&world.store("old"), 1, MIB);
    age(&[&world.store("old")]);
    world.start();
    check_pattern(&world.mnt("old"), 1, MIB);
    let file = open(&world.mnt("old"), false);
    fs::create_dir(world.mnt("dir")).expect("mkdir");
    fs::rename(world.mnt("old"), world.mnt("dir/new")).expect("rename");
    write_at(&file, 5000, b"after the rename").expect("write");
    let got = read_at(&open_read(&world.mnt("dir/new")), 5000, 16).expect("read");
    assert_eq!(got, b"after the rename");
    let stored = read_at(&open_read(&world.store("dir/new")), 5000, 16).expect("read");
    assert_eq!(stored, b"after the rename");
    let before = world.count("dir/new", "store_read_bytes");
    read_at(&open_read(&world.mnt("dir/new")), 512 << 10, 4096).expect("read");
    let after = world.count("dir/new", "store_read_bytes");
    assert_eq!(before, after, "what was cached under the old name still is");
}

#[test]
fn an_unlinked_image_lives_until_its_last_close() {
    let Some(mut world) = World::new() else {
        return;
    };
    make_image(&world.store("gone"), 2, MIB);
    world.start();
    let file = open(&world.mnt("gone"), false);
    fs::remove_file(world.mnt("gone")).expect("unlink");
    assert!(!world.store("gone").exists());
    write_at(&file, 777, b"still here").expect("write");
    assert_eq!(read_at(&file, 777, 10).expect("read"), b"still here");
    let cold = read_at(&file, 700 << 10, 4096).expect("read");
    assert_same(&cold, &pattern(2, 700 << 10, 4096), 700 << 10);
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    drop(file);
    fs::write(world.mnt("gone"), b"another").expect("a new file of that name");
    assert_eq!(fs::read(world.mnt("gone")).expect("read"), b"another");
}

#[test]
fn a_rename_over_an_open_image_changes_what_the_name_means_and_not_the_handle() {
    let Some(mut world) = World::new() else {
        return;
    };
    make_image(&world.store("a"), 3, MIB);
    make_image(&world.store("b"), 4, MIB);
    world.start();
    let old = open(&world.mnt("b"), false);
    fs::rename(world.mnt("a"), world.mnt("b")).expect("rename");
    check_pattern(&world.mnt("b"), 3, MIB);
    assert_same(
        &read_at(&old, 0, 9000).expect("read"),
        &pattern(4, 0, 9000),
        0,
    );
    assert!(!world.mnt("a").exists());
}

#[test]
fn hard_links_are_one_image_with_one_truth() {
    let Some(mut world) = World::new() else {
        return;
    };
    make_image(&world.store("one"), 5, MIB);
    world.start();
    fs::hard_link(world.mnt("one"), world.mnt("two")).expect("link");
    let (one, two) = (
        open(&world.mnt("one"), false),
        open(&world.mnt("two"), true),
    );
    read_at(&two, 0, MIB as usize).expect("both names are cached");
    write_at(&one, 100_000, b"through one").expect("write");
    assert_eq!(read_at(&two, 100_000, 11).expect("read"), b"through one");
    write_at(&two, 102_400, &[9; 512]).expect("write");
    assert_eq!(read_at(&one, 102_400, 512).expect("read"), [9; 512]);
    one.set_len(200_000).expect("truncate");
    assert_eq!(two.metadata().expect("fstat").len(), 200_000);
    fs::remove_file(world.mnt("one")).expect("unlink");
    assert_eq!(read_at(&two, 100_000, 11).expect("read"), b"through one");
    let (a, b) = (fs::read(world.mnt("two")), fs::read(world.store("two")));
    assert_same(&a.expect("read"), &b.expect("read"), 0);
}

#[test]
fn files_of_no_and_of_one_byte_work() {
    let Some(mut world) = World::new() else {
        return;
    };
    fs::write(world.store("none"), b"").expect("a file in the store");
    fs::write(world.store("one"), b"x").expect("a file in the store");
    age(&[&world.store("none"), &world.store("one")]);
    world.start();
    for _ in 0..2 {
        assert_eq!(fs::read(world.mnt("none")).expect("read"), b"");
        assert_eq!(fs::read(world.mnt("one")).expect("read"), b"x");
        let past = read_at(&open_read(&world.mnt("one")), 1 << 30, 10);
        assert_eq!(past.expect("read past the end"), b"");
        world.remount();
    }
    let file = open(&world.mnt("none"), false);
    write_at(&file, 0, b"y").expect("write");
    assert_eq!(fs::read(world.mnt("none")).expect("read"), b"y");
    assert_eq!(fs::read(world.store("none")).expect("read"), b"y");
}

/// The largest file ext4 can hold, 16 TiB less one page, all hole but its last bytes.
#[test]
fn an_image_of_sixteen_tebibytes_works_in_little_memory() {
    let Some(mut world) = World::new() else {
        return;
    };
    let size = (16 << 40) - PAGE;
    world.limit("64M").start();
    world.wait_for_standby();
    let small = world.daemon().rss_bytes();
    let file = fs::File::create(world.mnt("huge")).expect("create");
    file.set_len(size).expect("16 TiB");
    drop(file);
    big_image_round(&mut world, size);
    let grown = world.daemon().rss_bytes().saturating_sub(small);
    assert!(grown < 100 * MIB, "{grown} bytes more memory");
}

/// Larger than any file on the cache's filesystem can be: slower, never an error.
#[test]
fn an_image_too_large_for_the_cache_filesystem_is_served_all_the_same() {
    let Some(mut world) = World::new() else {
        return;
    };
    if !world.loop_store(Type::Xfs, 400) {
        return;
    }
    let size = (16 << 40) + MIB;
    let image = world.store("huge");
    let made = fs::File::create(&image).and_then(|file| file.set_len(size));
    made.expect("XFS holds it");
    world.start();
    let file = open(&world.mnt("huge"), false);
    write_at(&file, size - 100, &[5; 100]).expect("write");
    assert_eq!(read_at(&file, size - 100, 200).expect("read"), [5; 100]);
    assert_eq!(read_at(&file, 1 << 40, 4096).expect("read"), [0; 4096]);
    drop(file);
    world.unmount();
    let stored = read_at(&open_read(&image), size - 100, 100).expect("read");
    assert_eq!(stored, [5; 100]);
}

fn big_image_round(world: &mut World, size: u64) {
    let end = pattern(6, size - 10_000, 10_000);
    for _ in 0..2 {
        let file = open(&world.mnt("huge"), false);
        write_at(&file, size - 10_000, &end).expect("write at the end");
        let got = read_at(&file, size - 10_000, 20_000).expect("read at the end");
        assert_same(&got, &end, size - 10_000);
        for at in (0..size).step_by(1 << 40) {
            assert_eq!(read_at(&file, at, 4096).expect("read"), [0; 4096]);
        }
        drop(file);
        let blocks = fs::metadata(world.mnt("huge")).expect("stat").blocks();
        assert!(blocks < 4096, "it stays sparse, not {blocks} blocks");
        world.remount();
    }
}

#[test]
fn long_and_strange_names_work() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start();
    let names = [
        vec![b'n'; 255],
        b"\xff\xfe not utf-8 \x80".to_vec(),
        b"line\nbreak\ttab \"quote\" \\".to_vec(),
        b"..almost".to_vec(),
        b"\xf0\x9f\x90\x9a".to_vec(),
    ];
    for name in &names {
        let name = OsStr::from_bytes(name);
        fs::write(world.mnt(name), b"hello").expect("write under a strange name");
        assert_eq!(fs::read(world.store(name)).expect("read"), b"hello");
    }
    let mut listed: Vec<Vec<u8>> = fs::read_dir(world.mountpoint())
        .expect("readdir")
        .map(|entry| entry.expect("an entry").file_name().as_bytes().to_vec())
        .collect();
    listed.sort();
    let mut want = names.to_vec();
    want.sort();
    assert_eq!(listed, want);
    world.status();
    let long = world.mnt("n".repeat(256));
    let error = fs::write(long, b"").expect_err("256 bytes are too many");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
}

#[test]
fn a_directory_of_thousands_lists_each_name_once() {
    let Some(mut world) = World::new() else {
        return;
    };
    fs::create_dir(world.store("many")).expect("mkdir");
    for n in 0..5000 {
        fs::write(world.store(format!("many/file{n}")), b"").expect("a file in the store");
    }
    world.start();
    let mut seen = std::collections::BTreeSet::new();
    for entry in fs::read_dir(world.mnt("many")).expect("readdir") {
        let entry = entry.expect("an entry");
        assert!(
            seen.insert(entry.file_name()),
            "{:?} twice",
            entry.file_name()
        );
    }
    assert_eq!(seen.len(), 5000);
}

/// `.flashside` at the root of the store is ours: no name through the mount leads there.
#[test]
fn the_reserved_name_is_hidden() {
    let Some(mut world) = World::new() else {
        return;
    };
    fs::create_dir(world.store(".flashside")).expect("mkdir");
    fs::write(world.store(".flashside/secret"), b"x").expect("a file in the store");
    world.start();
    assert!(fs::metadata(world.mnt(".flashside")).is_err());
    assert!(fs::metadata(world.mnt(".flashside/secret")).is_err());
    assert_eq!(
        fs::read_dir(world.mountpoint()).expect("readdir").count(),
        0
    );
    assert!(fs::create_dir(world.mnt(".flashside")).is_err());
    assert!(fs::write(world.mnt(".flashside"), b"").is_err());
}
