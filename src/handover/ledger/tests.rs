//! What a ledger promises across processes, here with two mappings of one memory: what was used is
//! there, what is torn is unknown, what finds no room is not carried.

use std::os::fd::AsFd;

use super::calls::Findings;
use super::dirs::CarriedDir;
use super::files::CarriedFile;
use super::nodes::{NodeFacts, NodeTable};
use super::*;

/// As the next server sees it.
fn successor(ledger: &Ledger) -> Ledger {
    let memory = ledger.memory().as_fd().try_clone_to_owned();
    Ledger::open(memory.expect("a descriptor")).expect("a ledger")
}

fn facts(nodeid: u64) -> NodeFacts {
    NodeFacts {
        nodeid,
        ino: nodeid + 1,
        tag: u64::MAX - nodeid,
        kind: 3,
        token: (0..nodeid as u8 % 129).collect(),
    }
}

#[test]
fn what_was_noted_is_seen_by_the_next_server() {
    let ledger = Ledger::new().expect("memory");
    let node = ledger.nodes.add(&facts(100)).expect("room");
    ledger.nodes.set_lookups(node, 7);
    ledger.nodes.set_place(node, Some((1, b"an image")));
    let file = CarriedFile {
        number: ledger.next_handle(),
        nodeid: 100,
        unique: 1 << 40,
        read: true,
        write: true,
        why: 4,
        backing: Some(0),
        uid: 65534,
        gid: u32::MAX,
        groups: vec![1, 2, u32::MAX],
        ..CarriedFile::default()
    };
    let slot = ledger.files.add(&file).expect("room");
    let dir = CarriedDir {
        number: ledger.next_handle(),
        nodeid: 1,
        unique: 12,
    };
    ledger.dirs.add(&dir).expect("room");
    ledger.resent();
    let next = successor(&ledger);
    let (_, carried) = &next.nodes.all()[0];
    assert_eq!((&carried.facts, carried.lookups), (&facts(100), 7));
    assert_eq!(carried.place, Some((1, b"an image".to_vec())));
    assert_eq!(next.files.all()[0].1, file);
    assert_eq!(next.dirs.all()[0].1, dir);
    ledger.files.closing(slot);
    let closing = CarriedFile {
        closing: true,
        ..file
    };
    assert_eq!(next.files.all()[0].1, closing);
    assert_eq!((next.resent_requests(), next.next_handle()), (1, 3));
}

#[test]
fn a_slot_is_there_whole_or_not_at_all_and_a_torn_place_is_unknown() {
    let ledger = Ledger::new().expect("memory");
    let torn = ledger.nodes.add(&facts(5)).expect("room");
    ledger.nodes.set_place(torn, Some((1, b"a name")));
    let unfinished = ledger.nodes.add(&facts(6)).expect("room");
    ledger.nodes.slot(torn).set(NodeTable::PLACE_COUNT, 3);
    ledger.nodes.slot(unfinished).set(0, 0);
    let next = successor(&ledger);
    let all = next.nodes.all();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].1.facts.nodeid, &all[0].1.place), (5, &None));
    next.nodes.set_place(torn, Some((2, b"known again")));
    let place = successor(&next).nodes.all()[0].1.place.clone();
    assert_eq!(place, Some((2, b"known again".to_vec())));
}

#[test]
fn freed_slots_are_used_again_also_by_the_next_server() {
    let ledger = Ledger::new().expect("memory");
    let slots: Vec<_> = (1..100).map(|id| ledger.nodes.add(&facts(id))).collect();
    for slot in slots.iter().take(50) {
        ledger.nodes.remove(slot.expect("room"));
    }
    let next = successor(&ledger);
    for id in 1000..1050 {
        assert!(slots.contains(&next.nodes.add(&facts(id))));
    }
    assert_eq!(next.nodes.all().len(), 99);
    assert!(!slots.contains(&next.nodes.add(&facts(2000))));
}

#[test]
fn a_full_table_carries_no_more_and_breaks_nothing() {
    let ledger = Ledger::new().expect("memory");
    let dir = |number| CarriedDir {
        number,
        nodeid: 1,
        unique: number,
    };
    let slots: Vec<_> = (0..DIRS.slots as u64)
        .map(|number| ledger.dirs.add(&dir(number)).expect("room"))
        .collect();
    assert_eq!(ledger.dirs.add(&dir(1 << 30)), None);
    ledger.dirs.remove(slots[7]);
    assert_eq!(ledger.dirs.add(&dir(1 << 31)), Some(slots[7]));
    assert_eq!(successor(&ledger).dirs.all().len(), DIRS.slots);
}

#[test]
fn a_call_that_was_not_answered_is_known_when_it_comes_again() {
    let ledger = Ledger::new().expect("memory");
    let findings = Findings([Some((7, 8)), None]);
    let asked = ledger.calls.begin(100, false).expect("room");
    asked.asks(findings);
    asked.gives(Some(42));
    let refused = ledger.calls.begin(102, false).expect("room");
    refused.asks(findings);
    refused.refused();
    drop(ledger.calls.begin(104, false));
    let next = successor(&ledger);
    assert_eq!(next.calls.count(), 2);
    let again = next.calls.begin(100, true).expect("its slot");
    assert_eq!(again.earlier(), Some(findings));
    assert_eq!((again.given(), again.given()), (Some(42), None));
    again.asks(Findings::default());
    let later = successor(&next).calls.begin(100, true).expect("its slot");
    assert_eq!(later.earlier(), Some(findings));
    let refused = next.calls.begin(102, true).expect("its slot");
    assert_eq!(refused.earlier(), None);
    let never_seen = next.calls.begin(106, true).expect("room");
    assert_eq!((never_seen.earlier(), never_seen.given()), (None, None));
}

#[test]
fn slots_of_calls_that_never_come_again_are_used_in_the_end() {
    let ledger = Ledger::new().expect("memory");
    for unique in 0..CALLS.slots as u64 {
        std::mem::forget(ledger.calls.begin(unique, false));
    }
    assert!(ledger.calls.begin(1 << 40, false).is_none());
    let next = successor(&ledger);
    assert!(next.calls.begin(1 << 41, false).is_some());
}

#[test]
fn another_version_is_not_taken_for_this_one() {
    let memory = Memory::create(CALLS.end()).expect("memory");
    Header(&memory).begin(VERSION + 1);
    let memory = memory.descriptor().try_clone_to_owned().expect("dup");
    let opened = Ledger::open(memory);
    assert_eq!(
        opened.err().map(|error| error.kind()),
        Some(io::ErrorKind::InvalidData)
    );
}

#[test]
fn memory_is_used_only_where_something_was_written() {
    use std::os::unix::fs::MetadataExt;
    let ledger = Ledger::new().expect("memory");
    ledger.nodes.add(&facts(1)).expect("room");
    let next = successor(&ledger);
    assert_eq!(next.nodes.all().len(), 1);
    let file = std::fs::File::from(next.memory().try_clone_to_owned().expect("dup"));
    let used = file.metadata().expect("stat").blocks() * 512;
    assert!(used <= 64 << 10, "{used} bytes");
}
