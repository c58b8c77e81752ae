//! `cargo xtask bench`: builds the product and the benchmarks optimised, and runs the named ones, or all.

use std::path::Path;

use crate::command;

pub(crate) fn run(root: &Path, names: &[String]) -> Result<(), String> {
    command::run(root, "cargo", &["build", "--release", "--package", "neso", "--package", "bench"])?;
    let mut all = vec!["run", "--quiet", "--release", "--package", "bench", "--"];
    all.extend(names.iter().map(String::as_str));
    command::run(root, "cargo", &all)
}
