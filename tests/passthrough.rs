//! Kernel passthrough: who gets it, what it reads, what it keeps from happening, and which images
//! nobody writes.

mod world;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use world::files::{
    MIB, age, assert_same, check_pattern, errno_of, get_xattr, make_image, open_read, pattern,
    read_at, set_xattr,
};
use world::people::QEMU;
use world::{PATIENCE, World, flashside, wait_until, within};

const IMMUTABLE: &str = "user.flashside.immutable";

/// A started world whose store holds `golden`, `len` bytes of pattern 1, immutable and wholly on flash.
fn world_with_golden(len: u64, prepare: impl FnOnce(&mut World)) -> Option<World> {
    let mut world = World::new()?;
    make_image(&world.store("golden"), 1, len);
    age(&[&world.store("golden")]);
    prepare(&mut world);
    world.start();
    warm(&world, "golden", 1, len);
    set_xattr(&world.mnt("golden"), IMMUTABLE, "1").expect("immutable");
    if passthrough_here(&world, "golden") {
        return Some(world);
    }
    println!("skipped: no kernel passthrough here");
    None
}

/// Reads an image through the mount and waits until all of it is on flash and nobody has it open any
/// more.
fn warm(world: &World, name: &str, tag: u64, len: u64) {
    check_pattern(&world.mnt(name), tag, len);
    whole(world, name, len);
    closed(world, name);
}

/// A read is answered before the cache has taken its bytes.
fn whole(world: &World, name: &str, len: u64) {
    wait_until(PATIENCE, "the image is on flash", || {
        world.count(name, "resident_bytes") == len.next_multiple_of(4096)
    });
}

/// A release reaches the daemon after close(2) has returned.
fn closed(world: &World, name: &str) {
    wait_until(PATIENCE, "the image is closed", || {
        world.image_status(name)["plane"] == "closed"
    });
}

fn passthrough_here(world: &World, name: &str) -> bool {
    let file = open_read(&world.mnt(name));
    let reason = world.image_status(name)["planes"][0]["reason"].clone();
    drop(file);
    closed(world, name);
    reason != "the system does not allow passthrough"
}

fn planes(world: &World, name: &str) -> Value {
    world.image_status(name)["planes"].clone()
}

fn direct(handles: u64) -> Value {
    json!([{"plane": "passthrough", "handles": handles, "reason": ""}])
}

fn through_daemon(handles: u64, reason: &str) -> Value {
    json!([{"plane": "daemon", "handles": handles, "reason": reason}])
}

#[test]
fn an_immutable_image_on_flash_is_read_by_the_kernel() {
    let len = 2 * MIB + 1000;
    let Some(world) = world_with_golden(len, |_| ()) else {
        return;
    };
    let file = open_read(&world.mnt("golden"));
    let status = world.image_status("golden");
    assert_eq!(status["planes"], direct(1));
    assert_eq!(status["plane"], "passthrough");
    let whole_pages = len.next_multiple_of(4096);
    assert_eq!(status["pinned_bytes"], whole_pages);
    let plane = get_xattr(&world.mnt("golden"), "user.flashside.plane");
    assert_eq!(plane, Ok("passthrough".into()));
    // Longer than the file: it ends where the image ends, not with its last page.
    let got = read_at(&file, 0, 4 * MIB as usize).expect("read");
    assert_same(&got, &pattern(1, 0, len as usize), 0);
    assert_eq!(file.metadata().expect("stat").len(), len);
    assert_eq!(world.count("golden", "reads"), status["reads"]);
    drop(file);
    closed(&world, "golden");
    wait_until(PATIENCE, "nothing is pinned", || {
        world.count("golden", "pinned_bytes") == 0
    });
    check_pattern(&world.mnt("golden"), 1, len);
}

/// The best proof that the daemon takes no part: it is stopped.
#[test]
fn the_daemon_is_not_needed_for_reading() {
    let Some(world) = world_with_golden(4 * MIB, |_| ()) else {
        return;
    };
    let file = open_read(&world.mnt("golden"));
    assert_eq!(planes(&world, "golden"), direct(1));
    let stopped = Stopped::daemon(&world);
    let got = within(Duration::from_secs(10), "reading", move || {
        let got = read_at(&file, MIB, MIB as usize).expect("read");
        std::mem::forget(file); // its release would wait for the daemon
        got
    });
    drop(stopped);
    assert_same(&got, &pattern(1, MIB, MIB as usize), MIB);
}

