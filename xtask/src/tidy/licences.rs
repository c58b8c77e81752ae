//! Licences and sources of everything that is linked, judged by the lists in `deny.toml`.
//!
//! `cargo deny` reads the same file and does this and more (advisories), but building it takes minutes and no package
//! registry here carries a current one. The part that must hold on every change needs only cargo's metadata, so it is
//! checked here, offline, in no time.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Finding, Tree};

const FILE: &str = "deny.toml";
/// The one registry libraries come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Packages that name no licence; this one stands in the file they carry, which was read.
const READ: &[(&str, &str)] = &[("rust-criu", "MIT")];

/// Packages whose licence, name or source is not allowed.
pub(super) fn check(metadata: &str, tree: &Tree) -> Result<Vec<Finding>, String> {
    let lists = tree.get(FILE).map_or("", String::as_str);
    let allowed = list(lists, "allow = [");
    let banned = list(lists, "deny = [");
    let value: Value =
        serde_json::from_str(metadata).map_err(|error| format!("cannot read cargo's metadata: {error}"))?;
    let mut findings = Vec::new();
    for package in value["packages"].as_array().into_iter().flatten() {
        let text = |field: &str| package[field].as_str().unwrap_or_default();
        let Some(source) = package["source"].as_str() else { continue };
        let name = text("name");
        if source != REGISTRY {
            findings.push(Finding::new(name, format!("comes from {source}; libraries come from crates.io")));
        }
        if banned.contains(name) {
            findings.push(Finding::new(name, "is banned; deny.toml says why"));
        }
        let licence = match text("license") {
            "" => READ.iter().find(|(package, _)| *package == name).map_or("", |(_, licence)| licence),
            stated => stated,
        };
        if !satisfied(licence, &allowed) {
            findings.push(Finding::new(name, format!("has the licence \"{licence}\", which deny.toml does not allow")));
        }
    }
    Ok(findings)
}

/// Strings in quotes between the line that is `begin` and the next line that is a bracket.
fn list(text: &str, begin: &str) -> BTreeSet<String> {
    text.lines()
        .skip_while(|line| *line != begin)
        .skip(1)
        .take_while(|line| *line != "]")
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split('"').nth(1))
        .map(str::to_owned)
        .collect()
}

/// Whether an SPDX expression can be met with allowed licences: one of each OR, every part of each AND.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = any(&words, &mut at, allowed);
    met && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all(words, at, allowed);
    }
    met
}

fn all(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let met = any(words, at, allowed);
        *at += 1;
        return met;
    }
    match (words.get(*at), words.get(*at + 1)) {
        (Some(&"WITH"), Some(exception)) => {
            *at += 2;
            allowed.contains(&format!("{word} WITH {exception}"))
        }
        // `X+` is X or a later version: allowing X is enough.
        _ => allowed.contains(word.trim_end_matches('+')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: &str = "allow = [\n    \"MIT\",\n    \"ISC\",\n    # words\n    \"Apache-2.0 WITH LLVM-exception\",\n]\ndeny = [\n    { name = \"bad\" },\n]\n";

    #[test]
    fn expressions_are_understood() {
        let allowed = list(LISTS, "allow = [");
        for good in [
            "MIT",
            "ISC+",
            "GPL-3.0 OR MIT",
            "MIT/GPL-2.0",
            "ISC AND (GPL-3.0 OR MIT)",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "(MIT", "MIT MIT", "OR", "MIT AND"] {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn a_stranger_is_found() {
        let tree = super::super::tree([(FILE, LISTS)]);
        let package = |name: &str, licence: &str, source: &str| {
            format!(r#"{{"name": "{name}", "license": "{licence}", "source": "{source}"}}"#)
        };
        let metadata = format!(
            r#"{{"packages": [{}, {}, {}, {}, {{"name": "ours", "license": null, "source": null}}]}}"#,
            package("good", "MIT", REGISTRY),
            package("bad", "MIT", REGISTRY),
            package("closed", "Proprietary", REGISTRY),
            package("far", "MIT", "git+https://example.com/x"),
        );
        let found = check(&metadata, &tree).expect("it is well formed");
        let places: Vec<&str> = found.iter().map(|finding| finding.place.as_str()).collect();
        assert_eq!(places, ["bad", "closed", "far"]);
    }
}
