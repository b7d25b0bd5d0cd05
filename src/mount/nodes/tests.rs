//! The inode table's promises, and that the next server has the same one.

use super::*;
use crate::handover::ledger::nodes::NodeFacts;
use crate::store::Timestamp;

fn attr(ino: u64, tag: u64) -> Attr {
    Attr {
        id: ImageId { ino, tag },
        kind: Kind::File,
        mode: 0o600,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size_bytes: 0,
        blocks: 0,
        blksize: 4096,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
    }
}

fn node() -> Node {
    Node(Arc::new(()))
}

fn enter(nodes: &Nodes, name: &str, ino: u64, tag: u64) -> Arc<Inode> {
    enter_in(nodes, ROOT, name, &attr(ino, tag))
}

fn enter_in(nodes: &Nodes, parent: u64, name: &str, attr: &Attr) -> Arc<Inode> {
    nodes.enter(parent, OsStr::new(name), node(), None, attr)
}

fn ledger() -> Arc<Ledger> {
    Arc::new(Ledger::new().expect("memory"))
}

#[test]
fn hard_links_share_a_number_and_a_reused_inode_number_gets_another() {
    let nodes = Nodes::new(node(), 100, ledger());
    let a = enter(&nodes, "a", 7, 1);
    let b = enter(&nodes, "b", 7, 1);
    assert_eq!((a.nodeid, b.nodeid), (7, 7));
    let reused = enter(&nodes, "c", 7, 2);
    assert_ne!(reused.nodeid, 7);
    assert_ne!(enter(&nodes, "d", ROOT, 1).nodeid, ROOT);
}

#[test]
fn an_inode_lives_until_every_reference_is_given_back() {
    let nodes = Nodes::new(node(), 100, ledger());
    enter(&nodes, "a", 7, 1);
    enter(&nodes, "a", 7, 1);
    nodes.forget(7, 1);
    assert!(nodes.get(7).is_some());
    nodes.forget(7, 1);
    assert!(nodes.get(7).is_none());
    assert!(nodes.child(ROOT, OsStr::new("a")).is_none());
    nodes.forget(ROOT, 5);
    assert!(nodes.get(ROOT).is_some());
}

#[test]
fn names_follow_renames_and_exchanges() {
    let nodes = Nodes::new(node(), 100, ledger());
    let dir = enter(&nodes, "dir", 5, 1).nodeid;
    enter(&nodes, "a", 7, 1);
    nodes.renamed((ROOT, OsStr::new("a")), (dir, OsStr::new("b")), false);
    assert_eq!(nodes.path(7), Path::new("dir/b"));
    enter(&nodes, "c", 8, 1);
    nodes.renamed((ROOT, OsStr::new("c")), (dir, OsStr::new("b")), true);
    assert_eq!(nodes.path(8), Path::new("dir/b"));
    assert_eq!(nodes.path(7), Path::new("c"));
    nodes.renamed((dir, OsStr::new("b")), (ROOT, OsStr::new("c")), false);
    assert_eq!(nodes.path(7), Path::new(""));
    assert_eq!(nodes.path(8), Path::new("c"));
}

#[test]
fn the_oldest_that_are_not_open_are_given_up_first() {
    let nodes = Nodes::new(node(), 32, ledger());
    for ino in 10..50 {
        enter(&nodes, &format!("f{ino}"), ino, 1);
    }
    nodes.get(10).expect("known").opened();
    assert!(nodes.wait_until_crowded());
    let names = nodes.oldest_names();
    assert_eq!(names.len(), 41 - 28);
    assert_eq!(names[0], (ROOT, "f11".into()));
    assert_eq!(nodes.oldest_names()[0], (ROOT, "f24".into()));
    nodes.close();
    assert!(!nodes.wait_until_crowded());
}

/// The table as the next server has it.
fn successor(ledger: &Ledger, store: &dyn Store) -> Nodes {
    use std::os::fd::AsFd;
    let memory = ledger.memory().as_fd().try_clone_to_owned();
    let ledger = Ledger::open(memory.expect("a descriptor")).expect("a ledger");
    let nodes = Nodes::new(store.root(), 100, Arc::new(ledger));
    nodes.take_on(store);
    nodes
}

