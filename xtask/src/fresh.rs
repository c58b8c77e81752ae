//! `cargo xtask fresh`: the README's two commands on a Debian 12 where nothing was installed by hand. See `tests/fresh`.

use std::path::Path;

use crate::command;

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<(), String> {
    let all: Vec<&str> = arguments.iter().map(String::as_str).collect();
    command::run(root, "tests/fresh", &all)
}
