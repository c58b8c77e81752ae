//! Tables of what tenants see.

use std::collections::BTreeMap;

use cloudapi::types::{Account, Audit, Image, Key, Machine, Network, NetworkIp, Nic, Package};
use model::{instance::TagValue, target::Phase};
use serde::Serialize;

use crate::{
    adm::{Output, bytes, details, or_dash, table},
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
        for name in machine.dns_names.iter().flatten() {
            lines.push(("dns name", name.clone()));
        }
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
            &["mac", "ip", "netmask", "gateway", "ip6", "network", "state"],
            nics.iter().map(|nic| {
                vec![
                    nic.mac.to_string(),
                    nic.ip.to_string(),
                    nic.netmask.to_string(),
                    or_dash(nic.gateway),
                    six(nic),
                    nic.network.to_string(),
                    or_dash(nic.state.as_ref()),
                ]
            }),
        )
    })
}

fn six(nic: &Nic) -> String {
    match nic.ips6.as_slice() {
        [] => or_dash(nic.ip6),
        all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
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

/// One image.
pub(super) fn image(output: Output, image: &Image<'_>) -> Outcome {
    output.show(image, |image| {
        let mut lines = vec![
            ("id", image.id.to_string()),
            ("name", image.name.to_string()),
            ("version", image.version.to_string()),
            ("os", image.os.to_string()),
            ("type", image.kind.to_string()),
            ("state", image.state.to_string()),
            ("public", image.public.to_string()),
            ("owner", image.owner.to_string()),
            ("published", or_dash(image.published_at)),
            ("description", or_dash(image.description.as_ref())),
            ("homepage", or_dash(image.homepage.as_ref())),
            ("needs memory", or_dash(image.requirements.min_memory)),
        ];
        for file in &image.files {
            lines.push(("file", format!("{}, {}, sha1 {}", bytes(file.size), file.compression, file.sha1)));
        }
        if let Some(error) = &image.error {
            lines.push(("error", error.message.to_string()));
        }
        details(&lines)
    })
}

/// One package.
pub(super) fn package(output: Output, package: &Package<'_>) -> Outcome {
    output.show(package, |package| {
        details(&[
            ("id", package.id.to_string()),
            ("name", package.name.to_string()),
            ("version", or_dash(package.version.as_ref())),
            ("group", or_dash(package.group.as_ref())),
            ("description", or_dash(package.description.as_ref())),
            ("memory", package.memory.to_string()),
            ("memory and swap", package.swap.to_string()),
            ("disk", package.disk.to_string()),
            ("processes", package.lwps.to_string()),
        ])
    })
}

/// One network.
pub(super) fn network(output: Output, network: &Network<'_>) -> Outcome {
    output.show(network, |network| {
        let nat =
            network.nat_ips.as_ref().map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        details(&[
            ("id", network.id.to_string()),
            ("name", network.name.to_string()),
            ("public", network.public.to_string()),
            ("description", or_dash(network.description.as_ref())),
            ("subnet", or_dash(network.subnet.as_ref())),
            ("gateway", or_dash(network.gateway)),
            ("leaves as", or_dash(nat.as_deref())),
        ])
    })
}

/// Addresses.
pub(super) fn addresses(output: Output, addresses: &Vec<NetworkIp>) -> Outcome {
    output.show(addresses, |addresses| {
        table(
            &["ip", "reserved", "managed", "instance"],
            addresses.iter().map(|address| {
                vec![
                    address.ip.to_string(),
                    address.reserved.to_string(),
                    address.managed.to_string(),
                    or_dash(address.belongs_to_uuid),
                ]
            }),
        )
    })
}

/// The account.
pub(super) fn account(output: Output, account: &Account<'_>) -> Outcome {
    output.show(account, |account| {
        let texts = [
            ("company", &account.company_name),
            ("first name", &account.first_name),
            ("last name", &account.last_name),
            ("address", &account.address),
            ("postal code", &account.postal_code),
            ("city", &account.city),
            ("state", &account.state),
            ("country", &account.country),
            ("phone", &account.phone),
        ];
        let mut lines = vec![
            ("id", account.id.to_string()),
            ("login", account.login.to_string()),
            ("email", account.email.to_string()),
        ];
        lines.extend(texts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?.to_string()))));
        lines.push(("dns names", account.triton_cns_enabled.to_string()));
        lines.push(("created", account.created.to_string()));
        lines.push(("updated", account.updated.to_string()));
        details(&lines)
    })
}

/// Keys.
pub(super) fn keys(output: Output, keys: &Vec<Key<'_>>) -> Outcome {
    output.show(keys, |keys| {
        let row = |key: &Key<'_>| vec![key.name.to_string(), key.fingerprint.to_string(), or_dash(key.created)];
        table(&["name", "fingerprint", "added"], keys.iter().map(row))
    })
}

/// One key.
pub(super) fn key(output: Output, key: &Key<'_>) -> Outcome {
    output.show(key, |key| {
        details(&[
            ("name", key.name.to_string()),
            ("fingerprint", key.fingerprint.to_string()),
            ("added", or_dash(key.created)),
            ("key", key.key.to_string()),
        ])
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
