//! A made-up store around a real one: slower, and one that serves each page only once.
//!
//! For benchmarks, for users who want to see what a cache would give them, and for tests. The page
//! record of `once` is a log, one line per change: `<image id> <first page> <end page> <r|w>`.
//!
//! `FLASHSIDE_TEST_STORE_CLOCK=SECONDS.NANOSECONDS` in the environment makes every regular file report
//! these as its mtime and ctime: power-cut tests rebuild a store's past with it.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::Simulate;
use crate::logs;

use super::{
    Attr, Caller, DirEntry, Error, ImageId, Kind, Node, OpenMode, Result, SetAttr, StatFs, Store,
    StoreFile, Timestamp,
};

const PAGE_BYTES: u64 = 4096;

/// A store that behaves like `inner`, only worse.
pub struct Simulated {
    inner: Arc<dyn Store>,
    link: Arc<Link>,
}

/// What stands between us and the store.
struct Link {
    latency: Duration,
    bytes_per_s: Option<u64>,
    /// When the way from the store is free again, and the way to it.
    down_free_at: Mutex<Option<Instant>>,
    up_free_at: Mutex<Option<Instant>>,
    once: Option<Once>,
    clock: Option<Timestamp>,
}

impl Simulated {
    /// Wraps `inner`; fails when the record of `once` cannot be read.
    pub fn new(inner: Arc<dyn Store>, simulate: &Simulate) -> Result<Simulated> {
        let once = simulate.once.as_deref().map(Once::open).transpose()?;
        Ok(Simulated {
            inner,
            link: Arc::new(Link {
                latency: simulate.latency,
                bytes_per_s: simulate.bandwidth,
                down_free_at: Mutex::new(None),
                up_free_at: Mutex::new(None),
                once,
                clock: test_clock(),
            }),
        })
    }

    /// True where a wrapper changes anything.
    pub fn is_wanted(simulate: &Simulate) -> bool {
        *simulate != Simulate::default() || test_clock().is_some()
    }
}

fn test_clock() -> Option<Timestamp> {
    let text = std::env::var("FLASHSIDE_TEST_STORE_CLOCK").ok()?;
    let (secs, nanos) = text.split_once('.')?;
    Some(Timestamp {
        secs: secs.parse().ok()?,
        nanos: nanos.parse().ok()?,
    })
}

impl Link {
    /// Waits as long as a small operation takes.
    fn pass(&self) {
        std::thread::sleep(self.latency);
    }

    /// As [`Link::pass`] for a change of names: half of the time to the store, half back from it. So
    /// whoever dies meanwhile may have changed something and not know it.
    fn there_and_back<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        std::thread::sleep(self.latency / 2);
        let changed = change();
        std::thread::sleep(self.latency / 2);
        changed
    }

    /// Waits until `bytes` have gone through one direction, after those before them.
    fn transfer(&self, direction: &Mutex<Option<Instant>>, bytes: usize) {
        let Some(bytes_per_s) = self.bytes_per_s else {
            return;
        };
        let takes = Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
        let now = Instant::now();
        let end = {
            let mut free_at = direction.lock();
            let end = free_at.map_or(now, |at| at.max(now)) + takes;
            *free_at = Some(end);
            end
        };
        std::thread::sleep(end.saturating_duration_since(now));
    }

    fn dated(&self, mut attr: Attr) -> Attr {
        if let (Some(clock), Kind::File) = (self.clock, attr.kind) {
            attr.mtime = clock;
            attr.ctime = clock;
        }
        attr
    }
}

/// Which pages have been read, and not written since.
struct Once {
    read: Mutex<HashMap<ImageId, HashSet<u64>>>,
    log: File,
}

impl Once {
    fn open(path: &Path) -> io::Result<Once> {
        use std::os::unix::fs::OpenOptionsExt;
        let log = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let mut read: HashMap<ImageId, HashSet<u64>> = HashMap::new();
        for line in BufReader::new(log.try_clone()?).lines() {
            let line = line?;
            let mut words = line.split(' ');
            let number = |words: &mut std::str::Split<'_, char>| words.next()?.parse().ok();
            let id = words.next().and_then(|word| word.parse().ok());
            let (Some(id), Some(first), Some(end)) = (id, number(&mut words), number(&mut words))
            else {
                continue;
            };
            let pages = read.entry(id).or_default();
            match words.next() {
                Some("r") => pages.extend(first..end),
                _ => pages.retain(|page| !(first..end).contains(page)),
            }
        }
        Ok(Once {
            read: Mutex::new(read),
            log,
        })
    }

    /// Notes a read; false if a page of it was read before.
    fn read(&self, id: ImageId, offset_bytes: u64, len_bytes: u64) -> bool {
        let pages = offset_bytes / PAGE_BYTES..(offset_bytes + len_bytes).div_ceil(PAGE_BYTES);
        let mut read = self.read.lock();
        let known = read.entry(id).or_default();
        if pages.clone().any(|page| known.contains(&page)) {
            return false;
        }
        known.extend(pages.clone());
        drop(read);
        self.note(id, &pages, 'r');
        true
    }

