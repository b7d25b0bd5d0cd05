//! The directories of a run: one for caches, mount points and the plain file, one for stores. Both are gone
//! when this is dropped, and so they are if the run is killed: a shell waits for the end of this process.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::arguments::Settings;
use crate::report;

/// Reads until its standard input closes, which our end does. A pattern would not find the mount point of a daemon
/// that was killed: nothing can be asked of it.
const JANITOR: &str = r#"
cat >/dev/null
for dir in "$0"/*; do
    while umount -l "$dir/mount"; do :; done
done
rm -rf --one-file-system "$0" "$1"
"#;

pub struct Scratch {
    dir: PathBuf,
    store: PathBuf,
    janitor: Child,
}

impl Scratch {
    pub fn new(settings: &Settings) -> Result<Scratch> {
        let results = report::path();
        let beside = results.parent().context("the results have a directory")?;
        let dir = fresh(settings.dir.as_deref().unwrap_or(beside), "run")?;
        let store = match &settings.store {
            Some(store) => fresh(store, "store")?,
            None => dir.join("stores"),
        };
        let janitor = Command::new("sh")
            .args(["-c", JANITOR])
            .args([&dir, &store])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0) // Ctrl-C is not for it
            .spawn()
            .context("cannot run sh")?;
        let scratch = Scratch {
            dir,
            store,
            janitor,
        };
        scratch.clear()?;
        scratch.check_room(settings.image_bytes)?;
        Ok(scratch)
    }

    /// The largest part takes ten images. A cache takes nothing where less than a tenth of its filesystem is free.
    fn check_room(&self, image_bytes: u64) -> Result<()> {
        let path = CString::new(self.dir.as_os_str().as_bytes())?;
        // SAFETY: plain numbers; zeros are valid.
        let mut seen: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: a C string and a struct that live through the call.
        let code = unsafe { libc::statvfs(path.as_ptr(), &mut seen) };
        anyhow::ensure!(code == 0, std::io::Error::last_os_error());
        let available = seen.f_bavail * seen.f_frsize;
        let wanted = 11 * image_bytes + seen.f_blocks * seen.f_frsize / 10;
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        anyhow::ensure!(
            available >= wanted,
            "{:.1} GiB are free at {}, and {:.1} are needed, a tenth of the filesystem among them, which caches \
             leave free: make room, or use --dir or --image-mib",
            gib(available),
            self.dir.display(),
            gib(wanted),
        );
        Ok(())
    }

    /// A path on the filesystem of the caches.
    pub fn flash(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A store, made if it is not there.
    pub fn store(&self, name: &str) -> Result<PathBuf> {
        let store = self.store.join(name);
        fs::create_dir_all(&store)?;
        Ok(store)
    }

    /// Where the stores are.
    pub fn stores(&self) -> &Path {
        &self.store
    }

    /// Where the caches are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until everything that was written to the two filesystems is on disk.
    pub fn sync(&self) -> Result<()> {
        for dir in [&self.dir, &self.store] {
            let dir = fs::File::open(dir)?;
            // SAFETY: a descriptor of ours; nothing is dereferenced.
            unsafe { libc::syncfs(dir.as_raw_fd()) };
        }
        Ok(())
    }

    /// Takes everything away that is in it. Nothing may be mounted.
    pub fn clear(&self) -> Result<()> {
        for dir in [&self.dir, &self.store] {
            if dir.exists() {
                fs::remove_dir_all(dir).with_context(|| format!("cannot remove {dir:?}"))?;
            }
            fs::create_dir_all(dir).with_context(|| format!("cannot make {dir:?}"))?;
        }
        Ok(())
    }
}

impl Drop for Scratch {
    /// The janitor does it all; it also unmounts what is left.
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

fn fresh(parent: &Path, what: &str) -> Result<PathBuf> {
    fs::create_dir_all(parent).with_context(|| format!("cannot make {parent:?}"))?;
    let parent = parent.canonicalize()?;
    Ok(parent.join(format!("{what}.{}", std::process::id())))
}
