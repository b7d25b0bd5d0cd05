//! What is typed wrong is refused in one sentence, with a code that is not 0, and nothing is touched.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A refusal takes milliseconds; what takes longer than this hangs.
const DEADLINE: Duration = Duration::from_secs(30);

/// A store, a mount point and a cache directory, gone at the end of the test.
struct Place {
    root: tempfile::TempDir,
}

/// How a call ended.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Place {
        let root = tempfile::tempdir().expect("a temporary directory");
        for name in ["store", "mnt", "cache"] {
            fs::create_dir(root.path().join(name)).expect("a directory");
        }
        Place { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        let root = fs::canonicalize(self.root.path()).expect("there");
        root.join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("a file");
        path
    }

    /// `mount STORE MOUNTPOINT --cache CACHE`, each below this place, with more arguments.
    fn mount(&self, store: &str, mountpoint: &str, cache: &str, more: &[&str]) -> Outcome {
        let text = |name: &str| self.path(name).display().to_string();
        let (store, mountpoint, cache) = (text(store), text(mountpoint), text(cache));
        let mut arguments = vec!["mount", &store, &mountpoint, "--foreground"];
        arguments.extend(["--cache", &cache]);
        arguments.extend(more);
        flashside(&arguments)
    }

    fn is_untouched(&self) {
        for name in ["store", "mnt", "cache"] {
            let mut entries = fs::read_dir(self.path(name)).expect("still there");
            assert!(entries.next().is_none(), "{name} was touched");
        }
    }

    /// The call was refused with a sentence that holds all of `words`, and nothing changed.
    fn refuses(&self, outcome: &Outcome, words: &[&str]) {
        outcome.is_one_sentence(words);
        self.is_untouched();
    }
}

impl Outcome {
    fn is_one_sentence(&self, words: &[&str]) {
        let said = &self.stderr;
        assert!(matches!(self.code, Some(1 | 2)), "{said}"); // 2: the arguments
        assert!(said.starts_with("flashside: "), "{said:?}");
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in {said}");
        }
    }
}

/// Runs the program and waits; one that hangs is ended and fails the test.
fn flashside(arguments: &[&str]) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_flashside"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let out = thread::spawn(move || read_all(stdout.as_mut()));
    let err = thread::spawn(move || read_all(stderr.as_mut()));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            break status;
        }
        if begun.elapsed() > DEADLINE {
            child.kill().expect("a child of ours");
            child.wait().expect("a child of ours");
            panic!("flashside {arguments:?} did not end");
        }
        thread::sleep(Duration::from_millis(5));
    };
    Outcome {
        code: status.code(),
        stdout: out.join().expect("read"),
        stderr: err.join().expect("read"),
    }
}

fn read_all(from: Option<&mut impl Read>) -> String {
    let mut text = String::new();
    from.expect("a pipe")
        .read_to_string(&mut text)
        .expect("UTF-8");
    text
}

#[test]
fn a_store_that_is_missing_or_no_directory_is_refused() {
    let place = Place::new();
    place.file("file", "");
    let missing = place.mount("nowhere", "mnt", "cache", &[]);
    place.refuses(&missing, &["the store", "nowhere", "does not exist"]);
    let file = place.mount("file", "mnt", "cache", &[]);
    place.refuses(&file, &["the store", "file", "not a directory"]);
}

#[test]
fn a_mount_point_that_is_missing_or_no_directory_is_refused() {
    let place = Place::new();
    place.file("file", "");
    for missing in ["nowhere", "nowhere/below"] {
        let outcome = place.mount("store", missing, "cache", &[]);
        place.refuses(&outcome, &["mount point", missing, "does not exist"]);
    }
    let file = place.mount("store", "file", "cache", &[]);
    place.refuses(&file, &["mount point", "file", "not a directory"]);
}

