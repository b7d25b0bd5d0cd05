//! The log of a mount in trouble: lines that name the image and can be acted on, and few of them.

mod world;

use std::sync::Arc;
use std::thread;

use serde_json::json;

use world::files::{MIB, PAGE, age, make_image, open, read_at, write_at};
use world::{PATIENCE, World, wait_until};

/// Reads that fail.
const MANY: u64 = 1000;
const READERS: u64 = 8;

/// A started world with the image `cold` on a store that can fail.
fn cold(flags: &[&str]) -> Option<World> {
    let mut world = World::new()?;
    make_image(&world.store("cold"), 1, 8 * MIB);
    age(&[&world.store("cold")]);
    world.faulty_store().flags(flags).start();
    Some(world)
}

fn lines(world: &World, words: &str) -> Vec<String> {
    let said = world.daemon().said();
    let mine = said.lines().filter(|line| line.contains(words));
    mine.map(str::to_owned).collect()
}

/// How many events a line stands for.
fn events(line: &str) -> u64 {
    let Some((before, _)) = line.split_once(" like this in ") else {
        return 1;
    };
    let count = before.rsplit(' ').next().expect("a word");
    count.parse().expect("a count")
}

#[test]
fn a_thousand_failed_reads_are_few_lines_that_say_how_many_were_left_out() {
    let Some(mut world) = cold(&[]) else {
        return;
    };
    let file = Arc::new(open(&world.mnt("cold"), true));
    world.faults().set(json!({"eio_reads": true}));
    let readers = (0..READERS).map(|reader| {
        let file = file.clone();
        thread::spawn(move || {
            for number in (reader..MANY).step_by(READERS as usize) {
                read_at(&file, number * PAGE, PAGE as usize).expect_err("the store fails");
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.join().expect("every read fails");
    }
    let words = "image cold: a read failed: Input/output error";
    wait_until(PATIENCE * 2, "all are accounted for", || {
        lines(&world, words)
            .iter()
            .map(|line| events(line))
            .sum::<u64>()
            >= MANY
    });
    let about = lines(&world, words);
    assert_eq!(
        about.iter().map(|line| events(line)).sum::<u64>(),
        MANY,
        "{about:#?}"
    );
    assert!(about.len() <= 4, "{about:#?}");
    assert_eq!(
        events(&about[0]),
        1,
        "the first is said at once: {about:#?}"
    );
    let said = world.daemon().said();
    assert!(said.contains("the store answers with errors: "), "{said}");
    assert!(said.lines().count() <= 12, "{said}");
    world.faults().heal();
    wait_until(PATIENCE, "it works again", || {
        read_at(&file, 0, 4096).is_ok()
    });
    wait_until(PATIENCE, "the line", || {
        !lines(&world, "the store answers without errors again").is_empty()
    });
}

#[test]
fn writes_flushes_and_deadlines_name_the_image() {
    let Some(mut world) = cold(&["--store-deadline", "1s"]) else {
        return;
    };
    let file = Arc::new(open(&world.mnt("cold"), true));
    write_at(&file, 0, &[1; 4096]).expect("a write");
    world.faults().set(json!({"eio_all": true}));
    write_at(&file, MIB, &[1; 4096]).expect_err("the store fails");
    file.sync_data().expect_err("the store fails");
    world.faults().heal();
    world.faults().stop();
    let hanging = file.clone();
    let read = thread::spawn(move || read_at(&hanging, 4 * MIB, 4096));
    read.join().expect("it ends").expect_err("the store hangs");
    let told = |words: &str| {
        wait_until(PATIENCE, words, || lines(&world, words).len() == 1);
    };
    told("image cold: a write failed: Input/output error");
    told("image cold: a fsync failed: Input/output error");
    told("image cold: a read failed: the store did not answer within 1 s");
    told("the store does not answer: cached data is served");
    world.faulty.as_ref().expect("it is there").go_on();
    told("the store answers again");
}
