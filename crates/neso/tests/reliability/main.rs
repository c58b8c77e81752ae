//! Reliability: three headnodes under load, one fault after the other, and a history that must be true.
//!
//! ```text
//!  load (clients) ──► CloudAPI of three headnodes ◄── fault (kill, freeze, cut, fill, slow down …)
//!    └─► history: who asked what, when, and was told what ─► linearizable? acknowledged and there? how long was there silence?
//! ```
//! `cargo xtask faults [NAME…]` does the named faults, or all, and writes `docs/reliability.md`. Without arguments, as a test, it does the first
//! few and fails when a promise is broken; it asserts no time. `lies` tries whether lost writes are noticed. With `NESO_HISTORIES=DIR` each history is kept in a file there. It needs root and etcd, and says so where it has not.

#![allow(
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "the subject is our own command, and a harness prints"
)]

mod checker;
mod clock;
mod disk;
mod faults;
#[path = "../fleet/fleet.rs"]
#[expect(dead_code, reason = "the fleet's own tests use all of it")]
mod fleet;
mod history;
mod load;
mod report;
#[path = "../fleet/space.rs"]
#[expect(dead_code, reason = "the fleet's own tests use all of it")]
mod space;
mod stage;
mod trial;

/// What the load is told it is.
const LOAD: &str = "load";
/// The fault that loses what was not flushed.
const LOSES_CACHES: &str = "power-lost-unsynced";
/// What a process is told that says what time it is, over and over.
const TICK: &str = "tick";
/// Faults that are done without arguments: the quick ones, first in the list.
const QUICK: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(LOAD) => load::run(),
        Some(TICK) => clock::trial::tick(),
        // What a test runner asks.
        Some("--list") => println!("faults: test"),
        Some("checker") => checker::trial::run(),
        Some("tools") if fleet::is_root() => tools(),
        Some("lies") => lies(),
        Some("all") => faults(&faults::all().iter().map(|fault| fault.name).collect::<Vec<_>>(), true),
        Some(name) if !name.starts_with('-') => {
            faults(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), true);
        }
        _ => {
            checker::trial::run();
            if fleet::is_root() {
                tools();
            }
            faults(&faults::all().iter().take(QUICK).map(|fault| fault.name).collect::<Vec<_>>(), false);
        }
    }
}

/// A check of the harness: with disks that acknowledge flushes and do not do them, a loss of power has to break promises.
fn lies() {
    let Some(mut stage) = stage::Stage::start() else { return };
    stage.lie();
    let all = faults::all();
    let fault = all.iter().find(|fault| fault.name == LOSES_CACHES).expect("there is such a fault");
    let outcome = trial::run(&mut stage, fault);
    let noticed = outcome.broken_promise.expect("acknowledged changes are lost, and that is noticed");
    println!("noticed: {noticed}\ntest lies ... ok");
}

/// What faults are made with, tried by itself.
fn tools() {
    if std::path::Path::new("/dev/fuse").exists() {
        disk::trial::run();
    }
    if cfg!(target_arch = "x86_64") {
        clock::trial::run();
    }
}

fn faults(names: &[&str], write: bool) {
    let all = faults::all();
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|fault| fault.name == **name)) {
        let known: Vec<&str> = all.iter().map(|fault| fault.name).collect();
        eprintln!("there is no fault called `{unknown}`; there are: all, {}", known.join(", "));
        std::process::exit(2);
    }
    let Some(mut stage) = stage::Stage::start() else { return };
    let mut broken = Vec::new();
    for fault in all.iter().filter(|fault| names.contains(&fault.name)) {
        println!("{}: {}", fault.name, fault.about);
        let begun = std::time::Instant::now();
        let outcome = trial::run(&mut stage, fault);
        println!("it took {} s in all", begun.elapsed().as_secs());
        let row = report::row(fault, &outcome);
        println!("{row}");
        println!("test faults::{} ... {}", fault.name, if outcome.broken_promise.is_some() { "FAILED" } else { "ok" });
        broken.extend(outcome.broken_promise.map(|why| format!("{}: {why}", fault.name)));
        if write {
            report::put(fault.name, &row);
        }
    }
    let (passed, verdict) = (names.len() - broken.len(), if broken.is_empty() { "ok" } else { "FAILED" });
    println!("\ntest result: {verdict}. {passed} passed; {} failed", broken.len());
    assert!(broken.is_empty(), "a promise was broken:\n{}", broken.join("\n"));
}
