//! The session: whatever comes together and whatever comes alone, nobody waits for ever. In each of the
//! three ways to serve a mount: our session on io_uring, our session with pread, fuser's.

mod world;

use std::fs::File;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use world::World;
use world::files::{MIB, assert_same, make_image, open, open_read, pattern, read_at, write_at};
use world::rng::Rng;

/// Readers that begin together.
const READERS: usize = 24;
/// Bursts of them, with a pause after each: around the time after which helpers step back.
const BURSTS: usize = 400;
/// No burst of reads of flash takes that long, on any machine.
const PATIENCE: Duration = Duration::from_secs(30);
const IMAGE_BYTES: u64 = 8 * MIB;

/// The configuration of each way to serve.
const WAYS: [&str; 3] = ["", "io-uring = false\n", "portable-session = true\n"];

fn world(settings: &str) -> Option<World> {
    let mut world = World::new()?;
    let file = world.scratch("session.toml");
    std::fs::write(&file, settings).expect("the configuration");
    let file = file.to_str().expect("UTF-8").to_owned();
    world.flags(&["--config", &file]);
    make_image(&world.store("disk"), 1, IMAGE_BYTES);
    world.start();
    Some(world)
}

/// All readers read at once, and tell when they are through; then the same again.
fn read_in_bursts(file: &Arc<File>, seed: u64, told: &Sender<()>) {
    let barrier = Arc::new(Barrier::new(READERS));
    for reader in 0..READERS as u64 {
        let (file, barrier, told) = (file.clone(), barrier.clone(), told.clone());
        thread::spawn(move || {
            let mut rng = Rng::new(seed + reader);
            for burst in 0..BURSTS as u64 {
                barrier.wait();
                // Every reader in some bursts, one or two in others.
                if reader % (1 + burst % 13) == 0 {
                    let len = 512 * (1 + rng.below(32));
                    let offset = rng.below(IMAGE_BYTES - len);
                    let got = read_at(&file, offset, len as usize).expect("read");
                    assert_same(&got, &pattern(1, offset, len as usize), offset);
                }
                barrier.wait();
                if reader == 0 {
                    told.send(()).expect("the test listens");
                    thread::sleep(Duration::from_micros(rng.below(9000)));
                }
            }
        });
    }
}

#[test]
fn no_request_of_a_burst_is_forgotten() {
    for settings in WAYS {
        let Some(world) = world(settings) else { return };
        world::files::check_pattern(&world.mnt("disk"), 1, IMAGE_BYTES);
        let file = Arc::new(open_read(&world.mnt("disk")));
        let (tell, told) = channel();
        read_in_bursts(&file, 7, &tell);
        drop(tell);
        for burst in 0..BURSTS {
            match told.recv_timeout(PATIENCE) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => panic!("{settings}: burst {burst} hangs"),
                Err(RecvTimeoutError::Disconnected) => panic!("{settings}: a reader failed"),
            }
        }
    }
}

/// A write that has to wait for memory must not keep reads of flash waiting, in any way to serve.
#[test]
fn reads_of_flash_go_on_while_writes_wait_for_memory() {
    for settings in WAYS {
        let settings = format!("{settings}write-buffer = \"16M\"\nsimulate-bandwidth = \"4M\"\n");
        let Some(world) = world(&settings) else {
            return;
        };
        world::files::check_pattern(&world.mnt("disk"), 1, IMAGE_BYTES);
        let reader = open_read(&world.mnt("disk"));
        std::fs::write(world.store("other"), b"").expect("another image");
        let writers: Vec<_> = (0..24)
            .map(|number| {
                let file = open(&world.mnt("other"), true);
                thread::spawn(move || {
                    let data = vec![number as u8; MIB as usize];
                    write_at(&file, number * MIB, &data).expect("written in the end");
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        let mut reads = 0;
        while !writers.iter().all(|writer| writer.is_finished()) {
            let offset = (reads * 4096) % IMAGE_BYTES;
            let got = read_at(&reader, offset, 4096).expect("read");
            assert_same(&got, &pattern(1, offset, 4096), offset);
            reads += 1;
        }
        // 24 MiB at 4 MiB/s take six seconds; a reader that waited with them would get through a few.
        assert!(
            reads > 100,
            "{settings}: only {reads} reads beside the writes"
        );
        for writer in writers {
            writer.join().expect("written");
        }
    }
}
