//! Metrics of the agent of a machine: whether it is heard, how much it does, and what of it takes long or fails.

use super::exposition::{Exposition, Labels, Row, count, render, seconds_of_us};
use crate::meters::{AgentMeters, VerbMeters};

/// What there is one of.
pub const ROWS: &[Row<AgentMeters>] = &[
    Row::gauge("neso_agent_start_time_seconds", "When the agent was started, seconds since 1970.", |a| {
        Some(a.started_s.into())
    }),
    Row::counter("neso_agent_cpu_seconds_total", "CPU time the agent used, seconds.", |a| a.cpu_s.map(Into::into)),
    Row::gauge("neso_agent_resident_bytes", "Memory of the agent, bytes.", |a| count(a.resident_bytes)),
    Row::gauge("neso_agent_threads", "Threads of the agent.", |a| count(a.threads)),
    Row::counter("neso_agent_reports_total", "Reports a headnode took from the agent.", |a| Some(a.reports.into())),
    Row::counter("neso_agent_reports_failed_total", "Reports no headnode took from the agent.", |a| {
        Some(a.reports_failed.into())
    }),
    Row::counter("neso_agent_targets_total", "Targets the agent took.", |a| Some(a.targets.into())),
    Row::counter("neso_agent_targets_failed_total", "Targets the agent could not have, or refused.", |a| {
        Some(a.targets_failed.into())
    }),
    Row::counter("neso_agent_inquiries_total", "Questions of headnodes the agent answered.", |a| {
        Some(a.inquiries.into())
    }),
    Row::counter(
        "neso_agent_attempts_failed_total",
        "Attempts to make an instance as it should be that failed.",
        |a| Some(a.attempts_failed.into()),
    ),
    Row::gauge(
        "neso_agent_instances_waiting",
        "Instances that wait for their turn to be made, stopped or removed.",
        |a| Some(a.waiting.into()),
    ),
];

/// What there is of each thing the agent does on its machine, with the label `verb`.
pub const VERB_ROWS: &[Row<VerbMeters>] = &[
    Row::gauge("neso_agent_verbs_running", "How many of a verb the agent is at.", |v| Some(v.running.into())),
    Row::counter("neso_agent_verbs_total", "How many of a verb the agent has done.", |v| Some(v.done.into())),
    Row::counter("neso_agent_verb_seconds_total", "Time the agent spent with a verb, seconds.", |v| {
        Some(seconds_of_us(v.total_us))
    }),
];

/// All of one agent.
pub fn all(agent: &AgentMeters, text: &mut Exposition) {
    let none = Labels::none();
    render(ROWS, &[(none.clone(), agent)], text);
    let verbs: Vec<(Labels, &VerbMeters)> =
        agent.verbs.iter().map(|(name, verb)| (none.with("verb", name), verb)).collect();
    render(VERB_ROWS, &verbs, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_told_with_what_it_does() {
        let verb = VerbMeters { running: 1, done: 3, total_us: 1_500_000 };
        let agent =
            AgentMeters { reports: 7, verbs: [("zone start".to_owned(), verb)].into(), ..AgentMeters::default() };
        let mut text = Exposition::default();
        all(&agent, &mut text);
        let text = text.into_text();
        for line in [
            "neso_agent_reports_total 7",
            "neso_agent_verbs_running{verb=\"zone start\"} 1",
            "neso_agent_verbs_total{verb=\"zone start\"} 3",
            "neso_agent_verb_seconds_total{verb=\"zone start\"} 1.5",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("resident"), "what is not known is not told:\n{text}");
    }
}
