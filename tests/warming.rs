//! `flashside warm` and `flashside evict`: what is fetched is what was missing, nothing twice, guests go
//! first, and what is evicted is gone from flash and right afterwards.

mod world;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use world::files::{
    BLOCK, MIB, age, assert_same, check_pattern, make_image, open, open_read, pattern, read_at,
    write_at,
};
use world::janitor::die_with_parent;
use world::{Daemon, PATIENCE, World, flashside, wait_until, within};

/// Longer than any warming here takes.
const LONG: Duration = Duration::from_secs(60);

/// Runs `flashside VERB IMAGE… MORE…`.
fn tell(world: &World, verb: &str, images: &[&str], more: &[&str]) -> Output {
    let mut command = flashside();
    command.arg(verb);
    command.args(images.iter().map(|image| world.mnt(image)));
    command.args(more);
    within(LONG, verb, move || command.output()).expect("flashside runs")
}

fn text(output: &Output) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&said).into_owned()
}

fn succeeds(output: &Output, words: &str) {
    let said = text(output);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(said.contains(words), "{said}");
}

fn fails(output: &Output, code: i32, words: &str) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
}

/// A counter of an image; 0 where the daemon does not know it.
fn counter(world: &World, name: &str, counter: &str) -> u64 {
    let status = world.status();
    let images = status["images"].as_array().expect("images is a list");
    let image = images.iter().find(|image| image["name"] == name);
    image.map_or(0, |image: &Value| image[counter].as_u64().expect("a count"))
}

fn fetched(world: &World, name: &str) -> u64 {
    counter(world, name, "store_read_bytes")
}

fn resident(world: &World, name: &str) -> u64 {
    counter(world, name, "resident_bytes")
}

/// What is answered is on flash a moment later.
fn gets_resident(world: &World, name: &str, bytes: u64) {
    wait_until(PATIENCE, "what was read is on flash", || {
        resident(world, name) == bytes
    });
}

/// `flashside warm` in the background; ended when dropped.
struct Warming(Child);

impl Warming {
    fn start(world: &World, image: &str) -> Warming {
        let mut command: Command = flashside();
        command.arg("warm").arg(world.mnt(image));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_parent(&mut command);
        Warming(command.spawn().expect("flashside runs"))
    }

