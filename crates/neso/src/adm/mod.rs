//! `neso adm`: the operator's commands over the ops API. Tables for people, `-j` for programs.
//!
//! One file per group of nouns; each turns arguments into one request and its answer into one table. Nothing is decided
//! here: what may be done and why not is the headnode's business.

pub(crate) mod accounts;
pub(crate) mod alerts;
pub(crate) mod backup;
mod console;
mod firewall;
mod firewall_log;
mod ha;
mod infra;
mod instances;
mod monitoring;
mod names;
mod nets;
mod path;
mod placement;
mod rebuild;
mod recover;
pub(crate) mod servers;
mod usage;

use std::fmt::Display;

use comfy_table::{ContentArrangement, Table, presets};
use model::time::Timestamp;
use opsapi::Client;
use serde::Serialize;

use crate::{
    answer,
    context::Place,
    failure::{Failure, Outcome},
};

/// Operators' commands.
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    /// Print JSON.
    #[arg(short, long, global = true)]
    json: bool,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, clap::Subcommand)]
enum Noun {
    /// The datacenter at a glance.
    Info,
    /// Accounts and their keys.
    #[command(subcommand, visible_alias = "accounts")]
    Account(accounts::Command),
    /// Packages: sizes of instances.
    #[command(subcommand, visible_alias = "packages")]
    Package(infra::Packages),
    /// Networks and addresses.
    #[command(subcommand, visible_alias = "networks")]
    Network(infra::Networks),
    /// NIC tags: the wires networks lie on.
    #[command(subcommand, visible_alias = "nic-tags")]
    NicTag(nets::NicTags),
    /// Pools: several networks asked for as one.
    #[command(subcommand, visible_alias = "pools")]
    Pool(nets::Pools),
    /// Tenants' own VLANs.
    #[command(subcommand, visible_alias = "fabrics")]
    Fabric(nets::Fabrics),
    /// Names of instances in DNS: zones, what is in them, who may have them.
    #[command(subcommand)]
    Names(names::Command),
    /// Images.
    #[command(subcommand, visible_alias = "images")]
    Image(infra::Images),
    /// Servers.
    #[command(subcommand, visible_alias = "servers")]
    Server(servers::Servers),
    /// Machines that are to become servers.
    #[command(subcommand, visible_alias = "nodes")]
    Node(servers::Nodes),
    /// Rules of the firewall, and how far they are enforced.
    #[command(subcommand)]
    Firewall(firewall::Command),
    /// Headnodes: how they are, more of them, fewer, or others.
    #[command(subcommand, visible_alias = "headnode", visible_alias = "headnodes")]
    Ha(ha::Command),
    /// The way of a packet from one instance to another, and where it stops.
    Path(path::Command),
    /// Where instances go and why.
    #[command(subcommand)]
    Placement(placement::Command),
    /// Instances of every account.
    #[command(subcommand, visible_alias = "instances", visible_alias = "inst")]
    Instance(instances::Instances),
    /// Flows: journaled jobs with their steps.
    #[command(subcommand, visible_alias = "flows")]
    Flow(instances::Flows),
    Usage(usage::Command),
    /// Loops of the headnode, how old their last pass is, and what went wrong.
    Loops,
    /// What the headnode that answers tells of itself, as Prometheus reads it.
    Metrics,
    /// Prometheus beside this machine's headnode.
    #[command(subcommand)]
    Monitoring(monitoring::Command),
    /// What that Prometheus finds wrong, the most urgent first; who is told of it, and when nobody is.
    Alerts(alerts::Command),
    /// Certificates, and their renewal before their time.
    #[command(subcommand, visible_alias = "certificates")]
    Certificate(Certificates),
    /// Backups of everything a headnode cannot be made anew without.
    #[command(subcommand, visible_alias = "backups")]
    Backup(backup::Command),
    /// Know again what machines have and no record knows: after a restore, or when they came with instances.
    Rebuild(rebuild::Command),
    /// After headnodes were lost for good, too many for the rest to go on: begin the store anew from one survivor.
    Recover(recover::Command),
    /// Check machine and datacenter, and say how to mend each finding.
    Doctor,
}

