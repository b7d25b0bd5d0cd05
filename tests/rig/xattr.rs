//! Reading the numbers that a file under the mount carries as extended attributes.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;

/// The number in `user.flashside.<name>`, or why there is none.
pub fn number(file: &File, name: &str) -> Result<u64, String> {
    let key = CString::new(format!("user.flashside.{name}")).expect("no NUL in a name");
    let mut value = [0u8; 64];
    // SAFETY: the descriptor is open, the key ends with a NUL and the buffer has the length given.
    let len = unsafe {
        let buf = value.as_mut_ptr().cast();
        libc::fgetxattr(file.as_raw_fd(), key.as_ptr(), buf, value.len())
    };
    if len < 0 {
        return Err(format!("{key:?}: {}", std::io::Error::last_os_error()));
    }
    let text = String::from_utf8_lossy(&value[..len as usize]);
    let digits = text.trim_end_matches(['\0', '\n']);
    digits.parse().map_err(|_| format!("{key:?} is {text:?}"))
}
