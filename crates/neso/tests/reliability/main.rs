//! Reliability: three headnodes under load, one fault after the other, and a history that must be true.
//!
//! ```text
//!  load (clients) ──► CloudAPI of three headnodes ◄── fault (kill, freeze, cut, fill, slow down …)
//!    └─► history: who asked what, when, and was told what ─► linearizable? acknowledged and there? how long was there silence?
//! ```
//! `cargo xtask faults [NAME…]` does the named faults, or all, and writes `docs/reliability.md`. Without arguments, as a test, it does the first
//! few and fails when a promise is broken; it asserts no time. With `NESO_HISTORIES=DIR` each history is kept in a file there. It needs root and etcd, and says so where it has not.

#![allow(
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "the subject is our own command, and a harness prints"
)]

mod checker;
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
/// Faults that are done without arguments: the quick ones, first in the list.
const QUICK: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(LOAD) => load::run(),
        // What a test runner asks.
        Some("--list") => println!("faults: test"),
        Some("checker") => checker::trial::run(),
        Some("all") => faults(&faults::all().iter().map(|fault| fault.name).collect::<Vec<_>>(), true),
        Some(name) if !name.starts_with('-') => {
            faults(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), true);
        }
        _ => {
            checker::trial::run();
            faults(&faults::all().iter().take(QUICK).map(|fault| fault.name).collect::<Vec<_>>(), false);
        }
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
        let outcome = trial::run(&mut stage, fault);
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