    /// Ctrl-C, and what it says then.
    fn interrupt(mut self) -> Output {
        // SAFETY: a child of ours, not waited for yet, so the pid is its own.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGINT) };
        wait_until(PATIENCE, "warm ends", || self.has_ended());
        let mut output = Output {
            status: self.0.wait().expect("it has ended"),
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        use std::io::Read;
        let mut stdout = self.0.stdout.take().expect("piped");
        stdout.read_to_end(&mut output.stdout).expect("read");
        output
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("waited for").is_some()
    }
}

impl Drop for Warming {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn warming_fetches_everything_once_in_large_requests() {
    let len = 16 * MIB;
    let Some(world) = World::with_images(&[("disk", len)], |_| ()) else {
        return;
    };
    let done = tell(&world, "warm", &["disk"], &[]);
    succeeds(&done, "16.0 MiB of 16.0 MiB resident, 16.0 MiB fetched");
    assert_eq!(fetched(&world, "disk"), len);
    assert_eq!(counter(&world, "disk", "store_read_requests"), len / MIB);
    assert_eq!(resident(&world, "disk"), len);
    succeeds(&tell(&world, "warm", &["disk"], &[]), "0 B fetched");
    check_pattern(&world.mnt("disk"), 1, len);
    assert_eq!(fetched(&world, "disk"), len, "reads came from flash");
    assert_eq!(counter(&world, "disk", "handles"), 0, "it is closed again");
}

#[test]
fn several_images_are_warmed_one_after_the_other() {
    let images = [("a", 2 * MIB), ("dir/b c%", 3 * MIB + 5000)];
    let prepare = |world: &mut World| {
        fs::create_dir(world.store("dir")).expect("mkdir");
        make_image(&world.store("dir/b c%"), 2, 3 * MIB + 5000);
    };
    let Some(world) = World::with_images(&images[..1], prepare) else {
        return;
    };
    succeeds(&tell(&world, "warm", &["a", "dir/b c%"], &[]), "b c%");
    assert_eq!(fetched(&world, "a"), 2 * MIB);
    assert_eq!(fetched(&world, "dir/b c%"), 3 * MIB + 5000);
    check_pattern(&world.mnt("dir/b c%"), 2, 3 * MIB + 5000);
    assert_eq!(fetched(&world, "dir/b c%"), 3 * MIB + 5000);
    // One that is missing does not stop the others.
    let done = tell(&world, "warm", &["nothing", "a"], &[]);
    assert_eq!(done.status.code(), Some(1));
    let said = text(&done);
    assert!(said.contains("no such image"), "{said}");
    assert!(said.contains("2.0 MiB of 2.0 MiB"), "{said}");
}

#[test]
fn a_range_is_warmed_and_nothing_else() {
    let Some(world) = World::with_images(&[("disk", 8 * MIB)], |_| ()) else {
        return;
    };
    let range = ["--range", "1M-3M"];
    succeeds(&tell(&world, "warm", &["disk"], &range), "2.0 MiB of 2.0");
    assert_eq!(resident(&world, "disk"), 2 * MIB);
    let range = ["--range", "7M-"];
    succeeds(&tell(&world, "warm", &["disk"], &range), "1.0 MiB of 1.0");
    let range = ["--range", "100M-200M"];
    succeeds(&tell(&world, "warm", &["disk"], &range), "0 B of 0 B");
    assert_eq!(fetched(&world, "disk"), 3 * MIB);
}

/// The store refuses to serve a page twice.
#[test]
fn warming_that_was_interrupted_goes_on_where_it_was() {
    let len = 16 * MIB;
    let Some(world) = World::with_images(&[("disk", len)], |world| {
        let once = world.scratch("once").display().to_string();
        world.flags(&["--simulate-bandwidth", "6M", "--simulate-once", &once]);
    }) else {
        return;
    };
    let warming = Warming::start(&world, "disk");
    wait_until(LONG, "something is there", || resident(&world, "disk") > 0);
    let ended = warming.interrupt();
    fails(&ended, 130, "interrupted");
    wait_until(PATIENCE, "what was under way arrives", || {
        counter(&world, "disk", "handles") == 0
            && resident(&world, "disk") == fetched(&world, "disk")
            && resident(&world, "disk").is_multiple_of(MIB)
    });
    let first = fetched(&world, "disk");
    assert!((1..len).contains(&first), "{first} bytes at the interrupt");
    std::thread::sleep(Duration::from_millis(700));
    let later = fetched(&world, "disk");
    assert!(later <= first + 4 * MIB, "the daemon goes on: {later}");
    succeeds(
        &tell(&world, "warm", &["disk"], &[]),
        "16.0 MiB of 16.0 MiB",
    );
    assert_eq!(fetched(&world, "disk"), len, "no byte was fetched twice");
    check_pattern(&world.mnt("disk"), 1, len);
}

#[test]
fn what_does_not_fit_is_said_and_not_fetched() {
    let Some(mut world) = World::with_images(&[("disk", 32 * MIB)], |world| {
        world.limit("20M");
    }) else {
        return;
    };
    let done = tell(&world, "warm", &["disk"], &[]);
    fails(&done, 1, "did not fit");
    let there = resident(&world, "disk");
    assert!((10 * MIB..20 * MIB).contains(&there), "{there} resident");
    assert_eq!(
        fetched(&world, "disk"),
        there,
        "nothing was fetched in vain"
    );
    fails(&tell(&world, "warm", &["disk"], &[]), 1, "did not fit");
    let again = fetched(&world, "disk");
    assert!(again <= there + MIB, "{again} bytes after {there}");
    check_pattern(&world.mnt("disk"), 1, 32 * MIB);
    world.unmount();
}

/// What a mount finds on flash is not trusted; warming looks at it before a guest does.
#[test]
fn warming_verifies_what_is_there_and_fetches_what_is_damaged() {
    let len = 4 * MIB;
    let Some(mut world) = World::with_images(&[("disk", len)], |_| ()) else {
        return;
    };
    succeeds(&tell(&world, "warm", &["disk"], &[]), "4.0 MiB of 4.0 MiB");
    world.unmount();
    let data = open(&data_file(world.cache()), false);
    data.write_all_at(b"damaged", MIB + 5000).expect("write");
    data.sync_all().expect("fsync");
    drop(data); // who has it open counts as a reader of an earlier mount
    world.start();
    succeeds(&tell(&world, "warm", &["disk"], &[]), "4.0 MiB of 4.0 MiB");
    assert_eq!(counter(&world, "disk", "checksum_mismatches"), 1);
    let again = fetched(&world, "disk");
    assert!((4096..=BLOCK).contains(&again), "{again} bytes again");
    check_pattern(&world.mnt("disk"), 1, len);
    assert_eq!(fetched(&world, "disk"), again);
}

fn data_file(dir: &Path) -> PathBuf {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            if entry.file_name() == "data" {
                return entry.path();
            }
            if entry.path().is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    panic!("no cache file");
}

/// Rule 7 holds for warming as for any open.
#[test]
fn an_image_that_changed_in_the_store_is_warmed_anew() {
    let len = 4 * MIB;
    let Some(world) = World::with_images(&[("disk", len)], |_| ()) else {
        return;
    };
    succeeds(&tell(&world, "warm", &["disk"], &[]), "4.0 MiB fetched");
    make_image(&world.store("disk"), 7, len);
    age(&[&world.store("disk")]);
    succeeds(&tell(&world, "warm", &["disk"], &[]), "4.0 MiB fetched");
    assert_eq!(fetched(&world, "disk"), 2 * len);
    check_pattern(&world.mnt("disk"), 7, len);
    assert_eq!(fetched(&world, "disk"), 2 * len);
}

/// Two threads towards a store that takes 50 ms, eight guests that always want something: warming gets
/// next to nothing. In order of arrival it would make a third of all requests.
#[test]
fn guests_go_before_warming() {
    let _turn = world::alone();
    const GUESTS: u64 = 8;
    const READS: u64 = 10;
    let images = [("cold", 256 * MIB), ("guest", GUESTS * READS * MIB)];
    let Some(world) = World::with_images(&images, |world| {
        let config = world.scratch("few.toml");
        fs::write(&config, "store-threads = 2\n").expect("a configuration");
        let config = config.display().to_string();
        world.flags(&["--simulate-latency", "50ms", "--config", &config]);
    }) else {
        return;
    };
    let files: Vec<_> = (0..GUESTS)
        .map(|_| open_read(&world.mnt("guest")))
        .collect();
    let mut warming = Warming::start(&world, "cold");
    wait_until(LONG, "warming goes on", || fetched(&world, "cold") > 0);
    let requests = || counter(&world, "cold", "store_read_requests");
    let (before, during) = (AtomicU64::new(0), AtomicU64::new(0));
    let (start, end) = (Barrier::new(9), Barrier::new(9));
    std::thread::scope(|scope| {
        for (guest, file) in (0..).zip(&files) {
            let (start, end) = (&start, &end);
            scope.spawn(move || {
                start.wait();
                for read in 0..READS {
                    let at = (read * GUESTS + guest) * 7919 % (GUESTS * READS) * MIB;
                    let got = read_at(file, at, 4096).expect("read");
                    assert_same(&got, &pattern(2, at, 4096), at);
                }
                end.wait();
            });
        }
        before.store(requests(), Ordering::Relaxed);
        start.wait();
        end.wait();
        during.store(requests(), Ordering::Relaxed);
    });
    let (before, during) = (before.into_inner(), during.into_inner());
    let made = during - before;
    println!(
        "{made} requests of warming beside {} of guests",
        GUESTS * READS
    );
    assert_eq!(
        counter(&world, "guest", "store_read_requests"),
        GUESTS * READS
    );
    assert!(made <= GUESTS * READS / 8, "{made} requests of warming");
    assert!(!warming.has_ended(), "it goes on");
    wait_until(LONG, "warming goes on", || requests() > during + 8);
    fails(&warming.interrupt(), 130, "interrupted");
}

#[test]
fn a_mount_that_ends_does_not_wait_for_warming() {
    let Some(mut world) = World::with_images(&[("disk", 64 * MIB)], |world| {
        world.flags(&["--simulate-bandwidth", "4M"]);
    }) else {
        return;
    };
    let mut warming = Warming::start(&world, "disk");
    wait_until(LONG, "warming goes on", || fetched(&world, "disk") > 0);
    world.unmount();
    wait_until(PATIENCE, "warm ends", || warming.has_ended());
    world.start();
    assert!(resident(&world, "disk") > 0, "what was fetched stays");
    check_pattern(&world.mnt("disk"), 1, 2 * MIB);
}

#[test]
fn an_evicted_image_leaves_flash_and_the_other_stays() {
    let len = 8 * MIB;
    let Some(world) = World::with_images(&[("a", len), ("b", len)], |_| ()) else {
        return;
    };
    succeeds(&tell(&world, "warm", &["a", "b"], &[]), "8.0 MiB fetched");
    let used = world::disk_usage(world.cache());
    let done = tell(&world, "evict", &["a"], &[]);
    succeeds(&done, "8.0 MiB evicted (8388608 bytes)");
    assert_eq!(resident(&world, "a"), 0);
    assert_eq!(resident(&world, "b"), len);
    let left = world::disk_usage(world.cache());
    assert!(left <= used - len, "{left} bytes on flash of {used}");
    let pool_used = world.status()["pool"]["used_bytes"].as_u64();
    assert!(pool_used <= Some(left + 2 * MIB), "{pool_used:?}, {left}");
    check_pattern(&world.mnt("b"), 2, len);
    assert_eq!(fetched(&world, "b"), len, "the other image is untouched");
    check_pattern(&world.mnt("a"), 1, len);
    assert!(fetched(&world, "a") >= len, "it is fetched again");
    gets_resident(&world, "a", len);
    succeeds(&tell(&world, "evict", &["a"], &[]), "8.0 MiB evicted");
    succeeds(&tell(&world, "evict", &["a"], &[]), "0 B evicted");
}

/// Evicting while a guest reads and writes: every read is compared.
#[test]
fn an_open_image_can_be_evicted_under_its_guest() {
    let len = 8 * MIB;
    let Some(mut world) = World::with_images(&[("disk", len)], |_| ()) else {
        return;
    };
    let file = open(&world.mnt("disk"), true);
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            for n in 0..400u64 {
                let at = n * 7919 % (len / 4096) * 4096;
                let n = if n % 3 == 0 { 8192 } else { 4096 };
                let n = n.min((len - at) as usize);
                if at.is_multiple_of(3) {
                    write_at(&file, at, &pattern(1, at, n)).expect("write");
                }
                let got = read_at(&file, at, n).expect("read");
                assert_same(&got, &pattern(1, at, n), at);
            }
        });
        while !guest.is_finished() {
            succeeds(&tell(&world, "evict", &["disk"], &[]), "evicted");
        }
    });
    check_pattern(&world.mnt("disk"), 1, len);
    gets_resident(&world, "disk", len);
    let before = fetched(&world, "disk");
    succeeds(&tell(&world, "evict", &["disk"], &[]), "8.0 MiB evicted");
    let got = read_at(&file, 4096, 4096).expect("read");
    assert_same(&got, &pattern(1, 4096, 4096), 4096);
    assert!(fetched(&world, "disk") > before, "it was fetched again");
    drop(file);
    world.unmount();
    check_pattern(&world.store("disk"), 1, len);
    world.start();
    check_pattern(&world.mnt("disk"), 1, len);
}

