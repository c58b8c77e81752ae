//! `neso adm names …`: zones, what is in them, and the name server of a headnode.

use model::names::{Data, ZoneKind};
use opsapi::{Client, names::NameServerView};

use super::{Output, table};
use crate::failure::Outcome;

/// What to see of names.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List zones: their serials, how many names are in each, and when that changed last.
    #[command(visible_alias = "ls")]
    Zones,
    /// Show what is in a zone.
    Show {
        /// Its name.
        zone: String,
    },
    /// Show where the headnode that answers is asked for names, what for, and who may have whole zones.
    #[command(visible_alias = "transfer-peers")]
    Server,
}

/// Runs it.
pub(crate) async fn run(client: &Client, output: Output, command: Command) -> Outcome {
    match command {
        Command::Zones => output.show(&client.name_zones().await?, |zones| {
            table(
                &["zone", "serial", "instances", "names", "changed", "networks"],
                zones.iter().map(|view| {
                    let kind = view.zone.head.as_ref().map_or(ZoneKind::Forward, |head| head.kind);
                    let networks = match (&view.networks, kind) {
                        (_, ZoneKind::Reverse) => "addresses".to_owned(),
                        (None, ZoneKind::Forward) => "*".to_owned(),
                        (Some(networks), ZoneKind::Forward) => networks.join(", "),
                    };
                    let (serial, changed) = (view.zone.serial.to_string(), view.zone.changed_at.to_string());
                    let (instances, names) = (view.instances.to_string(), view.names.to_string());
                    vec![view.zone.apex.clone(), serial, instances, names, changed, networks]
                }),
            )
        }),
        Command::Show { zone } => output.show(&client.name_zone(&zone).await?, |content| {
            let rows = content.names.iter().flat_map(|(name, data)| data.iter().map(move |data| (name, data)));
            let rows = rows.map(|(name, data)| {
                let (kind, value) = text(data);
                vec![name.clone(), kind.to_owned(), value]
            });
            let shown = content.names.len();
            let more = (content.count > shown)
                .then(|| vec!["…".to_owned(), String::new(), format!("{shown} of {} names", content.count)]);
            table(&["name", "type", "answer"], rows.chain(more))
        }),
        Command::Server => output.show(&client.name_server().await?, server),
    }
}

fn server(view: &NameServerView) -> comfy_table::Table {
    let mut rows = Vec::new();
    let mut row = |what: &str, value: String| rows.push(vec![what.to_owned(), value]);
    if !view.enabled {
        row("names", "off: names.enabled is false in the settings".to_owned());
    }
    for address in &view.addresses {
        row("answers at", address.to_string());
    }
    for refused in &view.refused {
        row("does not answer at", format!("{}: {}", refused.address, refused.why));
    }
    if let Some(error) = &view.error {
        row("does not run", error.clone());
    }
    for transfer in &view.transfers {
        row("hands zones to", transfer.clone());
    }
    for target in &view.notify {
        row("tells changes to", target.to_string());
    }
    for (name, count) in &view.counters {
        row(name, count.to_string());
    }
    table(&["what", "value"], rows)
}

/// A record's type and value, as a zone file has them.
fn text(data: &Data) -> (&'static str, String) {
    match data {
        Data::A(address) => ("A", address.to_string()),
        Data::Aaaa(address) => ("AAAA", address.to_string()),
        Data::Txt(text) => ("TXT", format!("\"{text}\"")),
        Data::Srv { priority, weight, port, target } => ("SRV", format!("{priority} {weight} {port} {target}.")),
        Data::Ptr(target) => ("PTR", format!("{target}.")),
    }
}
