//! Errors as one line for people: the operation first, then each cause.

use std::error::Error;

/// Causes printed at most; a chain longer than this is a mistake.
const CAUSES_MAX: usize = 16;

/// `error` and its sources joined by `": "`. A cause whose text the line already ends with is not repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    for _ in 0..CAUSES_MAX {
        let Some(error) = cause else { break };
        let text = error.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layer(text: &'static str, source: Option<Layer>) -> Layer {
        Layer { text, source: source.map(Box::new) }
    }

    #[test]
    fn causes_follow_the_operation_once() {
        let error = layer("open store", Some(layer("read header", Some(layer("no such file", None)))));
        assert_eq!(chain(&error), "open store: read header: no such file");
        let repeated = layer("open store: no such file", Some(layer("no such file", None)));
        assert_eq!(chain(&repeated), "open store: no such file");
    }
}