#[test]
fn mistakes_are_told_in_one_sentence() {
    let Some(mut world) = World::with_images(&[("disk", MIB)], |world| {
        fs::create_dir(world.store("dir")).expect("mkdir");
        std::os::unix::fs::symlink("disk", world.store("link")).expect("a link");
    }) else {
        return;
    };
    for verb in ["warm", "evict"] {
        let told = |image: &str| tell(&world, verb, &[image], &[]);
        fails(&told("nothing"), 1, "no such image: nothing");
        fails(&told("disk/more"), 1, "no such image");
        fails(&told("dir"), 1, "dir is a directory");
        fails(&told("link"), 1, "link is a symbolic link");
        fails(&told(""), 1, "is the mount point itself");
        fails(&told("../store/disk"), 1, "in no flashside mount");
    }
    let range = tell(&world, "warm", &["disk"], &["--range", "5"]);
    fails(&range, 2, "is not a range; write for example");
    world.unmount();
    let mut command = flashside();
    command.arg("mount").arg(world.store(""));
    command.arg(world.mountpoint()).arg("--foreground");
    world.daemon = Some(Daemon::start(command, &world.mountpoint()).expect("mounted"));
    fails(&tell(&world, "warm", &["disk"], &[]), 1, "has no cache");
    fails(&tell(&world, "evict", &["disk"], &[]), 1, "has no cache");
}
