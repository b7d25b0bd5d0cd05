//! What disk tools rely on besides reading and writing, where the other suites do not look: holes,
//! appending, locks, preallocation, rename flags, times, free space.

mod world;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use world::World;
use world::files::{
    MIB, assert_same, errno_of, fallocate, make_image, open, open_read, pattern, read_at, write_at,
};
use world::loopfs::space;

fn started() -> Option<World> {
    let mut world = World::new()?;
    make_image(&world.store("disk"), 1, 4 * MIB);
    world.start();
    Some(world)
}

/// lseek(2) with SEEK_HOLE or SEEK_DATA; -1 past the end.
fn seek(file: &File, at: u64, whence: i32) -> i64 {
    // SAFETY: an open descriptor.
    unsafe { libc::lseek(file.as_raw_fd(), at as i64, whence) }
}

#[test]
fn holes_are_found_where_they_are() {
    let Some(world) = started() else { return };
    let file = open(&world.mnt("disk"), false);
    read_at(&file, 0, 4 * MIB as usize).expect("all of it is cached");
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, MIB, MIB).expect("punch");
    assert_eq!(seek(&file, 0, libc::SEEK_HOLE), MIB as i64);
    assert_eq!(seek(&file, MIB, libc::SEEK_DATA), 2 * MIB as i64);
    assert_eq!(seek(&file, 2 * MIB, libc::SEEK_HOLE), 4 * MIB as i64);
    assert_eq!(seek(&file, 4 * MIB, libc::SEEK_DATA), -1);
    write_at(&file, MIB + 65536, &[1; 4096]).expect("write");
    assert_eq!(seek(&file, MIB, libc::SEEK_DATA), (MIB + 65536) as i64);
    let stored = fs::metadata(world.store("disk")).expect("stat").blocks();
    assert!(stored * 512 < 4 * MIB, "the store's file has the hole too");
}

#[test]
fn appending_writes_go_to_the_end() {
    let Some(world) = started() else { return };
    let path = world.mnt("log");
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let path = &path;
            scope.spawn(move || {
                let mut options = OpenOptions::new();
                let mut log = options.create(true).append(true).open(path).expect("open");
                for _ in 0..50 {
                    log.write_all(&[b'a' + writer; 100]).expect("append");
                }
            });
        }
    });
    let log = fs::read(&path).expect("read");
    assert_eq!(log.len(), 4 * 50 * 100);
    let whole = |line: &[u8]| line.iter().all(|byte| *byte == line[0]);
    assert!(log.chunks(100).all(whole), "no append overwrote another");
    assert_eq!(fs::read(world.store("log")).expect("read"), log);
}

/// Locks are the kernel's: they exclude within the mount and end with their descriptor.
#[test]
fn locks_exclude_each_other_within_the_mount() {
    let Some(world) = started() else { return };
    let (one, two) = (
        open(&world.mnt("disk"), false),
        open(&world.mnt("disk"), false),
    );
    assert_eq!(flock(&one, libc::LOCK_EX | libc::LOCK_NB), 0);
    assert_eq!(flock(&two, libc::LOCK_EX | libc::LOCK_NB), libc::EAGAIN);
    assert_eq!(flock(&one, libc::LOCK_UN), 0);
    assert_eq!(ofd_lock(&one), 0, "an OFD lock, as QEMU takes them");
    assert_eq!(ofd_lock(&two), libc::EAGAIN);
    drop(one);
    assert_eq!(ofd_lock(&two), 0, "closing releases it");
}

/// flock(2); 0 or an errno.
fn flock(file: &File, operation: i32) -> i32 {
    // SAFETY: an open descriptor.
    match unsafe { libc::flock(file.as_raw_fd(), operation) } {
        0 => 0,
        _ => errno_of(&Err::<(), _>(std::io::Error::last_os_error())),
    }
}

/// Takes an open-file-description write lock on byte 100; 0 or an errno.
fn ofd_lock(file: &File) -> i32 {
    // SAFETY: flock is plain numbers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    (lock.l_start, lock.l_len) = (100, 1);
    // SAFETY: an open descriptor and a struct of the right type.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        0 => 0,
        _ => errno_of(&Err::<(), _>(std::io::Error::last_os_error())),
    }
}

