//! Kernel passthrough across the death of the serving process: handles that the kernel serves go on, and the
//! next server knows what the one before knew of them.

mod world;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use world::files::{
    MIB, age, assert_same, check_pattern, errno_of, make_image, open_read, pattern, read_at,
    set_xattr,
};
use world::{PATIENCE, World, wait_until};

const IMMUTABLE: &str = "user.flashside.immutable";
const LEN: u64 = 8 * MIB + 512;
const OTHERS: u64 = 3;

/// A world with a standby, whose store holds `golden`, immutable and wholly on flash, and others that fill the
/// cache; `None` where there is no passthrough or no hand-over.
fn world() -> Option<World> {
    let mut world = World::new()?;
    world.limit("24M");
    let mut paths = vec![world.store("golden")];
    make_image(&paths[0], 1, LEN);
    for other in 0..OTHERS {
        let path = world.store(format!("other-{other}"));
        make_image(&path, 10 + other, 8 * MIB);
        paths.push(path);
    }
    age(&paths.iter().map(|path| path.as_path()).collect::<Vec<_>>());
    world.start();
    if world.server().is_none() {
        println!("skipped: no hand-over here");
        return None;
    }
    check_pattern(&world.mnt("golden"), 1, LEN);
    wait_until(PATIENCE, "the image is on flash", || {
        world.count("golden", "resident_bytes") == LEN.next_multiple_of(4096)
    });
    set_xattr(&world.mnt("golden"), IMMUTABLE, "1").expect("immutable");
    closed(&world);
    let reason = {
        let _file = open_read(&world.mnt("golden"));
        planes(&world)[0]["reason"].clone()
    };
    closed(&world);
    if reason == "the system does not allow passthrough" {
        println!("skipped: no kernel passthrough here");
        return None;
    }
    world.wait_for_standby();
    Some(world)
}

fn closed(world: &World) {
    wait_until(PATIENCE, "the image is closed", || {
        world.image_status("golden")["plane"] == "closed"
    });
}

/// Nobody but the server has the cache file: while somebody has, it is pinned.
fn unpinned(world: &World) {
    wait_until(PATIENCE, "nothing is pinned", || {
        world.count("golden", "pinned_bytes") == 0
    });
}

/// Bytes of the image on flash; none where nothing is known of it any more.
fn resident(world: &World) -> u64 {
    let status = world.status();
    let images = status["images"].as_array().expect("images");
    let golden = images.iter().find(|image| image["name"] == "golden");
    golden.map_or(0, |image| {
        image["resident_bytes"].as_u64().expect("a count")
    })
}

fn planes(world: &World) -> Value {
    world.image_status("golden")["planes"].clone()
}

fn direct(handles: u64) -> Value {
    json!([{"plane": "passthrough", "handles": handles, "reason": ""}])
}

/// All bytes of the image, and that it ends where it ends.
fn check(file: &File) {
    let got = read_at(file, 0, LEN as usize + 8192).expect("read");
    assert_same(&got, &pattern(1, 0, LEN as usize), 0);
}

/// Others are read until nothing is left of an image that is not held.
fn press(world: &World) {
    for round in 0..4 * OTHERS {
        let other = round % OTHERS;
        check_pattern(&world.mnt(format!("other-{other}")), 10 + other, 8 * MIB);
    }
}

fn next_server(world: &mut World) {
    world.wait_for_standby();
    world.kill_server();
}

fn write_errno(path: &Path) -> i32 {
    errno_of(&OpenOptions::new().read(true).write(true).open(path))
}

#[test]
fn handles_that_the_kernel_serves_go_on_through_kills() {
    let Some(mut world) = world() else {
        return;
    };
    let path = world.mnt("golden");
    let first = open_read(&path);
    assert_eq!(planes(&world), direct(1));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                check(&first);
                rounds += 1;
            }
            rounds
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for handles in 2..5 {
                next_server(&mut world);
                let another = open_read(&path);
                assert_eq!(planes(&world), direct(handles));
                let pinned = world.count("golden", "pinned_bytes");
                assert_eq!(pinned, LEN.next_multiple_of(4096));
                assert_eq!(write_errno(&path), libc::EPERM);
                first.sync_all().expect("fsync");
                another.sync_all().expect("fsync");
                assert_eq!(first.metadata().expect("stat").len(), LEN);
                check(&another);
                std::mem::forget(another); // open until the end
            }
            press(&world);
            check(&first);
            let resident = world.count("golden", "resident_bytes");
            assert_eq!(resident, LEN.next_multiple_of(4096));
            assert_eq!(world.count("golden", "store_read_bytes"), 0);
        }));
        over.store(true, Ordering::Relaxed);
        let rounds = reader.join().expect("the kernel reads right bytes");
        done.unwrap_or_else(|why| std::panic::resume_unwind(why));
        println!("{rounds} rounds");
    });
}