#[test]
fn a_mount_point_in_use_is_refused() {
    let place = Place::new();
    place.file("cache/somebody-was-here", "");
    let full = place.mount("store", "cache", "mnt", &[]);
    full.is_one_sentence(&["mount point", "cache", "not empty"]);
    let store = place.path("store").display().to_string();
    let mounted = flashside(&["mount", &store, "/proc", "--foreground"]);
    mounted.is_one_sentence(&["/proc", "already a mount", "proc"]);
}

#[test]
fn a_mount_point_in_the_store_is_refused() {
    let place = Place::new();
    let same = place.mount("store", "store", "cache", &[]);
    place.refuses(&same, &["mount point", "lies in the store"]);
    fs::create_dir(place.path("store/below")).expect("a directory");
    let inside = place.mount("store", "store/below", "cache", &[]);
    inside.is_one_sentence(&["lies in the store", "store/below"]);
    std::os::unix::fs::symlink(place.path("store/below"), place.path("link")).expect("a link");
    let linked = place.mount("store", "link", "cache", &[]);
    linked.is_one_sentence(&["lies in the store", "store/below"]);
}

#[test]
fn a_store_under_the_mount_point_is_refused() {
    let place = Place::new();
    fs::create_dir_all(place.path("mnt2/store")).expect("a directory");
    let outcome = place.mount("mnt2/store", "mnt2", "cache", &[]);
    place.refuses(&outcome, &["lies under the mount point", "mnt2/store"]);
}

#[test]
fn a_cache_that_is_missing_or_no_directory_is_refused() {
    let place = Place::new();
    place.file("file", "");
    let missing = place.mount("store", "mnt", "nowhere", &[]);
    place.refuses(&missing, &["cache directory", "nowhere", "does not exist"]);
    let file = place.mount("store", "mnt", "file", &[]);
    place.refuses(&file, &["cache", "file", "not a directory"]);
}

#[test]
fn a_cache_on_the_store_or_under_the_mount_point_is_refused() {
    let place = Place::new();
    let same = place.mount("store", "mnt", "store", &[]);
    place.refuses(&same, &["cache directory", "lies in the store"]);
    let mount_point = place.mount("store", "mnt", "mnt", &[]);
    place.refuses(&mount_point, &["cache directory", "under the mount point"]);
    fs::create_dir_all(place.path("c/store")).expect("a directory");
    let around = place.mount("c/store", "mnt", "c", &[]);
    place.refuses(&around, &["lies in the cache directory", "c/store"]);
    fs::create_dir(place.path("store/c")).expect("a directory");
    let inside = place.mount("store", "mnt", "store/c", &[]);
    inside.is_one_sentence(&["lies in the store", "store/c"]);
    fs::create_dir(place.path("mnt/c")).expect("a directory");
    let under = place.mount("store", "mnt", "mnt/c", &[]);
    under.is_one_sentence(&["under the mount point", "mnt/c"]);
}

#[test]
fn a_cache_given_twice_is_refused() {
    let place = Place::new();
    let again = format!("{}/.@16M", place.path("cache").display());
    let outcome = place.mount("store", "mnt", "cache@16M", &["--cache", &again]);
    place.refuses(&outcome, &["cache", "given twice"]);
}

#[test]
fn a_limit_that_cannot_be_is_refused() {
    let place = Place::new();
    for (cache, words) in [
        ("cache@8000P", "its filesystem has only"),
        ("cache@15M", "at least 16M"),
        ("cache@0", "at least 16M"),
        ("cache@lots", "`lots` is not a limit"),
        ("cache@0%", "`0%` is not a limit"),
        ("cache@101%", "`101%` is not a limit"),
        ("cache@", "`` is not a limit"),
    ] {
        let outcome = place.mount("store", "mnt", cache, &[]);
        place.refuses(&outcome, &[words]);
    }
}

#[test]
fn limits_that_together_exceed_their_filesystem_are_refused() {
    let place = Place::new();
    fs::create_dir(place.path("cache2")).expect("a directory");
    let second = place.path("cache2").display().to_string();
    let outcome = place.mount("store", "mnt", "cache", &["--cache", &second]);
    place.refuses(&outcome, &["add up to", "cache2", "@"]);
}

