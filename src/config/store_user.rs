//! The user and group that store operations run as: `user[:group]`, names or numbers.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::ptr;
use std::str::FromStr;

use serde::Deserialize;

use super::units::Unparsable;

/// Enough for any entry of the user or group database that a host has in practice.
const ENTRY_BYTES: usize = 64 * 1024;

/// A user and a group by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct StoreUser {
    pub uid: u32,
    pub gid: u32,
}

impl FromStr for StoreUser {
    type Err = Unparsable;

    /// Without a group it is the user's own, so a bare number must be a known user.
    fn from_str(text: &str) -> Result<StoreUser, Unparsable> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let entry = user_named(user);
        let uid = user.parse().ok().or(entry.map(|(uid, _)| uid));
        let gid = match group {
            Some(group) => group.parse().ok().or_else(|| group_named(group)),
            None => entry.map(|(_, gid)| gid),
        };
        match (uid, gid) {
            (Some(uid), Some(gid)) => Ok(StoreUser { uid, gid }),
            _ => Err(Unparsable::new(format!(
                "`{text}` is not a user of this host; write user or user:group, names or numbers"
            ))),
        }
    }
}

impl TryFrom<String> for StoreUser {
    type Error = Unparsable;

    fn try_from(text: String) -> Result<StoreUser, Unparsable> {
        text.parse()
    }
}

/// The number and the group of a user, by name or number.
fn user_named(user: &str) -> Option<(u32, u32)> {
    let name = CString::new(user).ok()?;
    let number: Option<u32> = user.parse().ok();
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut buffer = vec![0 as libc::c_char; ENTRY_BYTES];
    let mut found = ptr::null_mut();
    // SAFETY: every pointer is to live memory of the length given; `entry` is read only when the
    // call says through `found` that it filled it.
    unsafe {
        let (entry_at, at, len) = (entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len());
        match number {
            Some(uid) => libc::getpwuid_r(uid, entry_at, at, len, &mut found),
            None => libc::getpwnam_r(name.as_ptr(), entry_at, at, len, &mut found),
        };
        if found.is_null() {
            return None;
        }
        let entry = entry.assume_init();
        Some((entry.pw_uid, entry.pw_gid))
    }
}

fn group_named(group: &str) -> Option<u32> {
    let name = CString::new(group).ok()?;
    let mut entry = MaybeUninit::<libc::group>::uninit();
    let mut buffer = vec![0 as libc::c_char; ENTRY_BYTES];
    let mut found = ptr::null_mut();
    // SAFETY: as in `user_named`.
    unsafe {
        let (at, len) = (buffer.as_mut_ptr(), buffer.len());
        libc::getgrnam_r(name.as_ptr(), entry.as_mut_ptr(), at, len, &mut found);
        if found.is_null() {
            return None;
        }
        Some(entry.assume_init().gr_gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_understood() {
        let root = StoreUser { uid: 0, gid: 0 };
        for text in ["root", "0", "root:root", "0:0", "root:0"] {
            assert_eq!(text.parse(), Ok(root), "{text}");
        }
        let numbers = StoreUser {
            uid: 64055,
            gid: 108,
        };
        assert_eq!("64055:108".parse(), Ok(numbers));
    }

    #[test]
    fn unknown_users_are_refused() {
        for text in ["", "no-such-user", "root:no-such-group", ":", "root:"] {
            assert!(text.parse::<StoreUser>().is_err(), "{text}");
        }
    }
}
