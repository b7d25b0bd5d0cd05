//! Bad input is refused in one sentence, with an exit status, and nothing is touched.

mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use world::loopfs::{LoopFs, Type};
use world::{PATIENCE, World, flashside, is_mounted, within};

/// `flashside mount` with these words; must refuse in one line that holds `about`.
fn refuses(world: &World, args: &[&Path], about: &str) {
    let before = tree(&world.scratch(""));
    let mut command = flashside();
    command.arg("mount").args(args);
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} was accepted");
    assert!(said.starts_with("flashside: "), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
    assert!(said.contains(about), "{about:?} is not in: {said}");
    assert_eq!(tree(&world.scratch("")), before, "nothing is touched");
}

fn run(mut command: Command) -> Output {
    let output = within(PATIENCE, "flashside", move || command.output());
    output.expect("flashside runs")
}

/// Every path under `dir`.
fn tree(dir: &Path) -> BTreeSet<PathBuf> {
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            paths.extend(tree(&entry.path()));
        }
        paths.insert(entry.path());
    }
    paths
}

/// The words of a good command line.
struct Words {
    store: PathBuf,
    mnt: PathBuf,
    cache: PathBuf,
}

impl Words {
    fn new(world: &World) -> Words {
        Words {
            store: world.store(""),
            mnt: world.mountpoint(),
            cache: world.cache().to_owned(),
        }
    }

    fn with<'a>(&'a self, more: &[&'a str]) -> Vec<&'a Path> {
        let mut args = vec![
            self.store.as_path(),
            self.mnt.as_path(),
            Path::new("--cache"),
            self.cache.as_path(),
        ];
        args.extend(more.iter().map(|word| Path::new(*word)));
        args
    }
}

fn with_limit(path: &Path, limit: &str) -> PathBuf {
    PathBuf::from(format!("{}@{limit}", path.display()))
}

#[test]
fn a_store_that_is_not_there_is_refused() {
    let Some(world) = World::new() else { return };
    let mut words = Words::new(&world);
    words.store = world.scratch("missing");
    refuses(&world, &words.with(&[]), "missing");
    fs::write(world.scratch("file"), b"").expect("a file");
    words.store = world.scratch("file");
    refuses(&world, &words.with(&[]), "file");
}

#[test]
fn a_bad_mount_point_is_refused() {
    let Some(world) = World::new() else { return };
    let mut words = Words::new(&world);
    words.mnt = world.scratch("missing");
    refuses(&world, &words.with(&[]), "missing");
    words.mnt = world.scratch("full");
    fs::create_dir(&words.mnt).expect("mkdir");
    fs::write(words.mnt.join("something"), b"").expect("a file");
    refuses(&world, &words.with(&[]), "full");
}

#[test]
fn a_mount_point_in_use_is_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start();
    let mut words = Words::new(&world);
    words.cache = world.scratch("cache2");
    fs::create_dir(&words.cache).expect("mkdir");
    refuses(&world, &words.with(&[]), "mnt");
    world.unmount();
}

#[test]
fn a_bad_cache_directory_is_refused() {
    let Some(world) = World::new() else { return };
    let mut words = Words::new(&world);
    words.cache = world.scratch("missing");
    refuses(&world, &words.with(&[]), "missing");
    words.cache = world.store("cache");
    fs::create_dir(&words.cache).expect("mkdir");
    refuses(&world, &words.with(&[]), "store");
    words.cache = world.mnt("cache");
    refuses(&world, &words.with(&[]), "mnt");
}

#[test]
fn a_cache_on_a_filesystem_other_than_ext4_and_xfs_is_refused() {
    let Some(world) = World::new() else { return };
    let fs = match LoopFs::make(&world.scratch(""), "tmpfs", Type::Tmpfs, 16) {
        Ok(fs) => fs,
        Err(why) => return println!("skipped: {why}"),
    };
    let mut words = Words::new(&world);
    words.cache = fs.path().to_owned();
    refuses(&world, &words.with(&[]), "ext4");
}

#[test]
fn two_daemons_on_one_cache_directory_are_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start();
    fs::write(world.mnt("disk"), b"in use").expect("write");
    let mut words = Words::new(&world);
    words.mnt = world.scratch("mnt2");
    fs::create_dir(&words.mnt).expect("mkdir");
    refuses(&world, &words.with(&[]), "cache");
    assert!(!is_mounted(&words.mnt));
    assert_eq!(fs::read(world.mnt("disk")).expect("read"), b"in use");
    world.unmount();
}

#[test]
fn a_limit_larger_than_the_device_or_unreadable_is_refused() {
    let Some(world) = World::new() else { return };
    let mut words = Words::new(&world);
    let dir = world.cache().to_owned();
    for limit in ["900T", "0", "lots", "-5G", "120%"] {
        words.cache = with_limit(&dir, limit);
        refuses(&world, &words.with(&[]), limit);
    }
}

#[test]
fn a_misspelt_configuration_is_refused() {
    let Some(world) = World::new() else { return };
    let words = Words::new(&world);
    let file = world.scratch("bad.toml");
    let path = file.display().to_string();
    refuses(&world, &words.with(&["--config", &path]), "bad.toml");
    for text in [
        "this is not toml [",
        "stor-deadline = \"5s\"\n",
        "[nonsense]\nx = 1\n",
    ] {
        fs::write(&file, text).expect("a configuration");
        refuses(&world, &words.with(&["--config", &path]), "bad.toml");
    }
}

#[test]
fn misspelt_words_are_refused() {
    let Some(world) = World::new() else { return };
    let words = Words::new(&world);
    for bad in [
        ["--store-deadline", "soon"],
        ["--simulate-latency", "2 parsecs"],
    ] {
        let mut command = flashside();
        command.arg("mount").args(words.with(&bad));
        let output = run(command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{bad:?} was accepted");
        assert!(said.contains(bad[1]), "{said}");
    }
    assert!(!is_mounted(&world.mountpoint()));
}
