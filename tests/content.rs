//! What an image holds, against a model: random operations through the mount and on a plain
//! `Vec<u8>`, compared after each read, and in the end with the store's own file byte for byte.
//! Clean remounts and kill -9 come in between: write-through acknowledges nothing that the store
//! does not have, so neither may change a byte.

mod world;

use std::fs::File;
use std::time::Duration;

use world::World;
use world::files::{MIB, PAGE, age, assert_same, fallocate, open, open_read, read_at, write_at};
use world::rng::Rng;

/// The model's file is this long at most.
const SIZE_MAX: u64 = 26 * MIB;
/// The longest single read or write.
const LEN_MAX: u64 = 300 << 10;
/// Descriptors open at once; every other one is O_DIRECT.
const HANDLES: usize = 4;

/// The image under test next to what it should hold.
struct Model {
    world: World,
    bytes: Vec<u8>,
    handles: Vec<File>,
    rng: Rng,
}

impl Model {
    fn new(world: World, mut rng: Rng, len: u64) -> Model {
        let bytes = rng.bytes(len as usize);
        std::fs::write(world.store("disk"), &bytes).expect("the image in the store");
        let mut model = Model {
            world,
            bytes,
            handles: Vec::new(),
            rng,
        };
        model.world.start();
        model.reopen();
        model
    }

    fn reopen(&mut self) {
        self.handles.clear();
        let path = self.world.mnt("disk");
        let handles = (0..HANDLES).map(|n| open(&path, n % 2 == 1));
        self.handles = handles.collect();
    }

    fn run(&mut self, steps: usize) {
        for step in 0..steps {
            match self.rng.below(100) {
                0..40 => self.read(),
                40..80 => self.write(),
                80..83 => self.truncate(),
                83..88 => self.discard(libc::FALLOC_FL_PUNCH_HOLE),
                88..92 => self.discard(libc::FALLOC_FL_ZERO_RANGE),
                92..97 => self.pick().0.sync_data().expect("fdatasync"),
                97 => self.reopen(),
                _ => self.write_at_end(),
            }
            if step % 200 == 199 {
                self.restart(step / 200);
            }
            if step % 300 == 299 {
                self.compare();
            }
        }
        self.compare();
    }

    /// A handle and whether it is O_DIRECT.
    fn pick(&mut self) -> (&File, bool) {
        let n = self.rng.below(HANDLES as u64) as usize;
        (&self.handles[n], n % 2 == 1)
    }

    /// A random range inside `end`, aligned for O_DIRECT if asked; half of them are small.
    fn range(&mut self, end: u64, direct: bool) -> (u64, u64) {
        let most = if self.rng.one_in(2) { 8 << 10 } else { LEN_MAX };
        let (offset, len) = (self.rng.below(end), self.rng.below(most + 1));
        match direct {
            true => (offset & !511, (len + 511) & !511),
            false => (offset, len),
        }
    }

    fn read(&mut self) {
        let direct = self.pick().1;
        let (offset, len) = self.range(self.bytes.len() as u64 + PAGE, direct);
        let n = if direct { 1 } else { 0 };
        let got = read_at(&self.handles[n], offset, len as usize).expect("read");
        let end = self.bytes.len().min((offset + len) as usize);
        let start = end.min(offset as usize);
        assert_same(&got, &self.bytes[start..end], offset);
    }

    fn write(&mut self) {
        let n = self.rng.below(HANDLES as u64) as usize;
        let (offset, len) = self.range(SIZE_MAX - LEN_MAX, n % 2 == 1);
        self.write_bytes(n, offset, len);
    }

    fn write_at_end(&mut self) {
        let end = (self.bytes.len() as u64).min(SIZE_MAX - LEN_MAX);
        let len = self.rng.below(PAGE * 3);
        self.write_bytes(0, end, len);
    }

    fn write_bytes(&mut self, handle: usize, offset: u64, len: u64) {
        let data = self.rng.bytes(len as usize);
        write_at(&self.handles[handle], offset, &data).expect("write");
        let (start, end) = (offset as usize, (offset + len) as usize);
        if len > 0 && end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        if len > 0 {
            self.bytes[start..end].copy_from_slice(&data);
        }
    }

