//! Who sent a request: the identity its store operations run with (rule 15).

use std::sync::Arc;

use crate::store::Caller;

/// Finds out who sent requests.
#[derive(Debug)]
pub struct Callers {
    /// Everything runs as this user and group instead of the caller.
    store_user: Option<Caller>,
    no_groups: Arc<[u32]>,
}

impl Callers {
    /// With `store_user` (uid, gid), everybody is that user to the store.
    pub fn new(store_user: Option<(u32, u32)>) -> Callers {
        let no_groups: Arc<[u32]> = Arc::new([]);
        Callers {
            store_user: store_user.map(|(uid, gid)| Caller {
                uid,
                gid,
                groups: no_groups.clone(),
            }),
            no_groups,
        }
    }

    /// The identity of the sender of a request: its user, group and thread. Root needs no groups.
    pub fn of(&self, uid: u32, gid: u32, pid: u32) -> Caller {
        if let Some(user) = &self.store_user {
            return user.clone();
        }
        let groups = match uid {
            0 => self.no_groups.clone(),
            _ => groups_of(pid).unwrap_or_else(|| self.no_groups.clone()),
        };
        Caller { uid, gid, groups }
    }

    /// The daemon itself (or the store user): for what no caller asked for.
    pub fn own(&self) -> Caller {
        self.store_user
            .clone()
            .unwrap_or_else(|| Caller::daemon(None))
    }
}

/// The supplementary groups of a thread; None when it is gone or of another PID namespace.
fn groups_of(pid: u32) -> Option<Arc<[u32]>> {
    if pid == 0 {
        return None;
    }
    let status = std::fs::read(format!("/proc/{pid}/status")).ok()?;
    parse_groups(&status)
}

fn parse_groups(status: &[u8]) -> Option<Arc<[u32]>> {
    let line = status
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"Groups:"))?;
    let numbers = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    numbers.map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_the_status_file() {
        let status = b"Name:\tx\xff\nUid:\t1\t1\t1\t1\nGroups:\t4 27 1000 \nVmSize:\t1 kB\n";
        assert_eq!(&*parse_groups(status).expect("groups"), &[4, 27, 1000]);
        assert_eq!(&*parse_groups(b"Groups:\t\n").expect("none"), &[] as &[u32]);
        assert!(parse_groups(b"Name:\tx\n").is_none());
    }
}
