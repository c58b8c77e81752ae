//! The tables of a datacenter: what is stored under which key, and by what else it is found.
//!
//! Uniqueness is the store's: two commits cannot both create one key. Names that must be unique beside the key itself are
//! therefore records of their own in [`CLAIMS`] (`alias/<owner>/<name>`, `mac/<mac>`, `login/<login>` …), created and deleted
//! in the commit that gives or takes the name. Their values say who holds them, so they serve as the look-up too.

use std::net::IpAddr;

use model::{
    account::{Account, AccountKey},
    firewall::FirewallRule,
    headnode::{Beat, Headnode},
    id::{AccountId, InstanceId, MacAddr, NetworkId, ServerId},
    image::Image,
    instance::Instance,
    names::{self, Published, Zone, dnssec::ZoneKeys},
    network::{Address, FabricVlan, Network, NicTag, Pool},
    package::Package,
    placement::affinity::AffinityGroup,
    repeat::Repeat,
    server::{Invite, Server},
    usage::{Month, MonthUsage, UsageRead},
};
use serde::{Deserialize, Serialize};
use store::{Index, Schema, Table};

/// Every record is at its first version: nothing to upgrade.
fn no_upgrade(from_version: u32, _value: serde_json::Value) -> Result<serde_json::Value, String> {
    Err(format!("version {from_version} was never written"))
}

/// Accounts by id.
pub static ACCOUNTS: Table<Account> = Table {
    name: "accounts",
    version: 1,
    key: |account| account.id.to_string(),
    indexes: &[Index { name: BY_LABEL, keys: |account| vec![names::label_of(&account.login)] }],
    upgrade: no_upgrade,
};

/// Index of [`ACCOUNTS`]: by the label that stands for their login in names.
pub const BY_LABEL: &str = "label";

/// Keys by `<account>/<MD5 fingerprint>`.
pub static KEYS: Table<AccountKey> = Table {
    name: "keys",
    version: 1,
    key: |key| key_key(key.account, &key.fingerprint_md5),
    indexes: &[Index { name: "account", keys: |key| vec![key.account.to_string()] }],
    upgrade: no_upgrade,
};

/// Packages by id.
pub static PACKAGES: Table<Package> =
    Table { name: "packages", version: 1, key: |package| package.id.to_string(), indexes: &[], upgrade: no_upgrade };

/// Networks by id.
pub static NETWORKS: Table<Network> = Table {
    name: "networks",
    version: 1,
    key: |network| network.id.to_string(),
    indexes: &[
        Index { name: SEEN_BY, keys: |network| seen_by(&network.owners) },
        Index { name: BY_VNI, keys: |network| network.fabric.iter().map(|fabric| fabric.vni.to_string()).collect() },
    ],
    upgrade: no_upgrade,
};

/// Index of [`NETWORKS`] and [`POOLS`]: what an account sees as its own, and under [`EVERYBODY`] what all see.
pub const SEEN_BY: &str = "seen by";
/// Key of [`SEEN_BY`] that stands for everybody.
pub const EVERYBODY: &str = "*";
/// Index of [`NETWORKS`]: those on a tenant's VLAN, by its VNI.
pub const BY_VNI: &str = "vni";

fn seen_by(owners: &[AccountId]) -> Vec<String> {
    if owners.is_empty() { vec![EVERYBODY.to_owned()] } else { owners.iter().map(AccountId::to_string).collect() }
}

/// Tenants' VLANs by `<owner>/<vlan>`, see [`vlan_key`].
pub static VLANS: Table<FabricVlan> =
    Table { name: "vlans", version: 1, key: |vlan| vlan_key(vlan.owner, vlan.vlan), indexes: &[], upgrade: no_upgrade };

/// NIC tags by name.
pub static NIC_TAGS: Table<NicTag> =
    Table { name: "nic_tags", version: 1, key: |tag| tag.name.clone(), indexes: &[], upgrade: no_upgrade };

/// Pools of networks by id.
pub static POOLS: Table<Pool> = Table {
    name: "pools",
    version: 1,
    key: |pool| pool.id.to_string(),
    indexes: &[
        Index { name: SEEN_BY, keys: |pool| seen_by(&pool.owners) },
        Index { name: BY_NETWORK, keys: |pool| pool.networks.iter().map(NetworkId::to_string).collect() },
    ],
    upgrade: no_upgrade,
};

