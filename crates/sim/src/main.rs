//! `cargo xtask sim [--seed N] [--nodes N] [--runs N] [--steps N]`: plays stories, one seed after the other.

use std::{
    io::{self, Write},
    process::ExitCode,
};

const USAGE: &str =
    "usage: sim [--seed N] [--nodes N] [--runs N] [--steps N]   (runs seeds N, N+1, …; machines and steps per seed)";

/// Machines unless told otherwise.
const NODES: usize = 200;

/// Steps of a story unless told otherwise: less than a minute for all those machines.
const STEPS: usize = 120;

fn main() -> ExitCode {
    // What the parts say is noise here, unless somebody asks: NESO_LOG=debug.
    base::log::init("off");
    let (plan, runs) = match arguments() {
        Ok(arguments) => arguments,
        Err(complaint) => {
            let _ = writeln!(io::stderr(), "{complaint}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut failed = 0;
    for seed in plan.seed..plan.seed.saturating_add(runs) {
        let outcome = sim::run(sim::Plan { seed, ..plan });
        failed += usize::from(!outcome.violations.is_empty());
        if writeln!(io::stdout(), "{outcome}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments() -> Result<(sim::Plan, u64), String> {
    let (mut plan, mut runs) = (sim::Plan { seed: 1, nodes: NODES, steps: STEPS }, 1);
    let mut rest = std::env::args().skip(1);
    while let Some(flag) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{flag} needs a number"))?;
        let number: u64 = value.parse().map_err(|_| format!("\"{value}\" is not a number"))?;
        let size = || usize::try_from(number).map_err(|_| format!("\"{value}\" is too large"));
        match flag.as_str() {
            "--seed" => plan.seed = number,
            "--runs" => runs = number,
            "--nodes" => plan.nodes = size()?,
            "--steps" => plan.steps = size()?,
            _ => return Err(format!("there is no {flag}")),
        }
    }
    Ok((plan, runs))
}
