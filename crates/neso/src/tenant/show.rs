//! Tables of what tenants see.

use std::collections::BTreeMap;

use cloudapi::types::{Audit, Image, Machine, Network, Nic, Package};
use model::{instance::TagValue, target::Phase};
use serde::Serialize;

use crate::{
    adm::{Output, details, or_dash, table},
    failure::Outcome,
};

/// A tag's value as it is typed: `true`, `false` and numbers are what they look like.
pub(super) fn tag_value(text: &str) -> TagValue {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Bool(value)) => TagValue::Bool(value),
        Ok(serde_json::Value::Number(value)) => TagValue::Number(value),
        _ => TagValue::Text(text.to_owned()),
    }
}

/// A listing.
pub(super) fn instances(output: Output, machines: &Vec<Machine<'_>>) -> Outcome {
    output.show(machines, |machines| {
        table(
            &["shortid", "name", "state", "primary ip", "package", "created"],
            machines.iter().map(|machine| {
                vec![
                    machine.id.short(),
                    machine.name.to_string(),
                    machine.state.to_string(),
                    or_dash(machine.primary_ip),
                    machine.package.to_string(),
                    machine.created.to_string(),
                ]
            }),
        )
    })
}

/// One instance.
pub(super) fn instance(output: Output, machine: &Machine<'_>) -> Outcome {
    output.show(machine, |machine| {
        let ips: Vec<String> = machine.ips.iter().map(ToString::to_string).collect();
        let mut lines = vec![
            ("id", machine.id.to_string()),
            ("name", machine.name.to_string()),
            ("state", machine.state.to_string()),
            ("image", machine.image.to_string()),
            ("package", machine.package.to_string()),
            ("memory", machine.memory.to_string()),
            ("disk", machine.disk.to_string()),
            ("addresses", ips.join(", ")),
            ("deletion protection", machine.deletion_protection.to_string()),
            ("created", machine.created.to_string()),
            ("updated", machine.updated.to_string()),
        ];
        for (key, value) in machine.tags.iter() {
            lines.push(("tag", format!("{key} = {}", plain(value))));
        }
        if !machine.timeline.is_empty() {
            lines.push(("timeline", timeline(&machine.timeline)));
        }
        if let Some(failure) = &machine.failure {
            lines.push(("failure", failure.to_string()));
        }
        details(&lines)
    })
}

/// What happened to an instance.
pub(super) fn audit(output: Output, entries: &Vec<Audit<'_>>) -> Outcome {
    output.show(entries, |entries| {
        table(
            &["time", "action", "success", "took", "error"],
            entries.iter().map(|entry| {
                vec![
                    entry.time.to_string(),
                    entry.action.to_string(),
                    entry.success.to_string(),
                    timeline(&entry.timeline),
                    or_dash(entry.error.as_ref()),
                ]
            }),
        )
    })
}

fn timeline(phases: &[Phase]) -> String {
    let words: Vec<String> = phases.iter().map(|phase| format!("{} {} ms", phase.name, phase.ms)).collect();
    words.join(", ")
}

/// Keys and values.
pub(super) fn pairs<V: Serialize>(output: Output, pairs: &BTreeMap<String, V>) -> Outcome {
    output
        .show(pairs, |pairs| table(&["key", "value"], pairs.iter().map(|(key, value)| vec![key.clone(), plain(value)])))
}

fn plain(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// NICs.
pub(super) fn nics(output: Output, nics: &Vec<Nic>) -> Outcome {
    output.show(nics, |nics| {
        table(
            &["mac", "ip", "netmask", "gateway", "network", "state"],
            nics.iter().map(|nic| {
                vec![
                    nic.mac.to_string(),
                    nic.ip.to_string(),
                    nic.netmask.to_string(),
                    or_dash(nic.gateway),
                    nic.network.to_string(),
                    or_dash(nic.state.as_ref()),
                ]
            }),
        )
    })
}

/// Images.
pub(super) fn images(output: Output, images: &Vec<Image<'_>>) -> Outcome {
    output.show(images, |images| {
        table(
            &["shortid", "name", "version", "os", "published"],
            images.iter().map(|image| {
                vec![
                    image.id.short(),
                    image.name.to_string(),
                    image.version.to_string(),
                    image.os.to_string(),
                    or_dash(image.published_at),
                ]
            }),
        )
    })
}

/// Packages.
pub(super) fn packages(output: Output, packages: &Vec<Package<'_>>) -> Outcome {
    output.show(packages, |packages| {
        table(
            &["shortid", "name", "memory", "swap", "disk"],
            packages.iter().map(|package| {
                vec![
                    package.id.short(),
                    package.name.to_string(),
                    package.memory.to_string(),
                    package.swap.to_string(),
                    package.disk.to_string(),
                ]
            }),
        )
    })
}

/// Networks.
pub(super) fn networks(output: Output, networks: &Vec<Network<'_>>) -> Outcome {
    output.show(networks, |networks| {
        table(
            &["shortid", "name", "subnet", "public"],
            networks.iter().map(|network| {
                vec![
                    network.id.short(),
                    network.name.to_string(),
                    or_dash(network.subnet.as_ref()),
                    network.public.to_string(),
                ]
            }),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_their_types() {
        assert_eq!(tag_value("true"), TagValue::Bool(true));
        assert_eq!(tag_value("7"), TagValue::Number(7.into()));
        assert_eq!(tag_value("web"), TagValue::Text("web".into()));
    }
}
