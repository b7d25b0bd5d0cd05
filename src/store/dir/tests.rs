//! The directory store's promises, on a temporary directory.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use super::node::DirNode;
use super::*;
use crate::store::ImageId;

struct Rig {
    dir: tempfile::TempDir,
    store: DirStore,
    who: Caller,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = DirStore::open(dir.path()).expect("open");
        let who = store.tree.process().caller().clone();
        Rig { dir, store, who }
    }

    fn look(&self, parent: &Node, name: &str) -> Result<(Node, Attr)> {
        self.store.lookup(&self.who, parent, OsStr::new(name))
    }

    fn list(&self, node: &Node, cookie: u64, max: usize) -> Vec<DirEntry> {
        let entries = self.store.read_dir(&self.who, node, cookie, max);
        entries.expect("read_dir")
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

fn errno<T>(result: Result<T>) -> i32 {
    result.err().expect("an error").errno()
}

fn place(node: &Node) -> (ImageId, OsString) {
    let node = node.0.clone().downcast::<DirNode>().expect("our node");
    let place = node.place().expect("not the root");
    (place.parent.id().expect("known"), place.name)
}

#[test]
fn no_name_leads_out_of_the_store() {
    let rig = Rig::new();
    let root = rig.store.root();
    for name in ["..", ".", "", "a/b", "/etc", "a\0b"] {
        assert_eq!(errno(rig.look(&root, name)), libc::EINVAL, "{name:?}");
        let made = rig.store.make_dir(&rig.who, &root, OsStr::new(name), 0o700);
        assert_eq!(errno(made), libc::EINVAL, "{name:?}");
    }
    std::os::unix::fs::symlink("/etc", rig.path("way-out")).expect("symlink");
    let (node, attr) = rig.look(&root, "way-out").expect("lookup");
    assert_eq!(attr.kind, Kind::Symlink);
    assert_eq!(errno(rig.look(&node, "passwd")), libc::ENOTDIR);
}

#[test]
fn the_reserved_name_is_hidden_at_the_root_and_only_there() {
    let rig = Rig::new();
    let root = rig.store.root();
    std::fs::create_dir_all(rig.path(".flashside/x")).expect("mkdir");
    std::fs::create_dir_all(rig.path("sub/.flashside")).expect("mkdir");
    assert_eq!(errno(rig.look(&root, RESERVED_NAME)), libc::ENOENT);
    let made = rig
        .store
        .make_dir(&rig.who, &root, OsStr::new(RESERVED_NAME), 0o700);
    assert_eq!(errno(made), libc::EPERM);
    let from = (&root, OsStr::new("sub"));
    let to = (&root, OsStr::new(RESERVED_NAME));
    assert_eq!(errno(rig.store.rename(&rig.who, from, to, 0)), libc::EPERM);
    assert_eq!(rig.list(&root, 0, 10).len(), 1);
    let (sub, _) = rig.look(&root, "sub").expect("lookup");
    assert_eq!(rig.list(&sub, 0, 10).len(), 1);
}

#[test]
fn a_listing_goes_on_from_any_cookie_also_when_entries_vanish() {
    let rig = Rig::new();
    let root = rig.store.root();
    for number in 0..300 {
        std::fs::write(rig.path(&format!("file-{number}")), b"").expect("write");
    }
    let all = rig.list(&root, 0, usize::MAX);
    assert_eq!(all.len(), 300);
    let rest = rig.list(&root, all[99].cookie, 7);
    assert_eq!(rest, all[100..107]);
    std::fs::remove_file(rig.dir.path().join(&all[99].name)).expect("remove");
    assert_eq!(rig.list(&root, all[99].cookie, 1)[0], all[100]);
    assert!(rig.list(&root, all[299].cookie, 10).is_empty());
}

#[test]
fn one_object_is_one_node_and_knows_its_place_after_a_rename() {
    let rig = Rig::new();
    let root = rig.store.root();
    let root_id = rig.store.attr(&rig.who, &root).expect("attr").id;
    std::fs::create_dir(rig.path("dir")).expect("mkdir");
    std::fs::write(rig.path("a"), b"").expect("write");
    std::fs::hard_link(rig.path("a"), rig.path("b")).expect("link");
    let (a, attr) = rig.look(&root, "a").expect("lookup");
    let (b, _) = rig.look(&root, "b").expect("lookup");
    assert!(Arc::ptr_eq(&a.0, &b.0));
    assert_eq!(attr.nlink, 2);
    assert_eq!(place(&a), (root_id, "b".into()));
    let (dir, dir_attr) = rig.look(&root, "dir").expect("lookup");
    let from = (&root, OsStr::new("b"));
    let to = (&dir, OsStr::new("c"));
    rig.store.rename(&rig.who, from, to, 0).expect("rename");
    assert_eq!(place(&a), (dir_attr.id, "c".into()));
}

#[test]
fn a_node_outlives_its_name_and_a_new_file_of_that_name_is_another() {
    let rig = Rig::new();
    let root = rig.store.root();
    let name = OsStr::new("image");
    let mode = OpenMode {
        read: true,
        write: true,
        sync: false,
    };
    let create = || rig.store.create(&rig.who, &root, name, 0o640, mode);
    let (old, attr, file) = create().expect("create");
    assert_eq!(errno(create()), libc::EEXIST);
    file.write_at(b"old", 0).expect("write");
    rig.store.unlink(&rig.who, &root, name).expect("unlink");
    let (_, new_attr, _) = create().expect("create");
    assert_ne!(attr.id, new_attr.id);
    assert_eq!(rig.store.attr(&rig.who, &old).expect("attr").nlink, 0);
    let mut content = [0; 8];
    assert_eq!(file.read_at(&mut content, 1).expect("read"), 2);
    assert_eq!(&content[..2], b"ld");
}

#[test]
fn only_regular_files_are_opened() {
    let rig = Rig::new();
    let root = rig.store.root();
    let fifo = OsStr::new("fifo");
    let mode = libc::S_IFIFO | 0o600;
    let made = rig.store.make_node(&rig.who, &root, fifo, mode, 0);
    let (node, attr) = made.expect("mknod");
    assert_eq!(attr.kind, Kind::Fifo);
    let mode = OpenMode {
        read: true,
        write: false,
        sync: false,
    };
    assert_eq!(errno(rig.store.open(&rig.who, &node, mode)), libc::EINVAL);
}

#[test]
fn operations_have_the_callers_rights_not_the_daemons() {
    use std::os::unix::fs::PermissionsExt;
    let rig = Rig::new();
    if rig.who.uid != 0 {
        println!("skipped: needs root");
        return;
    }
    let allow = |path: &Path, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, permissions).expect("chmod");
    };
    allow(rig.dir.path(), 0o755);
    std::fs::write(rig.path("secret"), b"x").expect("write");
    allow(&rig.path("secret"), 0o600);
    let root = rig.store.root();
    let (secret, _) = rig.look(&root, "secret").expect("lookup");
    let stranger = Caller {
        uid: 65534,
        gid: 65534,
        groups: Arc::new([]),
    };
    let mode = OpenMode {
        read: true,
        write: false,
        sync: false,
    };
    assert!(rig.store.open(&rig.who, &secret, mode).is_ok());
    let opened = rig.store.open(&stranger, &secret, mode);
    assert_eq!(errno(opened), libc::EACCES);
    let made = rig.store.make_dir(&stranger, &root, OsStr::new("d"), 0o700);
    assert_eq!(errno(made), libc::EACCES);
}

