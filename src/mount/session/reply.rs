//! Replies: what operations answer, in the kernel's words.
//!
//! A request that must not be carried out twice is guarded until its reply is out: then the kernel will not
//! send it again.
//!
//! *Invariant*: every request that wants a reply gets one: a [`Reply`] that is dropped unsent says EIO.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::{Immutable, IntoBytes};

use super::device::Device;
use super::wire::{
    AttrOut, AttrWords, CreateOut, Dirent, EntryOut, FOPEN_DIRECT_IO, FOPEN_PARALLEL_DIRECT_WRITES,
    FOPEN_PASSTHROUGH, GetxattrOut, LseekOut, OpenOut, OutHeader, StatfsOut, WriteOut,
};
use crate::image::ReadDone;
use crate::mount::answer::{Answer, Entry, Listed, ListedName, Opened, Shown, TTL, Value, errno};
use crate::mount::once::Once;
use crate::store::{Error, Kind, Result, StatFs};

/// The way back for one request.
pub struct Reply {
    device: Arc<Device>,
    unique: u64,
    sent: bool,
    /// Kept until the reply is out.
    once: Once,
}

impl Reply {
    pub fn new(device: &Arc<Device>, unique: u64) -> Reply {
        device.in_hand.fetch_add(1, Ordering::Relaxed);
        Reply {
            device: device.clone(),
            unique,
            sent: false,
            once: Once::never_again(),
        }
    }

    /// The reply to a request that must not be carried out twice.
    pub fn guarded(mut self, once: &Once) -> Reply {
        self.once = once.clone();
        self
    }

    /// What the kernel calls the request.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// Success: `reply` is a head and a body in one piece.
    pub fn whole(mut self, reply: &[u8]) {
        self.sent = true;
        self.device.send(reply);
    }

    /// No reply is wanted.
    pub fn none(mut self) {
        self.sent = true;
    }

    /// Success, with `body`.
    pub fn bytes(mut self, body: &[u8]) {
        self.sent = true;
        let head = head(self.unique, 0, body.len());
        match body.is_empty() {
            true => self.device.send(head.as_bytes()),
            false => self.device.send_two(head.as_bytes(), body),
        }
    }

    fn word(self, body: &(impl IntoBytes + Immutable)) {
        self.bytes(body.as_bytes());
    }

    /// Failure.
    pub fn refuse(mut self, errno: i32) {
        self.say(errno);
    }

    fn say(&mut self, errno: i32) {
        self.sent = true;
        self.device.send(head(self.unique, errno, 0).as_bytes());
    }

    fn with<T>(self, ok: impl FnOnce(Reply, T) + Send + 'static) -> Answer<T> {
        Box::new(move |result| match result {
            Ok(value) => ok(self, value),
            Err(error) => self.failed(&error),
        })
    }

    fn failed(self, error: &Error) {
        self.refuse(errno(error));
    }

    pub fn empty(self) -> Answer<()> {
        self.with(|reply, ()| reply.bytes(&[]))
    }

    pub fn entry(self) -> Answer<Entry> {
        self.with(|reply, entry: Entry| {
            reply.once.gives(Some(entry.shown.nodeid));
            reply.word(&entry_out(&entry));
        })
    }

    pub fn attr(self) -> Answer<Shown> {
        self.with(|reply, shown| {
            reply.word(&AttrOut {
                attr_valid: TTL.as_secs(),
                attr_valid_nsec: TTL.subsec_nanos(),
                dummy: 0,
                attr: attr_words(&shown),
            });
        })
    }

    pub fn file(self) -> Answer<Opened> {
        self.with(|reply, opened| reply.word(&file_out(&opened)))
    }

    pub fn dir(self) -> Answer<Opened> {
        self.with(|reply, opened: Opened| {
            reply.word(&OpenOut {
                fh: opened.number,
                ..OpenOut::default()
            });
        })
    }

    pub fn created(self) -> Answer<(Entry, Opened)> {
        self.with(|reply, (entry, opened): (Entry, Opened)| {
            reply.once.gives(Some(entry.shown.nodeid));
            reply.word(&CreateOut {
                entry: entry_out(&entry),
                open: file_out(&opened),
            });
        })
    }

    pub fn read(self) -> ReadDone {
        Box::new(move |result: Result<&[u8]>| match result {
            Ok(bytes) => self.bytes(bytes),
            Err(error) => self.failed(&error),
        })
    }

    pub fn data(self) -> Answer<Vec<u8>> {
        self.with(|reply, data: Vec<u8>| reply.bytes(&data))
    }

    pub fn written(self) -> Answer<u32> {
        self.with(|reply, size| reply.word(&WriteOut { size, padding: 0 }))
    }

    /// At most what a request may ask for is copied at once, so it fits.
    pub fn copied(self) -> Answer<u64> {
        let written = self.written();
        Box::new(move |result| written(result.map(|bytes| bytes as u32)))
    }

