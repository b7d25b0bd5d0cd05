//! A device that remembers every write: qemu-storage-daemon with its blklogwrites filter, exported
//! through its FUSE export, a loop device over the exported file, and a filesystem on that.
//!
//! Order of steps: log and device files, export, loop device, mkfs, mount; taken down in reverse.
//! The loop device does buffered I/O: with direct I/O the recorded filesystem may not mount.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::rig::{run, text};

/// Longest wait for the export to appear and to end.
const DEADLINE: Duration = Duration::from_secs(20);

/// The filesystem of the cache device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// Size of the device in bytes: XFS refuses less than 300 MiB.
    pub fn device_bytes(self) -> u64 {
        match self {
            Kind::Ext4 => 160 << 20,
            Kind::Xfs => 320 << 20,
        }
    }

    fn format(self, device: &str) -> Result<(), String> {
        let lazy = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        let made = match self {
            Kind::Ext4 => run("mkfs.ext4", &["-q", "-J", "size=4", "-E", lazy, device]),
            Kind::Xfs => run("mkfs.xfs", &["-q", "-K", device]),
        };
        made.map(|_| ())
    }
}

/// A loop device with its filesystem mounted. Dropping it unmounts and detaches.
pub struct Mounted {
    device: String,
    point: PathBuf,
}

impl Mounted {
    /// Puts a loop device over `file` and mounts it at `point`, after `prepare`.
    pub fn new(
        file: &Path,
        point: &Path,
        prepare: impl FnOnce(&str) -> Result<(), String>,
    ) -> Result<Mounted, String> {
        let device = run("losetup", &["--find", "--show", text(file)])?;
        let mounted = Mounted {
            device,
            point: point.into(),
        };
        prepare(&mounted.device)?;
        run("mount", &[&mounted.device, text(point)])?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if crate::rig::daemon::mounted(&self.point) {
            let plain = run("umount", &[text(&self.point)]);
            if plain.is_err() {
                let _ = run("umount", &["-l", text(&self.point)]);
            }
        }
        let _ = run("losetup", &["--detach", &self.device]);
    }
}

/// The recording device, mounted.
pub struct Recorder {
    // Fields drop in this order: the filesystem before the export below it.
    mounted: Option<Mounted>,
    export: Export,
    log: PathBuf,
}

impl Recorder {
    /// Makes the device in `dir` and mounts its fresh filesystem at `point`.
    pub fn new(kind: Kind, dir: &Path, point: &Path) -> Result<Recorder, String> {
        let log = dir.join("log");
        let export = Export::new(kind.device_bytes(), dir, &log)?;
        let mounted = Mounted::new(&export.file, point, |device| kind.format(device))?;
        Ok(Recorder {
            mounted: Some(mounted),
            export,
            log,
        })
    }

    /// Where the log is written.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Unmounts and closes the log.
    pub fn finish(mut self) -> Result<PathBuf, String> {
        self.mounted = None;
        self.export.stop()?;
        Ok(self.log.clone())
    }
}

/// The storage daemon and the file it exports.
struct Export {
    child: Child,
    file: PathBuf,
}

impl Export {
    fn new(size_bytes: u64, dir: &Path, log: &Path) -> Result<Export, String> {
        let (below, file) = (dir.join("below"), dir.join("device"));
        for (path, len) in [(&below, size_bytes), (&file, 0), (&log.to_path_buf(), 0)] {
            let made = std::fs::File::create(path).and_then(|f| f.set_len(len));
            made.map_err(|e| format!("{}: {e}", path.display()))?;
        }
        let node = |name: &str, path: &Path| {
            let path = text(path);
            format!("driver=file,node-name={name},filename={path},cache.direct=off")
        };
        let child = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &node("below", &below)])
            .args(["--blockdev", &node("log", log)])
            .arg("--blockdev")
            .arg("driver=blklogwrites,node-name=top,file=below,log=log,log-sector-size=512")
            .arg("--export")
            .arg(format!(
                "type=fuse,id=e,node-name=top,mountpoint={},writable=on",
                text(&file)
            ))
            .stdin(Stdio::null())
            .spawn()
            .map_err(|e| format!("qemu-storage-daemon: {e}"))?;
        let export = Export { child, file };
        export.wait_for_mount()?;
        Ok(export)
    }

    fn wait_for_mount(&self) -> Result<(), String> {
        let begin = Instant::now();
        while !crate::rig::daemon::mounted(&self.file) {
            if begin.elapsed() > DEADLINE {
                return Err("qemu-storage-daemon exports nothing".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), String> {
        // SAFETY: a signal to our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let begin = Instant::now();
        while begin.elapsed() < DEADLINE {
            if self.child.try_wait().map_err(|e| e.to_string())?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("qemu-storage-daemon does not end".into())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if crate::rig::daemon::mounted(&self.file) {
            let _ = run("umount", &["-l", text(&self.file)]);
        }
    }
}
