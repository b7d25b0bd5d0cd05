//! `/metrics`: the table in the code, its documentation, what a mount really tells, and Prometheus' own
//! opinion of it.

mod world;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use flashside::control::metrics::definitions::{ALL, Kind};
use serde_json::json;

use world::files::{BLOCK, MIB, open, open_read, read_at, write_at};
use world::{PATIENCE, World, wait_until, within};

/// One line of the table, as documented.
type Row = (String, String, String, String, String);

#[test]
fn the_documented_metrics_are_the_real_ones() {
    let real: BTreeSet<Row> = ALL
        .iter()
        .map(|metric| {
            let labels: Vec<String> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
            (
                metric.name.to_owned(),
                metric.kind.text().to_owned(),
                metric.unit.to_owned(),
                labels.join(", "),
                metric.help.to_owned(),
            )
        })
        .collect();
    let documented: BTreeSet<Row> = table().into_iter().collect();
    let only = |a: &BTreeSet<Row>, b: &BTreeSet<Row>| -> String {
        let line = |(n, k, u, l, h): &Row| format!("| `{n}` | {k} | {u} | {l} | {h} |\n");
        a.difference(b).map(line).collect()
    };
    assert!(
        real == documented,
        "only in the code:\n{}only in docs/METRICS.md:\n{}",
        only(&real, &documented),
        only(&documented, &real)
    );
    assert_eq!(table().len(), real.len(), "a line of the document is twice");
}

#[test]
fn names_tell_unit_and_kind() {
    for metric in ALL {
        let base = metric.name.trim_end_matches("_total");
        assert_eq!(metric.name != base, metric.kind == Kind::Counter);
        assert!(base.ends_with(metric.unit), "{}", metric.name);
        for unit in ["bytes", "seconds"] {
            assert_eq!(base.ends_with(unit), metric.unit == unit, "{}", metric.name);
        }
    }
}

#[test]
fn the_example_rules_name_only_metrics_there_are() {
    let rules = fs::read_to_string(repository().join("examples/alerts.yml")).expect("the rules");
    let mut known: BTreeSet<String> = ALL.iter().map(|metric| metric.name.to_owned()).collect();
    for metric in ALL.iter().filter(|metric| metric.kind == Kind::Histogram) {
        known.extend(["bucket", "sum", "count"].map(|part| format!("{}_{part}", metric.name)));
    }
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let named = rules.match_indices("flashside_").map(|(at, _)| {
        let rest = &rules[at..];
        &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())]
    });
    let named: Vec<&str> = named.filter(|name| *name != "flashside_").collect();
    assert!(named.len() > 5);
    for name in named {
        assert!(
            known.contains(name),
            "{name} is in the rules and nowhere else"
        );
    }
}

#[test]
fn every_alert_is_in_the_table_of_what_to_do() {
    let read = |name: &str| fs::read_to_string(repository().join(name)).expect("a document");
    let (rules, manual) = (read("examples/alerts.yml"), read("docs/OPERATIONS.md"));
    let (_, table) = manual.split_once("## What to do when").expect("the table");
    let alerts = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let alerts: Vec<&str> = alerts.collect();
    assert!(alerts.len() >= 10);
    for alert in alerts {
        assert!(
            table.contains(&format!("({alert})")),
            "{alert} is not in the table"
        );
    }
}

