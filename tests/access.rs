//! Who may do what: the store's own rules hold through the mount, for every caller by uid, gid and
//! groups, also where the store refuses root; and which extended attributes pass.

mod world;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use serde_json::json;

use world::World;
use world::files::{get_xattr, set_xattr};
use world::people::{NOBODY, Person, QEMU};

fn own(path: &Path, uid: u32, gid: u32, mode: u32) {
    chown(path, Some(uid), Some(gid)).expect("chown");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

/// A started world whose store holds `disk`, 0600 and QEMU's.
fn world_with_private_disk() -> Option<World> {
    let mut world = World::new()?;
    fs::write(world.store("disk"), b"private").expect("an image in the store");
    own(&world.store("disk"), QEMU.uid, QEMU.gid, 0o600);
    world.start();
    Some(world)
}

#[test]
fn an_image_opens_only_for_its_owner() {
    let Some(world) = world_with_private_disk() else {
        return;
    };
    let disk = world.mnt("disk").display().to_string();
    assert!(QEMU.can(&format!("cat {disk} && echo changed > {disk}")));
    assert!(!NOBODY.can(&format!("cat {disk}")));
    assert!(!NOBODY.can(&format!("echo x >> {disk}")));
    assert_eq!(fs::read(world.store("disk")).expect("read"), b"changed\n");
}

/// Being cached opens no door: what was just read by its owner stays closed to others.
#[test]
fn a_resident_image_is_refused_as_a_cold_one_is() {
    let Some(world) = world_with_private_disk() else {
        return;
    };
    let disk = world.mnt("disk").display().to_string();
    assert!(QEMU.can(&format!("cat {disk} && cat {disk}")));
    assert!(!NOBODY.can(&format!("cat {disk}")));
    own(&world.store("disk"), 0, 0, 0o600);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert!(!QEMU.can(&format!("cat {disk}")), "not the owner any more");
}

#[test]
fn what_a_user_creates_is_that_users() {
    let Some(mut world) = World::new() else {
        return;
    };
    fs::create_dir(world.store("dir")).expect("mkdir");
    own(&world.store("dir"), QEMU.uid, QEMU.gid, 0o750);
    world.start();
    let dir = world.mnt("dir").display().to_string();
    assert!(QEMU.can(&format!(
        "umask 027 && cd {dir} && echo x > file && mkdir sub && ln -s file link && mv file moved"
    )));
    for name in ["dir/moved", "dir/sub", "dir/link"] {
        let meta = fs::symlink_metadata(world.store(name)).expect("stat");
        assert_eq!((meta.uid(), meta.gid()), (QEMU.uid, QEMU.gid), "{name}");
    }
    let mode = fs::metadata(world.store("dir/moved")).expect("stat").mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(!NOBODY.can(&format!("ls {dir}")));
    assert!(!NOBODY.can(&format!("cat {dir}/moved")));
    assert!(!NOBODY.can(&format!("rm -f {dir}/moved")));
}

#[test]
fn supplementary_groups_count() {
    const MEMBER: Person = Person {
        uid: 3001,
        gid: 3001,
        groups: &[5000, 5001],
    };
    const STRANGER: Person = Person {
        uid: 3002,
        gid: 3002,
        groups: &[5001],
    };
    let Some(mut world) = World::new() else {
        return;
    };
    fs::write(world.store("disk"), b"for the group").expect("an image in the store");
    own(&world.store("disk"), 0, 5000, 0o660);
    world.start();
    let disk = world.mnt("disk").display().to_string();
    assert!(MEMBER.can(&format!("cat {disk} && echo group > {disk}")));
    assert!(!STRANGER.can(&format!("cat {disk}")));
    assert_eq!(fs::read(world.store("disk")).expect("read"), b"group\n");
}

/// The store refuses root, as NFS does with root squash: the QEMU user's files still open for the
/// QEMU user, cold and warm.
fn root_squash(from_the_start: bool) {
    let Some(mut world) = World::new() else {
        return;
    };
    fs::create_dir(world.store("vms")).expect("mkdir");
    world::files::make_image(&world.store("vms/disk"), 1, 1 << 20);
    own(&world.store("vms"), QEMU.uid, QEMU.gid, 0o700);
    own(&world.store("vms/disk"), QEMU.uid, QEMU.gid, 0o600);
    world.faulty_store();
    let squash = json!({"refuse_root": true});
    if from_the_start {
        world.faults().set(squash.clone());
    }
    world.start();
    world.faults().set(squash);
    let disk = world.mnt("vms/disk").display().to_string();
    let copy = world.store("vms/disk").display().to_string();
    for _ in 0..2 {
        let read = QEMU.run(&format!("cat {disk}"));
        let error = String::from_utf8_lossy(&read.stderr).into_owned();
        assert!(read.status.success(), "{error}");
        assert_eq!(read.stdout, fs::read(&copy).expect("the store's file"));
        assert!(QEMU.can(&format!("ls {}", world.mnt("vms").display())));
        assert!(QEMU.can(&format!(
            "printf written | dd of={disk} bs=1 seek=5000 conv=notrunc,fsync 2>&1"
        )));
    }
    let stored = fs::read(&copy).expect("the store's file");
    assert_eq!(&stored[5000..5007], b"written");
    let new = world.mnt("vms/new").display().to_string();
    assert!(QEMU.can(&format!("echo new > {new} && rm {new}")));
    world.unmount();
}

#[test]
fn a_store_that_refuses_root_serves_the_qemu_user() {
    root_squash(false);
}

#[test]
fn a_store_that_refuses_root_from_the_start_serves_the_qemu_user() {
    root_squash(true);
}

#[test]
fn only_root_sets_flashside_attributes() {
    let Some(world) = world_with_private_disk() else {
        return;
    };
    let disk = world.mnt("disk");
    let pinned = QEMU.act(|| set_xattr(&disk, "user.flashside.pin", "1"));
    assert_eq!(pinned, Err(libc::EPERM));
    let read = QEMU.act(|| get_xattr(&disk, "user.flashside.resident"));
    assert!(read.is_ok(), "reading is free: {read:?}");
    assert!(set_xattr(&disk, "user.flashside.resident", "1").is_err());
    let stored = get_xattr(&world.store("disk"), "user.flashside.pin");
    assert_eq!(
        stored,
        Err(libc::ENODATA),
        "nothing of it reached the store"
    );
}

#[test]
fn user_attributes_reach_the_store_and_security_ones_do_not() {
    let Some(world) = world_with_private_disk() else {
        return;
    };
    let (disk, stored) = (world.mnt("disk"), world.store("disk"));
    for name in ["user.backup", "trusted.label"] {
        assert_eq!(set_xattr(&disk, name, "yes"), Ok(()), "{name}");
        assert_eq!(get_xattr(&stored, name), Ok("yes".into()), "{name}");
        assert_eq!(get_xattr(&disk, name), Ok("yes".into()), "{name}");
    }
    for name in ["security.selinux", "security.anything"] {
        assert_eq!(set_xattr(&disk, name, "x"), Err(libc::EOPNOTSUPP), "{name}");
        assert_eq!(get_xattr(&disk, name), Err(libc::EOPNOTSUPP), "{name}");
    }
    assert_eq!(get_xattr(&disk, "user.none"), Err(libc::ENODATA));
}

/// A default ACL on a directory, set through the mount, is inherited by what is created in it.
#[test]
fn default_acls_are_inherited() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start();
    let dir = world.mnt("dir");
    fs::create_dir(&dir).expect("mkdir");
    let acl = acl_with_user(QEMU.uid, 6);
    assert_eq!(set_xattr(&dir, "system.posix_acl_default", &acl), Ok(()));
    let stored = get_xattr(&world.store("dir"), "system.posix_acl_default");
    assert!(stored.is_ok(), "the store has it: {stored:?}");
    File::create(dir.join("disk")).expect("create");
    let inherited = get_xattr(&world.store("dir/disk"), "system.posix_acl_access");
    assert!(inherited.is_ok(), "the new file has it: {inherited:?}");
    let disk = dir.join("disk").display().to_string();
    assert!(QEMU.can(&format!("echo x > {disk} && cat {disk}")));
    assert!(!NOBODY.can(&format!("echo x > {disk}")));
}

/// An ACL as `system.posix_acl_*` holds it: owner rwx, one user more, group and others nothing.
fn acl_with_user(uid: u32, permissions: u16) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let entries = [
        (0x01u16, 7u16, NO_ID),
        (0x02, permissions, uid),
        (0x04, 0, NO_ID),
        (0x10, 7, NO_ID),
        (0x20, 0, NO_ID),
    ];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&permissions.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    acl
}

/// The cache keeps what it holds from everybody but root.
#[test]
fn the_cache_and_the_control_socket_are_roots_alone() {
    let Some(world) = world_with_private_disk() else {
        return;
    };
    fs::read(world.mnt("disk")).expect("read");
    let mode = |path: &Path| fs::metadata(path).expect("stat").mode() & 0o777;
    assert_eq!(mode(&world.cache().join("flashside")), 0o700);
    let socket = get_xattr(&world.mountpoint(), "user.flashside.control").expect("its path");
    assert_eq!(mode(Path::new(&socket)), 0o600);
}
