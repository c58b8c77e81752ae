//! What the host is told to start a zone, computed from its target: files for the guest's resolver among it.

use std::path::PathBuf;

use host::zone::{IdRange, ZoneSpec};
use model::{id::InstanceId, target::ZoneTarget};

use crate::shared::Shared;

/// A resolver's `resolv.conf` holds this many name servers; more are ignored by everyone.
const RESOLVERS_MAX: usize = 3;

/// What the host must know to start a zone; the root is filled in where it is made.
pub(crate) fn of(shared: &Shared, id: InstanceId, zone: &ZoneTarget, ids: IdRange) -> ZoneSpec {
    ZoneSpec {
        instance: id,
        hostname: zone.hostname.clone(),
        ids,
        root: PathBuf::new(),
        init: shared.config.init.clone(),
        limits: zone.limits.clone(),
        control_dir: shared.metadata.directory(id),
        resolv_conf: resolv_conf(zone),
        hosts: Some(hosts(zone)),
    }
}

/// `/etc/resolv.conf`; `None` when the networks name no resolvers.
fn resolv_conf(zone: &ZoneTarget) -> Option<String> {
    if zone.resolvers.is_empty() {
        return None;
    }
    let mut text = String::new();
    if let Some(domain) = &zone.dns_domain {
        text.push_str(&format!("search {domain}\n"));
    }
    for resolver in zone.resolvers.iter().take(RESOLVERS_MAX) {
        text.push_str(&format!("nameserver {resolver}\n"));
    }
    Some(text)
}

/// `/etc/hosts`: the zone knows its own name without asking anybody.
fn hosts(zone: &ZoneTarget) -> String {
    let name = match &zone.dns_domain {
        Some(domain) => format!("{0}.{domain} {0}", zone.hostname),
        None => zone.hostname.clone(),
    };
    let own = zone
        .nics
        .iter()
        .find(|nic| nic.primary)
        .and_then(|nic| nic.addresses().next())
        .map_or_else(|| "127.0.1.1".to_owned(), |net| net.addr().to_string());
    format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{own} {name}\n")
}
