//! From records to the document a node receives.
//!
//! One function per part of [`crate::target::Target`], each from records to a value, so that a control plane can keep the
//! parts of a thousand instances and make only the changed one anew.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{
    image::Image,
    instance::Instance,
    layout::UNIQUE_LOCAL,
    network::Network,
    rules,
    target::{FabricTarget, ImageTarget, NetworkTarget, NicTarget, Outside6, ZoneTarget},
};

/// Name servers a guest gets at most: resolv.conf takes no more that matter.
pub const RESOLVERS_MAX: usize = 4;

/// Key of the metadata from which sshd inside an instance takes root's authorized keys.
pub const ROOT_AUTHORIZED_KEYS: &str = "root_authorized_keys";

/// The part of the target for `instance`.
///
/// `network_of` looks up the networks of its NICs; a NIC whose network is unknown is left out, since nobody could wire
/// it. `account_keys` are the owner's public keys, one a line: they stand in for [`ROOT_AUTHORIZED_KEYS`] when the tenant set none.
pub fn zone<'a>(
    instance: &Instance,
    network_of: impl Fn(crate::id::NetworkId) -> Option<&'a Network>,
    account_keys: &str,
    dns_domain: Option<&str>,
) -> ZoneTarget {
    let mut nics = Vec::with_capacity(instance.nics.len());
    let mut resolvers: Vec<IpAddr> = Vec::new();
    let mut routes = BTreeMap::new();
    // The primary network's name servers come first.
    let by_importance =
        instance.nics.iter().filter(|nic| nic.primary).chain(instance.nics.iter().filter(|nic| !nic.primary));
    for (nic, network) in by_importance.filter_map(|nic| Some((nic, network_of(nic.network)?))) {
        for resolver in &network.resolvers {
            if resolvers.len() < RESOLVERS_MAX && !resolvers.contains(resolver) {
                resolvers.push(*resolver);
            }
        }
        // Of the families it can reach.
        let reaches = |hop: &IpAddr| if hop.is_ipv4() { nic.ip.is_some() } else { nic.ip6.is_some() };
        for (destination, next_hop) in network.routes.iter().filter(|(_, hop)| reaches(hop)) {
            routes.entry(*destination).or_insert(*next_hop);
        }
    }
    for nic in &instance.nics {
        let Some(network) = network_of(nic.network) else { continue };
        let address = nic.ip.zip(network.subnet).and_then(|(ip, net)| Ipv4Net::new(ip, net.prefix_len()).ok());
        let within = |ip| Ipv6Net::new(ip, network.subnet6?.prefix_len()).ok();
        let addresses6: Vec<Ipv6Net> = nic.addresses6().filter_map(within).collect();
        nics.push(NicTarget {
            mac: nic.mac,
            interface: nic.interface.clone(),
            network: nic.network,
            address,
            gateway: network.gateway.filter(|_| nic.primary && address.is_some()),
            gateway6: network.gateway6.filter(|_| nic.primary && !addresses6.is_empty()),
            addresses6,
            primary: nic.primary,
            mtu: network.mtu,
        });
    }
    let mut metadata = instance.metadata.clone();
    if !account_keys.is_empty() && !metadata.contains_key(ROOT_AUTHORIZED_KEYS) {
        let own = metadata.iter().map(|(key, value)| (key.clone(), value.clone()));
        metadata = own.chain([(ROOT_AUTHORIZED_KEYS.to_owned(), account_keys.to_owned())]).collect();
    }
    ZoneTarget {
        wanted: instance.intent.wanted,
        starts: instance.intent.starts,
        reboots: instance.intent.reboots,
        owner: instance.owner,
        alias: instance.alias.clone(),
        hostname: if rules::is_hostname(&instance.alias) { instance.alias.clone() } else { instance.id.to_string() },
        brand: instance.brand,
        image: instance.image,
        package_name: instance.package_name.clone(),
        package_version: None,
        package: Some(instance.package),
        limits: instance.limits.clone(),
        nics,
        resolvers,
        dns_domain: dns_domain.map(str::to_owned),
        routes,
        metadata,
        internal_metadata: instance.internal_metadata.clone(),
        tags: instance.tags.clone(),
        guest_metadata_seen: instance.guest_metadata_seen,
        created_at: instance.created_at,
    }
}

/// The part of the target for a segment.
pub fn network(network: &Network) -> NetworkTarget {
    NetworkTarget {
        nic_tag: network.nic_tag.clone(),
        // A fabric has a bridge of its own; its VLAN is no tag on any wire.
        vlan: if network.fabric.is_some() { 0 } else { network.vlan },
        subnet: network.subnet,
        host_address: if network.host_gateway { network.gateway } else { None },
        nat: network.nat && network.gateway.is_some(),
        mtu: network.mtu,
        fabric: network.fabric.zip(network.owners.first().copied()).map(|(fabric, owner)| FabricTarget {
            vni: fabric.vni,
            owner,
            internet_nat: fabric.internet_nat,
            routed: fabric.routed,
        }),
        gateway: network.fabric.and(network.gateway),
        subnet6: network.subnet6,
        gateway6: network.fabric.and(network.gateway6),
        host_address6: network.gateway6.filter(|_| network.host_gateway),
        outside6: outside6(network),
    }
}

/// Whether the machine forwards a network's IPv6, and as whom. It does where it does so for IPv4; addresses that mean something
/// to the whole world are left as they are. A fabric's router sees to its own.
fn outside6(network: &Network) -> Outside6 {
    let leads_out = network.nat && network.host_gateway && network.gateway6.is_some() && network.fabric.is_none();
    match network.subnet6.filter(|_| leads_out) {
        None => Outside6::None,
        Some(subnet) if UNIQUE_LOCAL.contains(&subnet) => Outside6::Masqueraded,
        Some(_) => Outside6::Routed,
    }
}

/// The part of the target for an image; `None` while its file is not here.
pub fn image(image: &Image) -> Option<ImageTarget> {
    let file = image.file.as_ref()?;
    Some(ImageTarget { sha256: file.sha256.clone(), size: file.size, compression: file.compression })
}
