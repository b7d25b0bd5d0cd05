//! Somebody who works with names in a directory of his own and knows what each call must answer: whatever
//! is done twice, or not at all, gives him a wrong errno or another listing than he expects.
//!
//! *Invariant.* Nobody else touches the directory, so the model is what it holds.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::rig::Rng;
use crate::tally::Tally;

/// More names than that and some go first.
const NAMES_MAX: usize = 60;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Thing {
    /// A file that holds this number; hard links of one file share it.
    File(u64),
    Directory,
    /// A symbolic link to this text.
    Link(String),
}

/// One worker.
pub struct Names<'a> {
    dir: PathBuf,
    model: BTreeMap<String, Thing>,
    /// A file that has no name any more, and what it holds.
    orphan: Option<(File, u64)>,
    rng: Rng,
    next: u64,
    tally: &'a Tally,
}

/// Works in a new directory `dir` until the run is over.
pub fn work(dir: &Path, seed: u64, tally: &Tally) {
    if tally.call("mkdir", || fs::create_dir(dir)).is_none() {
        return;
    }
    let mut names = Names {
        dir: dir.to_owned(),
        model: BTreeMap::new(),
        orphan: None,
        rng: Rng::new(seed),
        next: 1,
        tally,
    };
    while !tally.is_over() {
        names.step();
    }
    names.list();
}

