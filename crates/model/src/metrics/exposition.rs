//! The text format of Prometheus, version 0.0.4.
//!
//! ```text
//! # HELP mem_limit Most memory it may use, bytes.
//! # TYPE mem_limit gauge
//! mem_limit{instance="…"} 134217728
//! ```

use std::fmt::{self, Write as _};

/// Media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A metric: what samples of one name have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Letters, digits and underscores.
    pub name: &'static str,
    /// How its numbers move.
    pub kind: Kind,
    /// One sentence, with the unit.
    pub help: &'static str,
}

/// How a metric's numbers move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Grows, and begins anew with what it counts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of what was measured, by upper bounds.
    Histogram,
}

/// What a histogram has counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distribution {
    /// Upper bounds in rising order, and how many measurements did not exceed each.
    pub up_to: Vec<(f64, u64)>,
    /// All measurements.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

/// A number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A whole one.
    Count(u64),
    /// Any.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Count(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(value) => write!(f, "{value}"),
            Self::Real(value) if value.is_nan() => f.write_str("NaN"),
            Self::Real(value) if value.is_infinite() => f.write_str(if *value > 0.0 { "+Inf" } else { "-Inf" }),
            Self::Real(value) => write!(f, "{value}"),
        }
    }
}

/// Names and values that tell samples of one family apart, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(String);

impl Labels {
    /// None.
    pub fn none() -> Self {
        Self::default()
    }

    /// These and one more. `name` is letters, digits and underscores; the value may be anything.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut text = self.0.clone();
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
        Self(text)
    }
}

/// The text while it is written.
#[derive(Debug, Clone, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Writes a family with its samples, or nothing when there are none.
    pub fn family<'a>(&mut self, family: &Family, samples: impl IntoIterator<Item = (&'a Labels, Value)>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        self.head(family);
        let name = family.name;
        for (Labels(labels), value) in samples {
            let _ = match labels.is_empty() {
                true => writeln!(self.0, "{name} {value}"),
                false => writeln!(self.0, "{name}{{{labels}}} {value}"),
            };
        }
    }

    /// Writes a family that has one sample without labels.
    pub fn one(&mut self, family: &Family, value: impl Into<Value>) {
        self.family(family, [(&Labels::none(), value.into())]);
    }

    /// Writes a histogram's family, or nothing when there is none of it.
    pub fn histograms<'a>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = (&'a Labels, &'a Distribution)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        self.head(family);
        let name = family.name;
        for (labels, found) in samples {
            let bounds = found.up_to.iter().map(|(bound, count)| (Value::Real(*bound).to_string(), *count));
            for (bound, count) in bounds.chain([("+Inf".to_owned(), found.count)]) {
                let Labels(labels) = labels.with("le", &bound);
                let _ = writeln!(self.0, "{name}_bucket{{{labels}}} {count}");
            }
            let labels = match labels.0.is_empty() {
                true => String::new(),
                false => format!("{{{}}}", labels.0),
            };
            let (sum, count) = (Value::Real(found.sum), found.count);
            let _ = writeln!(self.0, "{name}_sum{labels} {sum}\n{name}_count{labels} {count}");
        }
    }

    /// What stands before a family's samples.
    fn head(&mut self, family: &Family) {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let name = family.name;
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.0
    }
}

/// A family and how its number is read from `T`; nothing where it is not known.
pub struct Row<T: ?Sized> {
    /// The family.
    pub family: Family,
    /// The number.
    pub read: fn(&T) -> Option<Value>,
}

impl<T> Row<T> {
    /// A row whose numbers only grow.
    pub(crate) const fn counter(name: &'static str, help: &'static str, read: fn(&T) -> Option<Value>) -> Self {
        Self { family: Family { name, kind: Kind::Counter, help }, read }
    }

    /// A row whose numbers go up and down.
    pub(crate) const fn gauge(name: &'static str, help: &'static str, read: fn(&T) -> Option<Value>) -> Self {
        Self { family: Family { name, kind: Kind::Gauge, help }, read }
    }
}

/// Writes every row for every subject.
pub fn render<T>(rows: &[Row<T>], subjects: &[(Labels, &T)], into: &mut Exposition) {
    for row in rows {
        into.family(&row.family, subjects.iter().filter_map(|(labels, subject)| Some((labels, (row.read)(subject)?))));
    }
}

/// Microseconds as seconds.
pub(crate) fn seconds_of_us(us: u64) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "a metric may be off by a millionth")]
    Value::Real(us as f64 / 1e6)
}

/// Whatever an expression finds, as a number.
pub(crate) fn count(found: Option<u64>) -> Option<Value> {
    found.map(Value::Count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THINGS: Family = Family { name: "things", kind: Kind::Gauge, help: "Things there are." };

    #[test]
    fn a_family_is_told_once_with_all_its_samples() {
        let mut text = Exposition::default();
        let (one, other) = (Labels::none().with("of", "one"), Labels::none().with("of", "a \"b\"\\\nc").with("n", "2"));
        text.family(&THINGS, [(&one, Value::Count(7)), (&other, Value::Real(0.5))]);
        text.family(&THINGS, []);
        text.one(&THINGS, f64::INFINITY);
        let wanted = "# HELP things Things there are.\n# TYPE things gauge\nthings{of=\"one\"} 7\n\
                      things{of=\"a \\\"b\\\"\\\\\\nc\",n=\"2\"} 0.5\n\
                      # HELP things Things there are.\n# TYPE things gauge\nthings +Inf\n";
        assert_eq!(text.into_text(), wanted);
    }

    #[test]
    fn a_histogram_is_told_bound_by_bound() {
        const TIMES: Family = Family { name: "times_seconds", kind: Kind::Histogram, help: "Times." };
        let mut text = Exposition::default();
        let found = Distribution { up_to: vec![(0.5, 1), (1.0, 1)], count: 2, sum: 2.25 };
        text.histograms(&TIMES, [(&Labels::none().with("of", "a"), &found)]);
        text.histograms(&TIMES, []);
        let wanted = "# HELP times_seconds Times.\n# TYPE times_seconds histogram\n\
                      times_seconds_bucket{of=\"a\",le=\"0.5\"} 1\ntimes_seconds_bucket{of=\"a\",le=\"1\"} 1\n\
                      times_seconds_bucket{of=\"a\",le=\"+Inf\"} 2\ntimes_seconds_sum{of=\"a\"} 2.25\n\
                      times_seconds_count{of=\"a\"} 2\n";
        assert_eq!(text.into_text(), wanted);
    }

    proptest! {
        /// No value of a label ends its line or its quotes.
        #[test]
        fn labels_stay_inside_their_quotes(value in any::<String>()) {
            let mut text = Exposition::default();
            text.family(&THINGS, [(&Labels::none().with("of", &value), Value::Count(1))]);
            let text = text.into_text();
            let line = text.split('\n').nth(2).expect("a third line");
            prop_assert_eq!(text.split('\n').count(), 4);
            let inner = line.strip_prefix("things{of=\"").and_then(|rest| rest.strip_suffix("\"} 1")).expect("quotes");
            let mut read = String::new();
            let mut characters = inner.chars();
            while let Some(character) = characters.next() {
                prop_assert_ne!(character, '"');
                read.push(match character {
                    '\\' => match characters.next() {
                        Some('n') => '\n',
                        Some(other) => other,
                        None => return Err(TestCaseError::fail("a lone backslash")),
                    },
                    other => other,
                });
            }
            prop_assert_eq!(read, value);
        }
    }
}