    /// Notes that a range has new content.
    fn written(&self, id: ImageId, offset_bytes: u64, len_bytes: u64) {
        let end = offset_bytes.saturating_add(len_bytes).div_ceil(PAGE_BYTES);
        let pages = offset_bytes / PAGE_BYTES..end;
        let changed = {
            let mut read = self.read.lock();
            let known = read.entry(id).or_default();
            let before = known.len();
            known.retain(|page| !pages.contains(page));
            known.len() != before
        };
        if changed {
            self.note(id, &pages, 'w');
        }
    }

    fn note(&self, id: ImageId, pages: &std::ops::Range<u64>, what: char) {
        let line = format!("{id} {} {} {what}\n", pages.start, pages.end);
        if let Err(error) = (&self.log).write_all(line.as_bytes()) {
            logs::say(log::Level::Warn, "simulate", "", || {
                format!("cannot record what the store served: {error}")
            });
        }
    }
}

/// An open file of the simulated store.
struct SimulatedFile {
    inner: Arc<dyn StoreFile>,
    link: Arc<Link>,
    id: ImageId,
}

impl Simulated {
    fn file(&self, inner: Arc<dyn StoreFile>) -> Result<Arc<dyn StoreFile>> {
        let id = inner.known_attr()?.id;
        Ok(Arc::new(SimulatedFile {
            inner,
            link: self.link.clone(),
            id,
        }))
    }

    fn dated(&self, found: (Node, Attr)) -> (Node, Attr) {
        (found.0, self.link.dated(found.1))
    }
}

