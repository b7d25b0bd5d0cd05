//! A cache directory that cannot serve is refused in one sentence, with an exit status, and nothing
//! is touched.

mod world;

use std::fs;
use std::path::Path;

use world::loopfs::{LoopFs, Type};
use world::{PATIENCE, World, flashside, is_mounted, within};

/// `flashside mount` of this world's store with another mount point or cache; must refuse in one
/// line that holds `about`.
fn refuses(world: &World, mountpoint: &Path, cache: &Path, about: &str) {
    let mut command = flashside();
    command
        .arg("mount")
        .args([&world.store(""), mountpoint])
        .arg("--cache")
        .arg(cache);
    let output = within(PATIENCE, "flashside", move || command.output()).expect("flashside runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it was accepted");
    assert!(said.starts_with("flashside: "), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
    assert!(said.contains(about), "{about:?} is not in: {said}");
    assert!(!is_mounted(mountpoint));
}

#[test]
fn a_cache_on_a_filesystem_other_than_ext4_and_xfs_is_refused() {
    let Some(world) = World::new() else { return };
    let fs = match LoopFs::make(&world.scratch(""), "tmpfs", Type::Tmpfs, 64) {
        Ok(fs) => fs,
        Err(why) => return println!("skipped: {why}"),
    };
    refuses(&world, &world.mountpoint(), fs.path(), "ext4");
    let left = fs::read_dir(fs.path()).expect("readdir").count();
    assert_eq!(left, 0, "nothing is touched");
}

#[test]
fn two_daemons_on_one_cache_directory_are_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start();
    fs::write(world.mnt("disk"), b"in use").expect("write");
    let second = world.scratch("mnt2");
    fs::create_dir(&second).expect("mkdir");
    refuses(&world, &second, world.cache(), "cache");
    assert_eq!(fs::read(world.mnt("disk")).expect("read"), b"in use");
    world.unmount();
}
