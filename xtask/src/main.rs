//! The developers' one helper: `cargo xtask <command>`.
//!
//! `tidy` holds the walls and the house rules, `check` is everything a change must pass before it lands, `bench` measures
//! speed as ratios within one run, `fuzz` feeds strangers' bytes to every parser, `sim` runs a datacenter in one process
//! from a seed, `fresh` tries the README on a new machine. It needs nothing beyond cargo and git; what a command needs
//! besides, it says.

mod bench;
mod check;
mod command;
mod faults;
mod fresh;
mod fuzz;
mod sim;
mod tidy;

use std::{path::PathBuf, process::ExitCode};

const USAGE: &str = "\
usage: cargo xtask <command>
  tidy [--shrink]      check walls, licences, lengths, documents, words; --shrink lowers the recorded debts
  check                tidy, formatting, clippy: what must pass before a change lands
  bench [name…]        measure and rewrite docs/performance.md; without a name, every bench
  faults [name…]       break a datacenter of three headnodes under load and rewrite docs/reliability.md (as root); all when none is named
  fuzz [--seconds N] [target…]
                       run the fuzz targets, each for so long; without a name, every target
  sim [--seed N] …     run the simulation; the arguments go to it as they are
  fresh [--at DIR] …   the README's two commands on a new Debian 12 made for it (as root): tests/fresh";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let root = repository_root();
    let outcome = match arguments.split_first() {
        Some((command, rest)) => match (command.as_str(), rest) {
            ("tidy", []) => tidy::run(&root, tidy::Debts::Hold),
            ("tidy", [flag]) if flag == "--shrink" => tidy::run(&root, tidy::Debts::Shrink),
            ("check", []) => check::run(&root),
            ("bench", names) => bench::run(&root, names),
            ("faults", names) => faults::run(&root, names),
            ("fuzz", rest) => fuzz::run(&root, rest),
            ("sim", rest) => sim::run(&root, rest),
            ("fresh", rest) => fresh::run(&root, rest),
            _ => Err(USAGE.to_owned()),
        },
        None => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace cargo runs this helper in. Where it was built does not count: clones may share a target directory, and
/// cargo does not build it again for another path alone.
fn repository_root() -> PathBuf {
    let mut root =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    root.pop();
    root
}
