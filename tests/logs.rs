//! The log of a mount in trouble: lines that name the image and can be acted on, and few of them.

mod world;

use std::fs;
use std::path::{Path, PathBuf};
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

/// Lines are found by their fixed words: monitoring and people search for them.
#[test]
fn the_documented_lines_are_in_the_code() {
    let code: String = sources().iter().map(|file| as_documented(file)).collect();
    let manual = fs::read_to_string(repository().join("docs/OPERATIONS.md")).expect("the manual");
    let (_, section) = manual.split_once("## Logs").expect("a section on the log");
    let section = section.split("\n## ").next().expect("it ends");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let lines: Vec<&str> = rows
        .filter_map(|row| Some(row.split_once('`')?.0))
        .collect();
    assert!(lines.len() >= 10, "{lines:?}");
    for line in lines {
        assert!(
            code.contains(line),
            "`{line}` is documented and nowhere in the code"
        );
    }
}

/// A source file with what differs in its texts as `…`, and texts over several lines in one.
fn as_documented(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("a source file");
    let mut whole = String::new();
    for line in text.lines() {
        let continues = whole.ends_with('\\');
        if continues {
            whole.pop();
        }
        whole.push_str(if continues { line.trim_start() } else { line });
    }
    let mut out = String::new();
    let mut rest = whole.as_str();
    while let Some(begin) = rest.find('{') {
        let inside = &rest[begin + 1..];
        let end = inside
            .find(['{', '}', ' '])
            .filter(|end| inside[*end..].starts_with('}'));
        out.push_str(&rest[..begin]);
        out.push('…');
        rest = end.map_or(inside, |end| &inside[end + 1..]);
    }
    out + rest
}

fn sources() -> Vec<PathBuf> {
    let (mut files, mut dirs) = (Vec::new(), vec![repository().join("src")]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a source directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => dirs.push(path),
                false => files.push(path),
            }
        }
    }
    files
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