/// A daemon that gets no processor, in none of its processes, until this is dropped.
struct Stopped(i32);

impl Stopped {
    fn daemon(world: &World) -> Stopped {
        world.daemon().group().signal(libc::SIGSTOP);
        Stopped(world.daemon().pid())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        world::group::send(self.0, libc::SIGCONT);
    }
}

#[test]
fn what_is_not_immutable_or_not_whole_goes_through_the_daemon() {
    let len = 4 * MIB;
    let Some(world) = world_with_golden(len, |world| {
        make_image(&world.store("disk"), 2, len);
        make_image(&world.store("part"), 3, len);
        age(&[&world.store("disk"), &world.store("part")]);
    }) else {
        return;
    };
    warm(&world, "disk", 2, len);
    let disk = open_read(&world.mnt("disk"));
    assert_eq!(planes(&world, "disk"), through_daemon(1, "not immutable"));
    drop(disk);
    set_xattr(&world.mnt("part"), IMMUTABLE, "1").expect("immutable");
    let part = open_read(&world.mnt("part"));
    assert_eq!(
        planes(&world, "part"),
        through_daemon(1, "not wholly on flash")
    );
    // Whole by now, but a handle of the other plane is open.
    let got = read_at(&part, 0, len as usize).expect("read");
    assert_same(&got, &pattern(3, 0, len as usize), 0);
    whole(&world, "part", len);
    let second = open_read(&world.mnt("part"));
    let reasons = json!([
        {"plane": "daemon", "handles": 1, "reason": "another handle is on the daemon plane"},
        {"plane": "daemon", "handles": 1, "reason": "not wholly on flash"},
    ]);
    assert_eq!(planes(&world, "part"), reasons);
    drop((part, second));
    closed(&world, "part");
    let part = open_read(&world.mnt("part"));
    assert_eq!(planes(&world, "part"), direct(1));
    drop(part);
}

#[test]
fn the_configuration_can_say_never() {
    let len = MIB;
    let Some(mut world) = world_with_golden(len, |_| ()) else {
        return;
    };
    world.unmount();
    world.flags(&["--passthrough", "off"]);
    world.start();
    warm(&world, "golden", 1, len);
    let _file = open_read(&world.mnt("golden"));
    assert_eq!(
        planes(&world, "golden"),
        through_daemon(1, "passthrough is off")
    );
    assert_eq!(get_xattr(&world.mnt("golden"), IMMUTABLE), Ok("1".into()));
}

/// The other session can do it too.
#[test]
fn the_portable_session_has_passthrough_as_well() {
    let len = MIB + 100;
    let Some(mut world) = world_with_golden(len, |_| ()) else {
        return;
    };
    world.unmount();
    let config = world.scratch("config.toml");
    fs::write(&config, "portable-session = true\n").expect("the configuration");
    world.flags(&["--config", config.to_str().expect("UTF-8")]);
    world.start();
    let file = open_read(&world.mnt("golden"));
    assert_eq!(planes(&world, "golden"), direct(1));
    let got = read_at(&file, 0, 2 * MIB as usize).expect("read");
    assert_same(&got, &pattern(1, 0, len as usize), 0);
    assert_eq!(world.count("golden", "reads"), 0);
}

/// After a restart what is on flash is verified before the kernel reads it.
#[test]
fn a_restart_and_a_crash_lead_back_to_passthrough() {
    let len = 2 * MIB + 1000;
    let Some(mut world) = world_with_golden(len, |_| ()) else {
        return;
    };
    let open_and_check = |world: &World| {
        let file = open_read(&world.mnt("golden"));
        assert_eq!(planes(world, "golden"), direct(1));
        let got = read_at(&file, 0, 4 * MIB as usize).expect("read");
        assert_same(&got, &pattern(1, 0, len as usize), 0);
    };
    open_and_check(&world);
    world.remount();
    open_and_check(&world);
    closed(&world, "golden");
    let file = open_read(&world.mnt("golden"));
    assert_eq!(planes(&world, "golden"), direct(1));
    // Nobody reads directly any more when the next daemon comes.
    drop(file);
    world.kill9();
    world.start();
    open_and_check(&world);
    assert_eq!(world.count("golden", "store_read_bytes"), 0);
}