    fn truncate(&mut self) {
        let size = match self.rng.below(3) {
            0 if self.rng.one_in(8) => self.rng.below(SIZE_MAX),
            0 | 1 => (self.bytes.len() as u64).saturating_sub(self.rng.below(MIB)),
            _ => (self.bytes.len() as u64 + self.rng.below(MIB)).min(SIZE_MAX),
        };
        self.pick().0.set_len(size).expect("ftruncate");
        self.bytes.resize(size as usize, 0);
    }

    fn discard(&mut self, mode: i32) {
        let (offset, len) = self.range(self.bytes.len() as u64, false);
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        let file = self.pick().0;
        fallocate(file, mode, offset, len.max(1)).expect("fallocate");
        let end = ((offset + len.max(1)) as usize).min(self.bytes.len());
        let start = end.min(offset as usize);
        self.bytes[start..end].fill(0);
    }

    /// In turns: clean and killed, at once and after the file is old enough to be trusted.
    fn restart(&mut self, turn: usize) {
        if turn % 4 < 2 {
            self.handles[0].sync_all().expect("fsync");
            age(&[&self.world.store("disk")]);
            self.read();
        }
        self.handles.clear();
        match turn % 2 {
            0 => self.world.kill9(),
            _ => self.world.unmount(),
        }
        self.world.start();
        self.reopen();
    }

    /// The mount and the store's own file against the model.
    fn compare(&mut self) {
        let want = &self.bytes;
        let size = std::fs::metadata(self.world.mnt("disk"))
            .expect("stat")
            .len();
        assert_eq!(size, want.len() as u64, "size through the mount");
        let got = read_at(&self.handles[0], 0, want.len() + 1).expect("read");
        assert_same(&got, want, 0);
        let stored = std::fs::read(self.world.store("disk")).expect("the store's file");
        assert_same(&stored, want, 0);
    }
}

fn model(limit: &str, len: u64, flags: &[&str], seed: u64, steps: usize) {
    let Some(mut world) = World::new() else {
        return;
    };
    world.limit(limit).flags(flags);
    Model::new(world, Rng::announced(seed), len).run(steps);
}

#[test]
fn an_image_holds_what_was_written_with_a_roomy_cache() {
    model("1G", 3 * MIB + 1234, &[], 1, 1200);
}

#[test]
fn an_image_holds_what_was_written_with_a_tiny_cache() {
    model("16M", 26 * MIB, &[], 2, 1200);
}

#[test]
fn an_image_holds_what_was_written_over_a_slow_store() {
    model(
        "16M",
        3 * MIB + 1234,
        &["--simulate-latency", "1ms"],
        3,
        500,
    );
}

/// Two handles write the two halves of one page at the same time: both halves must survive, in the
/// mount and in the store. Cold pages first, then the same ones when they are resident.
#[test]
fn two_small_writes_into_one_page_both_survive() {
    const PAGES: u64 = 500;
    let Some(mut world) = World::new() else {
        return;
    };
    world::files::make_image(&world.store("disk"), 7, PAGES * PAGE);
    world.start();
    let path = world.mnt("disk");
    let reader = open_read(&path);
    let barrier = std::sync::Barrier::new(2);
    for round in 1..=2u8 {
        std::thread::scope(|scope| {
            for side in 0..2u64 {
                let (path, barrier) = (&path, &barrier);
                scope.spawn(move || {
                    let file = open(path, side == 1);
                    for page in 0..PAGES {
                        let data = [round * 16 + side as u8 + 1; 512];
                        barrier.wait();
                        write_at(&file, page * PAGE + side * 512, &data).expect("write");
                    }
                });
            }
        });
        let stored = open_read(&world.store("disk"));
        for page in 0..PAGES {
            let mut want = world::files::pattern(7, page * PAGE, PAGE as usize);
            want[..512].fill(round * 16 + 1);
            want[512..1024].fill(round * 16 + 2);
            for file in [&reader, &stored] {
                let got = read_at(file, page * PAGE, PAGE as usize).expect("read");
                assert_same(&got, &want, page * PAGE);
            }
        }
    }
}