    pub fn offset(self) -> Answer<u64> {
        self.with(|reply, offset: u64| {
            reply.word(&LseekOut {
                offset: offset as i64,
            });
        })
    }

    pub fn value(self) -> Answer<Value> {
        self.with(|reply, value| match value {
            Value::Size(size) => reply.word(&GetxattrOut { size, padding: 0 }),
            Value::Bytes(bytes) => reply.bytes(&bytes),
        })
    }

    /// As many names as fit into `size` bytes.
    pub fn listed(self, size: u32) -> Answer<Listed> {
        self.with(move |reply, listed: Listed| {
            let mut body = Vec::new();
            listed.fill(|name| !add_name(&mut body, size as usize, &name));
            reply.bytes(&body);
        })
    }

    pub fn stat_fs(self) -> Answer<StatFs> {
        self.with(|reply, stat: StatFs| {
            reply.word(&StatfsOut {
                blocks: stat.blocks,
                bfree: stat.blocks_free,
                bavail: stat.blocks_available,
                files: stat.files,
                ffree: stat.files_free,
                bsize: stat.block_size,
                namelen: stat.name_max,
                frsize: stat.block_size,
                ..StatfsOut::default()
            });
        })
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.sent {
            self.say(libc::EIO);
        }
        self.device.in_hand.fetch_sub(1, Ordering::Release);
    }
}

/// The header of a reply with `body_bytes` after it.
pub fn head(unique: u64, errno: i32, body_bytes: usize) -> OutHeader {
    OutHeader {
        len: (size_of::<OutHeader>() + body_bytes) as u32,
        error: -errno,
        unique,
    }
}

fn entry_out(entry: &Entry) -> EntryOut {
    EntryOut {
        nodeid: entry.shown.nodeid,
        generation: entry.generation,
        entry_valid: TTL.as_secs(),
        attr_valid: TTL.as_secs(),
        entry_valid_nsec: TTL.subsec_nanos(),
        attr_valid_nsec: TTL.subsec_nanos(),
        attr: attr_words(&entry.shown),
    }
}

/// Straight from the registered file; or past the kernel's page cache, as the guest has its own.
fn file_out(opened: &Opened) -> OpenOut {
    match opened.backing {
        Some(backing) => OpenOut {
            fh: opened.number,
            open_flags: FOPEN_PASSTHROUGH,
            backing_id: backing as i32,
        },
        None => OpenOut {
            fh: opened.number,
            open_flags: FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES,
            backing_id: 0,
        },
    }
}

fn attr_words(shown: &Shown) -> AttrWords {
    let attr = &shown.attr;
    AttrWords {
        ino: shown.nodeid,
        size: attr.size_bytes,
        blocks: attr.blocks,
        atime: attr.atime.secs,
        mtime: attr.mtime.secs,
        ctime: attr.ctime.secs,
        atimensec: attr.atime.nanos,
        mtimensec: attr.mtime.nanos,
        ctimensec: attr.ctime.nanos,
        mode: kind_bits(attr.kind) | (attr.mode & 0o7777),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev as u32, // the kernel's 32-bit encoding
        blksize: attr.blksize,
        flags: 0,
    }
}

fn kind_bits(kind: Kind) -> u32 {
    match kind {
        Kind::File => libc::S_IFREG,
        Kind::Dir => libc::S_IFDIR,
        Kind::Symlink => libc::S_IFLNK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::Socket => libc::S_IFSOCK,
        Kind::CharDevice => libc::S_IFCHR,
        Kind::BlockDevice => libc::S_IFBLK,
    }
}

/// Adds a name if it fits; false if it does not.
fn add_name(body: &mut Vec<u8>, room: usize, name: &ListedName<'_>) -> bool {
    let bytes = name.name.as_bytes();
    let whole = (size_of::<Dirent>() + bytes.len()).next_multiple_of(8);
    if body.len() + whole > room {
        return false;
    }
    let entry = Dirent {
        ino: name.ino,
        off: name.offset,
        namelen: bytes.len() as u32,
        kind: kind_bits(name.kind) >> 12,
    };
    let end = body.len() + whole;
    body.extend_from_slice(entry.as_bytes());
    body.extend_from_slice(bytes);
    body.resize(end, 0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_ends_where_the_next_name_does_not_fit() {
        let name = |text| ListedName {
            ino: 7,
            offset: 9,
            kind: Kind::Dir,
            name: std::ffi::OsStr::new(text),
        };
        let mut body = Vec::new();
        assert!(add_name(&mut body, 64, &name("abc")));
        assert_eq!(body.len(), 32);
        assert_eq!(body[20], libc::DT_DIR);
        assert!(add_name(&mut body, 64, &name("12345678")));
        assert!(!add_name(&mut body, 64, &name("")));
        assert_eq!(body.len(), 64);
    }
}
