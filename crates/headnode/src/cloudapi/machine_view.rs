//! From an instance to the contract's machine, borrowing all that is in the record already.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use cloudapi::types::{Machine, Nic, machine::Metadata};
use control::instances::{InstanceView, NicView};
use model::instance::{Brand, Instance};

use super::version::Version;

/// What is shown beyond the usual.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Show {
    /// Generated passwords, when the client asks for them.
    pub(super) credentials: bool,
    /// What only operators see.
    pub(super) operator: bool,
}

/// The contract's shape of `view`.
pub(super) fn machine(view: &InstanceView, version: Version, show: Show) -> Machine<'_> {
    let instance: &Instance = &view.instance;
    Machine {
        id: instance.id,
        name: Cow::Borrowed(&instance.alias),
        kind: Cow::Borrowed(kind(instance.brand)),
        brand: Cow::Borrowed(if version.at_least(8, 0) { instance.brand.as_str() } else { "" }),
        state: Cow::Borrowed(view.state.as_str()),
        image: instance.image,
        ips: view.ips().collect(),
        memory: instance.limits.memory,
        disk: instance.limits.disk,
        deletion_protection: instance.deletion_protection,
        metadata: Metadata {
            credentials: show.credentials.then(|| credentials(instance)).filter(|found| !found.is_empty()),
            entries: Cow::Borrowed(&instance.metadata),
        },
        tags: Cow::Borrowed(&instance.tags),
        created: instance.created_at,
        updated: instance.updated_at,
        networks: version.at_least(7, 1).then(|| view.networks().collect()),
        nics: view.nics.iter().map(nic).collect(),
        primary_ip: view.primary_ip(),
        firewall_enabled: instance.firewall_enabled,
        enforced: None,
        compute_node: Some(instance.server),
        package: Cow::Borrowed(&instance.package_name),
        dns_names: None,
        failure: instance.failure.as_deref().map(Cow::Borrowed),
        last_seen: view.last_seen_at,
        timeline: Cow::Borrowed(if show.operator { &instance.timeline } else { &[] }),
    }
}

/// The contract's older word for a brand.
pub(super) const fn kind(brand: Brand) -> &'static str {
    match brand {
        Brand::Lx => "smartmachine",
        Brand::Kvm => "virtualmachine",
    }
}

/// A NIC as it is shown. A network that is gone leaves a host mask.
pub(super) fn nic(view: &NicView) -> Nic {
    let ip = view.nic.first_address().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let network = view.network.as_ref();
    let mask = network.and_then(|network| network.subnet_for(ip)).unwrap_or(ip.into());
    let ips6: Vec<_> = view.nic.addresses6().collect();
    Nic {
        ip,
        mac: view.nic.mac,
        primary: view.nic.primary,
        netmask: mask.netmask(),
        gateway: network.and_then(|network| match ip {
            IpAddr::V4(_) => network.gateway.map(IpAddr::V4),
            IpAddr::V6(_) => network.gateway6.map(IpAddr::V6),
        }),
        ip6: view.nic.ip6,
        ips6: if ips6.len() > 1 { ips6 } else { Vec::new() },
        prefix6: view.nic.ip6.and_then(|_| Some(network?.subnet6?.prefix_len())),
        gateway6: view.nic.ip6.and_then(|_| network?.gateway6),
        network: view.nic.network,
        state: Some(Cow::Borrowed(view.state.as_str())),
    }
}

/// Generated passwords by user.
pub(super) fn credentials(instance: &Instance) -> BTreeMap<String, String> {
    let passwords = instance.internal_metadata.iter();
    passwords.filter_map(|(key, value)| Some((key.strip_suffix("_pw")?.to_owned(), value.clone()))).collect()
}
