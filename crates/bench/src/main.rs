//! Speed, as ratios measured in one run and written to `docs/performance.md`. Started by `cargo xtask bench`.
//!
//! One module per benchmark. Each measures ours and a peer or a floor side by side, so that a busy machine slows both; the
//! report keeps minimum, median, p99 and maximum and the ratio of the medians. Nothing here is asserted in a test: the
//! page is where a change shows what it cost.
#![expect(
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "a benchmark starts the peers it compares with, and prints"
)]

mod api;
mod cmon;
mod coldstart;
mod create;
mod datacenter;
mod density;
mod dns;
mod firewall;
mod fleet;
mod names;
mod network;
mod peers;
mod placement;
mod report;
mod standing;
mod store;
mod watch;

use std::{path::Path, process::ExitCode};

use report::Section;

/// A benchmark: its name, and the function that measures.
type Bench = (&'static str, fn() -> Result<Vec<Section>, String>);

const BENCHES: &[Bench] = &[
    ("api", api::measure),
    ("cmon", cmon::measure),
    ("coldstart", coldstart::measure),
    ("create", create::measure),
    ("density", density::measure),
    ("dns", dns::measure),
    ("firewall", firewall::measure),
    ("fleet", fleet::measure),
    ("names", names::measure),
    ("network", network::measure),
    ("placement", placement::measure),
    ("store", store::measure),
    ("watch", watch::measure),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((name, rest)) if name == peers::CHILD => peers::child(rest),
        Some((name, rest)) if name == fleet::NODES => fleet::nodes::child(rest),
        Some((name, rest)) if name == fleet::FLOOR => fleet::floor::child(rest),
        Some((name, rest)) if name == dns::CHILD => dns::child(rest),
        Some((name, _)) if name == network::CHILD => network::child(),
        _ => run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the named benchmarks, or all, and puts each one's sections into the report.
fn run(names: &[String]) -> Result<(), String> {
    if let Some(unknown) = names.iter().find(|name| !BENCHES.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = BENCHES.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no bench called `{unknown}`; there are: {}", known.join(", ")));
    }
    for (name, measure) in BENCHES {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            eprintln!("bench {name}");
            let text = report::rendered(&measure()?);
            println!("{text}");
            report::put(Path::new("."), name, &text)?;
        }
    }
    Ok(())
}

/// A runtime for one benchmark's own work.
fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))
}
