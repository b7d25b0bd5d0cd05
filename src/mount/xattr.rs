//! Extended attributes. `user.flashside.*` are our own verbs, answered here; `security.*` is refused
//! (libvirt tolerates that); the rest belongs to the store.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use log::Level;

use super::again::is_done;
use super::answer::{Answer, Value, refuse};
use super::core::{Core, with};
use super::nodes::{AclAnswer, Inode, ROOT};
use super::once::Once;
use crate::logs;
use crate::store::{Caller, Error, Kind, Result};

const OUR_PREFIX: &[u8] = b"user.flashside.";
/// The verb that says that nobody writes an image.
const IMMUTABLE: &str = "user.flashside.immutable";
const SECURITY_PREFIX: &[u8] = b"security.";
const TRUSTED_PREFIX: &[u8] = b"trusted.";
/// The ACLs, whose answers are remembered: without them the kernel cannot check permissions, and a
/// directory known to all would be out of reach while the store hangs.
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
/// A longer ACL is not remembered, in bytes.
const ACL_BYTES_MAX: usize = 512;

impl Core {
    pub fn get_xattr(
        self: &Arc<Self>,
        who: Caller,
        nodeid: u64,
        name: OsString,
        size: u32,
        answer: Answer<Value>,
    ) {
        let Some(answer) = allowed(&name, answer) else {
            return;
        };
        with(answer, self.inode(nodeid), |answer, inode| {
            if name == IMMUTABLE && inode.kind == Kind::File {
                return self.tell_immutable(inode, size, answer);
            }
            if let Some(verb) = name.as_bytes().strip_prefix(OUR_PREFIX) {
                let value = self.our_value(&inode, verb).ok_or(libc::ENODATA);
                return answer(give(size, value));
            }
            let acl = ACLS.iter().position(|acl| name == **acl);
            let (asked, known) = (inode.clone(), inode.clone());
            self.ask_or(
                "getxattr",
                answer,
                move |core| presence(core.store.get_xattr(&who, &asked.node, &name)),
                move |_, found| {
                    if let Some(acl) = acl {
                        inode.remember_acl(acl, rememberable(&found));
                    }
                    give(size, found.map(|value| value.to_vec()))
                },
                move |_| known.last_acl(acl?),
            );
        });
    }

    /// What one of our read-only verbs says.
    fn our_value(&self, inode: &Inode, verb: &[u8]) -> Option<Vec<u8>> {
        let is_file = inode.kind == Kind::File;
        match verb {
            b"control" if inode.nodeid == ROOT => {
                Some(self.control_socket.as_os_str().as_bytes().to_vec())
            }
            b"resident" if is_file => {
                let bytes = self.images.resident_bytes(inode.id).unwrap_or(0);
                Some(bytes.to_string().into_bytes())
            }
            // Write-through: what is acknowledged is in the store.
            b"dirty" if is_file => Some(b"0".to_vec()),
            b"plane" if is_file => Some(self.images.plane(inode.id).into_bytes()),
            _ => None,
        }
    }

    pub fn list_xattr(
        self: &Arc<Self>,
        who: Caller,
        nodeid: u64,
        size: u32,
        answer: Answer<Value>,
    ) {
        with(answer, self.inode(nodeid), |answer, inode| {
            let is_root = who.uid == 0;
            self.ask(
                "listxattr",
                answer,
                move |core| core.store.list_xattr(&who, &inode.node),
                move |_, names| give(size, Ok(shown_names(&names, is_root))),
            );
        });
    }

    pub fn set_xattr(
        self: &Arc<Self>,
        who: Caller,
        nodeid: u64,
        (name, value, flags): (OsString, Vec<u8>, i32),
        once: Once,
        answer: Answer<()>,
    ) {
        if name.as_bytes().starts_with(OUR_PREFIX) {
            return self.set_ours(who, nodeid, (name, Some(value)), answer);
        }
        self.change_xattr(who, nodeid, name, answer, move |core, who, inode, name| {
            let creates = flags & libc::XATTR_CREATE != 0;
            if creates {
                core.asks_for_xattr(who, inode, name, &once);
            }
            let set = core.keeping_version(who, inode, || {
                core.store.set_xattr(who, &inode.node, name, &value, flags)
            });
            match creates {
                true => once.told(is_done(set, &once, libc::EEXIST, false)),
                false => set,
            }
        });
    }

    pub fn remove_xattr(
        self: &Arc<Self>,
        who: Caller,
        nodeid: u64,
        name: OsString,
        once: Once,
        answer: Answer<()>,
    ) {
        if name.as_bytes().starts_with(OUR_PREFIX) {
            return self.set_ours(who, nodeid, (name, None), answer);
        }
        self.change_xattr(who, nodeid, name, answer, move |core, who, inode, name| {
            core.asks_for_xattr(who, inode, name, &once);
            let removed = core.keeping_version(who, inode, || {
                core.store.remove_xattr(who, &inode.node, name)
            });
            once.told(is_done(removed, &once, libc::ENODATA, true))
        });
    }

    /// A change depends on whether there is such an attribute: notes if there is.
    fn asks_for_xattr(&self, who: &Caller, inode: &Inode, name: &OsStr, once: &Once) {
        if once.earlier().is_none() {
            let found = self.store.get_xattr(who, &inode.node, name).is_ok();
            once.asks([found.then_some(inode.id), None]);
        }
    }

