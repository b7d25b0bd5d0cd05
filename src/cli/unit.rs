//! `flashside unit NAME`: what systemd has to know of one mount and a template unit cannot say, as a drop-in
//! for `flashside@NAME.service`: which filesystems it needs, and how long a stop may take.
//!
//! Reads the configuration file only; the directories need not exist yet.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Error;
use crate::config::{FileText, STORE_DEADLINE_DEFAULT, Settings, places, settings};

/// A stop takes this longer than the store may: users get 8 s to leave, and the cache is recorded as clean.
const STOP_MARGIN: Duration = Duration::from_secs(60);

/// Print the systemd drop-in for /etc/flashside/NAME.toml
#[derive(Args)]
#[command(
    long_about = "Print the systemd drop-in for /etc/flashside/NAME.toml: the filesystems that \
        flashside@NAME.service needs, and how long its stop may take. It belongs into \
        /etc/systemd/system/flashside@NAME.service.d/; install.sh --enable NAME puts it there."
)]
pub struct Unit {
    /// The instance: NAME of flashside@NAME.service
    name: PathBuf,
    /// Read this file [default: /etc/flashside/NAME.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Unit {
    pub fn run(self) -> Result<ExitCode, Error> {
        let file = self
            .config
            .unwrap_or_else(|| settings::path_of(self.name.as_os_str()));
        let settings = FileText::read(&file)?.settings()?;
        print!("{}", drop_in(&settings, &file)?);
        Ok(ExitCode::SUCCESS)
    }
}

fn drop_in(settings: &Settings, file: &Path) -> Result<String, Error> {
    let (store, mountpoint) = places::of(settings, file)?;
    let caches = settings.cache.iter().map(|cache| cache.dir.as_path());
    let needed = [store].into_iter().chain(caches).chain(mountpoint.parent());
    let needed: Result<Vec<String>, Error> = needed.map(quoted).collect();
    let deadline = settings
        .store_deadline
        .map_or(STORE_DEADLINE_DEFAULT, |span| span.0);
    Ok(format!(
        "# Made by `flashside unit`; make it again when paths or store-deadline of the configuration change.\n\
         [Unit]\n\
         # Started when these are mounted, stopped before they are unmounted.\n\
         RequiresMountsFor={}\n\
         # The service takes its mount away itself, after its users: no umount of systemd's own comes before.\n\
         After={}.mount\n\
         [Service]\n\
         # store-deadline and a minute.\n\
         TimeoutStopSec={}\n",
        needed?.join(" "),
        escaped(absolute(mountpoint)?),
        (deadline + STOP_MARGIN).as_secs(),
    ))
}

/// As systemd reads a path in a list: in quotes, `%` doubled.
fn quoted(path: &Path) -> Result<String, Error> {
    let path = absolute(path)?;
    Ok(format!("\"{}\"", path.replace('%', "%%")))
}

/// A path that a unit file can say.
fn absolute(path: &Path) -> Result<&str, Error> {
    match path.to_str() {
        Some(text) if path.is_absolute() && !text.contains(['"', '\\', '\n', '\r']) => Ok(text),
        _ => Err(Error::NotForUnit(path.to_path_buf())),
    }
}

/// The name of a path's mount unit: what `systemd-escape --path` prints.
fn escaped(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return "-".into();
    }
    let mut name = String::new();
    for (at, byte) in parts.join("/").bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str("\\x2e"),
            b':' | b'_' | b'.' => name.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => name.push(char::from(byte)),
            _ => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str) -> Result<String, String> {
        let dir = tempfile::tempdir().expect("a temp directory");
        let file = dir.path().join("vms.toml");
        std::fs::write(&file, text).expect("written");
        let settings = FileText::read(&file)
            .and_then(|file| file.settings())
            .expect("read");
        drop_in(&settings, &file).map_err(|error| error.to_string())
    }

    #[test]
    fn a_drop_in_names_store_caches_and_the_stop() {
        let text = "store = \"/nfs/100% mine\"\nmountpoint = \"/srv/my-vms\"\n\
            cache = [\"/flash0/c@1G\", \"/flash1\"]\nstore-deadline = \"2min\"\n";
        let made = made(text).expect("made");
        let wanted = "RequiresMountsFor=\"/nfs/100%% mine\" \"/flash0/c\" \"/flash1\" \"/srv\"\n";
        assert!(made.contains(wanted), "{made}");
        assert!(made.contains("After=srv-my\\x2dvms.mount\n"), "{made}");
        assert!(made.contains("TimeoutStopSec=180\n"), "{made}");
    }

    #[test]
    fn what_a_unit_cannot_say_is_refused() {
        let said = made("store = \"images\"\nmountpoint = \"/vms\"\n").expect_err("refused");
        assert!(
            said.contains("images") && said.contains("absolute"),
            "{said}"
        );
        assert!(
            made("store = \"/a\"\n")
                .expect_err("refused")
                .contains("mountpoint")
        );
    }

    #[test]
    fn mount_units_are_named_as_systemd_names_them() {
        assert_eq!(escaped("/"), "-");
        assert_eq!(escaped("/srv//vms/"), "srv-vms");
        assert_eq!(escaped("/.x/a:b_c.d"), "\\x2ex-a:b_c.d");
        assert_eq!(escaped("/é"), "\\xc3\\xa9");
    }
}
