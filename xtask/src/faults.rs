//! `cargo xtask faults`: does the named faults to a datacenter of three headnodes under load, or all, and puts what came of each into
//! `docs/reliability.md`.

use std::path::Path;

use crate::command;

pub(crate) fn run(root: &Path, names: &[String]) -> Result<(), String> {
    let mut all = vec!["test", "--workspace", "--test", "reliability", "--"];
    match names {
        [] => all.push("all"),
        names => all.extend(names.iter().map(String::as_str)),
    }
    command::run(root, "cargo", &all)
}