/// Addresses in use by `<network>/<address>`, see [`address_key`].
pub static ADDRESSES: Table<Address> = Table {
    name: "addresses",
    version: 1,
    key: |address| address_key(address.network, address.ip),
    indexes: &[Index { name: BY_HOLDER, keys: |address| address.instance.iter().map(InstanceId::to_string).collect() }],
    upgrade: no_upgrade,
};

/// Images by id.
pub static IMAGES: Table<Image> = Table {
    name: "images",
    version: 1,
    key: |image| image.id.to_string(),
    indexes: &[Index { name: "file", keys: |image| image.file.iter().map(|file| file.sha256.clone()).collect() }],
    upgrade: no_upgrade,
};

/// Instances by id, deleted ones among them until they are trimmed.
pub static INSTANCES: Table<Instance> = Table {
    name: "instances",
    version: 1,
    key: |instance| instance.id.to_string(),
    indexes: &[
        Index { name: BY_OWNER, keys: |instance| vec![instance.owner.to_string()] },
        Index { name: BY_SERVER, keys: |instance| present(instance, || vec![instance.server.to_string()]) },
        Index {
            name: BY_OWNER_ON,
            keys: |instance| present(instance, || vec![owner_on(instance.owner, instance.server)]),
        },
        Index { name: BY_IMAGE, keys: |instance| present(instance, || vec![instance.image.to_string()]) },
        Index { name: BY_PACKAGE, keys: |instance| present(instance, || vec![instance.package.to_string()]) },
        Index { name: BY_NETWORK, keys: |instance| present(instance, || networks_of(instance)) },
        Index { name: DELETED, keys: |instance| instance.deleted_at.map(|_| DELETED.to_owned()).into_iter().collect() },
    ],
    upgrade: no_upgrade,
};

/// Index of [`INSTANCES`]: all of an account, deleted ones among them. Index of [`FIREWALL_RULES`] too.
pub const BY_OWNER: &str = "owner";
/// Index of [`INSTANCES`]: those a machine is told of.
pub const BY_SERVER: &str = "server";
/// Index of [`INSTANCES`]: those of an account on a machine, by [`owner_on`].
pub const BY_OWNER_ON: &str = "owner on server";
/// Index of [`INSTANCES`]: those a machine is told of that started from an image.
pub const BY_IMAGE: &str = "image";
/// Index of [`INSTANCES`]: those a machine is told of that have a package.
pub const BY_PACKAGE: &str = "package";
/// Index of [`INSTANCES`]: those a machine is told of with a NIC on a network; of [`POOLS`]: those with it among theirs.
pub const BY_NETWORK: &str = "network";
/// Index of [`INSTANCES`] with one key of the same name: the deleted ones.
pub const DELETED: &str = "deleted";

/// Machines by id.
pub static SERVERS: Table<Server> = Table {
    name: "servers",
    version: 1,
    key: |server| server.id.to_string(),
    indexes: &[
        Index { name: BY_ROOM, keys: room_keys },
        Index { name: BY_RACK, keys: |server| server.rack.iter().cloned().collect() },
    ],
    upgrade: no_upgrade,
};

/// Index of [`SERVERS`]: those that take instances, in the order of their room, the most first. Keys begin with `/` for machines
/// without traits and with `<trait>=/` for those that have one.
pub const BY_ROOM: &str = "room";
/// Index of [`SERVERS`]: those in a rack.
pub const BY_RACK: &str = "rack";

fn room_keys(server: &Server) -> Vec<String> {
    if !server.accepts_instances {
        return Vec::new();
    }
    let room = room_key(server.roominess);
    if server.traits.is_empty() {
        return vec![format!("/{room}")];
    }
    server.traits.keys().map(|name| format!("{name}=/{room}")).collect()
}

/// How keys of [`BY_ROOM`] end: the more room, the smaller.
pub(crate) fn room_key(roominess: u32) -> String {
    format!("{:010}", u32::MAX - roominess)
}

/// Headnodes by their server's id.
pub static HEADNODES: Table<Headnode> =
    Table { name: "headnodes", version: 1, key: |headnode| headnode.id.to_string(), indexes: &[], upgrade: no_upgrade };