impl StoreFile for SimulatedFile {
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<usize> {
        self.link.pass();
        if let Some(once) = &self.link.once
            && !once.read(self.id, offset_bytes, buf.len() as u64)
        {
            return Err(Error::from_errno(libc::EIO));
        }
        let read = self.inner.read_at(buf, offset_bytes)?;
        self.link.transfer(&self.link.down_free_at, read);
        Ok(read)
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<()> {
        self.link.transfer(&self.link.up_free_at, data.len());
        self.link.pass();
        self.inner.write_at(data, offset_bytes)?;
        if let Some(once) = &self.link.once {
            once.written(self.id, offset_bytes, data.len() as u64);
        }
        Ok(())
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        self.link.pass();
        self.inner.sync(data_only)
    }

    fn set_len(&self, size_bytes: u64) -> Result<()> {
        self.link.pass();
        self.inner.set_len(size_bytes)?;
        if let Some(once) = &self.link.once {
            once.written(self.id, size_bytes, u64::MAX - size_bytes);
        }
        Ok(())
    }

    fn allocate(&self, mode: i32, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.link.pass();
        self.inner.allocate(mode, offset_bytes, len_bytes)?;
        if let Some(once) = &self.link.once {
            once.written(self.id, offset_bytes, len_bytes);
        }
        Ok(())
    }

    fn seek(&self, offset_bytes: u64, whence: i32) -> Result<u64> {
        self.link.pass();
        self.inner.seek(offset_bytes, whence)
    }

    fn attr(&self) -> Result<Attr> {
        self.link.pass();
        Ok(self.link.dated(self.inner.attr()?))
    }

    fn known_attr(&self) -> Result<Attr> {
        Ok(self.link.dated(self.inner.known_attr()?))
    }

    fn copy_range(
        &self,
        offset_bytes: u64,
        target: &dyn StoreFile,
        target_offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<u64> {
        self.link.pass();
        let Some(target) = target.as_any().downcast_ref::<SimulatedFile>() else {
            return Err(Error::from_errno(libc::EXDEV));
        };
        let inner = target.inner.as_ref();
        let copied = self
            .inner
            .copy_range(offset_bytes, inner, target_offset_bytes, len_bytes)?;
        if let Some(once) = &self.link.once {
            once.written(target.id, target_offset_bytes, copied);
        }
        Ok(copied)
    }

    fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        self.inner.descriptor()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Store for Simulated {
    fn root(&self) -> Node {
        self.inner.root()
    }

    fn is_local(&self) -> bool {
        self.link.latency.is_zero() && self.inner.is_local()
    }

    fn identity(&self) -> String {
        self.inner.identity()
    }

    fn lookup(&self, who: &Caller, parent: &Node, name: &OsStr) -> Result<(Node, Attr)> {
        self.link.pass();
        Ok(self.dated(self.inner.lookup(who, parent, name)?))
    }

    fn attr(&self, who: &Caller, node: &Node) -> Result<Attr> {
        self.link.pass();
        Ok(self.link.dated(self.inner.attr(who, node)?))
    }

    fn set_attr(&self, who: &Caller, node: &Node, set: &SetAttr) -> Result<Attr> {
        self.link.pass();
        Ok(self.link.dated(self.inner.set_attr(who, node, set)?))
    }

    fn read_link(&self, who: &Caller, node: &Node) -> Result<OsString> {
        self.link.pass();
        self.inner.read_link(who, node)
    }

    fn read_dir(
        &self,
        who: &Caller,
        node: &Node,
        cookie: u64,
        max_entries: usize,
    ) -> Result<Vec<DirEntry>> {
        self.link.pass();
        self.inner.read_dir(who, node, cookie, max_entries)
    }

    fn open(&self, who: &Caller, node: &Node, mode: OpenMode) -> Result<Arc<dyn StoreFile>> {
        self.link.pass();
        self.file(self.inner.open(who, node, mode)?)
    }

    fn token(&self, node: &Node) -> Option<Arc<[u8]>> {
        self.inner.token(node)
    }

    fn node_of(
        &self,
        id: ImageId,
        kind: Kind,
        token: &[u8],
        place: Option<(&Node, &OsStr)>,
    ) -> Result<Node> {
        self.inner.node_of(id, kind, token, place)
    }

    fn adopt_file(
        &self,
        who: &Caller,
        node: &Node,
        mode: OpenMode,
        file: OwnedFd,
    ) -> Result<Arc<dyn StoreFile>> {
        self.file(self.inner.adopt_file(who, node, mode, file)?)
    }

    fn create(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        permissions: u32,
        mode: OpenMode,
    ) -> Result<(Node, Attr, Arc<dyn StoreFile>)> {
        let create = || self.inner.create(who, parent, name, permissions, mode);
        let (node, attr, file) = self.link.there_and_back(create)?;
        Ok((node, self.link.dated(attr), self.file(file)?))
    }

    fn make_dir(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        permissions: u32,
    ) -> Result<(Node, Attr)> {
        self.link
            .there_and_back(|| self.inner.make_dir(who, parent, name, permissions))
    }

    fn make_node(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<(Node, Attr)> {
        let make = || self.inner.make_node(who, parent, name, mode, rdev);
        let made = self.link.there_and_back(make)?;
        Ok(self.dated(made))
    }

    fn make_symlink(
        &self,
        who: &Caller,
        parent: &Node,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<(Node, Attr)> {
        self.link
            .there_and_back(|| self.inner.make_symlink(who, parent, name, target))
    }

    fn link(&self, who: &Caller, node: &Node, parent: &Node, name: &OsStr) -> Result<Attr> {
        let link = || self.inner.link(who, node, parent, name);
        Ok(self.link.dated(self.link.there_and_back(link)?))
    }

    fn unlink(&self, who: &Caller, parent: &Node, name: &OsStr) -> Result<()> {
        self.link
            .there_and_back(|| self.inner.unlink(who, parent, name))
    }

    fn remove_dir(&self, who: &Caller, parent: &Node, name: &OsStr) -> Result<()> {
        self.link
            .there_and_back(|| self.inner.remove_dir(who, parent, name))
    }

    fn rename(
        &self,
        who: &Caller,
        from: (&Node, &OsStr),
        to: (&Node, &OsStr),
        flags: u32,
    ) -> Result<()> {
        self.link
            .there_and_back(|| self.inner.rename(who, from, to, flags))
    }

    fn get_xattr(&self, who: &Caller, node: &Node, name: &OsStr) -> Result<Vec<u8>> {
        self.link.pass();
        self.inner.get_xattr(who, node, name)
    }

    fn set_xattr(
        &self,
        who: &Caller,
        node: &Node,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        self.link
            .there_and_back(|| self.inner.set_xattr(who, node, name, value, flags))
    }

    fn list_xattr(&self, who: &Caller, node: &Node) -> Result<Vec<u8>> {
        self.link.pass();
        self.inner.list_xattr(who, node)
    }

    fn remove_xattr(&self, who: &Caller, node: &Node, name: &OsStr) -> Result<()> {
        self.link
            .there_and_back(|| self.inner.remove_xattr(who, node, name))
    }

    fn sync_dir(&self, who: &Caller, node: &Node) -> Result<()> {
        self.link.pass();
        self.inner.sync_dir(who, node)
    }

    fn stat_fs(&self, who: &Caller) -> Result<StatFs> {
        self.link.pass();
        self.inner.stat_fs(who)
    }

    fn read_side(&self, who: &Caller, id: ImageId, name: &str) -> Result<Vec<u8>> {
        self.link.pass();
        self.inner.read_side(who, id, name)
    }

    fn write_side(&self, who: &Caller, id: ImageId, name: &str, bytes: &[u8]) -> Result<()> {
        self.link.pass();
        self.inner.write_side(who, id, name, bytes)
    }

    fn remove_sides(&self, who: &Caller, id: ImageId) -> Result<()> {
        self.link.pass();
        self.inner.remove_sides(who, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_served_once_until_it_is_written_also_after_a_restart() {
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("served");
        let id = ImageId { ino: 1, tag: 2 };
        let once = Once::open(&path).expect("open");
        assert!(once.read(id, 0, 8192));
        assert!(!once.read(id, 4096, 10));
        let once = Once::open(&path).expect("open again");
        assert!(!once.read(id, 100, 10));
        once.written(id, 0, 10);
        assert!(once.read(id, 0, 4096));
        assert!(!once.read(id, 4096, 4096));
    }
}
