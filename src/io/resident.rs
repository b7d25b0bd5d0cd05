//! Memory that the kernel may copy to and from at any moment without a page fault.
//!
//! A server that is killed while the kernel waits for one of its pages answers that request with EIO, and
//! nobody is asked again. So what requests come into and replies go out of is there before it is used, and
//! stays: no memory pressure takes it away in between.

use std::io;

/// Bytes that are touched one by one where locking does not do it.
const PAGE_BYTES: usize = 4096;

/// Makes `bytes` resident, and keeps them so where the system lets us: an ordinary user may lock little. The
/// lock ends when the memory is given back to the system.
pub fn keep_resident(bytes: &mut [u8]) {
    // SAFETY: the range is ours; locking changes no byte.
    let locked = unsafe { libc::mlock(bytes.as_ptr().cast(), bytes.len()) };
    if locked != 0 {
        log::debug!("memory is not locked: {}", io::Error::last_os_error());
        for at in (0..bytes.len()).step_by(PAGE_BYTES) {
            let byte: *mut u8 = &mut bytes[at];
            // SAFETY: in bounds. Volatile, because writing what is there already may be left out.
            unsafe { byte.write_volatile(byte.read_volatile()) };
        }
    }
}

/// Keeps pages of `bytes` resident from their first use on; what is not used costs nothing.
pub fn keep_resident_when_used(bytes: &mut [u8]) {
    let (at, len) = (bytes.as_ptr().cast(), bytes.len());
    // SAFETY: the range is ours; locking changes no byte.
    if unsafe { libc::mlock2(at, len, libc::MLOCK_ONFAULT) } != 0 {
        log::debug!("memory is not locked: {}", io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Buffer;
    use crate::io::region::Region;

    /// How many pages of `bytes` are there.
    fn resident(bytes: &[u8]) -> usize {
        let begin = bytes.as_ptr() as usize / PAGE_BYTES * PAGE_BYTES;
        let len = bytes.as_ptr() as usize + bytes.len() - begin;
        let mut pages = vec![0u8; len.div_ceil(PAGE_BYTES)];
        // SAFETY: the range is mapped, and there is a byte for each of its pages.
        let asked = unsafe { libc::mincore(begin as *mut _, len, pages.as_mut_ptr()) };
        assert_eq!(asked, 0, "{}", io::Error::last_os_error());
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn all_of_a_buffer_is_there_and_nothing_of_a_region_until_it_is_used() {
        let mut buffer = Buffer::new(1 << 20);
        keep_resident(buffer.bytes_mut());
        assert_eq!(resident(buffer.bytes()), 256);
        let mut region = Region::new(8 << 20).expect("memory");
        keep_resident_when_used(region.bytes_mut());
        assert_eq!(resident(region.bytes()), 0);
        region.bytes_mut()[0] = 1;
        assert!(resident(region.bytes()) > 0);
    }
}