#[test]
fn a_mount_tells_every_metric_and_the_numbers_are_those_of_what_was_done() {
    let images = [("one", 4 * MIB), ("two", MIB)];
    let Some(world) = World::with_images(&images, |_| ()) else {
        return;
    };
    let file = open(&world.mnt("one"), true);
    let before = scrape(&world);
    for _ in 0..2 {
        for block in 0..8 {
            read_at(&file, block * 2 * BLOCK, 4096).expect("a read");
        }
        // A miss is answered before flash has its bytes.
        wait_until(PATIENCE, "all is on flash", || {
            world.count("one", "resident_bytes") >= 8 * BLOCK
        });
    }
    for page in 0..5 {
        write_at(&file, page * BLOCK, &[7; 4096]).expect("a write");
    }
    file.sync_data().expect("a flush");
    // What took part in an answer is counted a moment after it.
    let told = RefCell::new(scrape(&world));
    wait_until(PATIENCE, "all is counted", || {
        let told = told.replace(scrape(&world));
        let counted = |name, labels: &[&str]| told.sum(name, labels) - before.sum(name, labels);
        counted("flashside_read_seconds_count", &[]) >= 16.0
            && counted("flashside_image_read_hits_total", &[])
                == counted("flashside_read_seconds_count", &[r#"outcome="hit""#])
            && counted("flashside_write_seconds_count", &[]) >= 5.0
            && counted("flashside_flush_seconds_count", &[]) >= 1.0
    });
    let told = told.into_inner();
    let families: BTreeSet<&str> = told.kinds.keys().map(String::as_str).collect();
    assert_eq!(families, ALL.iter().map(|metric| metric.name).collect());
    for metric in ALL {
        assert_eq!(told.kinds[metric.name], metric.kind.text());
    }
    let grown = |name: &str, labels: &[&str]| told.sum(name, labels) - before.sum(name, labels);
    let reads = |outcome| grown("flashside_read_seconds_count", &[outcome]);
    let (hits, misses) = (reads(r#"outcome="hit""#), reads(r#"outcome="miss""#));
    assert_eq!(
        (hits + misses, hits >= 8.0, misses >= 1.0),
        (16.0, true, true)
    );
    assert_eq!(
        grown("flashside_image_reads_total", &[r#"image="one""#]),
        16.0
    );
    assert_eq!(
        grown("flashside_image_read_hits_total", &[r#"image="one""#]),
        hits
    );
    let done = &[r#"outcome="done""#];
    assert_eq!(grown("flashside_write_seconds_count", done), 5.0);
    assert_eq!(grown("flashside_store_write_seconds_count", done), 5.0);
    assert!(grown("flashside_flush_seconds_count", done) >= 1.0);
    let requests = grown("flashside_image_store_read_requests_total", &[]);
    assert_eq!(grown("flashside_store_read_seconds_count", done), requests);
    assert_eq!(
        told.sum("flashside_image_handles", &[r#"plane="daemon""#]),
        1.0
    );
    assert_eq!(
        told.sum("flashside_store_state", &[r#"state="responding""#]),
        1.0
    );
    assert_eq!(told.sum("flashside_store_state", &[]), 1.0);
    assert_eq!(
        told.sum("flashside_device_state", &[r#"state="healthy""#]),
        1.0
    );
    assert_eq!(
        told.sum("flashside_read_seconds_count", &[r#"outcome="failed""#]),
        0.0
    );
    let mountpoint = format!("mountpoint=\"{}\"", world.mountpoint().display());
    assert!(
        told.samples
            .keys()
            .all(|sample| sample.contains(&mountpoint))
    );
    told.expect_whole_histograms();
}

#[test]
fn a_store_that_fails_and_hangs_shows_in_states_errors_and_abandoned_calls() {
    let mut world = match World::new() {
        Some(world) => world,
        None => return,
    };
    world::files::make_image(&world.store("cold"), 1, MIB);
    world
        .faulty_store()
        .flags(&["--store-deadline", "2s"])
        .start();
    let file = open_read(&world.mnt("cold"));
    world.faults().set(json!({"eio_reads": true}));
    read_at(&file, 0, 4096).expect_err("the store fails");
    let failed = &[r#"outcome="failed""#];
    expect(
        &world,
        "flashside_store_state",
        &[r#"state="failing""#],
        |one| one == 1.0,
    );
    expect(
        &world,
        "flashside_store_read_seconds_count",
        failed,
        |count| count >= 1.0,
    );
    expect(&world, "flashside_read_seconds_count", failed, |count| {
        count >= 1.0
    });
    let before = scrape(&world).sum("flashside_read_seconds_count", failed);
    world.faults().heal();
    world.faults().stop();
    let hanging = move || read_at(&file, MIB / 2, 4096);
    within(PATIENCE, "the deadline", hanging).expect_err("it hangs");
    expect(
        &world,
        "flashside_store_state",
        &[r#"state="hanging""#],
        |one| one == 1.0,
    );
    let guest = &[r#"class="guest""#];
    expect(
        &world,
        "flashside_store_operations_abandoned",
        guest,
        |count| count >= 1.0,
    );
    expect(
        &world,
        "flashside_store_operations_expired_total",
        &[],
        |count| count >= 1.0,
    );
    expect(&world, "flashside_read_seconds_count", failed, |count| {
        count > before
    });
    world.faults().go_on();
    expect(
        &world,
        "flashside_store_operations_abandoned",
        &[],
        |count| count == 0.0,
    );
}

#[test]
fn a_port_serves_metrics_alone_and_again_after_a_kill() {
    let Some(mut world) = World::new() else {
        return;
    };
    let port = free_port();
    world
        .flags(&["--metrics-listen", &format!("127.0.0.1:{port}")])
        .start();
    // A server that is being killed may take the connection and not answer.
    let ask = |what: &str| {
        let answer = RefCell::new(None);
        wait_until(PATIENCE, "the port answers", || {
            let stream = TcpStream::connect(("127.0.0.1", port)).ok();
            let told = stream.and_then(|mut stream| exchange(&mut stream, what).ok());
            *answer.borrow_mut() = told;
            answer.borrow().is_some()
        });
        answer.into_inner().expect("just seen")
    };
    let (head, body) = ask("GET /metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert_eq!(parse(&body).kinds, scrape(&world).kinds);
    assert!(ask("GET /v1/status").0.starts_with("HTTP/1.1 404"));
    assert!(ask("POST /metrics").0.starts_with("HTTP/1.1 405"));
    if world.status()["handover"] != "off" {
        world.wait_for_standby();
        world.kill_server();
        wait_until(PATIENCE, "the next server's numbers", || {
            let told = parse(&ask("GET /metrics").1);
            told.sum("flashside_restarts_total", &[]) == 1.0
        });
    }
    world.kill9();
    world.start();
    assert!(ask("GET /metrics").0.starts_with("HTTP/1.1 200"));
    world.unmount();
}

#[test]
fn a_port_that_is_taken_stops_no_mount_and_is_one_line_in_the_log() {
    let Some(mut world) = World::new() else {
        return;
    };
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = taken.local_addr().expect("its address").to_string();
    world.flags(&["--metrics-listen", &place]).start();
    fs::write(world.mnt("works"), b"yes").expect("the mount works");
    let line = format!("no metrics on {place}");
    wait_until(PATIENCE, "the line", || {
        world.daemon().said().contains(&line)
    });
    assert_eq!(world.daemon().said().matches(&line).count(), 1);
    assert!(!scrape(&world).kinds.is_empty());
    world.unmount();
}

#[test]
fn only_loopback_addresses_are_listened_on() {
    let Some(mut world) = World::new() else {
        return;
    };
    for place in [
        "0.0.0.0:9095",
        "192.0.2.1:9095",
        "[::]:9095",
        "9095",
        "localhost",
        "127.0.0.1:0",
    ] {
        world.clear_flags().flags(&["--metrics-listen", place]);
        let said = world.try_start().expect_err("refused");
        let want = "flashside: metrics-listen must be a loopback address and a port, for example 127.0.0.1:9095";
        assert_eq!(said.trim_end(), want, "{place}");
    }
}

#[test]
fn promtool_accepts_what_a_mount_tells_and_the_example_rules() {
    let Some(promtool) = promtool() else {
        println!("skipped: no promtool; tests/promtool.sh fetches it");
        return;
    };
    let rules = repository().join("examples/alerts.yml");
    expect_accepted(
        Command::new(&promtool).args(["check", "rules"]).arg(rules),
        "",
    );
    let Some(world) = World::with_images(&[("a \"quoted\" \\ name", MIB)], |_| ()) else {
        return;
    };
    fs::read(world.mnt("a \"quoted\" \\ name")).expect("a read");
    expect_accepted(
        Command::new(&promtool).args(["check", "metrics"]),
        &text(&world),
    );
}

/// What was scraped.
struct Told {
    /// By name.
    kinds: BTreeMap<String, String>,
    /// By name and labels as written.
    samples: BTreeMap<String, f64>,
}

impl Told {
    /// The sum of all samples of this name that have all these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let mine = self.samples.iter().filter(|(sample, _)| {
            let (found, rest) = sample.split_once('{').expect("all have labels");
            found == name && labels.iter().all(|label| rest.contains(label))
        });
        mine.map(|(_, value)| value).sum()
    }

    /// Buckets never shrink towards longer times, and the last has everything.
    fn expect_whole_histograms(&self) {
        for metric in ALL.iter().filter(|metric| metric.kind == Kind::Histogram) {
            let count = self.sum(&format!("{}_count", metric.name), &[]);
            let bucket = format!("{}_bucket", metric.name);
            assert_eq!(
                self.sum(&bucket, &[r#"le="+Inf""#]),
                count,
                "{}",
                metric.name
            );
            let mut below = 0.0;
            for le in ["5e-5", "0.0001", "0.001", "0.01", "0.1", "1.0", "10.0"] {
                let upto = self.sum(&bucket, &[&format!("le=\"{le}\"")]);
                assert!(below <= upto && upto <= count, "{} at {le}", metric.name);
                below = upto;
            }
            let seconds = self.sum(&format!("{}_sum", metric.name), &[]);
            assert_eq!(seconds > 0.0, count > 0.0, "{}", metric.name);
        }
    }
}

/// Waits until the sum of these samples is as it should be: things are counted a moment after their answer.
fn expect(world: &World, name: &str, labels: &[&str], holds: impl Fn(f64) -> bool) {
    wait_until(PATIENCE, name, || holds(scrape(world).sum(name, labels)));
}

fn scrape(world: &World) -> Told {
    parse(&text(world))
}

/// From the control socket.
fn text(world: &World) -> String {
    let socket = world::files::get_xattr(&world.mountpoint(), "user.flashside.control");
    let socket = socket.expect("the mount tells");
    let mut stream = UnixStream::connect(socket).expect("the daemon listens");
    let (head, body) = exchange(&mut stream, "GET /metrics").expect("answered");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body
}

/// Head and body of the answer.
fn exchange(stream: &mut (impl Read + Write), what: &str) -> io::Result<(String, String)> {
    let request = format!("{what} HTTP/1.1\r\nHost: flashside\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let parts = answer.split_once("\r\n\r\n");
    let (head, body) = parts.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((head.to_owned(), body.to_owned()))
}

/// Each sample has to follow the lines that describe it, and to be there once.
fn parse(text: &str) -> Told {
    let (mut kinds, mut samples) = (BTreeMap::new(), BTreeMap::new());
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a kind");
            current = name.to_owned();
            let twice = kinds.insert(current.clone(), kind.to_owned());
            assert_eq!(twice, None, "{name} is described twice");
        } else if !line.starts_with('#') {
            assert!(line.starts_with(&current), "{line} after {current}");
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            let value = value.parse().expect("a number");
            let twice = samples.insert(sample.to_owned(), value);
            assert_eq!(twice, None, "{sample} is told twice");
        }
    }
    Told { kinds, samples }
}

/// The table of docs/METRICS.md.
fn table() -> Vec<Row> {
    let text = fs::read_to_string(repository().join("docs/METRICS.md")).expect("the document");
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| `flashside_"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, unit, labels, help] = cells[..] else {
            panic!("not five cells: {line}");
        };
        let name = name.trim_matches('`');
        let owned = |cell: &str| cell.to_owned();
        (
            owned(name),
            owned(kind),
            owned(unit),
            owned(labels),
            owned(help),
        )
    })
    .collect()
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A port of the loopback interface that nobody has now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// As `tests/promtool.sh` has left it.
fn promtool() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").unwrap_or("/root".into());
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| Path::new(&home).join(".cache"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.push(cache.join("flashside"));
    let tools = places.into_iter().map(|place| place.join("promtool"));
    tools.into_iter().find(|tool| tool.is_file())
}

fn expect_accepted(command: &mut Command, input: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(input.as_bytes()).expect("it reads");
    drop(pipe);
    let limit = Duration::from_secs(60);
    let output = within(limit, "promtool", move || child.wait_with_output()).expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    println!("promtool: {}\n{said}", output.status);
    assert!(output.status.success(), "promtool: {said}");
    assert!(
        !said.contains("no help") && !said.contains("should"),
        "{said}"
    );
}
