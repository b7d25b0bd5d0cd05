//! fuser's replies as answers: each function makes of a reply what the operations call when they are
//! done. A reply that is dropped uncalled says EIO by itself.

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr,
};

use super::attr::{file_attr, file_type};
use crate::image::ReadDone;
use crate::mount::answer::{Answer, Entry, Listed, Opened, Shown, TTL, Value, errno};
use crate::store::{Error, StatFs};

/// How every image is opened: past the kernel's page cache, as the guest has its own.
const OPENED: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

/// A reply that can say an errno.
trait Refuse: Send + 'static {
    fn refuse(self, error: &Error);
}

macro_rules! refuse {
    ($($reply:ident),+) => {$(
        impl Refuse for $reply {
            fn refuse(self, error: &Error) {
                self.error(Errno::from_i32(errno(error)));
            }
        }
    )+};
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// An answer that says `ok`, or the errno.
fn with<T, R: Refuse>(reply: R, ok: impl FnOnce(R, T) + Send + 'static) -> Answer<T> {
    Box::new(move |result| match result {
        Ok(value) => ok(reply, value),
        Err(error) => reply.refuse(&error),
    })
}

pub fn empty(reply: ReplyEmpty) -> Answer<()> {
    with(reply, |reply, ()| reply.ok())
}

pub fn entry(reply: ReplyEntry) -> Answer<Entry> {
    with(reply, |reply, entry: Entry| {
        let generation = Generation(entry.generation);
        reply.entry(&TTL, &file_attr(&entry.shown), generation);
    })
}

pub fn attr(reply: ReplyAttr) -> Answer<Shown> {
    with(reply, |reply, shown| reply.attr(&TTL, &file_attr(&shown)))
}

pub fn file(reply: ReplyOpen) -> Answer<Opened> {
    with(reply, |reply, opened: Opened| {
        let number = FileHandle(opened.number);
        let Some(backing) = opened.backing else {
            return reply.opened(number, OPENED);
        };
        // SAFETY: the number is registered while the file is open, and `into_raw` below keeps fuser
        // from closing it.
        let backing = unsafe { reply.wrap_backing(backing) };
        reply.opened_passthrough(number, FopenFlags::empty(), &backing);
        backing.into_raw();
    })
}

pub fn dir(reply: ReplyOpen) -> Answer<Opened> {
    with(reply, |reply, opened: Opened| {
        reply.opened(FileHandle(opened.number), FopenFlags::empty());
    })
}

pub fn created(reply: ReplyCreate) -> Answer<(Entry, Opened)> {
    with(reply, |reply, (entry, opened): (Entry, Opened)| {
        let (attr, generation) = (file_attr(&entry.shown), Generation(entry.generation));
        reply.created(&TTL, &attr, generation, FileHandle(opened.number), OPENED);
    })
}

pub fn bytes(reply: ReplyData) -> ReadDone {
    Box::new(move |result| match result {
        Ok(bytes) => reply.data(bytes),
        Err(error) => reply.refuse(&error),
    })
}

pub fn data(reply: ReplyData) -> Answer<Vec<u8>> {
    with(reply, |reply, data: Vec<u8>| reply.data(&data))
}

pub fn written(reply: ReplyWrite) -> Answer<u32> {
    with(reply, |reply, bytes| reply.written(bytes))
}

/// At most what a request may ask for is copied at once, so it fits.
pub fn copied(reply: ReplyWrite) -> Answer<u64> {
    with(reply, |reply, bytes| reply.written(bytes as u32))
}

pub fn offset(reply: ReplyLseek) -> Answer<u64> {
    with(reply, |reply, offset| reply.offset(offset as i64))
}

pub fn value(reply: ReplyXattr) -> Answer<Value> {
    with(reply, |reply, value| match value {
        Value::Size(bytes) => reply.size(bytes),
        Value::Bytes(bytes) => reply.data(&bytes),
    })
}

pub fn listed(reply: ReplyDirectory) -> Answer<Listed> {
    with(reply, |mut reply, listed: Listed| {
        listed.fill(|name| {
            let (ino, kind) = (INodeNo(name.ino), file_type(name.kind));
            reply.add(ino, name.offset, kind, name.name)
        });
        reply.ok();
    })
}

pub fn stat_fs(reply: ReplyStatfs) -> Answer<StatFs> {
    with(reply, |reply, stat: StatFs| {
        reply.statfs(
            stat.blocks,
            stat.blocks_free,
            stat.blocks_available,
            stat.files,
            stat.files_free,
            stat.block_size,
            stat.name_max,
            stat.block_size,
        );
    })
}
