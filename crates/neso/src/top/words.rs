//! What is shown to people.

use super::{Flow, Instance, Machine, Top};
use crate::{
    adm::{ago, or_dash, table},
    tenant::stats::{columns, per_second, percent},
};

/// Characters of a name that are shown; it may have five times as many.
const NAME_MAX: usize = 32;
/// Characters of an error that are shown.
const ERROR_MAX: usize = 100;

/// How many of each are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) machines: usize,
    pub(super) instances: usize,
    pub(super) flows: usize,
    pub(super) alerts: usize,
}

impl Rows {
    /// As many as a screen of so many rows has room for, and `most` instances at most: alerts and flows are few, machines get a third of what
    /// they leave, and instances the rest.
    pub(super) fn on(rows: usize, top: &Top, most: usize) -> Self {
        let heads = 2 + top.findings.len();
        let room = rows.saturating_sub(heads);
        let alerts = top.alerts.iter().flatten().count().min(room / 4);
        // Each table has an empty line before it and a head; one that is cut a line behind it.
        let room = room.saturating_sub(alerts + 1);
        let flows = match top.flows.len() {
            0 => 0,
            some => some.min((room / 4).saturating_sub(3).max(1)),
        };
        let of_flows = if flows == 0 { 0 } else { flows + 2 + usize::from(flows < top.flows.len()) };
        let room = room.saturating_sub(of_flows);
        let machines = top.machines.len().min((room / 3).saturating_sub(2).max(1));
        let of_machines = machines + 2 + usize::from(machines < top.machines.len());
        let instances = room.saturating_sub(of_machines + 2).clamp(1, most.max(1));
        Self { machines, instances, flows, alerts }
    }
}

/// All of it.
pub(super) fn text(top: &Top, rows: Rows) -> String {
    let counts = &top.counts;
    let mut parts = vec![format!(
        "{}  {}  {} machines, {} instances ({} running, {} failed), {} flows under way, {} parked",
        top.datacenter,
        top.now,
        counts.servers,
        counts.instances,
        counts.instances_running,
        counts.instances_failed,
        counts.flows_running,
        counts.flows_parked
    )];
    parts.extend(top.findings.iter().map(|finding| format!("! {finding}")));
    parts.extend(alerts(top, rows.alerts));
    parts.push(format!("\n{}", machines(&top.machines, rows.machines)));
    parts.push(format!("\n{}", instances(&top.instances, rows.instances)));
    if !top.flows.is_empty() {
        parts.push(format!("\n{}", flows(top, rows.flows)));
    }
    parts.join("\n")
}

/// What Prometheus finds wrong, or that it does not, or that nobody looks.
fn alerts(top: &Top, most: usize) -> Vec<String> {
    if let Some(why) = &top.alerts_missing {
        return vec![format!("alerts are not known: {why}")];
    }
    let all = || top.alerts.iter().flatten();
    let (loud, silenced) = (all().filter(|alert| !alert.is_silenced()), all().filter(|alert| alert.is_silenced()));
    let mut lines: Vec<_> = loud.clone().take(most).map(|alert| format!("! {}", alert.words())).collect();
    let (more, silenced) = (loud.count() - lines.len(), silenced.count());
    let in_maintenance = if silenced == 0 { String::new() } else { format!(", {silenced} in maintenance") };
    match (lines.len(), more) {
        (0, 0) => lines.push(format!("no alerts{in_maintenance}")),
        (_, 0) if silenced == 0 => {}
        (_, more) => lines.push(format!("and {more} alerts more{in_maintenance}: `neso adm alerts`")),
    }
    lines
}

fn machines(all: &[Machine], most: usize) -> String {
    let rows = all.iter().take(most).map(|machine| {
        let rates = machine.rates.unwrap_or_default();
        let running = machine.running.zip(machine.instances).map(|(running, all)| format!("{running}/{all}"));
        vec![
            short(&machine.hostname, NAME_MAX),
            if machine.reachable { "up" } else { "silent" }.to_owned(),
            or_dash(running),
            or_dash(machine.rates.map(|rates| rates.cpus)),
            percent(rates.cpu_part),
            or_dash(machine.rates.map(|rates| format!("{:.1}", rates.load))),
            percent(rates.memory_part),
            percent(rates.pool_part),
            per_second(rates.sent_bytes_s),
            per_second(rates.received_bytes_s),
        ]
    });
    let head = ["machine", "", "running", "cpus", "busy", "load", "memory", "pool", "sent", "received"];
    let text = table(&head, rows).to_string();
    match all.len().saturating_sub(most) {
        0 => text,
        more => format!("{text}\nand {more} machines more: `neso adm server list`"),
    }
}

fn instances(all: &[Instance], most: usize) -> String {
    let rows = all.iter().take(most).map(|one| {
        let name = |name: &Option<String>| or_dash(name.as_ref().map(|name| short(name, NAME_MAX)));
        let who = vec![one.id.short(), name(&one.name), name(&one.owner), short(&one.machine, NAME_MAX)];
        [who, columns(&one.rates)].concat()
    });
    let head = [
        "instance",
        "name",
        "owner",
        "machine",
        "cpus",
        "held back",
        "memory",
        "of it",
        "disk",
        "sent",
        "received",
        "processes",
    ];
    table(&head, rows).to_string()
}

