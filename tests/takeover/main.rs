//! The serving process is killed with SIGKILL, again and again and now and then replaced by an upgrade, under
//! a load on both planes and on names: nobody who works on the mount may notice more than a pause.
//!
//! `TAKEOVER_KILLS` (30), `TAKEOVER_UPGRADES` (a tenth of that), `TAKEOVER_SEED` change the run. The controls show
//! that the same run notices what is unsafe.

mod events;
mod fio;
mod golden;
#[path = "../kill9/ledger.rs"]
#[allow(dead_code)] // part of it is for comparisons after each kill
mod ledger;
#[path = "../kill9/load.rs"]
mod load;
mod names;
mod pauses;
mod prober;
#[path = "../rig/mod.rs"]
mod rig;
mod scene;
mod serving;
mod tally;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, Once};
use std::time::Duration;

use rig::{missing, rng, setting, watchdog};
use scene::{Outcome, Plan, Scene};

/// A control needs one; a run that notices nothing after these is blind.
const CONTROL_KILLS: u64 = 10;

#[test]
fn a_killed_or_replaced_server_is_a_pause_and_nothing_else() {
    if let Some(why) = missing(&["fio"]) {
        println!("skipped: {why}");
        return;
    }
    let _turn = turn();
    let kills = setting("TAKEOVER_KILLS", 30);
    let plan = Plan {
        kills,
        upgrades: setting("TAKEOVER_UPGRADES", kills.div_ceil(10)),
        seed: rng::seed("TAKEOVER_SEED"),
        until_wrong: false,
    };
    println!(
        "{kills} kills, {} upgrades, seed {}",
        plan.upgrades, plan.seed
    );
    let scene = Scene::new("takeover", &[]).expect("the scene");
    let mut outcome = scene.run(plan);
    if outcome.tally.wrong()[2] == 0 {
        let compared = scene.compare(&outcome.tally);
        compared.expect("the comparison at the end");
    }
    report(&mut outcome);
    assert_eq!(outcome.tally.wrong(), [0; 3], "errors, mismatches, hangs");
    assert_eq!(outcome.kills.len(), kills, "kills");
    assert_eq!(outcome.upgrades.len(), plan.upgrades, "upgrades");
    let [before, after] = outcome.states.map(|state| state.expect("a status"));
    assert!(
        after.restarts - before.restarts >= kills,
        "status counts {before:?} and {after:?}"
    );
}

/// The control: connections that the server made die with it, and the requests that it took from them fail.
#[test]
fn the_run_notices_that_a_server_made_its_own_connections() {
    if let Some(why) = missing(&["fio"]) {
        println!("skipped: {why}");
        return;
    }
    let _turn = turn();
    let plan = Plan {
        kills: CONTROL_KILLS,
        upgrades: 0,
        seed: rng::seed("TAKEOVER_SEED"),
        until_wrong: true,
    };
    let scene = Scene::new("takeover-clones", &["--unsafe-server-clones"]).expect("the scene");
    let outcome = scene.run(plan);
    let [errors, mismatches, _] = outcome.tally.wrong();
    println!(
        "after {} kills: {errors} errors, {mismatches} mismatches",
        outcome.kills.len()
    );
    assert!(errors > 0, "nobody was told of a lost request");
}

/// One run at a time, and a limit on all of them together.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    static LIMIT: Once = Once::new();
    let kills = setting("TAKEOVER_KILLS", 30);
    LIMIT.call_once(|| watchdog::start(Duration::from_secs(400 + 4 * kills)));
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn report(outcome: &mut Outcome) {
    let tally = &outcome.tally;
    let [errors, mismatches, hangs] = tally.wrong();
    println!(
        "{} calls: {errors} errors, {mismatches} mismatches, {hangs} hangs; the slowest took {} ms",
        tally.calls.load(Ordering::SeqCst),
        tally.slowest_us.load(Ordering::SeqCst) / 1000
    );
    outcome.kills.print("kill");
    outcome.upgrades.print("upgrade");
    let [reads, writes] = &mut outcome.probes;
    pauses::print("any read of the probers", reads);
    pauses::print("any write of the probers", writes);
    if let [Some(before), Some(after)] = outcome.states {
        println!(
            "{} restarts, {} requests sent again; the golden image: {}",
            after.restarts - before.restarts,
            after.resent - before.resent,
            outcome.planes
        );
    }
}
