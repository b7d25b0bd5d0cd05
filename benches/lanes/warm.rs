//! The warm lanes: native file, passthrough, daemon plane.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::arguments::Settings;
use crate::compare::compare;
use crate::daemon::{Daemon, Options};
use crate::fio::Job;
use crate::lane::{self, DAEMON, Lane, PASSTHROUGH, Way};
use crate::report::Report;
use crate::scratch::Scratch;
use crate::{image, interrupt, rows, say};

/// An image that was written into the store a moment ago may have to age before it is kept or read directly.
pub const YOUNG: Duration = Duration::from_millis(2500);
/// For an immutable image to come to passthrough.
const PLANE: Duration = Duration::from_secs(6);

pub fn measure(scratch: &Scratch, settings: &Settings, report: &mut Report) -> Result<()> {
    let plain = scratch.flash("plain");
    let store = scratch.store("warm")?;
    say("writing images");
    for file in [&plain, &store.join("disk.img"), &store.join("golden.img")] {
        image::write(file, settings.image_bytes)?;
    }
    interrupt::sleep(YOUNG)?;
    let daemon = Daemon::start(scratch, "warm", &store, Options::default())?;
    let native = lane::native(&plain);
    let small_sectors = native.small_sectors;
    let through = |name, way, image| Lane {
        name,
        file: daemon.path(image),
        way,
        small_sectors: small_sectors || name == DAEMON,
    };
    for image in ["disk.img", "golden.img"] {
        say(&format!("warming {image}"));
        ensure(&daemon, &daemon.path(image), scratch, settings)?;
        verify(&daemon, &daemon.path(image), scratch, settings)?;
    }
    let golden = on_passthrough(&daemon, &daemon.path("golden.img"))?;
    if let Err(why) = &golden {
        say(why);
    }
    let lanes = [
        native,
        through(PASSTHROUGH, Way::Passthrough(&daemon, golden), "golden.img"),
        through(DAEMON, Way::Daemon(&daemon), "disk.img"),
    ];
    let compared = compare(
        "warm",
        &rows::warm(settings.quick),
        &lanes,
        scratch,
        settings,
    )?;
    report.comparisons.push(compared);
    Ok(())
}

/// Reads the image until all of it is on flash, each block once and in no order, so that it is no stream.
/// Quick where it already is.
pub fn ensure(daemon: &Daemon, image: &Path, scratch: &Scratch, settings: &Settings) -> Result<()> {
    const TRIES: usize = 10;
    let bytes = settings.image_bytes;
    let mut resident = 0;
    for _ in 0..TRIES {
        resident = match daemon.image(image) {
            Ok(counters) => counters.resident_bytes,
            Err(error) if interrupt::came() => return Err(error),
            Err(_) => 0, // not known before it has been opened
        };
        if resident >= bytes {
            return Ok(());
        }
        Job::all_of(image, bytes).run(&scratch.flash("fio.json"))?;
        interrupt::sleep(Duration::from_millis(500))?; // reads are answered before they are on flash
    }
    bail!("only {resident} bytes of {image:?} are on flash after {TRIES} reads of it")
}

/// Reads all of it once more; every read has to be a hit.
pub fn verify(daemon: &Daemon, image: &Path, scratch: &Scratch, settings: &Settings) -> Result<()> {
    let before = daemon.image(image)?;
    Job::all_of(image, settings.image_bytes).run(&scratch.flash("fio.json"))?;
    let after = daemon.image(image)?;
    let (reads, hits) = (
        after.reads - before.reads,
        after.read_hits - before.read_hits,
    );
    match reads == hits && after.store_read_bytes == before.store_read_bytes {
        true => Ok(()),
        false => bail!("{image:?} is not warm: {hits} of {reads} reads are hits"),
    }
}

/// A handle that holds an image on passthrough, or why there is none.
fn on_passthrough(daemon: &Daemon, image: &Path) -> Result<Result<File, String>> {
    if let Err(error) = declare_immutable(image) {
        return Ok(Err(format!(
            "not on passthrough: it cannot be declared immutable: {error}"
        )));
    }
    let begun = Instant::now();
    loop {
        let handle = File::open(image)?;
        let said = daemon.image(image)?;
        if said.plane == PASSTHROUGH {
            return Ok(Ok(handle));
        }
        if begun.elapsed() > PLANE {
            let reasons = said.planes.iter().map(|handles| handles.reason.clone());
            let reasons: Vec<String> = reasons.filter(|reason| !reason.is_empty()).collect();
            let why = format!("not on passthrough: {} {}", said.plane, reasons.join(", "));
            return Ok(Err(why.trim().to_owned()));
        }
        drop(handle);
        interrupt::sleep(Duration::from_millis(250))?;
    }
}

fn declare_immutable(image: &Path) -> io::Result<()> {
    let path = CString::new(image.as_os_str().as_bytes())?;
    let name = c"user.flashside.immutable";
    // SAFETY: two C strings, and one byte that is there.
    match unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), c"1".as_ptr().cast(), 1, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
