//! Files full of random bytes.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::interrupt;

const CHUNK: usize = 1 << 20;

/// Writes `bytes` random bytes from the first to the last, durably, and leaves nothing of them in memory.
/// `bytes` is a multiple of 1 MiB.
pub fn write(path: &Path, bytes: u64) -> Result<()> {
    let write = || -> Result<()> {
        let mut file = File::create(path)?;
        let mut random = path.as_os_str().len() as u64 ^ 0x9e37_79b9_7f4a_7c15;
        let mut chunk = vec![0; CHUNK];
        for _ in 0..bytes / CHUNK as u64 {
            fill(&mut chunk, &mut random);
            file.write_all(&chunk)?;
            if interrupt::came() {
                anyhow::bail!("interrupted");
            }
        }
        file.sync_all()?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {path:?}"))?;
    forget(path)
}

/// Drops a file's clean pages from the page cache, so that it is read from disk.
pub fn forget(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    // SAFETY: a descriptor of ours; nothing is dereferenced.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}

/// Whether the disk below a file takes O_DIRECT of 512 bytes at +512.
pub fn takes_sectors(path: &Path) -> bool {
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path);
    let mut page = Aligned([0; 4096]);
    // SAFETY: the buffer is longer than what is read into it.
    direct.is_ok_and(|file| unsafe {
        libc::pread(file.as_raw_fd(), page.0.as_mut_ptr().cast(), 512, 512) == 512
    })
}

#[repr(align(4096))]
struct Aligned([u8; 4096]);

/// xorshift64*: quick, and nothing compresses it.
fn fill(chunk: &mut [u8], random: &mut u64) {
    for word in chunk.chunks_exact_mut(8) {
        *random ^= *random >> 12;
        *random ^= *random << 25;
        *random ^= *random >> 27;
        word.copy_from_slice(&random.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
}
