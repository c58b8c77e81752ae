//! `cargo xtask tidy`: the rules of the house that a compiler does not hold.
//!
//! Every check is a pure function from what was read (file list, texts, cargo's dependency graph) to findings; [`run`]
//! reads and prints. A finding names the file, what is wrong and what to do. There is one way around a length limit: a
//! line in `xtask/debts.txt`, which [`debts`] only ever lets shrink.

mod debts;
mod dependencies;
mod documents;
mod licences;
mod source;
mod walls;
mod words;

use std::{collections::BTreeMap, fmt, fs, path::Path};

use crate::command;

/// Largest text file read, bytes: anything longer is data and not ours to judge.
const TEXT_MAX_BYTES: u64 = 2 << 20;

/// What to do with recorded debts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Debts {
    /// They may stay as they are.
    Hold,
    /// Rewrite the list with what is left of each.
    Shrink,
}

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// File, from the repository's root, with a line where that helps.
    place: String,
    /// What is wrong and what to do.
    message: String,
}

impl Finding {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Every text file of the repository by its path.
pub(crate) type Tree = BTreeMap<String, String>;

/// Reads everything, checks everything, prints what is wrong.
pub(crate) fn run(root: &Path, mode: Debts) -> Result<(), String> {
    let (tree, others) = read(root)?;
    let metadata = command::output(root, "cargo", &["metadata", "--format-version", "1", "--locked"])?;
    let graph = walls::Graph::parse(&metadata)?;

    let mut findings = walls::check(&graph);
    findings.extend(walls::check_manifests(&tree));
    findings.extend(licences::check(&metadata, &tree)?);
    findings.extend(documents::check(&tree, &others));
    findings.extend(dependencies::check(&tree));
    findings.extend(words::check(&tree));
    findings.extend(source::check_headers(&tree));
    findings.extend(source::check_doors(&tree));

    let lengths = source::lengths(&tree);
    let recorded = debts::parse(tree.get(debts::FILE).map_or("", String::as_str));
    if mode == Debts::Shrink {
        let text = debts::shrunk(&recorded, &lengths);
        fs::write(root.join(debts::FILE), text).map_err(|error| format!("cannot write {}: {error}", debts::FILE))?;
    } else {
        findings.extend(debts::check(&recorded, &lengths));
    }

    findings.sort();
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        1 => Err("tidy: 1 finding".to_owned()),
        count => Err(format!("tidy: {count} findings")),
    }
}

/// The text files, and the names of all files.
fn read(root: &Path) -> Result<(Tree, Vec<String>), String> {
    let list = command::output(root, "git", &["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
    let mut tree = Tree::new();
    let mut names = Vec::new();
    for name in list.split('\0').filter(|name| !name.is_empty()) {
        let path = root.join(name);
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        names.push(name.to_owned());
        if meta.is_file()
            && meta.len() <= TEXT_MAX_BYTES
            && let Ok(text) = fs::read_to_string(&path)
        {
            tree.insert(name.to_owned(), text);
        }
    }
    Ok((tree, names))
}

#[cfg(test)]
fn tree<const N: usize>(files: [(&str, &str); N]) -> Tree {
    files.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
}
