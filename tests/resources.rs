//! What the daemon costs, all its processes together: nothing when idle, little memory however many
//! images are open.

mod world;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use world::World;
use world::files::{BLOCK, MIB, age, make_image, open};
use world::long;

/// After the last write everything is durable and recorded by then.
const SETTLED_MAX: Duration = Duration::from_secs(60);
/// No request for this long: it is settled (the steps are at most 10 s apart).
const QUIET: Duration = Duration::from_secs(11);

/// The daemon may be 100 MiB larger under load than at rest, and what its configuration grants.
const GROWTH_MAX: u64 = 100 * MIB;

#[test]
fn an_idle_daemon_does_nothing() {
    let Some(mut world) = World::new() else {
        return;
    };
    let name = |n: usize| format!("disk{n}");
    (0..100).for_each(|n| make_image(&world.store(name(n)), n as u64, 256 << 10));
    age(&[&world.store(name(99))]);
    world.faulty_store().start();
    let files: Vec<File> = (0..100).map(|n| open(&world.mnt(name(n)), false)).collect();
    for file in &files {
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, 8192).expect("read");
        file.write_all_at(&page, 8192).expect("write");
        file.sync_all().expect("fsync");
    }
    world.faults().heal();
    world::wait_until(SETTLED_MAX, "the store is left alone", || {
        world.faults().clear_log();
        std::thread::sleep(QUIET);
        world.faults().requests().is_empty()
    });
    let seconds = if long() { 60 } else { 10 };
    let (ticks, said) = (world.daemon().cpu_ticks(), world.daemon().said());
    std::thread::sleep(Duration::from_secs(seconds));
    let ticks = world.daemon().cpu_ticks() - ticks;
    // SAFETY: sysconf has no preconditions.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    println!("{ticks} ticks of {} in {seconds} s", per_second * seconds);
    assert!(
        ticks * 1000 <= per_second * seconds * 2,
        "{ticks} ticks used"
    );
    assert_eq!(world.faults().requests(), Vec::<String>::new());
    assert_eq!(world.daemon().said(), said, "it says nothing");
}

/// 512 opens read and write at once over a store that takes its time.
#[test]
fn memory_does_not_grow_with_traffic() {
    let Some(mut world) = World::new() else {
        return;
    };
    const IMAGES: u64 = 64;
    let name = |n: u64| format!("disk{}", n % IMAGES);
    (0..IMAGES).for_each(|n| make_image(&world.store(name(n)), n, 4 * MIB));
    let latency = if long() { "2s" } else { "200ms" };
    let config = world.scratch("small.toml");
    std::fs::write(&config, "write-buffer = \"16M\"\n").expect("a configuration");
    let config = config.display().to_string();
    world.flags(&["--simulate-latency", latency, "--config", &config]);
    world.start();
    world.wait_for_standby();
    let before = world.daemon().rss_bytes();
    let (most, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (paths, rounds) = (
        (0..512).map(|n| world.mnt(name(n))),
        if long() { 4 } else { 3 },
    );
    let paths: Vec<_> = paths.collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                most.fetch_max(world.daemon().rss_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let guests: Vec<_> = (0..)
            .zip(&paths)
            .map(|(n, path)| scope.spawn(move || use_one(path, n, rounds)))
            .collect();
        let ended: Vec<_> = guests.into_iter().map(|guest| guest.join()).collect();
        stop.store(true, Ordering::Relaxed);
        let failed = ended.iter().filter(|end| end.is_err()).count();
        assert_eq!(failed, 0, "guests that met an error");
    });
    let grown = most.load(Ordering::Relaxed).saturating_sub(before);
    println!(
        "{} MiB at rest, {} MiB more under load",
        before / MIB,
        grown / MIB
    );
    assert!(grown <= GROWTH_MAX + 16 * MIB, "{grown} bytes more");
}

/// One guest: reads a MiB in one go, writes a block, somewhere.
fn use_one(path: &std::path::Path, n: u64, rounds: u64) {
    let file = open(path, false);
    let mut data = vec![0; MIB as usize];
    for round in 0..rounds {
        let at = (n / 64 + round) % 3 * MIB;
        file.read_exact_at(&mut data, at).expect("read");
        let block = &data[..BLOCK as usize];
        file.write_all_at(block, at).expect("write");
    }
}
