//! The table in `docs/reliability.md`: a row per fault, replaced by itself and by nothing else.

use std::{fs, path::PathBuf};

use crate::trial::{Fault, Outcome};

/// Begins every row of the table.
const ROW: &str = "| `";

/// A row.
pub(crate) fn row(fault: &Fault, outcome: &Outcome) -> String {
    let promise = match &outcome.broken_promise {
        None => "0".to_owned(),
        Some(why) => format!("**broken**: {}", why.lines().next().unwrap_or_default()),
    };
    let told = match &outcome.told {
        None => "–".to_owned(),
        Some((told, after)) => format!("after {:.0} s: {told}", after.as_secs_f64()),
    };
    format!(
        "{ROW}{}` | {} | {:.1} s ({:.1}) | {:.1} s | {promise} | {} of {} | {} | {} | {told} |",
        fault.name,
        fault.about,
        outcome.silence.as_secs_f64(),
        outcome.usual.as_secs_f64(),
        outcome.recovery.as_secs_f64(),
        outcome.failed,
        outcome.acknowledged,
        outcome.unknown,
        outcome.stale,
    )
}

/// Puts a row into the page, in place of its former self, else behind the last.
pub(crate) fn put(name: &str, row: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/reliability.md");
    let page = fs::read_to_string(&path).expect("docs/reliability.md");
    fs::write(&path, replaced(&page, name, row)).expect("docs/reliability.md is written");
}

fn replaced(page: &str, name: &str, row: &str) -> String {
    let begin = format!("{ROW}{name}` ");
    let mut lines: Vec<&str> = page.lines().collect();
    match lines.iter().position(|line| line.starts_with(&begin)) {
        Some(at) => lines[at] = row,
        None => {
            let last = lines.iter().rposition(|line| line.starts_with("|")).expect("the page has a table");
            lines.insert(last + 1, row);
        }
    }
    lines.join("\n") + "\n"
}
