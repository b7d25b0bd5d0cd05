//! Status for people: tables with sizes and shares that can be read at a glance.

use comfy_table::{CellAlignment, Table, presets};

use super::rates::Activity;
use crate::cache::status::PoolStatus;
use crate::control::model::{MountStatus, StoreState};
use crate::handover::message::State;
use crate::image::status::ImageStatus;

const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Several mounts, an empty line between them.
pub fn mounts(statuses: &[MountStatus], none: bool) -> String {
    if none {
        return "no flashside mount on this host".into();
    }
    let texts: Vec<String> = statuses.iter().map(mount).collect();
    texts.join("\n\n")
}

/// One mount: where, how the store does, the pool, the images.
pub fn mount(status: &MountStatus) -> String {
    let images = match status.images.is_empty() {
        true => "no image is in use or cached".into(),
        false => images(&status.images),
    };
    format!("{}\n{images}", head(status))
}

/// One mount and what its images do per second, the busiest first; nothing is known of that in the first
/// look.
pub fn activity(status: &MountStatus, rates: Option<Vec<Activity>>) -> String {
    let mut rows: Vec<(&ImageStatus, Option<Activity>)> = match rates {
        Some(rates) => status
            .images
            .iter()
            .zip(rates.into_iter().map(Some))
            .collect(),
        None => status.images.iter().map(|image| (image, None)).collect(),
    };
    let busy = |row: &(_, Option<Activity>)| row.1.map_or(0.0, |rate| rate.operations());
    rows.sort_by(|a, b| busy(b).total_cmp(&busy(a))); // stable: by name where they are equal
    let known = rows.iter().filter_map(|(_, rate)| rate.as_ref());
    let all = (known.clone().next().is_some()).then(|| Activity::sum(known));
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "IMAGE",
        "RESIDENT",
        "READS/s",
        "READ MB/s",
        "HITS",
        "WRITES/s",
        "WRITE MB/s",
        "STORE/s",
        "STORE MB/s",
    ]);
    let resident = status.images.iter().map(|image| image.resident_bytes).sum();
    table.add_row(activity_row("all", resident, all));
    for (image, rate) in rows {
        table.add_row(activity_row(&image.name, image.resident_bytes, rate));
    }
    format!("{}\n{}", head(status), text_of(table, &[0]))
}

fn activity_row(name: &str, resident_bytes: u64, rate: Option<Activity>) -> [String; 9] {
    let dash = || "-".to_owned();
    let count =
        |value: fn(&Activity) -> f64| rate.map_or_else(dash, |rate| format!("{:.0}", value(&rate)));
    let megabytes = |value: fn(&Activity) -> f64| {
        rate.map_or_else(dash, |rate| format!("{:.1}", value(&rate) / 1e6))
    };
    let hits = rate.filter(|rate| rate.reads > 0.0);
    [
        name.to_owned(),
        size(resident_bytes),
        count(|rate| rate.reads),
        megabytes(|rate| rate.read_bytes),
        hits.map_or_else(dash, |rate| {
            format!("{:.1} %", rate.read_hits * 100.0 / rate.reads)
        }),
        count(|rate| rate.writes),
        megabytes(|rate| rate.write_bytes),
        count(|rate| rate.store_requests),
        megabytes(|rate| rate.store_bytes),
    ]
}

fn head(status: &MountStatus) -> String {
    let head = format!(
        "{} from {}, store {}, daemon {}",
        status.mountpoint,
        status.store,
        state(status.store_state),
        status.pid
    );
    format!("{head}\n{}\n{}", hand_over(status), pool(&status.pool))
}

/// Who serves, and who would go on.
fn hand_over(status: &MountStatus) -> String {
    let mut line = match status.handover {
        State::Ready => format!("server {}, a standby waits", status.serving_pid),
        State::Starting => format!("server {}, a standby is starting", status.serving_pid),
        State::Off => "no hand-over".to_owned(),
    };
    if let Some(reason) = &status.handover_reason {
        line.push_str(&format!(": {reason}"));
    }
    if status.restarts > 0 {
        let (restarts, resent) = (status.restarts, status.resent_requests);
        line.push_str(&format!(
            "; {restarts} taken over, {resent} requests sent again"
        ));
    }
    line
}