impl Names<'_> {
    fn step(&mut self) {
        if self.model.len() > NAMES_MAX {
            return self.remove();
        }
        match self.rng.below(12) {
            0..3 => self.create(),
            3 => self.make_directory(),
            4 => self.make_link(),
            5 => self.link(),
            6 | 7 => self.rename(),
            8 => self.remove(),
            9 => self.attribute(),
            10 => self.orphan(),
            _ => self.list(),
        }
    }

    fn create(&mut self) {
        let (name, number) = self.new_name();
        let path = self.dir.join(&name);
        let made = self.tally.call("create excl", || File::create_new(&path));
        let Some(file) = made else { return };
        let bytes = number.to_le_bytes();
        let write = || file.write_all_at(&bytes, 0);
        self.tally.call("writing a small file", write);
        self.refuse("create excl again", ErrorKind::AlreadyExists, || {
            File::create_new(&path).map(drop)
        });
        self.model.insert(name, Thing::File(number));
    }

    fn make_directory(&mut self) {
        let (name, _) = self.new_name();
        let path = self.dir.join(&name);
        self.tally.call("mkdir", || fs::create_dir(&path));
        self.model.insert(name, Thing::Directory);
    }

    fn make_link(&mut self) {
        let (name, number) = self.new_name();
        let (path, target) = (self.dir.join(&name), format!("to-{number}"));
        self.tally.call("symlink", || symlink(&target, &path));
        self.model.insert(name, Thing::Link(target));
    }

    /// A second name for a file.
    fn link(&mut self) {
        let Some((old, thing @ Thing::File(_))) = self.any() else {
            return;
        };
        let (name, _) = self.new_name();
        let (from, to) = (self.dir.join(old), self.dir.join(&name));
        self.tally.call("link", || fs::hard_link(&from, &to));
        self.model.insert(name, thing);
    }

    /// To a new name, or onto another file.
    fn rename(&mut self) {
        let Some((old, thing)) = self.any() else {
            return;
        };
        let new = match (&thing, self.any()) {
            // Between two names of one file rename(2) does nothing.
            (Thing::File(a), Some((other, Thing::File(b)))) if *a != b => other,
            _ => self.new_name().0,
        };
        let (from, to) = (self.dir.join(&old), self.dir.join(&new));
        self.tally.call("rename", || fs::rename(&from, &to));
        self.refuse("stat of the old name", ErrorKind::NotFound, || {
            fs::symlink_metadata(&from).map(drop)
        });
        self.model.remove(&old);
        self.model.insert(new, thing);
    }

    fn remove(&mut self) {
        let Some((name, thing)) = self.any() else {
            return;
        };
        let path = self.dir.join(&name);
        let remove: fn(&Path) -> io::Result<()> = match thing {
            Thing::Directory => |path| fs::remove_dir(path),
            _ => |path| fs::remove_file(path),
        };
        self.tally.call("unlink or rmdir", || remove(&path));
        self.refuse("unlink or rmdir again", ErrorKind::NotFound, || {
            remove(&path)
        });
        self.model.remove(&name);
    }

    /// Set where there is none, and removed.
    fn attribute(&mut self) {
        let Some((name, Thing::File(_))) = self.any() else {
            return;
        };
        let path = self.dir.join(name);
        self.tally.call("setxattr", || set_new(&path));
        self.refuse("setxattr again", ErrorKind::AlreadyExists, || {
            set_new(&path)
        });
        self.tally.call("removexattr", || remove_xattr(&path));
    }

    /// A file that is open and has no name keeps its bytes.
    fn orphan(&mut self) {
        if let Some((file, number)) = self.orphan.take() {
            let mut back = [0; 8];
            let read = || file.read_exact_at(&mut back, 0);
            let read = self.tally.call("reading an unlinked file", read);
            if read.is_some() && u64::from_le_bytes(back) != number {
                self.tally.mismatch("an unlinked file holds something else");
            }
            let links = self.tally.call("fstat", || Ok(file.metadata()?.nlink()));
            if links.is_some_and(|links| links != 0) {
                self.tally.mismatch("an unlinked file has a name");
            }
            return;
        }
        let (name, number) = self.new_name();
        let path = self.dir.join(name);
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        let Some(file) = self.tally.call("create excl", || options.open(&path)) else {
            return;
        };
        self.tally.call("unlink", || fs::remove_file(&path));
        let write = || file.write_all_at(&number.to_le_bytes(), 0);
        self.tally.call("writing an unlinked file", write);
        self.orphan = Some((file, number));
    }

    /// Everything is there once, as it should be.
    fn list(&mut self) {
        let list = || -> io::Result<Vec<String>> {
            let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
            let entries = fs::read_dir(&self.dir)?;
            entries.map(|entry| entry.map(name)).collect()
        };
        let Some(mut found) = self.tally.call("readdir", list) else {
            return;
        };
        found.sort();
        if !found.iter().eq(self.model.keys()) {
            let known: Vec<_> = self.model.keys().collect();
            let text = format!("readdir of {:?}: {found:?}, not {known:?}", self.dir);
            self.tally.mismatch(&text);
        }
        for (name, thing) in &self.model {
            self.check(name, thing);
        }
    }

    fn check(&self, name: &str, thing: &Thing) {
        let path = self.dir.join(name);
        let found = self.tally.call("looking at a name", || {
            let meta = fs::symlink_metadata(&path)?;
            Ok(match meta {
                meta if meta.is_dir() => Thing::Directory,
                meta if meta.is_symlink() => {
                    Thing::Link(fs::read_link(&path)?.to_string_lossy().into_owned())
                }
                _ => Thing::File(number(&fs::read(&path)?)),
            })
        });
        if found.as_ref().is_some_and(|found| found != thing) {
            let text = format!("{}: {found:?}, not {thing:?}", path.display());
            self.tally.mismatch(&text);
        }
    }

    /// A call that has to fail in this way.
    fn refuse(&self, what: &str, kind: ErrorKind, call: impl FnOnce() -> io::Result<()>) {
        match call() {
            Err(error) if error.kind() == kind => {}
            Err(error) => self.tally.error(what, &error),
            Ok(()) => self.tally.mismatch(&format!("{what} succeeded")),
        }
    }

    fn new_name(&mut self) -> (String, u64) {
        self.next += 1;
        (format!("n{}", self.next), self.next)
    }

    fn any(&mut self) -> Option<(String, Thing)> {
        let count = self.model.len().max(1) as u64;
        let nth = self.rng.below(count) as usize;
        let (name, thing) = self.model.iter().nth(nth)?;
        Some((name.clone(), thing.clone()))
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

fn set_new(path: &Path) -> io::Result<()> {
    let path = c_path(path);
    let (name, value) = (c"user.takeover", b"1");
    // SAFETY: two C strings, and a value of the length given.
    let result = unsafe {
        let flags = libc::XATTR_CREATE;
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            1,
            flags,
        )
    };
    done(result)
}

fn remove_xattr(path: &Path) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: two C strings.
    done(unsafe { libc::removexattr(path.as_ptr(), c"user.takeover".as_ptr()) })
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("paths hold no NUL")
}

fn done(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
