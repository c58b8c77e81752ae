//! Every library has its reason: one line each in `docs/decisions/dependencies.md`, no line without a library.

use std::collections::BTreeSet;

use super::{Finding, Tree};

const REASONS: &str = "docs/decisions/dependencies.md";

/// Libraries without a reason, and reasons without a library.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let text = |name: &str| tree.get(name).map_or("", String::as_str);
    let used = libraries(text("Cargo.toml"));
    let explained = explained(text(REASONS));
    let missing = used
        .difference(&explained)
        .map(|name| Finding::new(REASONS, format!("does not say why we use `{name}`; add a line \"- `{name}`: …\"")));
    let stale =
        explained.difference(&used).map(|name| Finding::new(REASONS, format!("explains `{name}`, which nothing uses")));
    missing.chain(stale).collect()
}

/// Names under `[workspace.dependencies]` that are not crates of this workspace.
fn libraries(manifest: &str) -> BTreeSet<String> {
    manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#') && !line.contains("path = \"crates/"))
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.trim().to_owned())
        .collect()
}

fn explained(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("- `")?.split_once("`: "))
        .filter(|(_, reason)| !reason.trim().is_empty())
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_library_needs_its_line_and_each_line_its_library() {
        let manifest = "[workspace.dependencies]\nbase = { path = \"crates/base\" }\n# words\nbytes = \"1\"\nclap = { version = \"4\" }\n\n[profile.dev]\nx = 1\n";
        let tree =
            super::super::tree([("Cargo.toml", manifest), (REASONS, "- `bytes`: cheap slices.\n- `old`: gone.\n")]);
        let found: Vec<String> = check(&tree).into_iter().map(|finding| finding.message).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("`clap`") && found[1].contains("`old`"), "{found:?}");
    }
}
