//! What a server leaves to its successor: after kill -9 of the process that serves, open files and
//! directories go on, inodes stay what they are, and no change of names is done twice.
//!
//! The process is named by status; without a keeper there is none, and the tests say so and skip.

mod world;

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use world::files::{
    MIB, age, assert_same, check_pattern, make_image, open, pattern, read_at, write_at,
};
use world::{PATIENCE, World, wait_until, within};

/// A started world with a keeper; `None`, after saying why, without one.
fn world(flags: &[&str]) -> Option<World> {
    let mut world = World::new()?;
    world.flags(flags);
    started(world)
}

/// As [`world`], with these directories and images in the store, aged; the first image is pattern 1.
fn world_with(dirs: &[&str], images: &[(&str, u64)]) -> Option<World> {
    let world = World::new()?;
    for dir in dirs {
        fs::create_dir(world.store(dir)).expect("a directory in the store");
    }
    for ((name, len), tag) in images.iter().zip(1..) {
        make_image(&world.store(name), tag, *len);
    }
    images
        .iter()
        .for_each(|(name, _)| age(&[&world.store(name)]));
    started(world)
}

fn started(mut world: World) -> Option<World> {
    world.start();
    if world.server().is_none() {
        println!("skipped: no hand-over here: {}", world.status());
        return None;
    }
    Some(world)
}

/// kill -9 of the process that serves, once another one stands by; returns when that serves.
fn kill_and_take_over(world: &World) {
    world.wait_for_standby();
    let before = restarts(world).expect("somebody serves");
    world.kill_server();
    wait_until(PATIENCE, "another process serves", || {
        restarts(world).is_some_and(|now| now > before)
    });
}

/// `None` while nobody answers: what the process that was killed had been asked ends without an answer.
fn restarts(world: &World) -> Option<u64> {
    let mut command = world::flashside();
    command.args(["status", "--json", "--mountpoint"]);
    command.arg(world.mountpoint());
    let output = within(PATIENCE, "status", move || command.output()).expect("flashside runs");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let status = status.get(0).unwrap_or(&status);
    status["restarts"].as_u64()
}

#[test]
fn an_open_image_goes_on_whatever_becomes_of_its_name() {
    let images = [
        ("stays", MIB),
        ("goes", MIB),
        ("moves", MIB),
        ("dir/inside", MIB),
    ];
    let Some(w) = world_with(&["dir"], &images) else {
        return;
    };
    let names = images.map(|(name, _)| name);
    let files = names.map(|name| open(&w.mnt(name), false));
    let reader = File::open(w.mnt("stays")).expect("open");
    let numbers = names.map(|name| fs::metadata(w.mnt(name)).expect("stat").ino());
    fs::remove_file(w.mnt("goes")).expect("unlink");
    fs::rename(w.mnt("moves"), w.mnt("moved")).expect("rename");
    fs::rename(w.mnt("dir"), w.mnt("renamed")).expect("rename of the directory");
    for round in 0..2 {
        for (file, tag) in files.iter().zip(1..) {
            write_at(file, 65536 * round, &pattern(tag + 10 + round, 0, 65536)).expect("write");
        }
        kill_and_take_over(&w);
        for ((file, tag), number) in files.iter().zip(1..).zip(numbers) {
            let read = read_at(file, 65536 * round, 65536).expect("read");
            assert_same(&read, &pattern(tag + 10 + round, 0, 65536), 0);
            let rest = read_at(file, 512 << 10, 65536).expect("read of the rest");
            assert_same(&rest, &pattern(tag, 512 << 10, 65536), 512 << 10);
            file.sync_all().expect("fsync");
            let meta = file.metadata().expect("fstat");
            assert_eq!((meta.ino(), meta.len()), (number, MIB));
        }
    }
    assert_eq!(files[1].metadata().expect("fstat").nlink(), 0);
    let same = read_at(&reader, 65536, 65536).expect("read by the other handle");
    assert_same(&same, &pattern(12, 0, 65536), 0);
    drop((files, reader));
    for (path, tag) in [("stays", 1), ("moved", 3), ("renamed/inside", 4)] {
        let inside = read_at(&open(&w.store(path), false), 65536, 65536).expect("the store's");
        assert_same(&inside, &pattern(tag + 11, 0, 65536), 65536);
    }
    let handles = |image: &serde_json::Value| image["handles"].as_u64();
    wait_until(PATIENCE, "every handle is closed", || {
        let status = w.status();
        let images = status["images"].as_array().expect("images");
        images.iter().all(|image| handles(image) == Some(0))
    });
}

