//! Documents must not lie: paths they name exist, links lead somewhere, the manual lists its chapters, decisions are
//! numbered without gaps.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Tree};

/// Lines of ARCHITECTURE.md: one sitting.
const ARCHITECTURE_MAX_LINES: usize = 300;
/// A word in backticks is a path of this repository when it begins with one of these.
const TOPS: &[&str] = &["crates/", "docs/", "images/", "xtask/", "tests/", "fuzz/", ".ci/", ".cargo/"];
/// The manual's table of contents.
const SUMMARY: &str = "docs/SUMMARY.md";
const DECISIONS: &str = "docs/decisions/";

/// Everything about documents. `names` are all files, texts or not.
pub(super) fn check(tree: &Tree, names: &[String]) -> Vec<Finding> {
    let known = known_paths(names);
    let mut findings = Vec::new();
    for (name, text) in tree.iter().filter(|(name, _)| is_document(name)) {
        findings.extend(check_paths(name, text, &known));
        findings.extend(check_links(name, text, &known));
    }
    for name in ["README.md", "ARCHITECTURE.md", SUMMARY, "LICENSE"] {
        if !known.contains(name) {
            findings.push(Finding::new(name, "is missing"));
        }
    }
    let lines = tree.get("ARCHITECTURE.md").map_or(0, |text| text.lines().count());
    if lines > ARCHITECTURE_MAX_LINES {
        findings
            .push(Finding::new("ARCHITECTURE.md", format!("has {lines} lines, {ARCHITECTURE_MAX_LINES} are allowed")));
    }
    findings.extend(check_summary(tree));
    findings.extend(check_decisions(names));
    findings
}

fn is_document(name: &str) -> bool {
    name.ends_with(".md") && (!name.contains('/') || name.starts_with("docs/"))
}

/// Every file and every directory.
fn known_paths(names: &[String]) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for name in names {
        let mut path = name.as_str();
        known.insert(path.to_owned());
        while let Some((parent, _)) = path.rsplit_once('/') {
            known.insert(parent.to_owned());
            path = parent;
        }
    }
    known
}

/// Paths in backticks.
fn check_paths(name: &str, text: &str, known: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in line.split('`').skip(1).step_by(2) {
            let path = word.trim_end_matches('/');
            let plain = path.chars().all(|letter| letter.is_alphanumeric() || "/._-".contains(letter));
            if plain && TOPS.iter().any(|top| word.starts_with(top)) && !known.contains(path) {
                findings.push(Finding::new(
                    format!("{name}:{}", number + 1),
                    format!("names `{path}`, which is not there"),
                ));
            }
        }
    }
    findings
}

/// Links to files.
fn check_links(name: &str, text: &str, known: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split([')', ' ']).next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") || file.starts_with('/') {
                continue;
            }
            if resolve(name, file).is_none_or(|path| !known.contains(&path)) {
                findings.push(Finding::new(
                    format!("{name}:{}", number + 1),
                    format!("links to {file}, which is not there"),
                ));
            }
        }
    }
    findings
}

/// Path of a link, from the repository's root; `None` when it leaves the repository.
fn resolve(from: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// Each document below `docs/` is a chapter of the manual.
fn check_summary(tree: &Tree) -> Vec<Finding> {
    let summary = tree.get(SUMMARY).map_or("", String::as_str);
    let listed: BTreeSet<String> = summary
        .match_indices("](")
        .filter_map(|(at, _)| resolve(SUMMARY, summary[at + 2..].split(')').next().unwrap_or_default()))
        .collect();
    tree.keys()
        .filter(|name| {
            name.starts_with("docs/") && name.ends_with(".md") && *name != SUMMARY && !listed.contains(*name)
        })
        .map(|name| Finding::new(name, "is not listed in docs/SUMMARY.md"))
        .collect()
}

/// Decisions are `docs/decisions/NNNN-words.md`, numbered from 1 without gaps or doubles.
fn check_decisions(names: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut by_number: BTreeMap<usize, &str> = BTreeMap::new();
    for name in names.iter().filter_map(|name| name.strip_prefix(DECISIONS)) {
        let digits = name.split('-').next().filter(|digits| digits.len() == 4);
        let Some(number) = digits.and_then(|digits| digits.parse().ok()) else {
            if !["README.md", "dependencies.md"].contains(&name) {
                findings.push(Finding::new(format!("{DECISIONS}{name}"), "is not called NNNN-words.md"));
            }
            continue;
        };
        if let Some(other) = by_number.insert(number, name) {
            findings.push(Finding::new(format!("{DECISIONS}{name}"), format!("has the same number as {other}")));
        }
    }
    for (expected, (number, name)) in (1..).zip(&by_number) {
        if expected != *number {
            findings.push(Finding::new(
                format!("{DECISIONS}{name}"),
                format!("leaves a gap: number {expected} is missing"),
            ));
            break;
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_path_that_is_not_there_is_found() {
        let known = known_paths(&names(&["crates/a/src/lib.rs"]));
        assert_eq!(check_paths("README.md", "see `crates/a` and `crates/a/src/lib.rs` and `cargo test`", &known), []);
        assert_eq!(check_paths("README.md", "see `crates/b/`", &known).len(), 1);
        assert_eq!(check_paths("README.md", "any `crates/<name>/src` will do", &known), []);
    }

    #[test]
    fn links_are_followed_from_where_they_stand() {
        let known = known_paths(&names(&["docs/a.md", "README.md"]));
        assert_eq!(check_links("docs/a.md", "[up](../README.md#top) [web](https://x.y) [here](#x)", &known), []);
        assert_eq!(check_links("docs/a.md", "[gone](b.md) [out](../../x.md)", &known).len(), 2);
    }

    #[test]
    fn a_chapter_that_is_not_listed_is_found() {
        let tree = super::super::tree([(SUMMARY, "- [A](a.md)\n"), ("docs/a.md", ""), ("docs/b.md", "")]);
        let found = check_summary(&tree);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "docs/b.md");
    }

    #[test]
    fn decisions_have_numbers_without_gaps_or_doubles() {
        let good = names(&["docs/decisions/0001-a.md", "docs/decisions/0002-b.md", "docs/decisions/README.md"]);
        assert_eq!(check_decisions(&good), []);
        assert_eq!(check_decisions(&names(&["docs/decisions/0001-a.md", "docs/decisions/0003-b.md"])).len(), 1);
        assert_eq!(check_decisions(&names(&["docs/decisions/0001-a.md", "docs/decisions/0001-b.md"])).len(), 1);
        assert_eq!(check_decisions(&names(&["docs/decisions/notes.md"])).len(), 1);
    }

    #[test]
    fn an_architecture_nobody_reads_is_refused() {
        let long = "line\n".repeat(ARCHITECTURE_MAX_LINES + 1);
        let tree = super::super::tree([("ARCHITECTURE.md", &long), ("README.md", ""), (SUMMARY, ""), ("LICENSE", "")]);
        let all: Vec<String> = tree.keys().cloned().collect();
        assert_eq!(check(&tree, &all).len(), 1);
    }
}
