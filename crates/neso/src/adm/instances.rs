//! `neso adm instance|flow|loops …`: what runs, and what is being done.

use std::net::Ipv6Addr;

use model::{id::MacAddr, target::Phase};
use opsapi::{Client, FlowView, InstanceView, NicChange, NicView};

use super::{Output, console, details, or_dash, table};
use crate::failure::Outcome;

/// What to do with instances.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Instances {
    /// List instances.
    #[command(visible_alias = "ls")]
    List {
        /// Of this account only (login or id).
        #[arg(long)]
        account: Option<String>,
        /// On this server only (id).
        #[arg(long)]
        server: Option<String>,
    },
    /// Show one instance with its timeline and, if it failed, why.
    Get {
        /// Id, short id, or alias.
        instance: String,
    },
    /// List the NICs of an instance, or change the IPv6 addresses of one; the instance runs on.
    Nics {
        /// Id, short id, or alias.
        instance: String,
        /// All IPv6 addresses of a NIC from now on, 1 to 8, between commas.
        #[arg(long, value_name = "MAC=IPV6,…", value_parser = crate::tenant::wishes::addresses6)]
        set: Option<(MacAddr, Vec<Ipv6Addr>)>,
    },
    /// Print what an instance wrote to its console; one that is stopped has it too.
    Console {
        /// Id, short id, or alias.
        instance: String,
        /// The last so many KiB.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512))]
        kib: u32,
        /// Go on as it writes more, until interrupted.
        #[arg(long, short)]
        follow: bool,
        /// Print control characters as they are. Whatever runs inside then drives your terminal.
        #[arg(long)]
        raw: bool,
    },
    /// Start an instance.
    Start {
        /// Id, short id, or alias.
        instance: String,
    },
    /// Stop an instance.
    Stop {
        /// Id, short id, or alias.
        instance: String,
    },
    /// Reboot an instance.
    Reboot {
        /// Id, short id, or alias.
        instance: String,
    },
    /// Delete an instance.
    #[command(visible_alias = "rm")]
    Delete {
        /// Id, short id, or alias.
        instance: String,
    },
}

/// Runs it.
pub(crate) async fn instances(client: &Client, output: Output, command: Instances) -> Outcome {
    match command {
        Instances::List { account, server } => {
            output.show(&client.instances(account.as_deref(), server.as_deref()).await?, |found| listing(found))
        }
        Instances::Get { instance } => output.show(&client.instance(&instance).await?, one),
        Instances::Nics { instance, set } => {
            if let Some((mac, ipv6_ips)) = set {
                client.change_nic(&instance, mac, &NicChange { ipv6_ips }).await?;
            }
            output.show(&client.nics(&instance).await?, |nics| nic_listing(nics))
        }
        Instances::Console { instance, kib, follow, raw } => {
            console::run(client, output, &instance, console::Options { max_bytes: kib << 10, follow, raw }).await
        }
        Instances::Start { instance } => output.show(&client.instance_action(&instance, "start").await?, one),
        Instances::Stop { instance } => output.show(&client.instance_action(&instance, "stop").await?, one),
        Instances::Reboot { instance } => output.show(&client.instance_action(&instance, "reboot").await?, one),
        Instances::Delete { instance } => {
            client.delete_instance(&instance).await?;
            output.say(format!("Deleting instance {instance}."))
        }
    }
}

fn nic_listing(nics: &[NicView]) -> comfy_table::Table {
    table(
        &["interface", "mac", "network", "addresses", "primary", "state"],
        nics.iter().map(|view| {
            let nic = &view.nic;
            let addresses: Vec<String> = nic.addresses().map(|ip| ip.to_string()).collect();
            vec![
                nic.interface.clone(),
                nic.mac.to_string(),
                view.network_name.clone().unwrap_or_else(|| nic.network.to_string()),
                addresses.join(" "),
                if nic.primary { "yes" } else { "no" }.to_owned(),
                view.state.clone(),
            ]
        }),
    )
}

fn listing(instances: &[InstanceView]) -> comfy_table::Table {
    table(
        &["short id", "alias", "account", "state", "primary ip", "package", "server", "created"],
        instances.iter().map(|view| {
            vec![
                view.instance.id.short(),
                view.instance.alias.clone(),
                or_dash(view.owner_login.as_ref()),
                view.state.clone(),
                or_dash(view.primary_ip),
                view.instance.package_name.clone(),
                view.instance.server.short(),
                view.instance.created_at.to_string(),
            ]
        }),
    )
}