#[test]
fn a_handle_keeps_the_rights_it_was_opened_with_and_no_more() {
    let Some(w) = world_with(&[], &[("image", MIB)]) else {
        return;
    };
    let writer = OpenOptions::new().write(true).open(w.mnt("image"));
    let (writer, reader) = (writer.expect("open"), File::open(w.mnt("image")));
    let reader = reader.expect("open");
    let mode = |bits| fs::Permissions::from_mode(bits);
    fs::set_permissions(w.mnt("image"), mode(0)).expect("chmod");
    kill_and_take_over(&w);
    writer.write_all_at(b"still", 0).expect("write");
    let mut five = [0; 5];
    reader.read_exact_at(&mut five, 0).expect("read");
    assert_eq!(&five, b"still");
    assert!(reader.write_at(b"never", 0).is_err());
    assert!(writer.read_at(&mut five, 0).is_err());
}

#[test]
fn a_server_that_begins_while_the_store_hangs_serves_what_is_on_flash() {
    let Some(mut w) = World::new() else { return };
    make_image(&w.store("image"), 1, MIB);
    age(&[&w.store("image")]); // what is on flash of a young one is not trusted
    w.faulty_store();
    let Some(mut w) = started(w) else { return };
    let image = open(&w.mnt("image"), true);
    check_pattern(&w.mnt("image"), 1, MIB);
    w.wait_for_standby();
    w.faults().stop();
    w.kill_server();
    let reader = image.try_clone().expect("a descriptor");
    let read = within(PATIENCE, "a read of what is on flash", move || {
        read_at(&reader, 65536, 65536)
    });
    w.faults().go_on();
    let read = read.expect("read");
    assert_same(&read, &pattern(1, 65536, 65536), 65536);
    write_at(&image, 0, &pattern(2, 0, 4096)).expect("write");
    let content = fs::read(w.store("image")).expect("in the store");
    assert_same(&content[..4096], &pattern(2, 0, 4096), 0);
}

#[test]
fn an_open_directory_goes_on_without_gap_or_double() {
    const ENTRIES: usize = 3000;
    let Some(w) = world(&[]) else { return };
    fs::create_dir(w.store("many")).expect("mkdir");
    for number in 0..ENTRIES {
        File::create(w.store(format!("many/entry-{number}"))).expect("create");
    }
    let mut entries = fs::read_dir(w.mnt("many")).expect("opendir");
    let mut names = Vec::new();
    for goes_on in [700, 900, usize::MAX] {
        let part = entries.by_ref().take(goes_on);
        names.extend(part.map(|entry| entry.expect("readdir").file_name()));
        if goes_on != usize::MAX {
            kill_and_take_over(&w);
        }
    }
    let different: BTreeSet<_> = names.iter().collect();
    assert_eq!((names.len(), different.len()), (ENTRIES, ENTRIES));
}

#[test]
fn inodes_that_nobody_has_open_stay_what_they_are() {
    let Some(w) = world_with(&[], &[("image", MIB), ("other", MIB)]) else {
        return;
    };
    fs::create_dir_all(w.mnt("a/b/c")).expect("mkdir");
    fs::write(w.mnt("a/b/c/file"), b"in the depth").expect("write");
    let seen = path_descriptor(&w.mnt("image"));
    let moved = path_descriptor(&w.mnt("other"));
    let deep = path_descriptor(&w.mnt("a/b/c"));
    let before = [&seen, &moved, &deep].map(|file| file.metadata().expect("fstat"));
    let mut shell = Shell::in_directory(&w.mnt("a/b"));
    fs::rename(w.mnt("other"), w.mnt("a/elsewhere")).expect("rename");
    fs::rename(w.mnt("a"), w.mnt("z")).expect("rename of the directory");
    kill_and_take_over(&w);
    let after = [&seen, &moved, &deep].map(|file| file.metadata().expect("fstat"));
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(
            (before.ino(), before.mode(), before.len()),
            (after.ino(), after.mode(), after.len())
        );
    }
    assert_eq!(shell.ask("cat c/file"), "in the depth");
    assert_eq!(
        shell.ask("echo new >c/made && ls c | tr '\\n' ' '"),
        "file made"
    );
    assert_eq!(shell.ask("cd -P .. && ls | tr '\\n' ' '"), "b elsewhere");
    drop(shell);
    assert_eq!(
        fs::read(w.store("z/b/c/made")).expect("in the store"),
        b"new\n"
    );
    check_pattern(&w.mnt("z/elsewhere"), 2, MIB);
}

