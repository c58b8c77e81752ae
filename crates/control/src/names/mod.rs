//! Names of instances: kept as records, so that every headnode answers with the same.
//!
//! ```text
//! instances, accounts, networks, machines' silence ──► publisher ──► tables `names` and `zones` ──► every headnode's name server
//! ```
//! What there should be is decided in [`model::names`]. The first headnode's publisher ([`publish`]) compares it with what is recorded and commits
//! what differs together with the zones' next serials: one record an instance, so that a member of a large service changes as little as any
//! other. Keys of zones that are signed are records as well ([`keys`]). Who serves names puts the records of one snapshot together ([`content`], [`data_of`]); so two headnodes with the same serial have
//! the same content.

pub mod keys;
mod publish;
mod zones;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use model::{
    account::Account,
    id::{AccountId, InstanceId, NetworkId},
    names::{self, Data, Group, Plan, Published, Zone},
};
use store::{Entry, Snapshot};

use crate::{
    Control, Error, Result,
    tables::{ACCOUNTS, BY_LABEL, BY_NAME, NAMES, ZONES, name_key},
};

pub use self::publish::{Summary, keep_published, publish_all};

/// What the operator decides about names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesConfig {
    /// The zones. None: there are no names.
    pub zones: Vec<ZoneConfig>,
    /// Whole names of the name servers that the zones' NS records say. None: the headnodes, as `ns` in the first zone.
    pub name_servers: Vec<String>,
    /// Where mail about the zones goes, as a name. `None`: `hostmaster` in the zone.
    pub hostmaster: Option<String>,
    /// Seconds a record may be remembered.
    pub ttl_seconds: u32,
    /// Seconds the list of name servers may be remembered.
    pub ns_ttl_seconds: u32,
    /// Whether addresses lead back to names.
    pub reverse: bool,
    /// Whether the zones of addresses are signed.
    pub signed: bool,
    /// Whether instances of new accounts have names unless their owner says otherwise.
    pub new_accounts: bool,
}

/// One zone with names of instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneConfig {
    /// Its whole name, lower-case.
    pub apex: String,
    /// The networks or pools whose addresses it has, by name or id; `*` is for all that no zone lists.
    pub networks: Vec<String>,
    /// Who may ask; everybody when empty.
    pub clients: Vec<IpNet>,
    /// Whole names of its name servers when they are others than [`NamesConfig::name_servers`].
    pub name_servers: Vec<String>,
    /// Whether it is signed.
    pub signed: bool,
}

/// Stands for the networks that no zone lists.
pub const REST: &str = "*";

impl Default for NamesConfig {
    /// No zone, and Triton's numbers.
    fn default() -> Self {
        Self {
            zones: Vec::new(),
            name_servers: Vec::new(),
            hostmaster: None,
            ttl_seconds: 30,
            ns_ttl_seconds: 3_600,
            reverse: true,
            signed: false,
            new_accounts: false,
        }
    }
}

impl NamesConfig {
    /// One zone with every network.
    pub fn one(apex: impl Into<String>) -> Self {
        let zone = ZoneConfig {
            apex: apex.into(),
            networks: vec![REST.to_owned()],
            clients: Vec::new(),
            name_servers: Vec::new(),
            signed: false,
        };
        Self { zones: vec![zone], ..Self::default() }
    }
}

/// A zone with what it has.
#[derive(Debug, Clone)]
pub struct ZoneView {
    /// The record.
    pub zone: Arc<Entry<Zone>>,
    /// Instances with names in it.
    pub instances: usize,
    /// Names in it, those of name servers not counted.
    pub names: usize,
}

/// Names with their answers.
pub type Content = BTreeMap<String, Vec<Data>>;

/// All zones there are, by name.
pub fn list(control: &Control) -> Vec<ZoneView> {
    let snapshot = control.snapshot();
    let mut counts: BTreeMap<String, (usize, BTreeSet<String>)> = BTreeMap::new();
    for published in snapshot.scan(&NAMES) {
        for (apex, groups) in published.parts.iter() {
            let (instances, names) = counts.entry(apex.clone()).or_default();
            *instances += 1;
            names.extend(groups.iter().flat_map(|group| group.names.iter().cloned()));
        }
    }
    let present = snapshot.scan(&ZONES).filter(|zone| zone.head.is_some());
    let views = present.map(|zone| {
        let (instances, names) = counts.remove(&zone.apex).map_or((0, 0), |(count, names)| (count, names.len()));
        ZoneView { zone, instances, names }
    });
    views.collect()
}

/// What is in a zone: every name with its answers, by name.
pub fn show(control: &Control, apex: &str) -> Result<(Arc<Entry<Zone>>, Content)> {
    let snapshot = control.snapshot();
    let zone = snapshot.get(&ZONES, apex).filter(|zone| zone.head.is_some());
    let zone = zone.ok_or_else(|| Error::not_found("zone", apex))?;
    Ok((zone, content(&snapshot, apex)))
}

/// The names of one instance as they are published, whole.
pub fn of_instance(control: &Control, instance: InstanceId) -> Vec<String> {
    control.snapshot().get(&NAMES, &instance.to_string()).map(|published| published.shown()).unwrap_or_default()
}

/// What names of an account's instances end with on some networks; none when the account has no names.
pub fn suffixes(control: &Control, owner: AccountId, networks: &[NetworkId]) -> Vec<Vec<String>> {
    let snapshot = control.snapshot();
    let Some(account) = snapshot.get(&ACCOUNTS, &owner.to_string()).filter(|account| account.names_enabled) else {
        return vec![Vec::new(); networks.len()];
    };
    let zones: Vec<Arc<Entry<Zone>>> = snapshot.scan(&ZONES).collect();
    let plan = Plan::of(zones.iter().map(|zone| &zone.value));
    let owns_label = owns_label(&snapshot, &account);
    networks.iter().map(|network| names::suffixes(&plan, *network, &account, owns_label)).collect()
}

/// Every name of a zone with its answers, out of one snapshot.
pub fn content(snapshot: &Snapshot, apex: &str) -> Content {
    let all: Vec<Arc<Entry<Published>>> = snapshot.scan(&NAMES).collect();
    let mut groups: BTreeMap<&str, Vec<&Group>> = BTreeMap::new();
    for group in all.iter().filter_map(|published| published.parts.get(apex)).flatten() {
        for name in &group.names {
            groups.entry(name).or_default().push(group);
        }
    }
    groups.into_iter().map(|(name, groups)| (name.to_owned(), names::merged(name, groups.into_iter()))).collect()
}

/// What one name is answered with, which `published` has; `None` for `published` looks only at names that several may have.
pub fn data_of(snapshot: &Snapshot, apex: &str, name: &str, published: Option<&Published>) -> Vec<Data> {
    let others: Vec<Arc<Entry<Published>>> = snapshot.find(&NAMES, BY_NAME, &name_key(apex, name)).collect();
    let all = others.iter().map(|entry| &entry.value).chain(published);
    names::merged(name, all.filter_map(|published| published.parts.get(apex)).flatten())
}

/// Whether the label of an account's login is its own.
pub(crate) fn owns_label(snapshot: &Snapshot, account: &Account) -> bool {
    let label = names::label_of(&account.login);
    let same: Vec<Arc<Entry<Account>>> = snapshot.find(&ACCOUNTS, BY_LABEL, &label).collect();
    names::label_owner(same.iter().map(|account| &account.value)) == Some(account.id)
}