/// Whoever opened it and whoever serves: the last close lets it go.
#[test]
fn the_last_close_lets_an_image_go_whoever_opened_it() {
    let Some(mut world) = world() else {
        return;
    };
    let path = world.mnt("golden");
    for round in 0..4 {
        let before = open_read(&path);
        assert_eq!(planes(&world), direct(1), "round {round}");
        next_server(&mut world);
        let after = open_read(&path);
        assert_eq!(planes(&world), direct(2));
        drop(before);
        wait_until(PATIENCE, "one is closed", || planes(&world) == direct(1));
        check(&after);
        drop(after);
        closed(&world);
        unpinned(&world);
    }
    // Like any other image: evicted by what is used more, written when it may be.
    let left = (0..30).any(|_| {
        press(&world);
        resident(&world) < LEN
    });
    assert!(left, "what was carried once is never evicted");
    set_xattr(&path, IMMUTABLE, "0").expect("mutable again");
    assert_eq!(write_errno(&path), 0);
}

/// Closed while nobody serves: the next server hears of it.
#[test]
fn what_is_closed_in_the_gap_is_let_go() {
    let Some(world) = world() else {
        return;
    };
    for _ in 0..3 {
        let file = open_read(&world.mnt("golden"));
        assert_eq!(planes(&world), direct(1));
        world.wait_for_standby();
        world.kill_server();
        drop(file);
        closed(&world);
        unpinned(&world);
    }
}

/// Opened and closed all the time while servers die: no open fails, and nothing stays with the connection.
#[test]
fn opens_never_fail_while_servers_die_and_no_backing_file_is_lost() {
    let Some(mut world) = world() else {
        return;
    };
    let path = world.mnt("golden");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let opener = || {
            let mut opens = 0;
            while !over.load(Ordering::Relaxed) {
                let file = File::open(&path).expect("an open never fails");
                let got = read_at(&file, MIB, 4096).expect("nor does a read");
                assert_same(&got, &pattern(1, MIB, 4096), MIB);
                opens += 1;
            }
            opens
        };
        let openers = [scope.spawn(opener), scope.spawn(opener)];
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..8).for_each(|_| next_server(&mut world));
        }));
        over.store(true, Ordering::Relaxed);
        for opener in openers {
            println!("{} opens", opener.join().expect("no open failed"));
        }
        done.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
    closed(&world);
    // A number that was lost would keep the cache file open in the kernel for as long as the mount lives.
    unpinned(&world);
    let file = open_read(&path);
    assert_eq!(planes(&world), direct(1));
    check(&file);
}

/// A mapping outlives its handle; the cache file is left alone as long.
#[test]
fn what_is_mapped_is_not_touched_after_its_handle_is_closed() {
    let Some(mut world) = world() else {
        return;
    };
    let file = open_read(&world.mnt("golden"));
    assert_eq!(planes(&world), direct(1));
    let map = Mapped::new(&file);
    drop(file);
    closed(&world);
    for killed in [false, true] {
        if killed {
            next_server(&mut world);
        }
        (0..3).for_each(|_| press(&world));
        assert_same(map.bytes(), &pattern(1, 0, LEN as usize), 0);
        assert!(world.count("golden", "pinned_bytes") > 0);
    }
    drop(map);
    unpinned(&world);
}

/// An image in memory.
struct Mapped(*mut libc::c_void);

impl Mapped {
    fn new(file: &File) -> Mapped {
        let (access, fd) = (libc::PROT_READ, file.as_raw_fd());
        // SAFETY: a new mapping where the kernel likes it.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LEN as usize,
                access,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Mapped(at)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is that long.
        unsafe { std::slice::from_raw_parts(self.0.cast(), LEN as usize) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.0, LEN as usize) };
    }
}
