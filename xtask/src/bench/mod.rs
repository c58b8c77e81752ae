//! `cargo xtask bench`: speed, as ratios measured in one run, written to `docs/performance.md`.
//!
//! One file per bench. A bench measures ours and a peer or a floor side by side, interleaved, so that a busy machine
//! slows both; the report keeps minimum, median and maximum and the ratio of the medians. Numbers are never asserted in a
//! test: this page is where a change shows what it cost.

mod report;

use std::path::Path;

use report::Section;

/// A bench: its name, and the function that measures.
type Bench = (&'static str, fn(&Path) -> Result<Section, String>);

const BENCHES: &[Bench] = &[];

/// Runs the named benches, or all, and puts each one's section into the report.
pub(crate) fn run(root: &Path, names: &[String]) -> Result<(), String> {
    if let Some(unknown) = names.iter().find(|name| !BENCHES.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = BENCHES.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no bench called `{unknown}`; there are: {}", known.join(", ")));
    }
    for (name, measure) in BENCHES {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            eprintln!("bench {name}");
            let section = measure(root)?;
            report::put(root, name, &section)?;
        }
    }
    Ok(())
}