/// Their last beats, likewise.
pub static BEATS: Table<Beat> =
    Table { name: "beats", version: 1, key: |beat| beat.headnode.to_string(), indexes: &[], upgrade: no_upgrade };

/// Invitations by id.
pub static INVITES: Table<Invite> =
    Table { name: "invites", version: 1, key: |invite| invite.id.to_string(), indexes: &[], upgrade: no_upgrade };

/// Rules of the firewall by id.
pub static FIREWALL_RULES: Table<FirewallRule> = Table {
    name: "firewall_rules",
    version: 1,
    key: |rule| rule.id.to_string(),
    indexes: &[Index { name: BY_OWNER, keys: |rule| vec![rule_owner(rule.owner)] }],
    upgrade: no_upgrade,
};

/// Key of [`BY_OWNER`] in [`FIREWALL_RULES`]: the account, or `*` for global rules.
pub(crate) fn rule_owner(owner: Option<AccountId>) -> String {
    owner.map_or_else(|| "*".to_owned(), |owner| owner.to_string())
}

/// Calls that may be repeated, by `<account>/<key>`, see [`repeat_key`].
pub static REPEATS: Table<Repeat> = Table {
    name: "repeats",
    version: 1,
    key: |repeat| repeat_key(repeat.account, repeat.key.as_str()),
    indexes: &[Index { name: BY_AGE, keys: |repeat| vec![format!("{}/{:016}", repeat.account, repeat.created_at.0)] }],
    upgrade: no_upgrade,
};

/// Index of [`REPEATS`]: those of an account in the order of their age, the oldest first, under keys that begin with the account's
/// id and `/`.
pub const BY_AGE: &str = "age";

/// Zones of names by their own.
pub static ZONES: Table<Zone> =
    Table { name: "zones", version: 1, key: |zone| zone.apex.clone(), indexes: &[], upgrade: no_upgrade };

/// Keys of zones that are signed, by the zone's name.
pub static ZONE_KEYS: Table<ZoneKeys> =
    Table { name: "zone_keys", version: 1, key: |keys| keys.apex.clone(), indexes: &[], upgrade: no_upgrade };

/// Names by the id of the instance that has them.
pub static NAMES: Table<Published> = Table {
    name: "names",
    version: 1,
    key: |published| published.instance.to_string(),
    indexes: &[Index { name: BY_NAME, keys: shared_names }],
    upgrade: no_upgrade,
};

/// Index of [`NAMES`]: by each name that other instances may have too, see [`name_key`].
pub const BY_NAME: &str = "name";

fn shared_names(published: &Published) -> Vec<String> {
    let groups = published.parts.iter().flat_map(|(zone, groups)| groups.iter().map(move |group| (zone, group)));
    let shared = groups.filter(|(_, group)| group.shared);
    shared.flat_map(|(zone, group)| group.names.iter().map(|name| name_key(zone, name))).collect()
}

/// Key of [`BY_NAME`].
pub fn name_key(zone: &str, name: &str) -> String {
    format!("{zone}/{name}")
}

/// Turns of owners at placing by rules of racks, by the owner's id.
pub static AFFINITY_GROUPS: Table<AffinityGroup> = Table {
    name: "affinity_groups",
    version: 1,
    key: |group| group.owner.to_string(),
    indexes: &[],
    upgrade: no_upgrade,
};

/// What accounts used, by [`usage_key`]: a month's are together, the oldest first, and an account's in it.
pub static USAGE: Table<MonthUsage> = Table {
    name: "usage",
    version: 1,
    key: |usage| usage_key(usage.month, usage.account, usage.server),
    indexes: &[],
    upgrade: no_upgrade,
};

/// How far machines' hours are counted, by the machine's id.
pub static USAGE_READ: Table<UsageRead> =
    Table { name: "usage_read", version: 1, key: |read| read.server.to_string(), indexes: &[], upgrade: no_upgrade };

/// Unique names, see the head of this file.
pub static CLAIMS: Table<Claim> = Table {
    name: "claims",
    version: 1,
    key: |claim| claim.name.clone(),
    indexes: &[Index { name: BY_HOLDER, keys: |claim| vec![claim.holder.clone()] }],
    upgrade: no_upgrade,
};