/// A descriptor that only names its object: the kernel knows the inode, and nobody has it open.
fn path_descriptor(path: &Path) -> File {
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(libc::O_PATH).open(path);
    opened.expect("an O_PATH descriptor")
}

/// A shell that stays in a directory of the mount.
struct Shell {
    child: std::process::Child,
    says: BufReader<std::process::ChildStdout>,
}

impl Shell {
    fn in_directory(dir: &Path) -> Shell {
        let mut command = Command::new("sh");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.current_dir(dir).spawn().expect("a shell runs");
        let says = BufReader::new(child.stdout.take().expect("piped"));
        Shell { child, says }
    }

    /// What a command prints, without the blanks at its end.
    fn ask(&mut self, command: &str) -> String {
        let input = self.child.stdin.as_mut().expect("piped");
        writeln!(input, "{command} 2>&1; echo; echo .").expect("the shell reads");
        let mut said = String::new();
        loop {
            let mut line = String::new();
            let read = self.says.read_line(&mut line).expect("the shell answers");
            if read == 0 || line == ".\n" {
                return said.trim_end().to_owned();
            }
            said.push_str(&line);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_the_kernel_forgets_after_a_takeover_is_forgotten() {
    let Some(w) = world(&[]) else { return };
    for number in 0..200 {
        File::create(w.store(format!("file-{number}"))).expect("create");
    }
    for number in 0..200 {
        fs::metadata(w.mnt(format!("file-{number}"))).expect("stat");
    }
    kill_and_take_over(&w);
    for number in 0..200 {
        fs::remove_file(w.mnt(format!("file-{number}"))).expect("unlink");
        fs::write(w.mnt(format!("file-{number}")), b"another").expect("create");
    }
    kill_and_take_over(&w);
    for number in 0..200 {
        let content = fs::read(w.mnt(format!("file-{number}"))).expect("read");
        assert_eq!(content, b"another");
    }
    w.wait_for_standby();
    assert!(!w.daemon().said().contains("cannot be taken on"));
}

/// How many threads change names, how often the server dies meanwhile.
const THREADS: usize = 4;
const KILLS: usize = 20;
/// A change takes so long in the store, half of it before and half after it is done there: whoever dies
/// then has mostly done something and not said so.
const SLOW: &str = "20ms";

#[test]
fn no_change_of_names_is_done_twice_or_left_out() {
    let Some(w) = world(&["--simulate-latency", SLOW]) else {
        return;
    };
    let wrong = change_names_under_kills(&w, KILLS);
    assert!(wrong.is_empty(), "{wrong:#?}");
    let status = w.status();
    let sent_again = status["resent_requests"].as_u64().expect("a counter");
    println!("{sent_again} requests were sent again");
    assert!(sent_again > 0, "no kill met a request under way");
    let left: Vec<PathBuf> = (0..THREADS)
        .flat_map(|n| fs::read_dir(w.store(format!("of-{n}"))).expect("its directory"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert!(left.is_empty(), "{left:?} were left");
}

/// The control: without the table of calls the same run meets errors that there were none.
#[test]
fn without_the_table_of_calls_changes_are_done_twice() {
    let flags = ["--simulate-latency", SLOW, "--unsafe-no-exactly-once"];
    let Some(w) = world(&flags) else { return };
    let wrong = change_names_under_kills(&w, KILLS);
    println!("{wrong:#?}");
    assert!(!wrong.is_empty(), "nothing was noticed");
}

/// Threads change names, each in a directory of its own where nobody else is, until the server was killed
/// `kills` times or something is wrong; gives what was.
fn change_names_under_kills(w: &World, kills: usize) -> Vec<String> {
    let (over, wrong) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..THREADS {
            let dir = w.mnt(format!("of-{number}"));
            fs::create_dir(&dir).expect("mkdir");
            let (over, wrong) = (&over, &wrong);
            threads.push(scope.spawn(move || {
                let mut round = 0;
                while !over.load(Ordering::SeqCst) {
                    round += 1;
                    if let Err(error) = change_names(&dir, round) {
                        wrong.lock().expect("nobody panics here").push(error);
                        over.store(true, Ordering::SeqCst);
                    }
                }
            }));
        }
        for _ in 0..kills {
            if over.load(Ordering::SeqCst) {
                break;
            }
            kill_and_take_over(w);
        }
        over.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + PATIENCE;
        for thread in threads {
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
            assert!(thread.is_finished(), "a call hangs");
        }
    });
    wrong.into_inner().expect("nobody panics here")
}

/// One round of every change there is, each with the result that a filesystem with one user gives.
fn change_names(dir: &Path, round: u32) -> Result<(), String> {
    let at = |name: &str| dir.join(format!("{name}-{round}"));
    let (a, b, c, sub, link) = (at("a"), at("b"), at("c"), at("sub"), at("link"));
    let told = |what: &str, result: io::Result<()>| {
        result.map_err(|error| format!("{what} in round {round}: {error}"))
    };
    let content = format!("round {round}");
    told("create", create(&a, content.as_bytes()))?;
    told("create another", create(&b, b""))?;
    told(
        "create what is there",
        refused(create(&a, b""), libc::EEXIST),
    )?;
    told("setxattr", create_xattr(&a, b"1"))?;
    told("removexattr", remove_xattr(&a))?;
    told(
        "removexattr again",
        refused(remove_xattr(&a), libc::ENODATA),
    )?;
    told("rename over", fs::rename(&a, &b))?;
    told(
        "stat of what moved",
        refused(fs::metadata(&a).map(drop), libc::ENOENT),
    )?;
    told("link", fs::hard_link(&b, &c))?;
    told("exchange", exchange(&b, &c))?;
    told("unlink", fs::remove_file(&b))?;
    told("unlink again", refused(fs::remove_file(&b), libc::ENOENT))?;
    told("mkdir", fs::create_dir(&sub))?;
    told("rename into", fs::rename(&c, sub.join("c")))?;
    told(
        "rmdir of a full one",
        refused(fs::remove_dir(&sub), libc::ENOTEMPTY),
    )?;
    told("symlink", std::os::unix::fs::symlink("sub", &link))?;
    told("mkfifo", make_fifo(&a))?;
    let read = fs::read_to_string(sub.join("c")).map_err(|error| format!("read: {error}"))?;
    if read != content {
        return Err(format!("round {round}: {read:?} in the file"));
    }
    told("unlink in it", fs::remove_file(sub.join("c")))?;
    told("unlink the link", fs::remove_file(&link))?;
    told("unlink the fifo", fs::remove_file(&a))?;
    told("rename of a directory", fs::rename(&sub, at("moved")))?;
    told("rmdir", fs::remove_dir(at("moved")))
}

fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).open(path)?;
    file.write_all(content)
}

/// Succeeds where `result` is this error.
fn refused(result: io::Result<()>, errno: i32) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(io::Error::other("it succeeded")),
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path")
}

fn zero(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const XATTR: &CStr = c"user.once";

fn create_xattr(path: &Path, value: &[u8]) -> io::Result<()> {
    let path = c_path(path);
    let (data, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: two C strings and a buffer with its length.
    zero(unsafe { libc::setxattr(path.as_ptr(), XATTR.as_ptr(), data, len, libc::XATTR_CREATE) })
}

fn remove_xattr(path: &Path) -> io::Result<()> {
    // SAFETY: two C strings.
    zero(unsafe { libc::removexattr(c_path(path).as_ptr(), XATTR.as_ptr()) })
}

fn make_fifo(path: &Path) -> io::Result<()> {
    // SAFETY: a C string.
    zero(unsafe { libc::mkfifo(c_path(path).as_ptr(), 0o600) })
}

fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let (here, flags) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
    let (a, b) = (c_path(a), c_path(b));
    // SAFETY: two C strings.
    zero(unsafe { libc::renameat2(here, a.as_ptr(), here, b.as_ptr(), flags) })
}
