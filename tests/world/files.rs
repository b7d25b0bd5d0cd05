//! Reading and writing files the way the tests need it: O_DIRECT with aligned buffers, holes,
//! extended attributes, patterns that name their own place, and patience with young files.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// flashside's unit of fetching, in bytes.
pub const BLOCK: u64 = 64 << 10;
/// flashside's unit of validity, in bytes.
pub const PAGE: u64 = 4 << 10;
/// One MiB in bytes.
pub const MIB: u64 = 1 << 20;

/// flashside does not trust a store file younger than 2 s.
const YOUNG: Duration = Duration::from_millis(2100);

/// Bytes aligned for O_DIRECT.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zero bytes.
    pub fn new(len: usize) -> Aligned {
        let memory = vec![0; len + PAGE as usize];
        let start = memory.as_ptr().align_offset(PAGE as usize);
        Aligned { memory, start, len }
    }

    /// A copy of `data`.
    pub fn of(data: &[u8]) -> Aligned {
        let mut aligned = Aligned::new(data.len());
        aligned.copy_from_slice(data);
        aligned
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Opens for reading and writing, O_DIRECT if asked.
pub fn open(path: &Path, direct: bool) -> File {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

/// Opens for reading only, past any page cache.
pub fn open_read(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

/// Reads up to `len` bytes at `offset`; short only at the end of the file.
pub fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut data = Aligned::new(len);
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut data[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(data[..filled].to_vec())
}

/// Writes all of `data` at `offset` from an aligned buffer.
pub fn write_at(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    file.write_all_at(&Aligned::of(data), offset)
}

/// fallocate(2).
pub fn fallocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: an open descriptor.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `len` bytes for `offset` of an image called `tag`: every 8 bytes name their own place, so that
/// a misplaced or stale page is seen as what it is.
pub fn pattern(tag: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(len + 16);
    let mut word = offset / 8;
    while data.len() < len + (offset % 8) as usize {
        let value = word.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ tag.rotate_left(32);
        data.extend_from_slice(&value.to_le_bytes());
        word += 1;
    }
    data.drain(..(offset % 8) as usize);
    data.truncate(len);
    data
}

/// Makes an image of `len` bytes of [`pattern`] straight in the store.
pub fn make_image(path: &Path, tag: u64, len: u64) {
    let file = File::create(path).expect("an image in the store");
    let mut at = 0;
    while at < len {
        let part = MIB.min(len - at);
        let data = pattern(tag, at, part as usize);
        file.write_all_at(&data, at).expect("an image in the store");
        at += part;
    }
}

/// Waits until every one of these store files is old enough for its validator to be trusted.
pub fn age(paths: &[&Path]) {
    for path in paths {
        let meta = std::fs::symlink_metadata(path).expect("the file to age");
        let changed = Duration::new(meta.ctime() as u64, meta.ctime_nsec() as u32);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970");
        std::thread::sleep((changed + YOUNG).saturating_sub(now));
    }
}

/// Reads the whole file in 1 MiB steps and compares it with [`pattern`].
pub fn check_pattern(path: &Path, tag: u64, len: u64) {
    let file = open_read(path);
    let mut at = 0;
    while at < len {
        let part = MIB.min(len - at) as usize;
        let data = read_at(&file, at, part).unwrap_or_else(|e| panic!("read at {at}: {e}"));
        assert_same(&data, &pattern(tag, at, part), at);
        at += part as u64;
    }
}

/// Panics with the first difference, at its place in the file.
pub fn assert_same(got: &[u8], want: &[u8], offset: u64) {
    assert_eq!(got.len(), want.len(), "length read at {offset}");
    if got == want {
        return;
    }
    let wrong = |(g, w): (&u8, &u8)| g != w;
    let first = got.iter().zip(want).position(wrong).expect("they differ");
    let count = got.iter().zip(want).filter(|(g, w)| g != w).count();
    panic!(
        "{count} bytes differ from {}; got {:02x?}, want {:02x?}",
        offset + first as u64,
        &got[first..got.len().min(first + 16)],
        &want[first..want.len().min(first + 16)]
    );
}

/// getxattr(2) as text; the error is an errno.
pub fn get_xattr(path: &Path, name: &str) -> Result<String, i32> {
    let (path, name) = (c_path(path), CString::new(name).expect("no NUL"));
    let mut value = vec![0u8; 4096];
    // SAFETY: two valid C strings and a buffer with its own length.
    let len = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    if len < 0 {
        return Err(last_errno());
    }
    Ok(super::text(&value[..len as usize]))
}

/// setxattr(2); the error is an errno.
pub fn set_xattr(path: &Path, name: &str, value: impl AsRef<[u8]>) -> Result<(), i32> {
    let value = value.as_ref();
    let (path, name) = (c_path(path), CString::new(name).expect("no NUL"));
    let data = value.as_ptr().cast();
    // SAFETY: two valid C strings and a buffer with its own length.
    let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), data, value.len(), 0) };
    if set == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The errno of an I/O result; 0 for success.
pub fn errno_of<T>(result: &io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(-1)
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path")
}
