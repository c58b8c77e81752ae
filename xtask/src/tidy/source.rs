//! What source files look like: length of files and functions, the opening words, and the doors.
//!
//! Lengths are counted on formatted text: a function begins on a line with `fn` and ends on the first line that holds
//! only a closing brace at the same depth of indentation. That needs no parser and is right for everything rustfmt wrote.

use super::{Finding, Tree};

/// Lines of a file.
pub(super) const FILE_MAX_LINES: usize = 600;
/// Lines of a function, from its `fn` to its closing brace.
pub(super) const FUNCTION_MAX_LINES: usize = 70;
/// Files longer than this say in their first lines what they are for.
const HEADER_FROM_LINES: usize = 50;

/// Something that is longer than it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Length {
    /// File, or file and function.
    pub(super) what: String,
    /// Lines it has.
    pub(super) lines: usize,
    /// Lines it may have.
    pub(super) allowed: usize,
}

/// Every file and function over its limit.
pub(super) fn lengths(tree: &Tree) -> Vec<Length> {
    let mut found = Vec::new();
    for (name, text) in rust_files(tree) {
        let lines = text.lines().count();
        if lines > FILE_MAX_LINES {
            found.push(Length { what: name.clone(), lines, allowed: FILE_MAX_LINES });
        }
        for (function, lines) in functions(text) {
            if lines > FUNCTION_MAX_LINES {
                found.push(Length { what: format!("{name}::{function}"), lines, allowed: FUNCTION_MAX_LINES });
            }
        }
    }
    found.sort();
    found
}

/// Files of some length that do not open with their theory of operation.
pub(super) fn check_headers(tree: &Tree) -> Vec<Finding> {
    rust_files(tree)
        .filter(|(_, text)| text.lines().count() > HEADER_FROM_LINES)
        .filter(|(_, text)| !text.trim_start_matches('\u{feff}').starts_with("//!"))
        .map(|(name, _)| Finding::new(name, "begins without `//!`: say first what this file is for and how it works"))
        .collect()
}

/// Where programs may be started: the doors, build scripts, developers' helpers and tests.
const COMMAND_DOORS: &[&str] = &[
    "crates/host/",
    "crates/base/src/process",
    "xtask/",
    "crates/bench/",
    "/tests/",
    "/build.rs",
    "crates/neso/src/ssh",
];

/// Programs started outside of the doors.
pub(super) fn check_doors(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, text) in rust_files(tree) {
        if COMMAND_DOORS.iter().any(|door| name.contains(door)) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("process::Command") || code.contains("process::{Command") {
                findings.push(Finding::new(
                    format!("{name}:{}", number + 1),
                    "starts a program: only `host` and `base::process` do that",
                ));
            }
        }
    }
    findings
}

fn rust_files(tree: &Tree) -> impl Iterator<Item = (&String, &String)> {
    tree.iter().filter(|(name, _)| name.ends_with(".rs"))
}

/// Name and length of every function of a formatted file.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = line.len() - line.trim_start().len();
        let end = lines[start..].iter().position(|line| {
            let depth = line.len() - line.trim_start().len();
            depth == indent
                && (line.trim() == "}"
                    || line.trim_end().ends_with(';')
                    || line.trim_end().ends_with("{}")
                    || line.trim_end().ends_with(" }"))
        });
        if let Some(length) = end {
            found.push((name, length + 1));
        }
    }
    found
}

/// The name, when this line begins a function.
fn function_name(line: &str) -> Option<String> {
    let mut words = line.trim_start();
    loop {
        let (word, rest) = words.split_once(' ')?;
        if word == "fn" {
            let name: String = rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
            return (!name.is_empty()).then_some(name);
        }
        let qualifier = matches!(word, "pub" | "async" | "const" | "unsafe" | "extern" | "\"C\"" | "default")
            || word.starts_with("pub(");
        if !qualifier {
            return None;
        }
        words = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured() {
        let text = "pub(crate) async fn long(a: u8) -> u8 {\n    a\n}\n\nimpl X {\n    fn short(&self) -> u8;\n    const fn one() {}\n}\n";
        assert_eq!(
            functions(text),
            [("long".to_owned(), 3), ("short".to_owned(), 1), ("one".to_owned(), 1)],
            "a whole function, a declaration, a function on one line"
        );
    }

    #[test]
    fn long_files_and_functions_are_found() {
        let body = "    work();\n".repeat(FUNCTION_MAX_LINES);
        let tree = super::super::tree([
            ("a.rs", &format!("fn f() {{\n{body}}}\n")),
            ("b.rs", &"// x\n".repeat(FILE_MAX_LINES + 1)),
            ("c.txt", &"x\n".repeat(FILE_MAX_LINES + 1)),
        ]);
        let found: Vec<String> = lengths(&tree).into_iter().map(|length| length.what).collect();
        assert_eq!(found, ["a.rs::f", "b.rs"]);
    }

    #[test]
    fn a_long_file_needs_its_opening_words() {
        let long = "fn f() {}\n".repeat(HEADER_FROM_LINES + 1);
        let tree =
            super::super::tree([("a.rs", &long), ("b.rs", &format!("//! Why.\n{long}")), ("c.rs", "fn f() {}\n")]);
        let found = check_headers(&tree);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "a.rs");
    }

    #[test]
    fn a_program_started_outside_of_the_doors_is_found() {
        let text = "use std::process::Command;\n";
        let tree = super::super::tree([
            ("crates/node/src/a.rs", text),
            ("crates/host/src/a.rs", text),
            ("crates/node/src/b.rs", "// std::process::Command is not for us\n"),
        ]);
        let found = check_doors(&tree);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "crates/node/src/a.rs:1");
    }
}