#[test]
fn side_files_go_by_the_id_and_are_replaced_whole() {
    let rig = Rig::new();
    let id = ImageId { ino: 7, tag: 9 };
    let other = ImageId { ino: 7, tag: 10 };
    let read = |id| rig.store.read_side(&rig.who, id, "settings.json");
    assert_eq!(errno(read(id)), libc::ENOENT);
    rig.store.remove_sides(&rig.who, id).expect("nothing there");
    for text in [&b"one, and longer"[..], b"two"] {
        let written = rig.store.write_side(&rig.who, id, "settings.json", text);
        written.expect("written");
        assert_eq!(read(id).expect("read"), text);
    }
    assert_eq!(errno(read(other)), libc::ENOENT);
    let dir = rig.path(".flashside").join(id.to_string());
    let left: Vec<_> = std::fs::read_dir(&dir).expect("its directory").collect();
    assert_eq!(left.len(), 1, "{left:?}");
    rig.store.remove_sides(&rig.who, id).expect("removed");
    assert!(!dir.exists());
    assert_eq!(errno(read(id)), libc::ENOENT);
}

#[test]
fn side_files_are_not_looked_for_through_links() {
    let rig = Rig::new();
    let id = ImageId { ino: 7, tag: 9 };
    let elsewhere = tempfile::tempdir().expect("tempdir");
    std::os::unix::fs::symlink(elsewhere.path(), rig.path(".flashside")).expect("symlink");
    let written = rig.store.write_side(&rig.who, id, "settings.json", b"x");
    assert!(written.is_err());
    assert_eq!(
        std::fs::read_dir(elsewhere.path()).expect("list").count(),
        0
    );
}
