//! Opens of one file in every order: readers, writers, O_DIRECT, mappings that outlive their
//! descriptor, on images of every kind. The kernel takes one plane per file at a time and answers EIO
//! where a daemon mixes them; a user must never see that, and always the right bytes.

mod world;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use world::files::{
    Aligned, MIB, age, assert_same, errno_of, get_xattr, make_image, open_read, pattern, read_at,
    set_xattr,
};
use world::rng::Rng;
use world::{PATIENCE, World, wait_until};

const IMMUTABLE: &str = "user.flashside.immutable";
/// Not a multiple of the page: the end matters.
const LEN: usize = 3 * 4096 + 100;
/// What is open at once in the random walk, at most.
const OPEN_MAX: usize = 6;
/// Parts of the random walk: every other one writes.
const CHAPTERS: u32 = 4;

/// A way to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Read,
    ReadDirect,
    Write,
    WriteDirect,
    MapShared,
    MapPrivate,
    MapWritable,
}

const READERS: [Way; 4] = [Way::Read, Way::ReadDirect, Way::MapShared, Way::MapPrivate];
const ALL: [Way; 7] = [
    Way::Read,
    Way::ReadDirect,
    Way::Write,
    Way::WriteDirect,
    Way::MapShared,
    Way::MapPrivate,
    Way::MapWritable,
];

/// Something open.
enum Item {
    File(File),
    Map(Map),
}

/// A mapping whose descriptor is closed.
struct Map {
    at: *mut libc::c_void,
    len: usize,
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that was made.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

impl Way {
    fn writes(self) -> bool {
        matches!(self, Way::Write | Way::WriteDirect | Way::MapWritable)
    }