fn flows(top: &Top, most: usize) -> String {
    let rows = top.flows.iter().take(most).map(|flow: &Flow| {
        vec![
            flow.kind.clone(),
            short(&flow.subject, NAME_MAX),
            flow.state.clone(),
            ago(top.now, Some(flow.created_at)),
            or_dash(flow.step.as_ref()),
            or_dash(flow.error.as_ref().map(|error| short(error, ERROR_MAX))),
        ]
    });
    let text = table(&["flow", "of", "state", "asked", "step", "error"], rows).to_string();
    match top.flows.len().saturating_sub(most) {
        0 => text,
        more => format!("{text}\nand {more} flows more: `neso adm flow list --unfinished`"),
    }
}

/// On one line, of at most so many characters.
fn short(text: &str, most: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(most) {
        None => line,
        Some(_) => line.chars().take(most - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use model::{
        id::{InstanceId, ServerId},
        rates::{InstanceRates, MachineRates},
        time::Timestamp,
    };

    use super::*;

    fn machine(name: &str, reachable: bool, busy: f64) -> Machine {
        Machine {
            id: ServerId::from_random(1),
            hostname: name.into(),
            reachable,
            running: Some(1),
            instances: Some(2),
            rates: Some(MachineRates { cpu_part: Some(busy), cpus: 4, ..MachineRates::default() }),
        }
    }

    fn instance(name: &str) -> Instance {
        Instance {
            id: InstanceId::from_random(7),
            name: Some(name.into()),
            owner: Some("ana".into()),
            machine: "rack1".into(),
            state: Some("running".into()),
            rates: InstanceRates { cpus: Some(0.5), ..InstanceRates::default() },
        }
    }

    fn flow(error: Option<&str>) -> Flow {
        Flow {
            id: "f".into(),
            kind: "provision".into(),
            subject: "web".into(),
            state: "running".into(),
            created_at: Timestamp(0),
            step: Some("wait".into()),
            error: error.map(str::to_owned),
        }
    }

    fn top(machines: usize, instances: usize, flows: usize) -> Top {
        Top {
            now: Timestamp(60_000),
            datacenter: "home-1".into(),
            counts: serde_json::from_value(serde_json::json!({
                "accounts": 1, "packages": 1, "networks": 1, "images": 1, "servers": machines, "instances": instances,
                "instances_running": instances, "instances_failed": 0, "flows_running": flows, "flows_parked": 0,
            }))
            .unwrap(),
            findings: vec!["something".into()],
            machines: (0..machines).map(|number| machine(&format!("m{number}"), true, 0.5)).collect(),
            instances: (0..instances).map(|number| instance(&format!("i{number}"))).collect(),
            flows: (0..flows).map(|_| flow(None)).collect(),
            alerts: None,
            alerts_missing: Some("nobody looks".into()),
        }
    }

    #[test]
    fn silent_machines_stand_before_busy_ones_and_some_are_counted_alone() {
        let mut all = vec![machine("idle", true, 0.1), machine("busy", true, 0.9), machine("gone", false, 0.0)];
        all.sort_by(super::super::busier);
        let names: Vec<_> = all.iter().map(|machine| machine.hostname.as_str()).collect();
        assert_eq!(names, ["gone", "busy", "idle"]);
        assert!(machines(&all, 2).ends_with("and 1 machines more: `neso adm server list`"));
        assert!(!machines(&all, 3).contains("more"));
    }

    #[test]
    fn what_is_shown_fits_on_the_screen_whatever_there_is() {
        for screen in 20..120 {
            for machines in [1, 3, 40] {
                for instances in [0, 1, 60] {
                    for flows in [0, 1, 30] {
                        let top = top(machines, instances, flows);
                        let text = text(&top, Rows::on(screen, &top, 50));
                        let lines = text.lines().count();
                        assert!(lines <= screen, "{lines} on {screen}: {machines} {instances} {flows}\n{text}");
                        assert!(text.contains("m0") && (instances == 0 || text.contains("i0")));
                        assert!(flows == 0 || text.contains("provision"));
                    }
                }
            }
        }
    }

    #[test]
    fn whatever_a_name_or_an_error_is_it_takes_one_line() {
        let mut top = top(1, 0, 0);
        top.instances.push(instance(&"n".repeat(189)));
        top.flows.push(flow(Some("mount: failed\n\n  usage: mount")));
        let text = text(&top, Rows { machines: 9, instances: 9, flows: 9, alerts: 9 });
        assert!(text.contains(&format!("{}…", "n".repeat(NAME_MAX - 1))) && !text.contains(&"n".repeat(NAME_MAX)));
        assert!(text.contains("mount: failed usage: mount"), "{text}");
        assert!(text.contains("alerts are not known: nobody looks"));
    }
}
