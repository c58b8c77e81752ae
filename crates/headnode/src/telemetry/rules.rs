//! What is wrong with a datacenter, as rules for Prometheus: `monitoring/rules.yml`, inside the binary.
//!
//! The rules are a file of their own and not made here, so that a Prometheus of somebody's own takes them as they are, and so that Prometheus' own
//! tool tries them: `monitoring/rules_test.yml` has each quiet and firing.

/// The rules, YAML as Prometheus reads it.
pub const RULES: &str = include_str!("../../../../monitoring/rules.yml");

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path, time::Duration};

    use model::metrics::machine;

    use super::*;
    use crate::telemetry::families;

    const TESTS: &str = include_str!("../../../../monitoring/rules_test.yml");

    /// Name and expression of every rule.
    fn rules() -> Vec<(&'static str, &'static str)> {
        let after = |line: &'static str, key: &str| line.trim_start().strip_prefix(key).map(str::trim);
        let mut found = Vec::new();
        for line in RULES.lines() {
            if let Some(name) = after(line, "- alert:") {
                found.push((name, ""));
            } else if let (Some(expression), Some(last)) = (after(line, "expr:"), found.last_mut()) {
                last.1 = expression;
            }
        }
        found
    }

    /// Metrics of ours that an expression names.
    fn metrics(expression: &str) -> BTreeSet<&str> {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("neso_")).map(|word| word.trim_end_matches("_bucket")).collect()
    }

    /// Prometheus' own tool, run where the rules lie.
    async fn promtool(arguments: &[&str]) {
        let mut command = base::process::command("promtool");
        command.args(arguments).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../monitoring"));
        let output = base::process::output(command, Duration::from_secs(300)).await;
        let output = output.expect("the tests need promtool, of Debian's package prometheus");
        let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        assert!(output.success(), "{arguments:?}\n{}", String::from_utf8_lossy(&text));
    }

    #[tokio::test]
    async fn each_rule_is_quiet_and_fires_as_it_should() {
        promtool(&["check", "rules", "rules.yml"]).await;
        promtool(&["test", "rules", "rules_test.yml"]).await;
    }

    #[test]
    fn no_rule_is_left_untried() {
        assert!(rules().len() >= 30, "{:?}", rules());
        for (name, expression) in rules() {
            assert!(!expression.is_empty(), "{name} has no expression on its line");
            let tried: Vec<&str> = TESTS.split(&format!("alertname: {name}\n")).skip(1).collect();
            let quiet = tried.iter().filter(|case| case.trim_start().starts_with("exp_alerts: []")).count();
            assert!(quiet > 0 && tried.len() > quiet, "{name} is not tried both ways");
        }
    }

    #[test]
    fn rules_speak_of_metrics_that_there_are() {
        let ours: BTreeSet<&str> = families::ALL.iter().map(|family| family.name).collect();
        let machines: BTreeSet<&str> = machine::ROWS.iter().map(|row| row.family.name).collect();
        for (name, expression) in rules() {
            let named = metrics(expression);
            assert!(!named.is_empty() || expression.starts_with("up{"), "{name} speaks of nothing of ours");
            for metric in named {
                assert!(
                    ours.contains(metric) || machines.contains(metric),
                    "{name} speaks of {metric}, which nobody tells"
                );
            }
        }
    }
}