/// A damaged page is found before the kernel could serve it.
#[test]
fn damage_on_flash_is_found_before_the_kernel_reads_it() {
    let len = 2 * MIB;
    let Some(mut world) = world_with_golden(len, |_| ()) else {
        return;
    };
    world.unmount();
    let data = cache_file(&world);
    let file = OpenOptions::new().write(true).open(&data).expect("data");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 100], MIB).expect("damage");
    drop(file);
    world.start();
    let file = open_read(&world.mnt("golden"));
    assert_eq!(
        planes(&world, "golden"),
        through_daemon(1, "not wholly on flash")
    );
    let got = read_at(&file, 0, len as usize).expect("read");
    assert_same(&got, &pattern(1, 0, len as usize), 0);
}

/// The cache file of the only image.
fn cache_file(world: &World) -> std::path::PathBuf {
    let images = world.cache().join("flashside/images");
    let mut dirs = fs::read_dir(images).expect("images");
    let dir = dirs.next().expect("one image").expect("its directory");
    dir.path().join("data")
}

#[test]
fn nobody_writes_an_immutable_image() {
    let len = 2 * MIB;
    let Some(world) = world_with_golden(len, |_| ()) else {
        return;
    };
    let path = world.mnt("golden");
    let refused = || {
        let write = |options: &mut OpenOptions| errno_of(&options.open(&path));
        assert_eq!(write(OpenOptions::new().write(true)), libc::EPERM);
        assert_eq!(
            write(OpenOptions::new().read(true).write(true)),
            libc::EPERM
        );
        assert_eq!(write(OpenOptions::new().append(true)), libc::EPERM);
        assert_eq!(
            write(OpenOptions::new().write(true).truncate(true)),
            libc::EPERM
        );
        assert_eq!(
            write(OpenOptions::new().write(true).create(true)),
            libc::EPERM
        );
        assert_eq!(errno_of(&truncate(&path, 0)), libc::EPERM);
        let read_and_truncate = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_TRUNC)
            .open(&path);
        assert_eq!(errno_of(&read_and_truncate), libc::EPERM);
    };
    refused();
    let file = open_read(&path);
    assert_eq!(planes(&world, "golden"), direct(1));
    refused();
    assert_eq!(planes(&world, "golden"), direct(1));
    assert_eq!(set_xattr(&path, IMMUTABLE, "0"), Err(libc::EBUSY));
    assert_eq!(get_xattr(&path, IMMUTABLE), Ok("1".into()));
    drop(file);
    closed(&world, "golden");
    set_xattr(&path, IMMUTABLE, "0").expect("mutable again");
    let writer = OpenOptions::new().write(true).open(&path).expect("open");
    assert_eq!(set_xattr(&path, IMMUTABLE, "1"), Err(libc::EBUSY));
    assert_eq!(get_xattr(&path, IMMUTABLE), Ok("0".into()));
    drop(writer);
    check_pattern(&world.store("golden"), 1, len);
}

