//! What of a repeated request is done already: the first server asked the store, and died before it could
//! answer. The request notes what it found before ([`super::once`]); here that is compared with what is
//! there now. What is done is not done again, and its caller hears of success.

use std::ffi::{OsStr, OsString};

use super::core::Core;
use super::nodes::Inode;
use super::once::Once;
use crate::store::{Attr, Caller, Error, ImageId, Kind, Node, Result};

/// What a request makes, to know it again.
pub enum Making {
    /// An object of this kind.
    Kind(Kind),
    /// A symbolic link to this.
    Symlink(OsString),
    /// Another name of this.
    Link(ImageId),
}

impl Making {
    /// What the store is asked for, for people.
    pub fn what(&self) -> &'static str {
        match self {
            Making::Kind(Kind::Dir) => "mkdir",
            Making::Kind(_) => "mknod",
            Making::Symlink(_) => "symlink",
            Making::Link(_) => "link",
        }
    }
}

impl Core {
    /// What a name leads to; `None` where there is no such name.
    fn named(&self, who: &Caller, dir: &Inode, name: &OsStr) -> Result<Option<(Node, Attr)>> {
        match self.store.lookup(who, &dir.node, name) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.errno() == libc::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// After EEXIST: the object that this request made when it came before, if it was that.
    pub fn made_before(
        &self,
        who: &Caller,
        dir: &Inode,
        name: &OsStr,
        making: &Making,
        once: &Once,
    ) -> Option<(Node, Attr)> {
        once.earlier()?;
        let (node, attr) = self.named(who, dir, name).ok()??;
        let is_it = match making {
            Making::Kind(kind) => attr.kind == *kind,
            Making::Link(id) => attr.id == *id,
            Making::Symlink(target) => {
                let read = || self.store.read_link(who, &node);
                attr.kind == Kind::Symlink && read().is_ok_and(|read| read == *target)
            }
        };
        is_it.then_some((node, attr))
    }

    /// Whether this request has removed the name when it came before: the name is gone, or another
    /// object's by now.
    pub fn removed_before(
        &self,
        who: &Caller,
        dir: &Inode,
        name: &OsStr,
        once: &Once,
    ) -> Result<bool> {
        let Some([victim, _]) = once.earlier() else {
            return Ok(false);
        };
        let now = self.named(who, dir, name)?;
        Ok(match (now, victim) {
            (None, _) => true,
            (Some((_, attr)), Some(victim)) => attr.id != victim,
            (Some(_), None) => false,
        })
    }

    /// Whether this request has renamed `from` to `to` when it came before.
    pub fn renamed_before(
        &self,
        who: &Caller,
        from: (&Inode, &OsStr),
        to: (&Inode, &OsStr),
        once: &Once,
    ) -> Result<bool> {
        let Some([source, _]) = once.earlier() else {
            return Ok(false);
        };
        let id = |found: Option<(Node, Attr)>| found.map(|(_, attr)| attr.id);
        let at_source = id(self.named(who, from.0, from.1)?);
        let at_target = id(self.named(who, to.0, to.1)?);
        Ok(match source {
            Some(source) => at_target == Some(source) && at_source != Some(source),
            None => at_source.is_none() && at_target.is_some(),
        })
    }
}

/// After an attribute was set that must not exist, or removed: whether the error says that this request
/// has done it when it came before. `there_before` says what it is to have found.
pub fn is_done<T: Default>(
    result: Result<T>,
    once: &Once,
    errno: i32,
    there_before: bool,
) -> Result<T> {
    let found_as_needed = || {
        once.earlier()
            .is_some_and(|[found, _]| found.is_some() == there_before)
    };
    match result {
        Err(Error::Os(error)) if error.raw_os_error() == Some(errno) && found_as_needed() => {
            Ok(T::default())
        }
        result => result,
    }
}
