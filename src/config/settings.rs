//! What can be set, by flag or in the configuration file (TOML), before it is checked.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::rules::Rule;
use super::store_user::StoreUser;
use super::units::{LogLevel, Size, SizeOrOff, Span};
use super::{CacheSpec, Error};

/// Where the configuration of a mount point is looked for.
const DIRECTORY: &str = "/etc/flashside";

/// Everything that can be set; what is not stays at its default. Unknown keys are refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// In a file only, as is `mountpoint`: on the command line they are arguments.
    pub store: Option<PathBuf>,
    pub mountpoint: Option<PathBuf>,
    pub cache: Vec<CacheSpec>,
    pub read_only: Option<bool>,
    /// A flag only: fstab asks for it with `user` and `noexec`.
    #[serde(skip)]
    pub no_exec: bool,
    pub store_deadline: Option<Span>,
    pub readahead: Option<Size>,
    pub stream_bypass: Option<SizeOrOff>,
    pub write_buffer: Option<Size>,
    pub store_threads: Option<usize>,
    pub fuse_threads: Option<usize>,
    pub portable_session: Option<bool>,
    pub io_uring: Option<bool>,
    pub store_user: Option<StoreUser>,
    pub control_uids: Option<Vec<u32>>,
    pub passthrough: Option<Passthrough>,
    pub handover: Option<Handover>,
    /// Where metrics are served besides the control socket: a loopback address and a port.
    pub metrics_listen: Option<String>,
    /// In a file only.
    pub rule: Vec<Rule>,
    pub log_level: Option<LogLevel>,
    pub simulate_latency: Option<Span>,
    /// Bytes per second.
    pub simulate_bandwidth: Option<Size>,
    pub simulate_once: Option<PathBuf>,
    /// A flag only: a file that breaks rule 3a would be forgotten there.
    #[serde(skip)]
    pub unsafe_no_in_doubt_marks: bool,
    /// A flag only, as the one before.
    #[serde(skip)]
    pub unsafe_no_exactly_once: bool,
    /// A flag only, as above: breaks the fence between two servers.
    #[serde(skip)]
    pub unsafe_no_fence: bool,
    /// A flag only, as above: breaks what outlives a server.
    #[serde(skip)]
    pub unsafe_server_clones: bool,
}

/// Whether images may be opened on the passthrough plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Passthrough {
    /// Where the system allows it and the image is immutable and wholly on flash.
    Auto,
    Off,
}

/// Whether a mount outlives the process that serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Handover {
    /// Where the system allows it.
    Auto,
    Off,
}

impl Settings {
    /// These settings where they say something, `file` elsewhere.
    pub fn over(self, file: Settings) -> Settings {
        Settings {
            store: self.store.or(file.store),
            mountpoint: self.mountpoint.or(file.mountpoint),
            cache: if self.cache.is_empty() {
                file.cache
            } else {
                self.cache
            },
            read_only: self.read_only.or(file.read_only),
            no_exec: self.no_exec,
            store_deadline: self.store_deadline.or(file.store_deadline),
            readahead: self.readahead.or(file.readahead),
            stream_bypass: self.stream_bypass.or(file.stream_bypass),
            write_buffer: self.write_buffer.or(file.write_buffer),
            store_threads: self.store_threads.or(file.store_threads),
            fuse_threads: self.fuse_threads.or(file.fuse_threads),
            portable_session: self.portable_session.or(file.portable_session),
            io_uring: self.io_uring.or(file.io_uring),
            store_user: self.store_user.or(file.store_user),
            control_uids: self.control_uids.or(file.control_uids),
            passthrough: self.passthrough.or(file.passthrough),
            handover: self.handover.or(file.handover),
            metrics_listen: self.metrics_listen.or(file.metrics_listen),
            rule: file.rule,
            log_level: self.log_level.or(file.log_level),
            simulate_latency: self.simulate_latency.or(file.simulate_latency),
            simulate_bandwidth: self.simulate_bandwidth.or(file.simulate_bandwidth),
            simulate_once: self.simulate_once.or(file.simulate_once),
            unsafe_no_in_doubt_marks: self.unsafe_no_in_doubt_marks,
            unsafe_no_exactly_once: self.unsafe_no_exactly_once,
            unsafe_no_fence: self.unsafe_no_fence,
            unsafe_server_clones: self.unsafe_server_clones,
        }
    }
}

/// The file of this name in `/etc/flashside`: `vms` is `/etc/flashside/vms.toml`.
pub fn path_of(name: &OsStr) -> PathBuf {
    let mut file = name.to_os_string();
    file.push(".toml");
    Path::new(DIRECTORY).join(file)
}

/// A configuration file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileText {
    pub path: PathBuf,
    pub text: String,
}

