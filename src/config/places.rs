//! Store and mount point: as arguments, in the configuration file, or in both, where they must agree.
//! Looks symbolic links up; changes nothing.

use std::path::Path;

use super::{Error, Settings};

/// Refuses a file that was written for another store or mount point than was typed: its cache
/// directories would be the other's.
pub(super) fn check(typed: &Settings, from_file: &Settings, file: &Path) -> Result<(), Error> {
    let pairs = [
        ("store", &typed.store, &from_file.store),
        ("mountpoint", &typed.mountpoint, &from_file.mountpoint),
    ];
    for (what, typed, configured) in pairs {
        if let (Some(typed), Some(configured)) = (typed, configured)
            && !is_same(typed, configured)
        {
            return Err(Error::OtherPlace {
                what,
                path: file.to_path_buf(),
                configured: configured.clone(),
                typed: typed.clone(),
            });
        }
    }
    Ok(())
}

/// Store and mount point, once arguments and file are one. An error where one is named nowhere.
pub fn of<'a>(settings: &'a Settings, file: &Path) -> Result<(&'a Path, &'a Path), Error> {
    let missing = |what| Error::NoPlace {
        what,
        path: file.to_path_buf(),
    };
    let store = settings.store.as_deref().ok_or_else(|| missing("store"))?;
    let mountpoint = settings.mountpoint.as_deref();
    Ok((store, mountpoint.ok_or_else(|| missing("mountpoint"))?))
}

/// The same name, or the same directory by its real path. A dead mount point has its name only.
fn is_same(one: &Path, other: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    if absolute(one) == absolute(other) {
        return true;
    }
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(store: Option<&str>, mountpoint: Option<&str>) -> Settings {
        Settings {
            store: store.map(Into::into),
            mountpoint: mountpoint.map(Into::into),
            ..Settings::default()
        }
    }

    #[test]
    fn a_file_for_another_mount_is_refused() {
        let typed = settings(Some("/usr"), Some("/vms/"));
        let file = Path::new("/x/vms.toml");
        let verdict = |store, mountpoint| {
            check(&typed, &settings(store, mountpoint), file).map_err(|error| error.to_string())
        };
        assert_eq!(verdict(None, None), Ok(()));
        assert_eq!(verdict(Some("/usr/"), Some("/vms")), Ok(()));
        assert_eq!(verdict(Some("/usr/../usr"), None), Ok(()));
        let said = verdict(None, Some("/other/vms")).expect_err("refused");
        assert!(
            said.contains("/x/vms.toml") && said.contains("/other/vms"),
            "{said}"
        );
        assert!(verdict(Some("/etc"), None).is_err());
    }

    #[test]
    fn what_a_file_does_not_name_is_asked_for() {
        let file = Path::new("/x/vms.toml");
        let said = |settings| of(&settings, file).expect_err("refused").to_string();
        assert!(said(settings(None, Some("/vms"))).contains("names no store"));
        assert!(said(settings(Some("/usr"), None)).contains("names no mountpoint"));
    }
}
