//! A large piece of memory in huge pages where the system has them: direct I/O of a mebibyte then is one
//! piece to the device instead of 256.

use std::io;

/// Pages of this size are asked for.
const HUGE_BYTES: usize = 2 << 20;

/// Zeroed memory that begins with a huge page. Untouched parts cost nothing.
pub struct Region {
    mapped: *mut libc::c_void,
    mapped_bytes: usize,
    begin: usize,
    len_bytes: usize,
}

// SAFETY: the memory belongs to the region alone, and is reached through `&mut self` and `&self` only.
unsafe impl Send for Region {}

impl Region {
    /// At least `len_bytes`. Fails where there is no address space for it.
    pub fn new(len_bytes: usize) -> io::Result<Region> {
        let len_bytes = len_bytes.next_multiple_of(HUGE_BYTES);
        let mapped_bytes = len_bytes + HUGE_BYTES;
        // SAFETY: a new private mapping, at a place the kernel picks.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let region = Region {
            mapped,
            mapped_bytes,
            begin: (mapped as usize).next_multiple_of(HUGE_BYTES) - mapped as usize,
            len_bytes,
        };
        // SAFETY: the range lies in the mapping. Advice that is not taken changes nothing.
        unsafe { libc::madvise(region.base().cast(), len_bytes, libc::MADV_HUGEPAGE) };
        Ok(region)
    }

    fn base(&self) -> *mut u8 {
        self.mapped.cast::<u8>().wrapping_add(self.begin)
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping, which is initialised with zeros.
        unsafe { std::slice::from_raw_parts(self.base(), self.len_bytes) }
    }

    /// All bytes, to write into.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.len_bytes) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody borrows from it any more.
        unsafe { libc::munmap(self.mapped, self.mapped_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_a_huge_page_and_can_be_written() {
        let mut region = Region::new(3 << 20).expect("memory");
        assert_eq!(region.bytes().len(), 4 << 20);
        assert_eq!(region.bytes().as_ptr() as usize % HUGE_BYTES, 0);
        region.bytes_mut()[(4 << 20) - 1] = 1;
        assert_eq!(region.bytes()[(4 << 20) - 1], 1);
    }
}
