//! The JSON of `status` is an interface: its fields are those that docs/OPERATIONS.md lists.

use std::collections::BTreeSet;
use std::path::Path;

use flashside::cache::status::{DeviceStatus, PoolStatus};
use flashside::control::model::MountStatus;
use flashside::image::status::{ImageStatus, PlaneStatus};
use serde_json::Value;

#[test]
fn the_documented_fields_are_the_real_ones() {
    assert_eq!(documented(), real());
}

/// Every field with its path: `pool.devices[].dir`.
fn real() -> BTreeSet<String> {
    let status = MountStatus {
        pool: PoolStatus {
            devices: vec![DeviceStatus::default()],
            ..PoolStatus::default()
        },
        images: vec![ImageStatus {
            planes: vec![PlaneStatus::default()],
            ..ImageStatus::default()
        }],
        ..MountStatus::default()
    };
    let mut names = BTreeSet::new();
    let value = serde_json::to_value(status).expect("JSON");
    collect("", &value, &mut names);
    names
}

fn collect(path: &str, value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                collect(&format!("{path}{dot}{name}"), value, names);
            }
        }
        Value::Array(items) => {
            for item in items {
                collect(&format!("{path}[]"), item, names);
            }
        }
        _ => {
            names.insert(path.to_owned());
        }
    }
}

/// The first column of the table under "Fields".
fn documented() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATIONS.md");
    let text = std::fs::read_to_string(path).expect("the manual");
    let (_, fields) = text
        .split_once("### Fields")
        .expect("a section on the fields");
    let rows = fields.lines().skip_while(|line| !line.starts_with("| `"));
    rows.take_while(|line| line.starts_with("| `"))
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect()
}
