//! The report: one generated section per bench between two marks in `docs/performance.md`; what people wrote around the
//! marks stays.

use std::{fs, path::Path};

const FILE: &str = "docs/performance.md";

/// One table of a benchmark.
pub(crate) struct Section {
    /// A sentence or two: what was measured, how often, on what.
    pub(crate) about: String,
    /// In the order shown; ratios are against the first row that has samples.
    pub(crate) rows: Vec<Row>,
}

/// One subject of a benchmark.
pub(crate) struct Row {
    /// What it is.
    pub(crate) name: String,
    /// Unit of the samples.
    pub(crate) unit: &'static str,
    /// Every sample, unsorted; or why there are none.
    pub(crate) samples: Result<Vec<f64>, String>,
}

impl Row {
    /// A row with one measured value.
    pub(crate) fn one(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { name: name.into(), unit, samples: Ok(vec![value]) }
    }
}

/// Puts a benchmark's text into the report, in place of its former self.
pub(crate) fn put(root: &Path, name: &str, text: &str) -> Result<(), String> {
    let path = root.join(FILE);
    let page = fs::read_to_string(&path).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    fs::write(&path, replaced(&page, name, text)).map_err(|error| format!("cannot write {FILE}: {error}"))
}

/// All tables of a benchmark as Markdown.
pub(crate) fn rendered(sections: &[Section]) -> String {
    sections.iter().map(table).collect::<Vec<_>>().join("\n")
}

fn table(section: &Section) -> String {
    let mut text = format!(
        "{}\n\n| | median | p99 | min | max | samples | ratio |\n|---|---|---|---|---|---|---|\n",
        section.about
    );
    let base =
        section.rows.iter().find_map(|row| row.samples.as_ref().ok()).map_or(f64::NAN, |all| percentile(all, 50));
    for row in &section.rows {
        match &row.samples {
            Ok(all) => text.push_str(&format!(
                "| {} | {:.2} {unit} | {:.2} | {:.2} | {:.2} | {} | {:.2} |\n",
                row.name,
                percentile(all, 50),
                percentile(all, 99),
                percentile(all, 0),
                percentile(all, 100),
                all.len(),
                percentile(all, 50) / base,
                unit = row.unit,
            )),
            Err(why) => text.push_str(&format!("| {} | not measured: {why} | | | | | |\n", row.name)),
        }
    }
    text
}

/// The text with the section between its marks; at the end when it has none yet.
fn replaced(text: &str, name: &str, section: &str) -> String {
    let begin = format!("<!-- bench {name} -->");
    let end = format!("<!-- end {name} -->");
    let block = format!("{begin}\n{section}{end}");
    match (text.find(&begin), text.find(&end)) {
        (Some(from), Some(to)) if from < to => format!("{}{block}{}", &text[..from], &text[to + end.len()..]),
        _ => format!("{}\n\n## {name}\n\n{block}\n", text.trim_end()),
    }
}

/// The sample that `percent` of all samples do not exceed; NaN without samples.
pub(crate) fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_replaces_itself_and_nothing_else() {
        let first = replaced("# Performance\n\nWords.\n", "create", "one\n");
        let second = replaced(&format!("{first}\nmore words\n"), "create", "two\n");
        assert!(second.contains("Words.") && second.contains("more words"), "{second}");
        assert!(second.contains("two") && !second.contains("one\n"), "{second}");
    }

    #[test]
    fn ratios_are_against_the_first_row_that_was_measured() {
        let row =
            |name: &str, samples: &[f64]| Row { name: name.to_owned(), unit: "ms", samples: Ok(samples.to_vec()) };
        let missing = Row { name: "c".to_owned(), unit: "ms", samples: Err("not installed".to_owned()) };
        let text = table(&Section {
            about: "x".to_owned(),
            rows: vec![missing, row("a", &[4.0, 2.0, 3.0]), row("b", &[6.0])],
        });
        assert!(text.contains("| a | 3.00 ms | 4.00 | 2.00 | 4.00 | 3 | 1.00 |"), "{text}");
        assert!(text.contains("| b | 6.00 ms | 6.00 | 6.00 | 6.00 | 1 | 2.00 |"), "{text}");
        assert!(text.contains("| c | not measured: not installed |"), "{text}");
        assert!(percentile(&[], 50).is_nan());
    }
}