/// Index of [`ADDRESSES`] and [`CLAIMS`]: those one object holds.
pub const BY_HOLDER: &str = "holder";

/// A unique name and who holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The whole key, kind first.
    pub name: String,
    /// Id of the holder.
    pub holder: String,
}

impl Claim {
    /// How the names of Ethernet addresses begin.
    pub(crate) const MAC: &'static str = "mac/";
    /// How the names of instances begin.
    pub(crate) const ALIAS: &'static str = "alias/";

    /// Name of an instance among its owner's.
    pub(crate) fn alias(owner: AccountId, alias: &str) -> String {
        format!("{}{owner}/{alias}", Self::ALIAS)
    }

    /// Ethernet address in the datacenter.
    pub(crate) fn mac(mac: MacAddr) -> String {
        format!("{}{}", Self::MAC, mac.bare())
    }

    /// Login of an account. Case matters as in Triton.
    pub(crate) fn login(login: &str) -> String {
        format!("login/{login}")
    }

    /// Name of an active package.
    pub(crate) fn package(name: &str) -> String {
        format!("package/{name}")
    }

    /// How the numbers of tenants' VLANs begin.
    pub(crate) const VNI: &'static str = "vni/";

    /// Number of a tenant's VLAN in the datacenter: eight digits, so that the order of names is the order of numbers.
    pub(crate) fn vni(vni: u32) -> String {
        format!("{}{vni:08}", Self::VNI)
    }

    /// Name of a key among its account's.
    pub(crate) fn key(account: AccountId, name: &str) -> String {
        format!("key/{account}/{name}")
    }
}

/// Every table, those of the flow engine among them.
pub fn schema() -> Schema {
    Schema::new()
        .with(&ACCOUNTS)
        .with(&KEYS)
        .with(&PACKAGES)
        .with(&NETWORKS)
        .with(&VLANS)
        .with(&NIC_TAGS)
        .with(&POOLS)
        .with(&ADDRESSES)
        .with(&IMAGES)
        .with(&INSTANCES)
        .with(&SERVERS)
        .with(&INVITES)
        .with(&CLAIMS)
        .with(&FIREWALL_RULES)
        .with(&REPEATS)
        .with(&AFFINITY_GROUPS)
        .with(&HEADNODES)
        .with(&BEATS)
        .with(&ZONES)
        .with(&ZONE_KEYS)
        .with(&NAMES)
        .with(&USAGE)
        .with(&USAGE_READ)
        .with(&flow::FLOWS)
}

/// Key of [`BY_OWNER_ON`].
pub(crate) fn owner_on(owner: AccountId, server: impl std::fmt::Display) -> String {
    format!("{owner}@{server}")
}

/// Key of an address: 8 hex digits, or 32 of an IPv6 address, so that within a family the order of keys is that of addresses.
pub(crate) fn address_key(network: NetworkId, ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{network}/{:08x}", ip.to_bits()),
        IpAddr::V6(ip) => format!("{network}/{:032x}", ip.to_bits()),
    }
}

/// Key of a tenant's VLAN: four digits, so that the order of keys is the order of VLANs.
pub(crate) fn vlan_key(owner: AccountId, vlan: u16) -> String {
    format!("{owner}/{vlan:04}")
}

/// Key of what an account used on a machine in a month.
pub(crate) fn usage_key(month: Month, account: AccountId, server: ServerId) -> String {
    format!("{month}/{account}/{server}")
}

/// Key of a call that may be repeated.
pub(crate) fn repeat_key(account: AccountId, key: &str) -> String {
    format!("{account}/{key}")
}

/// Key of a public key.
pub(crate) fn key_key(account: AccountId, fingerprint_md5: &str) -> String {
    format!("{account}/{fingerprint_md5}")
}

/// Index keys of instances a machine is told of.
fn present(instance: &Instance, keys: impl FnOnce() -> Vec<String>) -> Vec<String> {
    if instance.is_on_machine() { keys() } else { Vec::new() }
}

fn networks_of(instance: &Instance) -> Vec<String> {
    let mut networks: Vec<String> = instance.nics.iter().map(|nic| nic.network.to_string()).collect();
    networks.sort();
    networks.dedup();
    networks
}