/// Runs it.
pub(crate) async fn run(place: &Place, command: Command) -> Outcome {
    if matches!(command.noun, Noun::Doctor) {
        return crate::doctor::run(place, command.json).await;
    }
    let output = Output { json: command.json };
    if let Noun::Backup(command) = command.noun {
        // Some of these are for a machine without a datacenter.
        return backup::run(place, output, command).await;
    }
    if let Noun::Recover(command) = command.noun {
        return recover::run(place, output, command).await;
    }
    // What this machine's Prometheus knows is known without a headnode.
    match command.noun {
        Noun::Monitoring(command) => return monitoring::run(place, output, command).await,
        Noun::Alerts(command) => return alerts::run(place, output, command).await,
        _ => {}
    }
    let client = client(&place.settings()?)?;
    let outcome = ask(&client, output, command.noun).await;
    crate::answer::note_if_stale(client.stale());
    outcome
}

async fn ask(client: &Client, output: Output, noun: Noun) -> Outcome {
    match noun {
        Noun::Info => info(client, output).await,
        Noun::Account(command) => accounts::run(client, output, command).await,
        Noun::Package(command) => infra::packages(client, output, command).await,
        Noun::Network(command) => infra::networks(client, output, command).await,
        Noun::NicTag(command) => nets::nic_tags(client, output, command).await,
        Noun::Pool(command) => nets::pools(client, output, command).await,
        Noun::Fabric(command) => nets::fabrics(client, output, command).await,
        Noun::Names(command) => names::run(client, output, command).await,
        Noun::Image(command) => infra::images(client, output, command).await,
        Noun::Server(command) => servers::servers(client, output, command).await,
        Noun::Node(command) => servers::nodes(client, output, command).await,
        Noun::Firewall(command) => firewall::run(client, output, command).await,
        Noun::Ha(command) => ha::run(client, output, command).await,
        Noun::Path(command) => path::run(client, output, command).await,
        Noun::Placement(command) => placement::run(client, output, command).await,
        Noun::Instance(command) => instances::instances(client, output, command).await,
        Noun::Flow(command) => instances::flows(client, output, command).await,
        Noun::Usage(command) => usage::run(client, output, command).await,
        Noun::Loops => instances::loops(client, output).await,
        Noun::Metrics => Ok(answer::print_text(&client.metrics().await?)?),
        Noun::Rebuild(command) => rebuild::run(client, output, command).await,
        Noun::Certificate(command) => certificates(client, output, command).await,
        Noun::Backup(_) | Noun::Recover(_) | Noun::Doctor | Noun::Monitoring(_) | Noun::Alerts(_) => Ok(()),
    }
}

/// Commands about certificates.
#[derive(Debug, clap::Subcommand)]
enum Certificates {
    /// List certificates.
    #[command(visible_alias = "ls")]
    List,
    /// Make all anew but the authority's. Processes take them up within seconds, without a restart.
    Renew,
}

async fn certificates(client: &Client, output: Output, command: Certificates) -> Outcome {
    let found = match command {
        Certificates::List => client.certificates().await?,
        Certificates::Renew => client.renew_certificates().await?,
    };
    output.show(&found, |found| {
        let rows = found.iter().map(|one| vec![one.name.clone(), one.expires_at.to_string(), one.serial.clone()]);
        table(&["certificate", "ends", "serial"], rows)
    })
}

/// The ops API of this machine's datacenter, as its operator.
pub(crate) fn client(settings: &headnode::Settings) -> Outcome<Client> {
    let client = Client::open(settings.listen.ops, &settings.paths.operator);
    let known = headnode::presence::known_ops(settings);
    client.map(|client| client.or_else_at(known)).map_err(|error| {
        Failure::from(error).mend("run as root (the operator's key is readable by root alone), after `neso up`")
    })
}