/// What the kernel can tell of a table: numbers, identities, references, and one name of each.
fn seen(nodes: &Nodes) -> Vec<(u64, ImageId, Kind, u64, Option<Name>, PathBuf)> {
    let facts = |nodes: &Nodes| {
        let table = nodes.table.lock();
        let slots = table.slots.values();
        let of = |slot: &Slot| {
            let inode = &slot.inode;
            let name = slot.names.last().cloned();
            (inode.nodeid, inode.id, inode.kind, slot.lookups, name)
        };
        slots.map(of).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = facts(nodes)
        .into_iter()
        .map(|(nodeid, id, kind, lookups, name)| {
            (nodeid, id, kind, lookups, name, nodes.path(nodeid))
        })
        .collect();
    all.sort_by_key(|entry| entry.0);
    all
}

#[derive(Clone, Debug)]
enum Step {
    Enter(u64, u8, u64, bool),
    Forget(u64, u64),
    Remove(u64, u8),
    Rename((u64, u8), (u64, u8), bool),
}

/// As the kernel does, nothing is forgotten that has children, and only directories have them.
fn take(nodes: &Nodes, step: &Step) {
    let name = |name: u8| OsString::from(format!("n{name}"));
    let dir = |dir: u64| match nodes.get(dir) {
        Some(inode) if inode.kind == Kind::Dir => dir,
        _ => ROOT,
    };
    match *step {
        Step::Enter(parent, called, ino, is_dir) => {
            let kind = if is_dir { Kind::Dir } else { Kind::File };
            let attr = Attr {
                kind,
                ..attr(ino, u64::from(is_dir))
            };
            let parent = dir(parent);
            let within = |at: u64| nodes.path(at).starts_with(nodes.path(ino));
            if !(is_dir && (ino == parent || within(parent))) {
                let token = [called; 20];
                nodes.enter(parent, &name(called), node(), Some(&token), &attr);
            }
        }
        Step::Forget(nodeid, count) => {
            let has_children =
                (nodes.table.lock().names.keys()).any(|(parent, _)| *parent == nodeid);
            if !has_children && nodeid != ROOT {
                nodes.forget(nodeid, count);
            }
        }
        Step::Remove(parent, called) => nodes.name_removed(dir(parent), &name(called)),
        Step::Rename(from, to, exchange) => {
            let (from, to) = ((dir(from.0), name(from.1)), (dir(to.0), name(to.1)));
            let names = ((from.0, &*from.1), (to.0, &*to.1));
            nodes.renamed(names.0, names.1, exchange);
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..Default::default()
    })]
    #[test]
    fn the_next_server_knows_what_this_one_knew(steps in proptest::collection::vec(step(), 1..200)) {
        let ledger = ledger();
        let dir = tempfile::tempdir().expect("tempdir");
        let store = crate::store::dir::DirStore::open(dir.path()).expect("open");
        let nodes = Nodes::new(store.root(), 100, ledger.clone());
        for step in &steps {
            take(&nodes, step);
        }
        let next = successor(&ledger, &store);
        proptest::prop_assert_eq!(seen(&nodes), seen(&next));
        let after = successor(&ledger, &store);
        proptest::prop_assert_eq!(seen(&nodes), seen(&after));
    }
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    let ino = || prop_oneof![Just(ROOT), 2..12u64];
    prop_oneof![
        4 => (ino(), 0..6u8, 1..12u64, any::<bool>())
            .prop_map(|(parent, name, ino, is_dir)| Step::Enter(parent, name, ino, is_dir)),
        2 => (ino(), 1..4u64).prop_map(|(nodeid, count)| Step::Forget(nodeid, count)),
        1 => (ino(), 0..6u8).prop_map(|(parent, name)| Step::Remove(parent, name)),
        2 => ((ino(), 0..6u8), (ino(), 0..6u8), any::<bool>())
            .prop_map(|(from, to, exchange)| Step::Rename(from, to, exchange)),
    ]
}

#[test]
fn what_was_never_told_is_not_taken_on() {
    let ledger = ledger();
    let dir = tempfile::tempdir().expect("tempdir");
    let store = crate::store::dir::DirStore::open(dir.path()).expect("open");
    let facts = NodeFacts {
        nodeid: 9,
        ino: 9,
        tag: 1,
        kind: 0,
        token: Vec::new(),
    };
    ledger.nodes.add(&facts).expect("room");
    let next = successor(&ledger, &store);
    assert!(next.get(9).is_none());
    assert!(ledger.nodes.all().is_empty());
}