#[test]
fn a_configuration_that_cannot_be_read_is_refused() {
    let place = Place::new();
    let nowhere = place.path("nowhere.toml").display().to_string();
    let outcome = place.mount("store", "mnt", "cache", &["--config", &nowhere]);
    place.refuses(&outcome, &["cannot read", "nowhere.toml"]);
}

#[test]
fn a_misspelt_configuration_is_refused() {
    let place = Place::new();
    for (text, words) in [
        ("read-only = true\nchache = []\n", ["`chache`", "line 2"]),
        ("store-deadline = \"soon\"\n", ["`soon`", "line 1"]),
        (
            "store-deadline = \"1ms\"\n",
            ["store-deadline", "at least 1s"],
        ),
        ("cache = [\"/flash@lots\"]\n", ["`lots`", "line 1"]),
        (
            "store-user = \"no-such-user\"\n",
            ["`no-such-user`", "line 1"],
        ),
        ("log-level = \"loud\"\n", ["`loud`", "line 1"]),
        ("read-only = yes\n", ["test.toml", "line 1"]),
        ("store-threads = 0\n", ["store-threads", "between"]),
    ] {
        let file = place.file("test.toml", text).display().to_string();
        let outcome = place.mount("store", "mnt", "cache@16M", &["--config", &file]);
        place.refuses(&outcome, &words);
    }
}

#[test]
fn mistyped_arguments_are_refused() {
    let place = Place::new();
    for (more, words) in [
        (["--simulate-latency", "2"], "`2` is not a duration"),
        (["--simulate-bandwidth", "fast"], "`fast` is not a size"),
        (
            ["--simulate-bandwidth", "0"],
            "simulate-bandwidth must be above zero",
        ),
        (
            ["--store-deadline", "0s"],
            "store-deadline must be at least 1s",
        ),
        (["--cahce", "/x"], "--cahce"),
    ] {
        let outcome = place.mount("store", "mnt", "cache@16M", &more);
        place.refuses(&outcome, &[words]);
    }
    flashside(&["mount"]).is_one_sentence(&["STORE", "--help"]);
    flashside(&["mout"]).is_one_sentence(&["mout", "--help"]);
}

#[test]
fn a_refusal_reaches_the_caller_of_a_mount_in_the_background() {
    let place = Place::new();
    let text = |name: &str| place.path(name).display().to_string();
    let outcome = flashside(&["mount", &text("nowhere"), &text("mnt")]);
    place.refuses(&outcome, &["the store", "nowhere", "does not exist"]);
}

#[test]
fn status_of_what_is_no_mount_is_refused() {
    let place = Place::new();
    let store = place.path("store").display().to_string();
    flashside(&["status", "--mountpoint", &store]).is_one_sentence(&["not a flashside mount"]);
    let image = Path::new(&store).join("web.img").display().to_string();
    flashside(&["status", &image]).is_one_sentence(&["in no flashside mount"]);
}

#[test]
fn help_explains_every_flag_with_units_and_examples() {
    let outcome = flashside(&["mount", "--help"]);
    assert_eq!(outcome.code, Some(0));
    for words in [
        "--cache",
        "--config",
        "--foreground",
        "--read-only",
        "--store-deadline",
        "--simulate-latency",
        "--simulate-bandwidth",
        "--simulate-once",
        "--stream-bypass",
        "--unsafe-no-in-doubt-marks",
        "Units:",
        "Examples:",
        "200G",
        "10min",
    ] {
        assert!(outcome.stdout.contains(words), "no {words} in the help");
    }
    let warm = flashside(&["warm", "--help"]);
    for words in ["--range", "0-1G", "10G-", "Ctrl-C", "Units:", "Examples:"] {
        assert!(warm.stdout.contains(words), "no {words} in the help");
    }
    let evict = flashside(&["evict", "--help"]).stdout;
    assert!(evict.contains("Example:"), "{evict}");
    assert_eq!(flashside(&["--version"]).code, Some(0));
    assert_eq!(flashside(&["status", "--help"]).code, Some(0));
}
