//! The eviction algorithm, driven without a cache: what it remembers costs at most 8 bytes per block,
//! whatever happens, and its decisions are those of the paper.
//!
//! This program counts every byte it allocates, so tables that double show up as they do so.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};

use flashside::module::s3fifo::S3Fifo;
use flashside::module::{Heat, Key, Module};

thread_local! {
    /// Bytes this thread has allocated, and the most since it was last asked.
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

fn count(bytes: isize) {
    let now = NOW.get() + bytes;
    NOW.set(now);
    MOST.set(MOST.get().max(now));
}

// SAFETY: all work is done by the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, bytes: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(bytes, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Blocks of the images in these tests: 16 GiB.
const IMAGE_BLOCKS: u64 = 1 << 18;
/// What the algorithm may cost besides its bytes per block.
const CONSTANT_BYTES: usize = 32 << 10;

/// A cache without bytes: the heat of each block of a few images, allocated beforehand.
struct Blocks(RefCell<Vec<Option<u8>>>);

impl Blocks {
    fn new(images: u64) -> Blocks {
        Blocks(RefCell::new(vec![None; (images * IMAGE_BLOCKS) as usize]))
    }
    fn at(key: Key) -> usize {
        ((key.0 >> 40) * IMAGE_BLOCKS + key.0 % (1 << 40)) as usize
    }
    fn key(number: u64) -> Key {
        Key(((number / IMAGE_BLOCKS) << 40) | (number % IMAGE_BLOCKS))
    }
}

impl Heat for Blocks {
    fn heat(&self, key: Key) -> Option<u8> {
        self.0.borrow()[Blocks::at(key)]
    }
    fn set_heat(&self, key: Key, heat: u8) {
        self.0.borrow_mut()[Blocks::at(key)] = Some(heat);
    }
}

struct Cache {
    blocks: Blocks,
    /// The most bytes per block seen, the constant left out.
    most: Cell<f64>,
    module: S3Fifo,
    /// Bytes allocated before the module was there.
    others: isize,
}

impl Cache {
    fn new(images: u64) -> Cache {
        let blocks = Blocks::new(images);
        let others = NOW.get();
        Cache {
            blocks,
            most: Cell::new(0.0),
            module: S3Fifo::default(),
            others,
        }
    }

    fn insert(&mut self, number: u64, uses: u8) {
        let key = Blocks::key(number);
        self.blocks.set_heat(key, uses);
        self.module.inserted(key);
        self.check();
    }

    fn evict(&mut self) {
        let victim = self.module.victim(&self.blocks).expect("a victim");
        self.blocks.0.borrow_mut()[Blocks::at(victim)] = None;
        self.check();
    }

    fn check(&self) {
        let bytes = usize::try_from(MOST.get() - self.others).expect("it has allocated something");
        MOST.set(NOW.get());
        let blocks = self.module.len();
        let beyond = bytes.saturating_sub(CONSTANT_BYTES) as f64;
        self.most.set(self.most.get().max(beyond / blocks as f64));
        assert!(
            bytes <= 8 * blocks + CONSTANT_BYTES,
            "{bytes} bytes for {blocks} blocks"
        );
    }
}

#[test]
fn the_policy_costs_at_most_8_bytes_per_block_at_any_number_of_blocks() {
    let mut cache = Cache::new(4);
    // Filled, never full: step by step.
    let full = IMAGE_BLOCKS;
    (0..full).for_each(|number| cache.insert(number, (number % 4) as u8));
    // Full: twice as many more come and go, every third a used one.
    for number in full..3 * full {
        cache.evict();
        cache.insert(number, if number % 3 == 0 { 3 } else { 0 });
    }
    let bytes = (NOW.get() - cache.others) as f64 / cache.module.len() as f64;
    println!("{bytes:.2} bytes per block when full");
    // The blocks become fewer (they hold more pages each), while others come and go, then many again.
    for number in 0..full {
        cache.evict();
        if number % 2 == 0 {
            cache.evict();
            cache.insert(3 * full + number, 0);
        }
        if cache.module.len() < 1000 {
            break;
        }
    }
    for number in (0..full).filter(|number| number % 5 != 0) {
        cache.insert(number, 1);
        if number % 7 == 0 {
            cache.evict();
        }
    }
    println!("{:.2} at most", cache.most.get());
}

#[test]
fn a_sweep_forgets_what_is_gone_and_keeps_the_order_of_the_rest() {
    let mut cache = Cache::new(2);
    let keys = |image: u64| (0..5000u64).map(move |n| image * IMAGE_BLOCKS + n);
    for (gone, stays) in keys(0).zip(keys(1)) {
        cache.insert(gone, 0);
        cache.insert(stays, 0);
    }
    for number in keys(0) {
        cache.blocks.0.borrow_mut()[number as usize] = None;
    }
    cache.module.sweep(&cache.blocks);
    cache.check();
    assert_eq!(cache.module.len(), 5000);
    for number in keys(1) {
        let victim = cache.module.victim(&cache.blocks);
        assert_eq!(victim, Some(Blocks::key(number)));
    }
}

/// The paper's algorithm, as one would write it down, with memory to spare.
struct Paper {
    heat: HashMap<u64, u8>,
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    ghost: VecDeque<u64>,
    ghosts: HashSet<u64>,
    capacity: usize,
}

impl Paper {
    fn new(capacity: usize) -> Paper {
        Paper {
            heat: HashMap::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: VecDeque::new(),
            ghosts: HashSet::new(),
            capacity,
        }
    }

    /// True on a hit.
    fn access(&mut self, block: u64) -> bool {
        if let Some(heat) = self.heat.get_mut(&block) {
            *heat = (*heat + 1).min(3);
            return true;
        }
        while self.heat.len() >= self.capacity {
            self.step();
        }
        self.heat.insert(block, 0);
        match self.ghosts.remove(&block) {
            true => self.main.push_back(block),
            false => self.small.push_back(block),
        }
        false
    }

    /// One block moves on or leaves.
    fn step(&mut self) {
        if self.small.len() * 10 >= self.capacity || self.main.is_empty() {
            let block = self.small.pop_front().expect("a small block");
            if self.heat[&block] >= 2 {
                self.heat.insert(block, 0);
                return self.main.push_back(block);
            }
            self.heat.remove(&block);
            self.remember(block);
            return;
        }
        let block = self.main.pop_front().expect("a main block");
        match self.heat[&block] {
            0 => _ = self.heat.remove(&block),
            uses => {
                self.heat.insert(block, uses - 1);
                self.main.push_back(block);
            }
        }
    }

    fn remember(&mut self, block: u64) {
        self.ghost.push_back(block);
        self.ghosts.insert(block);
        if self.ghost.len() > self.capacity * 9 / 10 {
            let oldest = self.ghost.pop_front().expect("a memory");
            self.ghosts.remove(&oldest);
        }
    }
}

/// Four guests' worth of blocks: some much used, most seldom, a scan now and then, the favourites
/// moving on. The same on every run.
fn trace() -> Vec<u64> {
    const ACCESSES: u64 = 400_000;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut accesses = Vec::new();
    let mut scanned = 0;
    while (accesses.len() as u64) < ACCESSES {
        let moved = accesses.len() as u64 / 100_000 * 1500;
        if random() < 0.0005 {
            accesses.extend((scanned..scanned + 400).map(|n| (1 << 30) | (n % 30_000)));
            scanned += 400;
        }
        // Log-uniform ranks: about what Zipf's law with exponent 1 gives.
        accesses.push(moved + (40_000_f64.powf(random()) as u64));
    }
    accesses
}

#[test]
fn it_misses_no_more_than_the_papers_algorithm() {
    let trace = trace();
    for capacity in [200, 1000, 5000] {
        let mut paper = Paper::new(capacity);
        let expected = trace.iter().filter(|block| !paper.access(**block)).count();
        let missed = misses(&trace, capacity);
        println!("{capacity} blocks: {missed} misses, the paper's {expected}");
        assert!(
            missed as f64 <= expected as f64 * 1.004,
            "{missed} misses instead of {expected} with {capacity} blocks"
        );
    }
}

fn misses(trace: &[u64], capacity: usize) -> usize {
    struct Resident(RefCell<HashMap<Key, u8>>);
    impl Heat for Resident {
        fn heat(&self, key: Key) -> Option<u8> {
            self.0.borrow().get(&key).copied()
        }
        fn set_heat(&self, key: Key, heat: u8) {
            self.0.borrow_mut().insert(key, heat);
        }
    }
    let resident = Resident(RefCell::default());
    let mut module = S3Fifo::default();
    let mut missed = 0;
    for key in trace.iter().copied().map(Key) {
        if let Some(heat) = resident.heat(key) {
            resident.set_heat(key, (heat + 1).min(3));
            continue;
        }
        missed += 1;
        if module.len() == capacity {
            let victim = module.victim(&resident).expect("a victim");
            resident.0.borrow_mut().remove(&victim);
        }
        resident.set_heat(key, 0);
        module.inserted(key);
    }
    missed
}
