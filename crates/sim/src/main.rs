//! `cargo xtask sim [--seed N] [--runs N] [--steps N]`: plays stories, one seed after the other.

use std::{
    io::{self, Write},
    process::ExitCode,
};

const USAGE: &str = "usage: sim [--seed N] [--runs N] [--steps N]   (runs seeds N, N+1, …; steps per seed)";

/// Steps of a story unless told otherwise: some seconds.
const STEPS: usize = 500;

fn main() -> ExitCode {
    // What the parts say is noise here, unless somebody asks: NESO_LOG=debug.
    base::log::init("off");
    let (seed, runs, steps) = match arguments() {
        Ok(arguments) => arguments,
        Err(complaint) => {
            let _ = writeln!(io::stderr(), "{complaint}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut failed = 0;
    for seed in seed..seed.saturating_add(runs) {
        let outcome = sim::run(seed, steps);
        failed += usize::from(!outcome.violations.is_empty());
        if writeln!(io::stdout(), "{outcome}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments() -> Result<(u64, u64, usize), String> {
    let (mut seed, mut runs, mut steps) = (1, 1, STEPS);
    let mut rest = std::env::args().skip(1);
    while let Some(flag) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{flag} needs a number"))?;
        let number: u64 = value.parse().map_err(|_| format!("\"{value}\" is not a number"))?;
        match flag.as_str() {
            "--seed" => seed = number,
            "--runs" => runs = number,
            "--steps" => steps = usize::try_from(number).map_err(|_| format!("\"{value}\" is too large"))?,
            _ => return Err(format!("there is no {flag}")),
        }
    }
    Ok((seed, runs, steps))
}
