//! `neso adm names …`: zones, what is in them, and the name server of a headnode.

use model::names::{
    Data, ZoneKind,
    dnssec::{KeyRole, KeyStage, ParentHas},
};
use opsapi::{
    Client,
    names::{KeysChange, NameServerView, PeerView, SignedZone},
};

use super::{Output, table};
use crate::failure::{Failure, Outcome};

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
    Server,
    /// Show the secondaries that the headnode that answers has served or told: what they have, and when they got it.
    #[command(visible_alias = "transfer-peers")]
    Peers,
    /// Show the keys of signed zones and what to give to their parent zones; or change something about one zone's keys.
    Dnssec {
        /// The zone; all that are signed when absent.
        zone: Option<String>,
        /// Change the key of a role for a new one: `zsk` needs nothing more, `ksk` has to become known to the parent zone.
        #[arg(long, requires = "zone", conflicts_with = "parent_has", value_parser = role)]
        roll: Option<KeyRole>,
        /// Say that the parent zone names the KSK with this tag now and no other, or `none`.
        #[arg(long, requires = "zone", value_parser = parent)]
        parent_has: Option<ParentHas>,
    },
}

fn role(text: &str) -> Result<KeyRole, String> {
    match text {
        "ksk" => Ok(KeyRole::Ksk),
        "zsk" => Ok(KeyRole::Zsk),
        _ => Err("it is `ksk` or `zsk`".to_owned()),
    }
}

fn parent(text: &str) -> Result<ParentHas, String> {
    match text {
        "none" => Ok(ParentHas::None),
        tag => tag.parse().map(ParentHas::Key).map_err(|_| "it is a key's tag, or `none`".to_owned()),
    }
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
        Command::Dnssec { zone, roll, parent_has } => {
            let change = roll.map(KeysChange::Roll).or(parent_has.map(KeysChange::Parent));
            let zones = match (zone, change) {
                (Some(zone), Some(change)) => vec![client.change_zone_keys(&zone, change).await?],
                (Some(zone), None) => {
                    let called = zone.trim_end_matches('.').to_ascii_lowercase();
                    let found = client.signed_zones().await?.into_iter().find(|signed| signed.apex == called);
                    vec![found.ok_or_else(|| {
                        Failure::new(format!("zone {zone} is not signed"))
                            .mend("`dnssec` in `[names]` of the settings says which are")
                    })?]
                }
                (None, _) => client.signed_zones().await?,
            };
            output.show(&zones, |zones| signed(zones))
        }
        Command::Server => output.show(&client.name_server().await?, server),
        Command::Peers => output.show(&client.name_server().await?.peers, |found| peers(found)),
    }
}

fn signed(zones: &[SignedZone]) -> comfy_table::Table {
    let mut rows = Vec::new();
    for zone in zones {
        for key in &zone.keys {
            let role = if key.role == KeyRole::Ksk { "KSK" } else { "ZSK" };
            let stage = match key.stage {
                KeyStage::Announced => "announced",
                KeyStage::Offered => "offered to the parent",
                KeyStage::Signing => "signs",
                KeyStage::Leaving => "leaves",
            };
            let record = key.parent_record.clone().unwrap_or_default();
            let (tag, since) = (key.tag.to_string(), key.since.to_string());
            rows.push(vec![zone.apex.clone(), role.to_owned(), tag, stage.to_owned(), since, record]);
        }
        if zone.keys.is_empty() {
            let why = "no keys yet: the first headnode makes them within a minute";
            rows.push([zone.apex.as_str(), "", "", "", "", why].map(str::to_owned).to_vec());
        }
        if let Some(text) = &zone.waits_for {
            rows.push([zone.apex.as_str(), "", "", "to do", "", text].map(str::to_owned).to_vec());
        }
    }
    table(&["zone", "key", "tag", "stage", "since", "for the parent"], rows)
}

fn peers(found: &[PeerView]) -> comfy_table::Table {
    let number = |serial: Option<u32>| serial.map_or_else(|| "—".to_owned(), |serial| serial.to_string());
    let rows = found.iter().map(|peer| {
        let last = match (peer.asked_at, peer.was_whole) {
            (None, _) => "—".to_owned(),
            (Some(at), None) => format!("{at} (nothing new)"),
            (Some(at), Some(true)) => format!("{at} (whole)"),
            (Some(at), Some(false)) => format!("{at} (differences)"),
        };
        let serials = [peer.has, peer.current, peer.told].map(number);
        [peer.address.to_string(), peer.zone.clone()].into_iter().chain(serials).chain([last]).collect::<Vec<_>>()
    });
    table(&["secondary", "zone", "has", "of", "told", "last transfer"], rows)
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
