//! From a path to the object of the store it leads to, name by name: for those who are told a path
//! instead of the numbers the kernel uses.

use std::path::{Component, Path};

use super::{Attr, Caller, Error, Node, Result, Store};

/// The object at `path` below the root, as `who` may see it. Symbolic links are not followed
/// and `..` is refused (EINVAL). Blocks.
pub fn lookup_path(store: &dyn Store, who: &Caller, path: &Path) -> Result<(Node, Attr)> {
    let root = store.root();
    let attr = store.attr(who, &root)?;
    let mut found = (root, attr);
    for component in path.components() {
        found = match component {
            Component::CurDir | Component::RootDir => found,
            Component::Normal(name) => store.lookup(who, &found.0, name)?,
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::from_errno(libc::EINVAL));
            }
        };
    }
    Ok(found)
}