fn truncate(path: &Path, len: i64) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: a valid C string.
    match unsafe { libc::truncate(path.as_ptr(), len) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The settings file goes by the image: it follows a rename, goes with the last name, and a new image
/// of the same name has none.
#[test]
fn settings_follow_the_image_and_go_with_it() {
    let len = MIB;
    let Some(world) = world_with_golden(len, |_| ()) else {
        return;
    };
    let kept = || {
        let all = fs::read_dir(world.store(".flashside")).expect("kept in the store");
        all.count()
    };
    assert_eq!(kept(), 1);
    let listed: Vec<_> = fs::read_dir(world.mountpoint())
        .expect("list")
        .flatten()
        .collect();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert!(fs::metadata(world.mnt(".flashside")).is_err());
    fs::create_dir(world.mnt("old")).expect("mkdir");
    fs::rename(world.mnt("golden"), world.mnt("old/base")).expect("rename");
    assert_eq!(get_xattr(&world.mnt("old/base"), IMMUTABLE), Ok("1".into()));
    fs::hard_link(world.mnt("old/base"), world.mnt("second")).expect("link");
    fs::remove_file(world.mnt("old/base")).expect("unlink");
    assert_eq!(get_xattr(&world.mnt("second"), IMMUTABLE), Ok("1".into()));
    assert_eq!(kept(), 1);
    fs::remove_file(world.mnt("second")).expect("unlink");
    assert_eq!(kept(), 0);
    fs::write(world.mnt("golden"), b"another").expect("a new image");
    assert_eq!(get_xattr(&world.mnt("golden"), IMMUTABLE), Ok("0".into()));
}

#[test]
fn rules_and_read_only_mounts_make_images_immutable() {
    let len = MIB;
    let Some(mut world) = world_with_golden(len, |world| {
        fs::create_dir(world.store("iso")).expect("mkdir");
        make_image(&world.store("iso/a.iso"), 2, len);
        age(&[&world.store("iso/a.iso")]);
    }) else {
        return;
    };
    world.unmount();
    let config = world.scratch("config.toml");
    let rules = "[[rule]]\nmatch = \"iso/*.iso\"\nimmutable = true\n";
    fs::write(&config, rules).expect("the configuration");
    world.flags(&["--config", config.to_str().expect("UTF-8")]);
    world.start();
    let iso = world.mnt("iso/a.iso");
    assert_eq!(get_xattr(&iso, IMMUTABLE), Ok("1".into()));
    assert_eq!(
        errno_of(&OpenOptions::new().write(true).open(&iso)),
        libc::EPERM
    );
    // What comes into being may be written once.
    let copied = fs::copy(&iso, world.mnt("iso/b.iso")).expect("copy");
    assert_eq!(copied, len);
    let again = OpenOptions::new().write(true).open(world.mnt("iso/b.iso"));
    assert_eq!(errno_of(&again), libc::EPERM);
    // The image's own settings win.
    set_xattr(&iso, IMMUTABLE, "0").expect("set");
    drop(OpenOptions::new().write(true).open(&iso).expect("open"));
    world.unmount();
    world.clear_flags().flags(&["--read-only"]);
    world.start();
    warm(&world, "iso/a.iso", 2, len);
    let _iso = open_read(&iso);
    assert_eq!(planes(&world, "iso/a.iso"), direct(1));
}

#[test]
fn only_those_in_control_say_what_is_immutable() {
    let Some(mut world) = world_with_golden(MIB, |world| {
        std::os::unix::fs::chown(world.store("golden"), Some(QEMU.uid), None).expect("chown");
        age(&[&world.store("golden")]);
    }) else {
        return;
    };
    let path = world.mnt("golden");
    let set = |value: &str| QEMU.act(|| set_xattr(&path, IMMUTABLE, value));
    assert_eq!(set("0"), Err(libc::EPERM));
    assert_eq!(set_xattr(&path, IMMUTABLE, "yes"), Err(libc::EINVAL));
    assert_eq!(get_xattr(&path, IMMUTABLE), Ok("1".into()));
    wait_until(PATIENCE, "the log says why", || {
        world.daemon().said().contains("is 0 or 1, not yes")
    });
    world.unmount();
    let config = world.scratch("config.toml");
    fs::write(&config, format!("control-uids = [{}]\n", QEMU.uid)).expect("the configuration");
    world.flags(&["--config", config.to_str().expect("UTF-8")]);
    world.start();
    assert_eq!(set("0"), Ok(()));
    assert_eq!(get_xattr(&path, IMMUTABLE), Ok("0".into()));
}

/// Other images fill the cache many times over; what the kernel reads stays, and they still find room.
#[test]
fn eviction_does_not_touch_what_the_kernel_reads() {
    /// So often the others are read that a held image would be gone were it not held.
    const ROUNDS: usize = 6;
    /// One that is not held goes in far fewer rounds than this.
    const PATIENT_ROUNDS: usize = 30;
    let (len, others) = (8 * MIB + 512, 3);
    // Together they fill the cache, and they are used more than once: no algorithm keeps them out.
    let press = |world: &World| {
        for other in (0..others).chain(0..others) {
            check_pattern(&world.mnt(format!("other-{other}")), 10 + other, 8 * MIB);
        }
    };
    let Some(world) = world_with_golden(len, |world| {
        world.limit("24M");
        for other in 0..others {
            let path = world.store(format!("other-{other}"));
            make_image(&path, 10 + other, 8 * MIB);
            age(&[&path]);
        }
    }) else {
        return;
    };
    let file = open_read(&world.mnt("golden"));
    assert_eq!(planes(&world, "golden"), direct(1));
    (0..ROUNDS).for_each(|_| press(&world));
    let resident = world.count("golden", "resident_bytes");
    assert_eq!(resident, len.next_multiple_of(4096));
    let got = read_at(&file, 0, 16 * MIB as usize).expect("read");
    assert_same(&got, &pattern(1, 0, len as usize), 0);
    // Which of them are on flash at this moment is the algorithm's affair.
    let resident_of = |other| world.count(&format!("other-{other}"), "resident_bytes");
    let room: u64 = (0..others).map(resident_of).sum();
    assert!(room >= 4 * MIB, "the others have room: {room} bytes");
    drop(file);
    closed(&world, "golden");
    // Free again: others that are used more take its place.
    let left = (0..PATIENT_ROUNDS).find(|_| {
        press(&world);
        world.count("golden", "resident_bytes") < resident
    });
    assert!(left.is_some(), "what was held once is never evicted");
    assert!(world.status()["pool"]["used_bytes"].as_u64() <= Some(24 * MIB));
}

/// Held images leave room for others: one that is too large for that is read through the daemon.
#[test]
fn an_image_that_would_fill_the_cache_is_not_held() {
    let len = 13 * MIB;
    let Some(world) = world_with_golden(MIB, |world| {
        world.limit("16M");
        make_image(&world.store("large"), 2, len);
        age(&[&world.store("large")]);
    }) else {
        return;
    };
    set_xattr(&world.mnt("large"), IMMUTABLE, "1").expect("immutable");
    check_pattern(&world.mnt("large"), 2, len);
    closed(&world, "large");
    let _large = open_read(&world.mnt("large"));
    let reason = planes(&world, "large")[0]["reason"].clone();
    let expected = ["too much of the cache is pinned", "not wholly on flash"];
    assert!(expected.iter().any(|text| reason == *text), "{reason}");
}

/// The daemon is killed while the kernel reads for somebody. The next one fills the cache many times
/// over; the orphaned handle reads right bytes until its end, and then its image is like any other.
#[test]
fn an_orphaned_handle_reads_right_bytes_until_its_end() {
    let (len, others) = (8 * MIB + 512, 5);
    let Some(mut world) = world_with_golden(len, |world| {
        world.limit("24M");
        for other in 0..others {
            let path = world.store(format!("other-{other}"));
            make_image(&path, 10 + other, 8 * MIB);
            age(&[&path]);
        }
    }) else {
        return;
    };
    let orphan = open_read(&world.mnt("golden"));
    assert_eq!(planes(&world, "golden"), direct(1));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) || rounds < 2 {
                let got = read_at(&orphan, 0, 16 * MIB as usize).expect("read");
                assert_same(&got, &pattern(1, 0, len as usize), 0);
                rounds += 1;
            }
            rounds
        });
        // Let go also when something here fails, or the scope would wait for ever.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.kill9();
            world.start();
            for other in 0..others {
                check_pattern(&world.mnt(format!("other-{other}")), 10 + other, 8 * MIB);
            }
            let reason = "a reader of an earlier mount has the cache file";
            let file = open_read(&world.mnt("golden"));
            assert_eq!(planes(&world, "golden"), through_daemon(1, reason));
            check_pattern(&world.mnt("golden"), 1, len);
            drop(file);
            assert_eq!(
                world.count("golden", "store_read_bytes"),
                0,
                "served from flash"
            );
            make_image(&world.store("golden"), 7, len); // another host
            check_pattern(&world.mnt("golden"), 7, len);
            assert_eq!(world.count("golden", "resident_bytes"), 0);
        }));
        over.store(true, Ordering::Relaxed);
        let rounds = reader.join();
        done.unwrap_or_else(|why| std::panic::resume_unwind(why));
        println!("{} rounds", rounds.expect("the orphan reads right bytes"));
    });
    assert!(
        world
            .daemon()
            .said()
            .contains("a reader of an earlier mount still has its cache file")
    );
    drop(orphan);
    wait_until(PATIENCE, "the entry thaws", || {
        world
            .daemon()
            .said()
            .contains("in nobody else's use any more")
    });
    age(&[&world.store("golden")]);
    closed(&world, "golden");
    warm(&world, "golden", 7, len);
    let file = open_read(&world.mnt("golden"));
    assert_eq!(planes(&world, "golden"), direct(1));
    let got = read_at(&file, 0, 16 * MIB as usize).expect("read");
    assert_same(&got, &pattern(7, 0, len as usize), 0);
}