fn state(state: StoreState) -> &'static str {
    match state {
        StoreState::Responding => "responding",
        StoreState::Hanging => "hanging",
        StoreState::Failing => "failing",
    }
}

fn pool(pool: &PoolStatus) -> String {
    if pool.devices.is_empty() {
        return "no cache".into();
    }
    let lines = pool.devices.iter().map(|device| {
        format!(
            "cache {} {}: {} of {} used ({})",
            device.dir,
            device.state,
            size(device.used_bytes),
            size(device.limit_bytes),
            share(device.used_bytes, device.limit_bytes)
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A table with a line per image.
pub fn images(images: &[ImageStatus]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "IMAGE",
        "SIZE",
        "RESIDENT",
        "DIRTY",
        "PINNED",
        "PLANE",
        "READS",
        "HITS",
        "WRITES",
        "FROM STORE",
        "TO STORE",
    ]);
    for image in images {
        table.add_row(row(image));
    }
    text_of(table, &[0, 5])
}

/// Numbers to the right; `texts` are the columns that hold none.
fn text_of(mut table: Table, texts: &[usize]) -> String {
    for (index, column) in table.column_iter_mut().enumerate() {
        if !texts.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// One image, and below it its handles by plane.
pub fn image(image: &ImageStatus) -> String {
    let mut text = images(std::slice::from_ref(image));
    if image.planes.is_empty() {
        return text;
    }
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["PLANE", "HANDLES", "REASON"]);
    for plane in &image.planes {
        table.add_row([&plane.plane, &plane.handles.to_string(), &plane.reason]);
    }
    for line in table.to_string().lines() {
        text.push('\n');
        text.push_str(line.trim_end());
    }
    text
}

fn row(image: &ImageStatus) -> [String; 11] {
    [
        image.name.clone(),
        size(image.size_bytes),
        size(image.resident_bytes),
        size(image.dirty_bytes),
        size(image.pinned_bytes),
        image.plane.clone(),
        image.reads.to_string(),
        share(image.read_hits, image.reads),
        image.writes.to_string(),
        size(image.store_read_bytes),
        size(image.store_write_bytes),
    ]
}

/// Bytes with three digits or so: `512 B`, `1.5 MiB`, `200 GiB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    match unit == "B" || value >= 100.0 {
        true => format!("{value:.0} {unit}"),
        false => format!("{value:.1} {unit}"),
    }
}

/// A share of a whole in percent; a dash where there is no whole.
fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".into(),
        _ => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::status::PlaneStatus;

    #[test]
    fn who_serves_and_who_would_go_on_is_one_line() {
        let mut status = MountStatus {
            serving_pid: 7,
            handover: State::Ready,
            ..MountStatus::default()
        };
        assert_eq!(hand_over(&status), "server 7, a standby waits");
        (status.restarts, status.resent_requests) = (2, 40);
        let line = "server 7, a standby waits; 2 taken over, 40 requests sent again";
        assert_eq!(hand_over(&status), line);
        status.handover = State::Off;
        status.handover_reason = Some("the keeper is gone".into());
        assert!(hand_over(&status).starts_with("no hand-over: the keeper is gone; 2"));
    }

    #[test]
    fn sizes_can_be_read_at_a_glance() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(200 << 30), "200 GiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn a_share_of_nothing_is_a_dash() {
        assert_eq!(share(0, 0), "-");
        assert_eq!(share(1, 3), "33.3 %");
    }

    #[test]
    fn the_planes_of_an_image_are_told_with_their_reasons() {
        let daemon = PlaneStatus {
            plane: "daemon".into(),
            handles: 2,
            reason: "not immutable".into(),
        };
        let one = ImageStatus {
            name: "web.img".into(),
            planes: vec![daemon],
            ..ImageStatus::default()
        };
        let text = image(&one);
        assert_eq!(text.lines().count(), 4);
        assert!(text.ends_with("not immutable"), "{text}");
    }

    #[test]
    fn an_image_is_one_line() {
        let image = ImageStatus {
            name: "web.img".into(),
            reads: 4,
            read_hits: 3,
            ..ImageStatus::default()
        };
        let text = images(&[image]);
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.contains("web.img") && text.contains("75.0 %"),
            "{text}"
        );
    }
}