    fn open(self, path: &Path) -> io::Result<Item> {
        let direct = matches!(self, Way::ReadDirect | Way::WriteDirect);
        let file = OpenOptions::new()
            .read(true)
            .write(self.writes())
            .custom_flags(if direct { libc::O_DIRECT } else { 0 })
            .open(path)?;
        Ok(match self {
            Way::MapShared => Item::Map(map(&file, libc::MAP_SHARED, false)?),
            Way::MapPrivate => Item::Map(map(&file, libc::MAP_PRIVATE, false)?),
            Way::MapWritable => Item::Map(map(&file, libc::MAP_SHARED, true)?),
            _ => Item::File(file),
        })
    }
}

fn map(file: &File, flags: i32, write: bool) -> io::Result<Map> {
    let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
    // SAFETY: a new mapping of an open file.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            LEN,
            protection,
            flags,
            file.as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(Map { at, len: LEN })
}

impl Item {
    fn check(&self, want: &[u8]) {
        match self {
            Item::File(file) => {
                let got = read_at(file, 0, 2 * 8192).expect("read");
                assert_same(&got, want, 0);
            }
            Item::Map(map) => {
                // SAFETY: the mapping lives and the file is as long as it; nobody changes it meanwhile.
                let got = unsafe { std::slice::from_raw_parts(map.at.cast::<u8>(), map.len) };
                assert_same(got, want, 0);
            }
        }
    }
}

/// Every sequence of three opens, closed in every order.
fn exhaust(ways: &[Way], path: &Path, content: &[u8], may_write: bool) {
    const ORDERS: [[usize; 3]; 6] = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    for a in ways {
        for b in ways {
            for c in ways {
                for order in ORDERS {
                    let mut open: Vec<Option<Item>> = Vec::new();
                    for way in [a, b, c] {
                        open.push(opened(*way, path, may_write));
                        open.iter().flatten().for_each(|item| item.check(content));
                    }
                    for which in order {
                        open[which] = None;
                        open.iter().flatten().for_each(|item| item.check(content));
                    }
                }
            }
        }
    }
}

/// Opens; a writer is refused with EPERM where the image is immutable, and nothing else is refused.
fn opened(way: Way, path: &Path, may_write: bool) -> Option<Item> {
    match way.open(path) {
        Ok(item) => {
            assert!(may_write || !way.writes(), "{way:?} of an immutable image");
            Some(item)
        }
        Err(error) => {
            let expected = way.writes() && !may_write;
            let errno = error.raw_os_error();
            assert!(expected && errno == Some(libc::EPERM), "{way:?}: {error}");
            None
        }
    }
}

/// A world with `whole` (immutable, all on flash), `part` (immutable, half on flash) and `disk`.
fn world_with_images() -> Option<World> {
    let mut world = World::new()?;
    for (name, tag) in [("whole", 1), ("part", 2), ("disk", 3)] {
        make_image(&world.store(name), tag, LEN as u64);
    }
    // A second block, so that something can stay missing.
    make_image(&world.store("part"), 2, MIB);
    age(&[
        &world.store("whole"),
        &world.store("part"),
        &world.store("disk"),
    ]);
    world.start();
    for name in ["whole", "disk"] {
        read_at(&open_read(&world.mnt(name)), 0, LEN).expect("warm");
        wait_until(PATIENCE, "the image is on flash", || {
            world.count(name, "resident_bytes") == 4 * 4096
        });
    }
    for name in ["whole", "part"] {
        set_xattr(&world.mnt(name), IMMUTABLE, "1").expect("immutable");
    }
    Some(world)
}

fn wait_until_closed(world: &World, name: &str) {
    wait_until(PATIENCE, "the image is closed", || {
        world.image_status(name)["plane"] == "closed"
    });
}

#[test]
fn any_order_of_opens_works_on_one_file() {
    let Some(world) = world_with_images() else {
        return;
    };
    wait_until_closed(&world, "whole");
    let reads = world.count("whole", "reads");
    exhaust(&READERS, &world.mnt("whole"), &pattern(1, 0, LEN), false);
    let writers = [Way::Read, Way::Write, Way::MapShared];
    exhaust(&writers, &world.mnt("whole"), &pattern(1, 0, LEN), false);
    if world.daemon().said().contains("no kernel passthrough") {
        println!("skipped the counting: no kernel passthrough here");
    } else {
        // Nobody was ever in the way, so the kernel has read it all.
        assert_eq!(world.count("whole", "reads"), reads);
    }
    exhaust(&ALL, &world.mnt("disk"), &pattern(3, 0, LEN), true);
}

#[test]
fn any_order_of_opens_works_on_an_image_that_is_not_whole() {
    let Some(world) = world_with_images() else {
        return;
    };
    let path = world.mnt("part");
    let want = pattern(2, 0, MIB as usize);
    for ways in [
        READERS,
        [Way::Read, Way::Write, Way::MapShared, Way::ReadDirect],
    ] {
        for a in ways {
            for b in ways {
                let open: Vec<_> = [a, b].map(|way| opened(way, &path, false)).into();
                let got = read_at(&open_read(&path), MIB / 2, 4096).expect("read");
                assert_same(&got, &want[MIB as usize / 2..][..4096], MIB / 2);
                drop(open);
            }
        }
    }
    assert_eq!(world.image_status("part")["size_bytes"], MIB);
}

/// A random walk over opens, closes, writes and changes of mind about who may write.
#[test]
fn a_random_walk_of_opens_meets_no_error_and_no_wrong_byte() {
    let Some(world) = world_with_images() else {
        return;
    };
    let steps = if world::long() { 20_000 } else { 1_500 };
    let (path, mut rng) = (world.mnt("disk"), Rng::announced(0x0be5));
    let mut content = pattern(3, 0, LEN);
    let mut open: Vec<(Way, Item)> = Vec::new();
    let mut immutable = false;
    let (mut directly, mut flips) = (0, 0);
    for step in 0..steps {
        if step % (steps / CHAPTERS) == 0 {
            open.clear();
            age(&[&world.store("disk")]); // what was written a moment ago is not read directly
        }
        let writes = (step / (steps / CHAPTERS)).is_multiple_of(2);
        match rng.below(10) {
            0..=4 if open.len() < OPEN_MAX => {
                let way = ALL[rng.below(ALL.len() as u64) as usize];
                open.extend(opened(way, &path, !immutable).map(|item| (way, item)));
            }
            0..=6 if !open.is_empty() => {
                open.swap_remove(rng.below(open.len() as u64) as usize);
            }
            7 if writes => {
                let files = open.iter().find_map(|(way, item)| match item {
                    Item::File(file) if way.writes() => Some(file),
                    _ => None,
                });
                if let Some(file) = files {
                    let page = rng.below(3) as usize * 4096;
                    content[page..page + 4096].fill(step as u8);
                    let data = Aligned::of(&content[page..page + 4096]);
                    file.write_all_at(&data, page as u64).expect("write");
                }
            }
            8 if rng.below(4) == 0 => open.clear(),
            _ => {
                let wanted = rng.below(2) == 1;
                match set_xattr(&path, IMMUTABLE, if wanted { "1" } else { "0" }) {
                    Ok(()) => {
                        flips += u32::from(immutable != wanted);
                        immutable = wanted;
                    }
                    // Somebody has it open the other way, or a release is still on its way.
                    Err(errno) => assert_eq!(errno, libc::EBUSY),
                }
            }
        }
        open.iter().for_each(|(_, item)| item.check(&content));
        let plane = get_xattr(&path, "user.flashside.plane");
        directly += u32::from(plane == Ok("passthrough".into()));
    }
    println!("{directly} of {steps} steps on passthrough, {flips} changes of mind");
    assert!(flips > 10, "{flips} changes of mind");
    if !world.daemon().said().contains("no kernel passthrough") {
        assert!(directly > steps / 100, "{directly} of {steps} steps");
    }
}

/// Many at once: whoever comes between two others gets the plane they have.
#[test]
fn opens_at_the_same_moment_do_not_meet_on_different_planes() {
    let Some(world) = world_with_images() else {
        return;
    };
    let (path, want) = (world.mnt("whole"), pattern(1, 0, LEN));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let (path, want, over) = (&path, &want, &over);
            scope.spawn(move || {
                let mut rng = Rng::new(thread + 1);
                while !over.load(Ordering::Relaxed) {
                    let way = ALL[rng.below(ALL.len() as u64) as usize];
                    match way.open(path) {
                        Ok(item) => item.check(want),
                        Err(error) => {
                            let errno = error.raw_os_error();
                            assert!(
                                way.writes() && errno == Some(libc::EPERM),
                                "{way:?}: {error}"
                            );
                        }
                    }
                }
            });
        }
        // The image becomes mutable and immutable again under their feet; both are refused while they
        // read directly or have it open for writing.
        let until = std::time::Instant::now() + Duration::from_secs(4);
        let mut value = "0";
        while std::time::Instant::now() < until {
            let set = set_xattr(&path, IMMUTABLE, value);
            assert!(matches!(set, Ok(()) | Err(libc::EBUSY)), "{set:?}");
            value = if value == "0" { "1" } else { "0" };
            std::thread::sleep(Duration::from_millis(5));
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(errno_of(&File::open(&path)), 0);
}
