//! `cargo xtask bench`: builds the product and the benchmarks optimised, and runs the named ones, or all.

use std::path::Path;

use crate::command;

pub(crate) fn run(root: &Path, names: &[String]) -> Result<(), String> {
    command::run(root, "cargo", &["build", "--release", "--package", "neso", "--package", "bench"])?;
    // Not `cargo run`: for one package alone some libraries have other features, and half of the workspace would be built again.
    let program = command::target_directory(root).join("release/bench");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    command::run(root, &program.to_string_lossy(), &names)
}
