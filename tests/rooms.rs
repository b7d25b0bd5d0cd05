//! The house plan, kept: a room uses only the rooms that docs/ARCHITECTURE.md lets it use. Reads the
//! `crate::` paths of every source file; comments do not count.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room and the rooms it may use besides itself. The arrows point down only.
const PLAN: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "keeper", "control", "mount", "handover", "image", "cache", "module", "io", "store",
            "config", "logs",
        ],
    ),
    ("keeper", &["mount", "handover", "config", "logs"]),
    (
        "control",
        &[
            "mount", "handover", "image", "cache", "store", "config", "logs",
        ],
    ),
    (
        "mount",
        &["handover", "image", "io", "store", "config", "logs"],
    ),
    ("handover", &["config", "logs"]),
    (
        "image",
        &["cache", "module", "io", "store", "config", "logs"],
    ),
    ("cache", &["module", "io", "store", "config", "logs"]),
    ("store", &["config", "logs"]),
    ("module", &["config", "logs"]),
    ("io", &["config", "logs"]),
    ("config", &[]),
    ("logs", &[]),
];

#[test]
fn a_room_uses_only_the_rooms_below_it() {
    let mut wrong = Vec::new();
    for file in sources() {
        let Some(room) = room_of(&file) else { continue };
        let allowed = allowed(&room);
        let text = fs::read_to_string(&file).expect("a readable source file");
        for used in rooms_used(&text) {
            if used != room && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_has_its_place_in_the_plan() {
    let library = fs::read_to_string(source_dir().join("lib.rs")).expect("the library's root");
    let declared: BTreeSet<&str> = library
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    let planned: BTreeSet<&str> = PLAN.iter().map(|(room, _)| *room).collect();
    assert_eq!(declared, planned);
}

#[test]
fn paths_are_found_however_they_are_written() {
    let used = |text: &str| rooms_used(text).into_iter().collect::<Vec<_>>();
    assert_eq!(used("use crate::cache::Pool;"), ["cache"]);
    assert_eq!(
        used("use crate::{cache, config::Config,\n store};"),
        ["cache", "config", "store"]
    );
    assert_eq!(
        used("use crate::{image::{self, Handle}, io};"),
        ["image", "io"]
    );
    assert_eq!(used("fn f(x: &crate::store::Attr) {}"), ["store"]);
    assert!(used("// crate::mount is not used here\n").is_empty());
}

fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<PathBuf> {
    let (mut files, mut dirs) = (Vec::new(), vec![source_dir()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a readable source directory") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// `src/cache/…` and `src/cache.rs` belong to `cache`; the two roots belong to none.
fn room_of(file: &Path) -> Option<String> {
    let below = file.strip_prefix(source_dir()).expect("a file of src");
    let first = below.components().next()?.as_os_str().to_str()?;
    let room = first.strip_suffix(".rs").unwrap_or(first);
    (room != "lib" && room != "main").then(|| room.to_owned())
}

fn allowed(room: &str) -> &'static [&'static str] {
    PLAN.iter()
        .find(|(planned, _)| *planned == room)
        .map_or(&[], |(_, allowed)| allowed)
}

fn rooms_used(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut rooms = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        match rest.strip_prefix('{') {
            Some(group) => rooms.extend(group_heads(group)),
            None => rooms.extend(head(rest)),
        }
    }
    rooms.retain(|room| PLAN.iter().any(|(planned, _)| planned == room));
    rooms
}

/// The first names inside `{a::b, c::{d, e}, f}`; `group` begins after the brace.
fn group_heads(group: &str) -> Vec<String> {
    let (mut heads, mut depth, mut start) = (Vec::new(), 0usize, true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            _ if start && !character.is_whitespace() => {
                heads.extend(head(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    heads
}

fn head(path: &str) -> Option<String> {
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let end = path
        .find(|character| !is_name(character))
        .unwrap_or(path.len());
    (end > 0).then(|| path[..end].to_owned())
}
