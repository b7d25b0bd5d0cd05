//! A cache device as typed (`DIR[@LIMIT]`) and as checked. Looks at the directory and the size of its
//! filesystem; writes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use super::units::{Limit, Unparsable};
use super::{Error, check};

/// Without a limit the cache takes this share of its filesystem.
const LIMIT_DEFAULT: Limit = Limit::Percent(80);
/// Less would hold little more than the cache's own records.
const LIMIT_MIN_BYTES: u64 = 16 << 20;

/// One cache device as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDevice {
    /// The directory given by the user, absolute.
    pub dir: PathBuf,
    /// Space the cache may take, in bytes, as the filesystem counts it.
    pub limit_bytes: u64,
}

/// One cache device as typed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct CacheSpec {
    pub dir: PathBuf,
    pub limit: Option<Limit>,
}

impl FromStr for CacheSpec {
    type Err = Unparsable;

    /// What follows the last `@` is the limit, unless it holds a slash: a directory whose name has
    /// an `@` is written with a slash at its end, or with a limit.
    fn from_str(text: &str) -> Result<CacheSpec, Unparsable> {
        let (dir, limit) = match text.rsplit_once('@') {
            Some((dir, limit)) if !limit.contains('/') => (dir, Some(limit.parse()?)),
            _ => (text, None),
        };
        if dir.is_empty() {
            return Err(Unparsable::new(format!("`{text}` names no directory")));
        }
        Ok(CacheSpec {
            dir: PathBuf::from(dir),
            limit,
        })
    }
}

impl TryFrom<String> for CacheSpec {
    type Error = Unparsable;

    fn try_from(text: String) -> Result<CacheSpec, Unparsable> {
        text.parse()
    }
}

/// Checks every device and then all of them together; against the mount point where one is given.
pub(super) fn resolve(
    specs: &[CacheSpec],
    store: &Path,
    mountpoint: Option<&Path>,
) -> Result<Vec<CacheDevice>, Error> {
    let mut devices = Vec::with_capacity(specs.len());
    let mut seen = Vec::new();
    let mut filesystems: BTreeMap<u64, u64> = BTreeMap::new();
    for spec in specs {
        let place = check::cache(&spec.dir, store, mountpoint)?;
        if seen.contains(&(place.device, place.inode)) {
            return Err(Error::CacheTwice(place.path));
        }
        seen.push((place.device, place.inode));
        let limit_bytes = spec
            .limit
            .unwrap_or(LIMIT_DEFAULT)
            .of(place.filesystem_bytes);
        let together = filesystems.entry(place.device).or_default();
        *together = together.saturating_add(limit_bytes);
        check_limit(&place, limit_bytes, *together)?;
        devices.push(CacheDevice {
            dir: place.path,
            limit_bytes,
        });
    }
    Ok(devices)
}

fn check_limit(place: &check::CachePlace, limit_bytes: u64, together: u64) -> Result<(), Error> {
    let dir = place.path.clone();
    let filesystem_bytes = place.filesystem_bytes;
    if limit_bytes > filesystem_bytes {
        return Err(Error::LimitTooLarge {
            dir,
            limit_bytes,
            filesystem_bytes,
        });
    }
    if limit_bytes < LIMIT_MIN_BYTES {
        return Err(Error::LimitTooSmall { dir, limit_bytes });
    }
    if together > filesystem_bytes {
        return Err(Error::LimitsTooLarge {
            dir,
            limit_bytes: together,
            filesystem_bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> (String, Option<Limit>) {
        let spec: CacheSpec = text.parse().expect("a good specification");
        (spec.dir.display().to_string(), spec.limit)
    }

    #[test]
    fn the_limit_follows_the_last_at() {
        assert_eq!(spec("/flash0"), ("/flash0".into(), None));
        assert_eq!(
            spec("/flash0@25%"),
            ("/flash0".into(), Some(Limit::Percent(25)))
        );
        assert_eq!(
            spec("/a@b@1G"),
            ("/a@b".into(), Some(Limit::Bytes(1 << 30)))
        );
        assert_eq!(spec("/a@b/"), ("/a@b/".into(), None));
        assert_eq!(spec("/a@b/c"), ("/a@b/c".into(), None));
    }

    #[test]
    fn a_wrong_limit_is_refused() {
        for text in ["/flash0@lots", "/flash0@", "@1G", ""] {
            assert!(text.parse::<CacheSpec>().is_err(), "{text}");
        }
    }
}
