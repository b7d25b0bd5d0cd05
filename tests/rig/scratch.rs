//! A directory for one test, gone with it; what is still mounted below it is unmounted first.

use std::path::{Path, PathBuf};

/// The directory. Dropping it unmounts (lazily) and removes everything in it.
pub struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// A new directory in `parent`.
    pub fn new(parent: &Path, name: &str) -> Scratch {
        let dir = parent.join(format!("flashside-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the scratch directory can be made");
        Scratch { dir }
    }

    /// On the ordinary disk.
    pub fn on_disk(name: &str) -> Scratch {
        Scratch::new(Path::new(env!("CARGO_TARGET_TMPDIR")), name)
    }

    /// In memory where there is a memory filesystem: for what is written and thrown away at once.
    pub fn in_memory(name: &str) -> Scratch {
        let shm = Path::new("/dev/shm");
        match free_bytes(shm) {
            Some(free) if free > 2 << 30 => Scratch::new(shm, name),
            _ => Scratch::on_disk(name),
        }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A directory in it, made if need be.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        std::fs::create_dir_all(&dir).expect("a directory can be made");
        dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for point in mounts_below(&self.dir).iter().rev() {
            let _ = super::run("umount", &["-l", super::text(point)]);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The mount points at or below `dir`, in the order they were mounted.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .map(PathBuf::from)
        .filter(|point| point.starts_with(dir))
        .collect()
}

/// Free bytes of the filesystem at `path`.
fn free_bytes(path: &Path) -> Option<u64> {
    let out = super::run("stat", &["-f", "-c", "%a %S", super::text(path)]).ok()?;
    let (blocks, size) = out.split_once(' ')?;
    Some(blocks.parse::<u64>().ok()? * size.parse::<u64>().ok()?)
}
