//! Words that do not belong here: leftovers of work in progress, and paths of one machine.

use super::{Finding, Tree};

/// Word, matched without regard to case at word boundaries, and what to do instead.
const WORDS: &[(&str, &str)] = &[
    ("todo", "do it, or write down in the manual that it is missing"),
    ("fixme", "mend it"),
    ("xxx", "say what you mean"),
    ("/root/.ssh", "paths of one machine do not belong here"),
    ("/root/.cargo", "paths of one machine do not belong here"),
];

/// Files that hold such words for a reason: this one, lock files, licences.
const SPARED: &[&str] = &[
    "xtask/src/tidy/words.rs",
    "Cargo.lock",
    "fuzz/Cargo.lock",
    "LICENSE",
    "Cargo.toml",
    "crates/host/Cargo.toml",
    "clippy.toml",
];

/// Where such a word stands.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, text) in tree.iter().filter(|(name, _)| !SPARED.contains(&name.as_str())) {
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            for (word, instead) in WORDS.iter().filter(|(word, _)| contains_word(&lower, word)) {
                findings.push(Finding::new(format!("{name}:{}", number + 1), format!("says \"{word}\": {instead}")));
            }
        }
    }
    findings
}

/// Whether `word` stands in `line` with no letter, digit or path piece around it.
fn contains_word(line: &str, word: &str) -> bool {
    let part_of_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(|letter| part_of_word(letter) || letter == '.') && !after.is_some_and(part_of_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_are_found_whatever_their_case() {
        let tree = super::super::tree([("a.rs", "// TODO: later\nlet methodology = 1;\n"), ("LICENSE", "todo")]);
        let found = check(&tree);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].place, "a.rs:1");
    }

    #[test]
    fn a_path_of_one_machine_is_found_and_a_relative_one_is_not() {
        assert!(contains_word("see /root/.cargo/bin", "/root/.cargo"));
        assert!(!contains_word("see /root/.cargoes", "/root/.cargo"));
        assert!(!contains_word("see ./root/.cargo", "/root/.cargo"));
    }
}