/// Rule 14 waives the check of versions for handles that are open, not for later ones.
#[test]
fn a_changed_image_does_not_open_until_the_old_version_is_closed() {
    let len = 2 * MIB;
    let Some(world) = world_with_golden(len, |_| ()) else {
        return;
    };
    let path = world.mnt("golden");
    let file = open_read(&path);
    assert_eq!(planes(&world, "golden"), direct(1));
    make_image(&world.store("golden"), 7, len); // another host
    let opened = File::open(&path);
    assert_eq!(errno_of(&opened), libc::ESTALE);
    wait_until(PATIENCE, "the log says why", || {
        world.daemon().said().contains("changed in the store")
    });
    let got = read_at(&file, 0, len as usize).expect("read");
    assert_same(&got, &pattern(1, 0, len as usize), 0);
    drop(file);
    closed(&world, "golden");
    check_pattern(&path, 7, len);
}

/// What the daemon still sees of a handle that it does not serve.
#[test]
fn the_other_calls_work_on_a_passthrough_handle() {
    let len = 2 * MIB + 77;
    let Some(world) = world_with_golden(len, |_| ()) else {
        return;
    };
    let file = open_read(&world.mnt("golden"));
    assert_eq!(planes(&world, "golden"), direct(1));
    file.sync_all().expect("fsync");
    assert_eq!(seek(&file, 0, libc::SEEK_DATA), 0);
    assert_eq!(seek(&file, 0, libc::SEEK_HOLE), len as i64);
    assert_eq!(seek(&file, 0, libc::SEEK_END), len as i64);
    let allocated = world::files::fallocate(&file, 0, 0, 4096);
    assert_eq!(errno_of(&allocated), libc::EBADF);
    fs::rename(world.mnt("golden"), world.mnt("renamed")).expect("rename");
    let meta = file.metadata().expect("stat");
    assert_eq!((meta.len(), meta.nlink()), (len, 1));
    let second = open_read(&world.mnt("renamed"));
    assert_eq!(planes(&world, "renamed"), direct(2));
    fs::remove_file(world.mnt("renamed")).expect("unlink");
    let got = read_at(&second, 0, len as usize).expect("read");
    assert_same(&got, &pattern(1, 0, len as usize), 0);
    drop((file, second));
}