impl FileText {
    /// Reads the file the user named, or the default one of the mount point where it exists.
    pub fn find(
        mountpoint: Option<&Path>,
        named: Option<&Path>,
    ) -> Result<Option<FileText>, Error> {
        if let Some(path) = named {
            return FileText::read(path).map(Some);
        }
        let Some(path) = mountpoint.and_then(default_path) else {
            return Ok(None);
        };
        match FileText::read(&path) {
            Ok(file) => Ok(Some(file)),
            Err(Error::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads `path`, which is kept as an absolute one.
    pub fn read(path: &Path) -> Result<FileText, Error> {
        let unreadable = |error| Error::Unreadable {
            path: path.to_path_buf(),
            error,
        };
        Ok(FileText {
            text: fs::read_to_string(path).map_err(unreadable)?,
            path: std::path::absolute(path).map_err(unreadable)?,
        })
    }

    /// What it sets.
    pub fn settings(&self) -> Result<Settings, Error> {
        parse(&self.path, &self.text)
    }
}

/// `/etc/flashside/NAME.toml`, NAME being the last component of the mount point.
fn default_path(mountpoint: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(mountpoint).ok()?;
    absolute.file_name().map(path_of)
}

fn parse(path: &Path, text: &str) -> Result<Settings, Error> {
    toml::from_str(text).map_err(|error| Error::Configuration {
        path: path.to_path_buf(),
        place: place_of(&error, text),
        message: error.message().replace('\n', " "),
    })
}

fn place_of(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    before.map_or_else(String::new, |before| {
        format!(" in line {}", before.matches('\n').count() + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let path = Path::new("/x/vms.toml");
        parse(path, text).expect_err("refused").to_string()
    }

    #[test]
    fn every_documented_key_is_read() {
        let text = "store = \"/srv/images\"\nmountpoint = \"/vms\"\ncache = [\"/flash0@200G\"]\nread-only = true\nstore-deadline = \"10min\"\n\
            readahead = \"8M\"\nstream-bypass = \"off\"\nwrite-buffer = \"64M\"\nstore-threads = 8\nfuse-threads = 2\n\
            portable-session = true\nio-uring = false\n\
            store-user = \"0:0\"\ncontrol-uids = [107]\nlog-level = \"warn\"\n\
            simulate-latency = \"2ms\"\nsimulate-bandwidth = \"100M\"\nsimulate-once = \"/x\"\n\
            passthrough = \"off\"\nhandover = \"off\"\nmetrics-listen = \"127.0.0.1:9095\"\n[[rule]]\nmatch = \"golden/*\"\nimmutable = true\n";
        let settings = parse(Path::new("/x/vms.toml"), text).expect("accepted");
        assert_eq!(settings.cache.len(), 1);
        assert_eq!(settings.control_uids, Some(vec![107]));
        assert_eq!(settings.stream_bypass, Some(SizeOrOff(None)));
        assert_eq!(settings.log_level, Some(LogLevel(log::LevelFilter::Warn)));
        assert_eq!(settings.passthrough, Some(Passthrough::Off));
        assert_eq!(settings.handover, Some(Handover::Off));
        assert_eq!(settings.metrics_listen.as_deref(), Some("127.0.0.1:9095"));
        assert_eq!(settings.rule.len(), 1);
    }

    #[test]
    fn a_misspelt_key_is_named_with_file_and_line() {
        let said = refusal("read-only = true\nchache = []\n");
        assert!(
            said.contains("/x/vms.toml") && said.contains("line 2"),
            "{said}"
        );
        assert!(said.contains("chache") && !said.contains('\n'), "{said}");
    }

    #[test]
    fn a_wrong_value_is_named() {
        assert!(refusal("store-deadline = \"soon\"").contains("`soon` is not a duration"));
        assert!(refusal("cache = [\"/flash0@lots\"]").contains("`lots` is not a limit"));
        assert!(refusal("[[rule]]\nmatch = \"a**\"").contains("`a**` is not a pattern"));
        assert!(refusal("unsafe-no-in-doubt-marks = true").contains("unknown field"));
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = parse(
            Path::new("/x"),
            "store-deadline = \"1min\"\nreadahead = \"1M\"",
        )
        .expect("good");
        let flags = Settings {
            store_deadline: "5s".parse().ok(),
            ..Settings::default()
        };
        let both = flags.over(file);
        assert_eq!(both.store_deadline, "5s".parse().ok());
        assert_eq!(both.readahead, Some(Size(1 << 20)));
    }

    #[test]
    fn the_default_file_is_named_after_the_mount_point() {
        let path = default_path(Path::new("/srv/vms/"));
        assert_eq!(path, Some(PathBuf::from("/etc/flashside/vms.toml")));
        assert_eq!(default_path(Path::new("/")), None);
    }
}