    fn change_xattr(
        self: &Arc<Self>,
        who: Caller,
        nodeid: u64,
        name: OsString,
        answer: Answer<()>,
        change: impl FnOnce(&Core, &Caller, &Inode, &OsStr) -> Result<()> + Send + 'static,
    ) {
        let Some(answer) = allowed(&name, answer) else {
            return;
        };
        with(answer, self.inode(nodeid), |answer, inode| {
            self.ask(
                "setxattr",
                answer,
                move |core| {
                    let result = change(core, &who, &inode, &name);
                    if let Some(acl) = ACLS.iter().position(|acl| name == **acl) {
                        inode.remember_acl(acl, None);
                    }
                    result
                },
                |_, ()| Ok(()),
            );
        });
    }

    /// Sets one of our verbs, or takes its value back; for root and those the configuration names (rule
    /// 16).
    /// A setting is refused: one line.
    fn tell_not_set(&self, inode: &Inode, why: &str) {
        let path = self.nodes.path(inode.nodeid);
        let name = path.to_string_lossy();
        logs::say(Level::Warn, "xattr", &name, || {
            format!("image {name}: {why}")
        });
    }

    fn set_ours(
        self: &Arc<Self>,
        who: Caller,
        nodeid: u64,
        (name, value): (OsString, Option<Vec<u8>>),
        answer: Answer<()>,
    ) {
        if who.uid != 0 && !self.control_uids.contains(&who.uid) {
            return refuse(answer, libc::EPERM);
        }
        with(answer, self.inode(nodeid), |answer, inode| {
            if name != IMMUTABLE || inode.kind != Kind::File {
                let name = name.to_string_lossy();
                self.tell_not_set(&inode, &format!("{name} cannot be set"));
                return refuse(answer, libc::EINVAL);
            }
            let immutable = match value.as_deref() {
                None => None,
                Some(b"0") => Some(false),
                Some(b"1") => Some(true),
                Some(other) => {
                    let other = String::from_utf8_lossy(other);
                    let why = format!("{IMMUTABLE} is 0 or 1, not {other}: nothing is changed");
                    self.tell_not_set(&inode, &why);
                    return refuse(answer, libc::EINVAL);
                }
            };
            self.ask(
                "setxattr",
                answer,
                move |core| {
                    let path = core.nodes.path(inode.nodeid);
                    core.immutability()
                        .set(&core.images, inode.id, &path, immutable)
                        .map_err(|error| error.logged(&path))
                },
                |_, ()| Ok(()),
            );
        });
    }

    fn tell_immutable(self: &Arc<Self>, inode: Arc<Inode>, size: u32, answer: Answer<Value>) {
        self.ask(
            "getxattr",
            answer,
            move |core| core.is_immutable(&inode),
            move |_, immutable| {
                let text: &[u8] = if immutable { b"1" } else { b"0" };
                give(size, Ok(text.to_vec()))
            },
        );
    }
}

/// Refuses `security.*`.
fn allowed<T>(name: &OsStr, answer: Answer<T>) -> Option<Answer<T>> {
    if name.as_bytes().starts_with(SECURITY_PREFIX) {
        refuse(answer, libc::EOPNOTSUPP);
        return None;
    }
    Some(answer)
}

/// That there is no such attribute is an answer, which can be remembered, not a failure.
fn presence(result: Result<Vec<u8>>) -> Result<AclAnswer> {
    match result {
        Ok(value) => Ok(Ok(value.into())),
        Err(Error::Os(error)) => match error.raw_os_error() {
            Some(errno @ (libc::ENODATA | libc::EOPNOTSUPP)) => Ok(Err(errno)),
            _ => Err(error.into()),
        },
        Err(error) => Err(error),
    }
}

fn rememberable(answer: &AclAnswer) -> Option<AclAnswer> {
    let short = answer
        .as_ref()
        .map_or(true, |acl| acl.len() <= ACL_BYTES_MAX);
    short.then(|| answer.clone())
}

/// Answers as getxattr(2) does: the size if no room was given, ERANGE if too little.
fn give(size: u32, value: std::result::Result<Vec<u8>, i32>) -> Result<Value> {
    match value.map_err(Error::from_errno)? {
        value if size == 0 => Ok(Value::Size(value.len() as u32)),
        value if value.len() > size as usize => Err(Error::from_errno(libc::ERANGE)),
        value => Ok(Value::Bytes(value)),
    }
}

/// The names to show: none that we would refuse to read, and `trusted.*` only to root, as the store
/// call ran with the daemon's right to see them.
fn shown_names(names: &[u8], is_root: bool) -> Vec<u8> {
    let shown = |name: &&[u8]| {
        !name.starts_with(SECURITY_PREFIX)
            && !name.starts_with(OUR_PREFIX)
            && (is_root || !name.starts_with(TRUSTED_PREFIX))
    };
    let names = names.split_inclusive(|&byte| byte == 0);
    names.filter(shown).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_names_leave_out_what_cannot_be_read() {
        let names = b"user.a\0security.selinux\0trusted.b\0user.flashside.pin\0";
        assert_eq!(shown_names(names, true), b"user.a\0trusted.b\0");
        assert_eq!(shown_names(names, false), b"user.a\0");
    }
}