fn seek(file: &File, at: i64, whence: i32) -> i64 {
    use std::os::fd::AsRawFd;
    // SAFETY: an open descriptor.
    unsafe { libc::lseek(file.as_raw_fd(), at, whence) }
}

#[test]
fn the_command_sets_what_is_immutable_and_says_why_not() {
    let len = MIB;
    let Some(world) = world_with_golden(len, |_| ()) else {
        return;
    };
    let path = world.mnt("golden");
    let set = |setting: &str| {
        let output = flashside().arg("set").arg(&path).arg(setting).output();
        let output = output.expect("flashside runs");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        (output.status.code(), said)
    };
    let file = open_read(&path);
    assert_eq!(planes(&world, "golden"), direct(1));
    let (code, said) = set("immutable=0");
    assert_eq!(code, Some(1));
    assert!(
        said.contains("read directly from flash: close it"),
        "{said}"
    );
    let mut status = flashside();
    let shown = status.arg("status").arg(&path).output().expect("status");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("passthrough"), "{shown}");
    drop(file);
    closed(&world, "golden");
    assert_eq!(set("immutable=0"), (Some(0), String::new()));
    let writer = OpenOptions::new().write(true).open(&path).expect("open");
    let (code, said) = set("immutable=1");
    assert_eq!(code, Some(1));
    assert!(said.contains("open for writing: close it"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    drop(writer);
    closed(&world, "golden");
    assert_eq!(set("immutable=1"), (Some(0), String::new()));
    assert_eq!(get_xattr(&path, IMMUTABLE), Ok("1".into()));
    for wrong in ["immutable=yes", "mutable=1", "immutable"] {
        let (code, said) = set(wrong);
        assert_eq!((code, said.lines().count()), (Some(2), 1), "{said}");
    }
}