fn one(view: &InstanceView) -> comfy_table::Table {
    let instance = &view.instance;
    let mut lines = vec![
        ("id", instance.id.to_string()),
        ("alias", instance.alias.clone()),
        ("account", or_dash(view.owner_login.as_ref())),
        ("state", view.state.clone()),
        ("primary ip", or_dash(view.primary_ip)),
        ("package", instance.package_name.clone()),
        ("image", instance.image.to_string()),
        ("server", instance.server.to_string()),
        ("created", instance.created_at.to_string()),
        ("flow", or_dash(instance.flow)),
        ("timeline", timeline(&instance.timeline)),
    ];
    if let Some(seen) = &view.last_seen {
        lines.push((
            "its server",
            format!("was last heard of {}s ago, at {}, by {}", seen.age_ms / 1_000, seen.at, seen.by),
        ));
    }
    if let Some(failure) = &instance.failure {
        lines.push(("failure", failure.clone()));
    }
    if let Some(error) = instance.fact.as_ref().and_then(|fact| fact.error.as_ref()) {
        lines.push(("node says", error.clone()));
    }
    if let Some(exit) = instance.fact.as_ref().and_then(|fact| fact.exit.as_ref()) {
        lines.push(("last exit", format!("{} at {}", exit.reason, exit.at)));
    }
    if let Some(kills) = instance.fact.as_ref().map(|fact| fact.oom_kills).filter(|kills| *kills > 0) {
        lines.push(("out of memory", format!("{kills} processes killed since it was started")));
    }
    for entry in instance.history.iter().rev().take(10) {
        let result = entry.error.as_ref().map_or_else(|| "done".to_owned(), |error| format!("failed: {error}"));
        lines.push(("history", format!("{} {} {result} {}", entry.time, entry.action, timeline(&entry.timeline))));
    }
    details(&lines)
}

fn timeline(phases: &[Phase]) -> String {
    let words: Vec<String> = phases.iter().map(|phase| format!("{} {} ms", phase.name, phase.ms)).collect();
    words.join(", ")
}

/// What to do with flows.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Flows {
    /// List flows, newest first.
    #[command(visible_alias = "ls")]
    List {
        /// Only those that have not ended.
        #[arg(long)]
        unfinished: bool,
        /// Those that ended long ago and have left the store.
        #[arg(long, conflicts_with = "unfinished")]
        archived: bool,
        /// With --archived: only those about this, e.g. an instance's id.
        #[arg(long, requires = "archived")]
        subject: Option<String>,
        /// With --archived: at most so many.
        #[arg(long, requires = "archived", default_value_t = 1_000)]
        limit: usize,
    },
    /// Show one flow with its steps and reasons.
    #[command(visible_alias = "get")]
    Show {
        /// Its id.
        flow: String,
    },
}

/// Runs it.
pub(crate) async fn flows(client: &Client, output: Output, command: Flows) -> Outcome {
    match command {
        Flows::List { archived: true, subject, limit, .. } => {
            output.show(&client.archived_flows(subject.as_deref(), limit).await?, |flows| flows_table(flows))
        }
        Flows::List { unfinished, .. } => output.show(&client.flows(unfinished).await?, |flows| flows_table(flows)),
        Flows::Show { flow } => output.show(&client.flow(&flow).await?, flow_table),
    }
}

fn flows_table(flows: &[FlowView]) -> comfy_table::Table {
    table(
        &["id", "kind", "subject", "state", "created", "ended", "error"],
        flows.iter().map(|flow| {
            vec![
                flow.id.clone(),
                flow.kind.clone(),
                flow.subject.clone(),
                flow.state.clone(),
                flow.created_at.to_string(),
                or_dash(flow.ended_at),
                or_dash(flow.error.as_ref()),
            ]
        }),
    )
}

fn flow_table(flow: &FlowView) -> comfy_table::Table {
    let mut rows = vec![vec![
        format!("{} {}", flow.kind, flow.subject),
        flow.state.clone(),
        String::new(),
        flow.created_at.to_string(),
        or_dash(flow.ended_at),
        or_dash(flow.error.as_ref()),
    ]];
    rows.extend(flow.steps.iter().map(|step| {
        vec![
            format!("  {}", step.name),
            step.state.clone(),
            step.attempts.to_string(),
            or_dash(step.started_at),
            or_dash(step.ended_at),
            or_dash(step.error.as_ref()),
        ]
    }));
    table(&["step", "state", "attempts", "started", "ended", "error"], rows)
}

/// The headnode's loops.
pub(crate) async fn loops(client: &Client, output: Output) -> Outcome {
    output.show(&client.loops().await?, |loops| {
        table(
            &["loop", "every", "last pass", "passes", "did", "error"],
            loops.iter().map(|status| {
                vec![
                    status.name.clone(),
                    format!("{} s", status.period_ms / 1_000),
                    status.age_ms.map_or_else(|| "never".to_owned(), |ms| format!("{} s ago", ms / 1_000)),
                    status.passes.to_string(),
                    or_dash(status.summary.as_ref()),
                    or_dash(status.error.as_ref()),
                ]
            }),
        )
    })
}