#[test]
fn preallocation_grows_the_image_and_takes_space_in_the_store() {
    let Some(world) = started() else { return };
    let file = open(&world.mnt("disk"), false);
    fallocate(&file, 0, 4 * MIB, 2 * MIB).expect("fallocate");
    assert_eq!(file.metadata().expect("fstat").len(), 6 * MIB);
    assert_eq!(read_at(&file, 5 * MIB, 100).expect("read"), [0; 100]);
    let stored = fs::metadata(world.store("disk")).expect("stat");
    assert_eq!(stored.len(), 6 * MIB);
    assert!(stored.blocks() * 512 >= 6 * MIB);
    fallocate(&file, libc::FALLOC_FL_KEEP_SIZE, 6 * MIB, MIB).expect("fallocate");
    assert_eq!(file.metadata().expect("fstat").len(), 6 * MIB);
}

#[test]
fn a_copied_range_is_the_same_in_mount_and_store() {
    let Some(world) = started() else { return };
    let source = open(&world.mnt("disk"), false);
    fs::write(world.mnt("copy"), vec![9; 3 * MIB as usize]).expect("write");
    let target = open(&world.mnt("copy"), false);
    read_at(&target, 0, 3 * MIB as usize).expect("the target is cached");
    let (mut from, mut to) = (1000i64, 70_001i64);
    let mut left = MIB as usize;
    while left > 0 {
        let (source, target) = (source.as_raw_fd(), target.as_raw_fd());
        // SAFETY: two open descriptors and two offsets of ours.
        let copied = unsafe { libc::copy_file_range(source, &mut from, target, &mut to, left, 0) };
        assert!(copied > 0, "{}", std::io::Error::last_os_error());
        left -= copied as usize;
    }
    for path in [world.mnt("copy"), world.store("copy")] {
        let got = read_at(&open_read(&path), 70_001, MIB as usize).expect("read");
        assert_same(&got, &pattern(1, 1000, MIB as usize), 70_001);
        assert_eq!(read_at(&open_read(&path), 69_999, 2).expect("read"), [9, 9]);
    }
}

#[test]
fn rename_knows_its_flags() {
    let Some(world) = started() else { return };
    fs::write(world.mnt("other"), b"other").expect("write");
    let (disk, other) = (world.mnt("disk"), world.mnt("other"));
    assert_eq!(rename(&disk, &other, libc::RENAME_NOREPLACE), libc::EEXIST);
    assert_eq!(rename(&disk, &other, libc::RENAME_EXCHANGE), 0);
    assert_eq!(fs::read(&disk).expect("read"), b"other");
    assert_eq!(fs::metadata(&other).expect("stat").len(), 4 * MIB);
    assert_eq!(rename(&other, &world.mnt("new"), libc::RENAME_NOREPLACE), 0);
    assert!(world.store("new").exists() && !world.store("other").exists());
}

/// renameat2(2); 0 or an errno.
fn rename(from: &Path, to: &Path, flags: u32) -> i32 {
    let name = |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let (from, to, here) = (name(from), name(to), libc::AT_FDCWD);
    // SAFETY: two valid C strings.
    match unsafe { libc::renameat2(here, from.as_ptr(), here, to.as_ptr(), flags) } {
        0 => 0,
        _ => errno_of(&Err::<(), _>(std::io::Error::last_os_error())),
    }
}

#[test]
fn times_and_modes_are_those_of_the_store() {
    let Some(world) = started() else { return };
    let file = open(&world.mnt("disk"), false);
    let at = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    file.set_modified(at).expect("utimens");
    let (seen, stored) = (world.mnt("disk"), world.store("disk"));
    let same = |what: &str| {
        let (a, b) = (fs::metadata(&seen), fs::metadata(&stored));
        let (a, b) = (a.expect("stat"), b.expect("stat"));
        assert_eq!(a.modified().ok(), b.modified().ok(), "{what}");
        let all = |m: &fs::Metadata| (m.mode(), m.size(), m.ctime_nsec(), m.nlink());
        assert_eq!(all(&a), all(&b), "{what}");
    };
    assert_eq!(fs::metadata(&seen).expect("stat").modified().ok(), Some(at));
    same("after utimens");
    write_at(&file, 0, b"x").expect("write");
    same("after a write");
    file.set_len(100).expect("truncate");
    same("after a truncate");
    assert!(
        fs::metadata(&seen)
            .expect("stat")
            .modified()
            .expect("mtime")
            > at
    );
}

#[test]
fn free_space_is_the_stores() {
    let Some(world) = started() else { return };
    assert_eq!(space(&world.mountpoint()).0, space(&world.store("")).0);
}
