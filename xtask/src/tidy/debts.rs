//! Recorded debts: files and functions that were too long when the limit came. The list only shrinks.
//!
//! A line is `<lines> <file>` or `<lines> <file>::<function>`. Growing beyond the recorded length is a finding, and so is
//! an entry that is no longer needed or higher than the truth: `cargo xtask tidy --shrink` lowers and removes, and never
//! adds. A new entry is typed by hand, where a reviewer sees it.

use std::collections::BTreeMap;

use super::{Finding, source::Length};

/// Where the list lies.
pub(super) const FILE: &str = "xtask/debts.txt";

const HEADER: &str = "\
# Longer than the rules allow; this list only shrinks (`cargo xtask tidy --shrink`).
";

/// Recorded lengths by file or function.
pub(super) fn parse(text: &str) -> BTreeMap<String, usize> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (lines, what) = line.trim().split_once(' ')?;
            Some((what.to_owned(), lines.parse().ok()?))
        })
        .collect()
}

/// What is too long and not recorded, and what is recorded and not so long any more.
pub(super) fn check(recorded: &BTreeMap<String, usize>, lengths: &[Length]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for length in lengths {
        let limit = recorded.get(&length.what).copied().unwrap_or(length.allowed);
        if length.lines > limit {
            findings
                .push(Finding::new(&length.what, format!("has {} lines, {limit} are allowed: split it", length.lines)));
        }
    }
    for (what, lines) in recorded {
        let now = lengths.iter().find(|length| length.what == *what).map(|length| length.lines);
        if now.is_none_or(|now| now < *lines) {
            findings.push(Finding::new(FILE, format!("`{what}` has become shorter: run `cargo xtask tidy --shrink`")));
        }
    }
    findings
}

/// The list with every entry lowered to the truth and the paid ones gone.
pub(super) fn shrunk(recorded: &BTreeMap<String, usize>, lengths: &[Length]) -> String {
    let mut text = HEADER.to_owned();
    for (what, lines) in recorded {
        if let Some(length) = lengths.iter().find(|length| length.what == *what) {
            text.push_str(&format!("{} {what}\n", length.lines.min(*lines)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(what: &str, lines: usize) -> Length {
        Length { what: what.to_owned(), lines, allowed: 70 }
    }

    #[test]
    fn the_ratchet_turns_one_way() {
        let recorded = parse("# words\n90 a.rs::f\n80 b.rs::g\n");
        assert_eq!(check(&recorded, &[length("a.rs::f", 90), length("b.rs::g", 80)]), []);
        let grown = check(&recorded, &[length("a.rs::f", 91), length("b.rs::g", 80)]);
        assert_eq!(grown.len(), 1, "{grown:?}");
        let shorter = check(&recorded, &[length("a.rs::f", 85)]);
        assert_eq!(shorter.len(), 2, "one lower, one paid: {shorter:?}");
        let new = check(&recorded, &[length("a.rs::f", 90), length("b.rs::g", 80), length("c.rs::h", 71)]);
        assert_eq!(new.len(), 1, "{new:?}");
    }

    #[test]
    fn shrinking_never_raises_or_adds() {
        let recorded = parse("90 a\n80 b\n75 c\n");
        let text = shrunk(&recorded, &[length("a", 100), length("b", 72), length("d", 99)]);
        assert_eq!(parse(&text), parse("90 a\n72 b\n"));
    }
}
