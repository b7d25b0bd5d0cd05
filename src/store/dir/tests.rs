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

/// As another process would: a store opened anew, and what a node of the first is to it.
fn carried(rig: &Rig, name: &str, with_token: bool) -> (DirStore, Node, ImageId) {
    let root = rig.store.root();
    let (node, attr) = rig.look(&root, name).expect("lookup");
    let next = DirStore::open(rig.dir.path()).expect("open");
    let token = rig.store.token(&node).filter(|_| with_token);
    let token = token.as_deref().unwrap_or_default();
    let root = next.root();
    let place = Some((&root, OsStr::new(name)));
    let carried = next.node_of(attr.id, attr.kind, token, place);
    (next, carried.expect("a node"), attr.id)
}

/// Whether open_by_handle_at(2) can be used here.
fn has_handles(rig: &Rig) -> bool {
    std::fs::write(rig.path("probe"), b"").expect("write");
    let (node, _) = rig.look(&rig.store.root(), "probe").expect("lookup");
    let anchor = std::fs::File::open(rig.dir.path()).expect("open");
    let opened = (rig.store.token(&node))
        .map(|token| crate::store::identity::open_handle(anchor.as_fd(), &token));
    let works = matches!(opened, Some(Ok(_)));
    if !works {
        println!("skipped: no file handles here");
    }
    works
}

#[test]
fn an_object_is_found_by_its_token_wherever_it_was_renamed_to() {
    let rig = Rig::new();
    if !has_handles(&rig) {
        return;
    }
    std::fs::create_dir(rig.path("dir")).expect("mkdir");
    std::fs::write(rig.path("dir/image"), b"four").expect("write");
    let (next, dir, dir_id) = carried(&rig, "dir", true);
    std::fs::rename(rig.path("dir"), rig.path("elsewhere")).expect("rename");
    let (image, attr) = (next.lookup(&rig.who, &dir, OsStr::new("image"))).expect("lookup");
    assert_eq!(attr.size_bytes, 4);
    assert_eq!(next.attr(&rig.who, &dir).expect("attr").id, dir_id);
    assert_eq!(next.attr(&rig.who, &image).expect("attr").size_bytes, 4);
}

#[test]
fn without_a_token_an_object_is_found_in_its_place_if_it_is_still_the_same() {
    let rig = Rig::new();
    for name in ["stays", "goes", "returns"] {
        std::fs::write(rig.path(name), b"").expect("write");
    }
    let (next, stays, id) = carried(&rig, "stays", false);
    assert_eq!(next.attr(&rig.who, &stays).expect("attr").id, id);
    let (next, goes, _) = carried(&rig, "goes", false);
    std::fs::remove_file(rig.path("goes")).expect("remove");
    assert_eq!(errno(next.attr(&rig.who, &goes)), libc::ESTALE);
    let (next, returns, _) = carried(&rig, "returns", false);
    std::fs::remove_file(rig.path("returns")).expect("remove");
    std::fs::write(rig.path("returns"), b"another").expect("write");
    assert_eq!(errno(next.attr(&rig.who, &returns)), libc::ESTALE);
    assert!(
        next.lookup(&rig.who, &next.root(), OsStr::new("returns"))
            .is_ok()
    );
}

#[test]
fn a_removed_object_is_stale_by_its_token_also_when_its_name_is_used_again() {
    let rig = Rig::new();
    if !has_handles(&rig) {
        return;
    }
    std::fs::write(rig.path("image"), b"old").expect("write");
    let (node, attr) = rig.look(&rig.store.root(), "image").expect("lookup");
    let token = rig.store.token(&node).expect("a token");
    drop(node);
    std::fs::remove_file(rig.path("image")).expect("remove");
    std::fs::write(rig.path("image"), b"new").expect("write");
    let is_stale = || {
        let next = DirStore::open(rig.dir.path()).expect("open");
        let image = next.node_of(attr.id, attr.kind, &token, None);
        let asked = next.attr(&rig.who, &image.expect("a node"));
        asked.is_err_and(|error| error.errno() == libc::ESTALE)
    };
    // Descriptors are closed by a thread of their own, and until then the old object is there.
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !is_stale() {
        assert!(std::time::Instant::now() < patience, "still found");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_carried_object_that_is_looked_up_is_the_same_node_and_found_by_that() {
    let rig = Rig::new();
    std::fs::write(rig.path("image"), b"").expect("write");
    let (next, image, _) = carried(&rig, "image", false);
    std::fs::rename(rig.path("image"), rig.path("other")).expect("rename");
    let found = next.lookup(&rig.who, &next.root(), OsStr::new("other"));
    assert!(Arc::ptr_eq(&found.expect("lookup").0.0, &image.0));
    assert!(next.attr(&rig.who, &image).is_ok());
}

#[test]
fn an_open_file_goes_on_in_another_process_also_without_a_name() {
    let rig = Rig::new();
    let mode = OpenMode {
        read: true,
        write: true,
        sync: false,
    };
    std::fs::write(rig.path("image"), b"content").expect("write");
    std::fs::write(rig.path("another"), b"").expect("write");
    let (node, _) = rig.look(&rig.store.root(), "image").expect("lookup");
    let file = rig.store.open(&rig.who, &node, mode).expect("open");
    let held = || {
        let descriptor = file.descriptor().expect("a descriptor");
        descriptor.try_clone().expect("dup")
    };
    let (next, image, _) = carried(&rig, "image", true);
    let (_, another, _) = carried(&rig, "another", true);
    std::fs::remove_file(rig.path("image")).expect("remove");
    let adopted = next.adopt_file(&rig.who, &image, mode, held());
    let adopted = adopted.expect("the same file");
    adopted.write_at(b"goes on", 0).expect("write");
    let mut content = [0; 7];
    assert_eq!(file.read_at(&mut content, 0).expect("read"), 7);
    assert_eq!(&content, b"goes on");
    assert_eq!(next.attr(&rig.who, &image).expect("attr").nlink, 0);
    let wrong = next.adopt_file(&rig.who, &another, mode, held());
    assert_eq!(errno(wrong), libc::ESTALE);
}
