//! `cargo xtask sim`: the simulation, run optimised because it is long and deterministic.

use std::path::Path;

use crate::command;

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<(), String> {
    let mut all = vec!["run", "--quiet", "--package", "sim", "--"];
    all.extend(arguments.iter().map(String::as_str));
    command::run(root, "cargo", &all)
}