async fn info(client: &Client, output: Output) -> Outcome {
    let info = client.datacenter().await?;
    output.show(&info, |info| {
        let counts = info.counts;
        let mut lines = vec![
            ("datacenter", format!("{} (region {})", info.name, info.region)),
            ("version", info.version.clone()),
            ("up since", format!("{} ({})", info.started_at, ago(info.now, Some(info.started_at)))),
            ("headnode memory", bytes(info.resident_bytes)),
            ("store", format!("revision {}, {} free", info.store_revision, bytes(info.store_free_bytes))),
            ("accounts", counts.accounts.to_string()),
            ("packages, networks, images", format!("{}, {}, {}", counts.packages, counts.networks, counts.images)),
            ("servers", counts.servers.to_string()),
            (
                "instances",
                format!(
                    "{} ({} running, {} failed)",
                    counts.instances, counts.instances_running, counts.instances_failed
                ),
            ),
            ("flows", format!("{} under way, {} parked", counts.flows_running, counts.flows_parked)),
        ];
        lines.push(("newest backup", backup::summary(&info.backups, info.now)));
        for certificate in &info.certificates {
            lines.push(("certificate", format!("{} until {}", certificate.name, certificate.expires_at)));
        }
        for finding in &info.findings {
            lines.push(("finding", finding.clone()));
        }
        details(&lines)
    })
}

/// `name`, or `name=value`, as a trait of a machine or a package; several values stand between commas.
fn named_trait(text: &str) -> Result<(String, model::server::Trait), String> {
    use model::server::Trait;
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    if name.is_empty() {
        return Err("a trait is `name` or `name=value`".to_owned());
    }
    let value = match value {
        None | Some("true") => Trait::Flag(true),
        Some("false") => Trait::Flag(false),
        Some(several) if several.contains(',') => Trait::List(several.split(',').map(str::to_owned).collect()),
        Some(one) => Trait::Text(one.to_owned()),
    };
    Ok((name.to_owned(), value))
}

/// How answers are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// As JSON.
    pub(crate) json: bool,
}

impl Output {
    /// Prints `value`, or the table made of it.
    pub(crate) fn show<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> Table) -> Outcome {
        match self.json {
            true => answer::print(serde_json::to_string_pretty(value)?)?,
            false => answer::print(table(value))?,
        }
        Ok(())
    }

    /// Prints one sentence; nothing as JSON, where success is the exit code.
    pub(crate) fn say(self, sentence: impl Display) -> Outcome {
        if !self.json {
            answer::print(sentence)?;
        }
        Ok(())
    }
}

/// A table with a head line, columns parted by spaces.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().map(|word| word.to_uppercase()));
    table.add_rows(rows);
    trim(&mut table);
    table
}

/// A table of names and values.
pub(crate) fn details(lines: &[(&str, String)]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in lines {
        table.add_row(vec![(*name).to_owned(), value.clone()]);
    }
    trim(&mut table);
    table
}

fn trim(table: &mut Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
}

/// A point in time as its distance from now.
pub(crate) fn ago(now: Timestamp, then: Option<Timestamp>) -> String {
    let Some(then) = then else {
        return "never".into();
    };
    let seconds = now.millis_since(then) / 1_000;
    match seconds {
        0..120 => format!("{seconds}s ago"),
        120..7_200 => format!("{}m ago", seconds / 60),
        7_200..172_800 => format!("{}h ago", seconds / 3_600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut whole = count;
    while whole >= 10_240 && unit < UNITS.len() - 1 {
        whole >>= 10;
        unit += 1;
    }
    format!("{whole} {}", UNITS[unit])
}

/// An optional value for a table.
pub(crate) fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(64 << 30), "64 GiB");
        assert_eq!(ago(Timestamp(90_000), Some(Timestamp(0))), "90s ago");
        assert_eq!(ago(Timestamp(7_199_000), Some(Timestamp(0))), "119m ago");
        assert_eq!(ago(Timestamp(0), None), "never");
    }

    #[test]
    fn tables_are_plain_columns() {
        let text = table(&["name", "id"], [vec!["a".into(), "1".into()], vec!["long".into(), "2".into()]]).to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines, ["NAME  ID", "a     1", "long  2"]);
    }
}
