//! The extended attributes of a file under the mount: reading their numbers, setting them.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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

/// Sets `user.flashside.<name>`.
pub fn set(path: &Path, name: &str, value: &str) -> std::io::Result<()> {
    let key = CString::new(format!("user.flashside.{name}")).expect("no NUL in a name");
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path");
    // SAFETY: two C strings, and a value of the length given.
    let result = unsafe {
        let (path, key) = (path.as_ptr(), key.as_ptr());
        libc::setxattr(path, key, value.as_ptr().cast(), value.len(), 0)
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
