//! The report: one generated section per bench between two marks in `docs/performance.md`; what people wrote around the
//! marks stays.

use std::{fs, path::Path};

const FILE: &str = "docs/performance.md";

/// What a bench found.
pub(crate) struct Section {
    /// A sentence: what was measured, how often, on what.
    pub(crate) about: String,
    /// In the order shown; ratios are against the first row.
    pub(crate) rows: Vec<Row>,
}

/// One subject of a bench.
pub(crate) struct Row {
    /// What it is.
    pub(crate) name: String,
    /// Unit of the samples.
    pub(crate) unit: &'static str,
    /// Every sample, unsorted.
    pub(crate) samples: Vec<f64>,
}

/// Puts a section into the report, in place of its former self.
pub(crate) fn put(root: &Path, name: &str, section: &Section) -> Result<(), String> {
    let path = root.join(FILE);
    let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    let text = replaced(&text, name, &rendered(section));
    fs::write(&path, text).map_err(|error| format!("cannot write {FILE}: {error}"))
}

fn rendered(section: &Section) -> String {
    let mut text =
        format!("{}\n\n| | median | min | max | samples | ratio |\n|---|---|---|---|---|---|\n", section.about);
    let base = section.rows.first().map_or(f64::NAN, |row| percentile(&row.samples, 50));
    for row in &section.rows {
        let median = percentile(&row.samples, 50);
        text.push_str(&format!(
            "| {} | {:.2} {unit} | {:.2} | {:.2} | {} | {:.2} |\n",
            row.name,
            median,
            percentile(&row.samples, 0),
            percentile(&row.samples, 100),
            row.samples.len(),
            median / base,
            unit = row.unit,
        ));
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
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or(f64::NAN)
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
    fn ratios_are_against_the_first_row() {
        let row = |name: &str, samples: &[f64]| Row { name: name.to_owned(), unit: "ms", samples: samples.to_vec() };
        let text =
            rendered(&Section { about: "x".to_owned(), rows: vec![row("a", &[4.0, 2.0, 3.0]), row("b", &[6.0])] });
        assert!(text.contains("| a | 3.00 ms | 2.00 | 4.00 | 3 | 1.00 |"), "{text}");
        assert!(text.contains("| b | 6.00 ms | 6.00 | 6.00 | 1 | 2.00 |"), "{text}");
        assert!(percentile(&[], 50).is_nan());
    }
}