/// A slow fetch is under way when a write to the same block comes and goes: what the fetch read before
/// must not replace it. The write is smaller than a page, so that only the fetch could fill the page.
#[test]
fn a_fill_never_replaces_a_newer_write() {
    const BLOCKS: u64 = 96;
    let Some(mut world) = World::new() else {
        return;
    };
    let len = BLOCKS * world::files::BLOCK;
    world::files::make_image(&world.store("disk"), 8, len);
    // A block is 16 ms on its way from the store, a small write is there at once.
    world.flags(&["--simulate-latency", "1ms", "--simulate-bandwidth", "4M"]);
    world.start();
    let path = world.mnt("disk");
    let mut rng = Rng::announced(4);
    for block in 0..BLOCKS {
        let at = block * world::files::BLOCK + rng.below(16) * PAGE + 100;
        let new = rng.bytes(700);
        let wait = Duration::from_millis(rng.below(20));
        std::thread::scope(|scope| {
            let path = &path;
            scope.spawn(move || read_at(&open_read(path), at, 700).expect("read"));
            let new = &new;
            scope.spawn(move || {
                let file = open(path, false);
                std::thread::sleep(wait);
                write_at(&file, at, new).expect("write");
            });
        });
        let got = read_at(&open_read(&path), at, new.len()).expect("read");
        assert_same(&got, &new, at);
    }
    world.remount();
    let got = std::fs::read(&path).expect("read");
    let stored = std::fs::read(world.store("disk")).expect("the store's file");
    assert_same(&got, &stored, 0);
}

/// Many threads write and read their own pages of shared blocks while a tiny cache evicts them.
#[test]
fn concurrent_writers_of_one_block_keep_their_own_bytes() {
    const WRITERS: u64 = 8;
    let Some(mut world) = World::new() else {
        return;
    };
    world::files::make_image(&world.store("disk"), 9, 32 * MIB);
    world.limit("16M").start();
    let path = world.mnt("disk");
    let seed = Rng::announced(5).next();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let path = &path;
            scope.spawn(move || write_and_check(path, writer, WRITERS, seed));
        }
    });
    let got = std::fs::read(&path).expect("read");
    let stored = std::fs::read(world.store("disk")).expect("the store's file");
    assert_same(&got, &stored, 0);
}

/// Sectors whose number is `writer` modulo `writers` are written and read back by this writer only.
fn write_and_check(path: &std::path::Path, writer: u64, writers: u64, seed: u64) {
    let file = open(path, writer < writers / 2);
    let mut rng = Rng::new(seed ^ writer);
    for _ in 0..400 {
        let sector = rng.below(32 * MIB / 512 / writers) * writers + writer;
        let data = rng.bytes(512);
        write_at(&file, sector * 512, &data).expect("write");
        let got = read_at(&file, sector * 512, 512).expect("read");
        assert_same(&got, &data, sector * 512);
    }
}

/// A shared mapping of the image: what was stored through it and msynced is read by others and is
/// in the store.
#[test]
fn a_shared_mapping_reaches_readers_and_the_store() {
    let Some(mut world) = World::new() else {
        return;
    };
    world::files::make_image(&world.store("disk"), 10, MIB);
    world.start();
    let file = open(&world.mnt("disk"), false);
    let map = Mapping::new(&file, MIB as usize);
    let before = map.read(300_000, 100);
    assert_same(&before, &world::files::pattern(10, 300_000, 100), 300_000);
    map.write(300_000, b"written through a mapping");
    map.sync();
    for path in [world.mnt("disk"), world.store("disk")] {
        let got = read_at(&open_read(&path), 300_000, 25).expect("read");
        assert_eq!(got, b"written through a mapping", "{}", path.display());
    }
}

/// A MAP_SHARED mapping of a file.
struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(file: &File, len: usize) -> Mapping {
        use std::os::fd::AsRawFd;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_raw_fd();
        let nowhere = std::ptr::null_mut();
        // SAFETY: a fresh mapping of an open file, placed by the kernel.
        let start = unsafe { libc::mmap(nowhere, len, protection, libc::MAP_SHARED, fd, 0) };
        let error = std::io::Error::last_os_error();
        assert_ne!(start, libc::MAP_FAILED, "mmap: {error}");
        Mapping {
            start: start.cast(),
            len,
        }
    }

    fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        // SAFETY: inside the mapping, and nobody else writes it now.
        unsafe { std::slice::from_raw_parts(self.start.add(at), len).to_vec() }
    }

    fn write(&self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.len);
        // SAFETY: inside the mapping; the source is a slice of ours.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.start.add(at), data.len()) };
    }

    fn sync(&self) {
        // SAFETY: exactly the mapping.
        let result = unsafe { libc::msync(self.start.cast(), self.len, libc::MS_SYNC) };
        assert_eq!(result, 0, "msync: {}", std::io::Error::last_os_error());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping, not used afterwards.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}
