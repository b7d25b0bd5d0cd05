//! A small filesystem in a file: for caches that run full, turn read-only or vanish, and for
//! stores of another type. The loop device goes with the unmount (autoclear).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::detach;

/// Which mkfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Ext4,
    Xfs,
    /// Not for caches: flashside must refuse it.
    Tmpfs,
}

/// A mounted filesystem. Dropping it unmounts it.
pub struct LoopFs {
    mountpoint: PathBuf,
}

impl LoopFs {
    /// Makes `dir`/`name`, a filesystem of `mib` MiB (XFS wants 300 at least). The error says what
    /// is missing here.
    pub fn make(dir: &Path, name: &str, kind: Type, mib: u64) -> Result<LoopFs, String> {
        let mountpoint = dir.join(name);
        std::fs::create_dir_all(&mountpoint).map_err(|e| e.to_string())?;
        let fs = LoopFs { mountpoint };
        if kind == Type::Tmpfs {
            let size = format!("size={mib}M");
            run(Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
                .arg(&fs.mountpoint))?;
            return Ok(fs);
        }
        let image = dir.join(format!("{name}.img"));
        let file = File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(mib << 20).map_err(|e| e.to_string())?;
        let mut mkfs = match kind {
            Type::Xfs => Command::new("mkfs.xfs"),
            _ => Command::new("mkfs.ext4"),
        };
        run(mkfs.arg("-q").arg(&image))?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&fs.mountpoint))?;
        Ok(fs)
    }

    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// Mounts it again with other options, e.g. `ro` or ext4's `abort`.
    pub fn remount(&self, options: &str) -> Result<(), String> {
        let options = format!("remount,{options}");
        run(Command::new("mount")
            .args(["-o", &options])
            .arg(&self.mountpoint))
    }

    /// Total and available bytes.
    pub fn space(&self) -> (u64, u64) {
        space(&self.mountpoint)
    }

    /// Writes a foreign file until nothing more fits.
    pub fn fill(&self, name: &str) {
        use std::io::Write;
        let mut file = File::create(self.mountpoint.join(name)).expect("a file of somebody else");
        for chunk in [1usize << 20, 4096, 512] {
            let zeros = vec![7u8; chunk];
            while file.write_all(&zeros).is_ok() {}
        }
        let _ = file.sync_all();
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        detach(&self.mountpoint);
    }
}

/// Total and available bytes of the filesystem at `path`.
pub fn space(path: &Path) -> (u64, u64) {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path");
    // SAFETY: statvfs is plain numbers, for which zero is a value.
    let mut st: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a valid C string and a buffer of the right type.
    let result = unsafe { libc::statvfs(path.as_ptr(), &mut st) };
    assert_eq!(result, 0, "statvfs");
    (st.f_blocks * st.f_frsize, st.f_bavail * st.f_frsize)
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{name}: {}", super::text(&output.stderr).trim())),
    }
}
