//! `flashside warm`: fetches images into the cache, with a progress bar.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::image::{self, Image};
use super::{Error, table};
use crate::config::units::Size;
use crate::control::model::WarmRequest;
use crate::image::status::{WarmEnd, WarmStatus};

const BAR: &str = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// Fetch images into the cache
#[derive(Args)]
#[command(
    long_about = "Fetch images into the cache.\n\n\
        What is missing is fetched behind everybody's back: guests' reads go first. What is on flash \
        already is skipped, so warming that was interrupted (Ctrl-C) goes on where it was. What was \
        found on flash at the mount is verified as well. Images need not be in use.\n\n\
        Warming makes room as any read does, but not by dropping blocks it has just fetched: what does \
        not fit is told, and the exit code is 1.",
    after_help = "Units: sizes are powers of 1024: 512M, 200G.\n\n\
        Examples:\n  \
        flashside warm /srv/vms/web.img /srv/vms/db.img\n  \
        flashside warm /srv/vms/web.img --range 0-1G     the first GiB\n  \
        flashside warm /srv/vms/web.img --range 10G-     from there to the end"
)]
pub struct Warm {
    /// Paths of images below a mount: /srv/vms/web.img
    #[arg(required = true)]
    image: Vec<PathBuf>,
    /// Only these bytes of each image, in whole blocks of 64 KiB: 0-1G, 10G-
    #[arg(long, value_name = "FROM-TO")]
    range: Option<Range>,
}

/// Bytes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    from: u64,
    to: Option<u64>,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Range, String> {
        let wrong = || format!("`{text}` is not a range; write for example 0-1G or 10G-");
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let size = |text: &str| text.parse::<Size>().map_err(|_| wrong());
        let range = Range {
            from: size(from)?.0,
            to: match to {
                "" => None,
                to => Some(size(to)?.0),
            },
        };
        match range.to.is_some_and(|to| to <= range.from) {
            true => Err(wrong()),
            false => Ok(range),
        }
    }
}

impl Warm {
    pub fn run(self) -> Result<ExitCode, Error> {
        let range = self.range;
        image::each(&self.image, |image, stop| warm(image, range, stop))
    }
}

fn warm(image: &Image, range: Option<Range>, stop: &AtomicBool) -> Result<bool, Error> {
    let wanted = WarmRequest {
        from_bytes: range.map_or(0, |range| range.from),
        to_bytes: range.and_then(|range| range.to),
    };
    let body = serde_json::to_value(wanted).expect("numbers become JSON");
    let bar = ProgressBar::hidden();
    let mut latest = WarmStatus::default();
    let ended = image.act("warm", &body, stop, |line| {
        if let Ok(status) = serde_json::from_value::<WarmStatus>(line) {
            follow(&bar, image, &status);
            latest = status;
        }
    });
    bar.finish_and_clear();
    if !ended? {
        latest.end = Some(WarmEnd::Interrupted);
    }
    let line = format!("{}: {}", image.path.display(), told(&latest));
    let _ = writeln!(io::stdout(), "{line}"); // a reader that went away is no failure
    Ok(latest.end == Some(WarmEnd::Complete))
}

/// Moves the bar; it appears with the first line, where stderr is a terminal.
fn follow(bar: &ProgressBar, image: &Image, status: &WarmStatus) {
    if bar.length() != Some(status.total_bytes) {
        let style = ProgressStyle::with_template(BAR).expect("the template is well-formed");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(image.path.display().to_string());
        bar.set_length(status.total_bytes);
        bar.set_position(status.ready_bytes);
        bar.reset_eta();
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    bar.set_position(status.ready_bytes);
}

/// The last line.
fn told(status: &WarmStatus) -> String {
    let (there, all) = (status.resident_bytes, status.total_bytes);
    let missing = table::size(all.saturating_sub(there));
    let shares = format!("{} of {} resident", table::size(there), table::size(all));
    let why = status.error.as_deref().unwrap_or("it did not say why");
    match status.end {
        Some(WarmEnd::Complete) => {
            format!("{shares}, {} fetched", table::size(status.fetched_bytes))
        }
        Some(WarmEnd::Full) => format!(
            "{shares}, {missing} did not fit: enlarge the cache, evict other images, or warm a part \
             with --range"
        ),
        Some(WarmEnd::Interrupted) => {
            format!("{shares}, interrupted: run the command again to go on from there")
        }
        Some(WarmEnd::Store) => format!("{shares}, {missing} not: the store failed: {why}"),
        Some(WarmEnd::Flash) => {
            format!("{shares}, {missing} not: the cache device failed: {why}")
        }
        Some(WarmEnd::Busy) => format!(
            "{shares}, {missing} not: guests write to the image, or a reader of an earlier mount \
             still has it; run the command again to go on"
        ),
        None => format!("{shares}, and then the daemon ended: mount again and repeat the command"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_what_is_none_is_refused() {
        let range = |from, to| Ok(Range { from, to });
        assert_eq!("0-1G".parse(), range(0, Some(1 << 30)));
        assert_eq!("512M-1024M".parse(), range(512 << 20, Some(1 << 30)));
        assert_eq!("10G-".parse(), range(10 << 30, None));
        for text in ["", "-", "1G", "-1G", "1G-1G", "2G-1G", "a-b", "0-1G-2G"] {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_did_not_fit_is_said() {
        let status = WarmStatus {
            total_bytes: 80 << 20,
            resident_bytes: 38 << 20,
            end: Some(WarmEnd::Full),
            ..WarmStatus::default()
        };
        let text = told(&status);
        assert!(text.starts_with("38.0 MiB of 80.0 MiB resident, 42.0 MiB did not fit"));
    }
}
