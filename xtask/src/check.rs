//! `cargo xtask check`: what must pass before a change lands, cheapest first.
//!
//! Known vulnerabilities are not asked for here: that list changes without us, and whether a change may land must not
//! depend on the day. `cargo deny check advisories` asks, with the same `deny.toml` tidy reads.

use std::path::Path;

use crate::{command, tidy};

pub(crate) fn run(root: &Path) -> Result<(), String> {
    tidy::run(root, tidy::Debts::Hold)?;
    command::run(root, "cargo", &["fmt", "--all", "--check"])?;
    command::run(root, "cargo", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])
}
