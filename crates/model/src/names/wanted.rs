//! What one instance should have of names.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    Data, Group, LABEL_MAX, NAME_MAX, Published, VALUES_MAX, Zone, ZoneKind, reverse,
    tags::{ACME_LABEL, Port, Said},
};
use crate::{
    account::Account,
    id::{AccountId, InstanceId, NetworkId},
    instance::{Instance, Wanted},
    network::{Network, Nic},
    state::PublicState,
};

/// Which networks are in which zones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Zones that list certain networks.
    pub listed: BTreeMap<NetworkId, Vec<String>>,
    /// Zones with the addresses on all networks that no zone lists.
    pub rest: Vec<String>,
}

impl Plan {
    /// What the zones themselves say.
    pub fn of<'a>(zones: impl Iterator<Item = &'a Zone>) -> Self {
        let mut plan = Self::default();
        for zone in zones {
            let Some(head) = zone.head.as_ref().filter(|head| head.kind == ZoneKind::Forward) else { continue };
            match &head.networks {
                None => plan.rest.push(zone.apex.clone()),
                Some(networks) => {
                    for network in networks {
                        plan.listed.entry(*network).or_default().push(zone.apex.clone());
                    }
                }
            }
        }
        plan
    }

    /// The zones with addresses on a network.
    pub fn zones_of(&self, network: NetworkId) -> &[String] {
        self.listed.get(&network).unwrap_or(&self.rest)
    }

    fn takes_the_rest(&self, network: NetworkId) -> bool {
        !self.listed.contains_key(&network)
    }
}

/// An instance, and what its names depend on beside it.
pub struct Subject<'a> {
    /// The instance.
    pub instance: &'a Instance,
    /// Whose it is.
    pub owner: &'a Account,
    /// Whether the label of the owner's login is the owner's: the oldest account with that label has it.
    pub owns_label: bool,
    /// What the public sees of it.
    pub state: PublicState,
    /// The networks it is on; one that is missing has no names.
    pub networks: &'a [&'a Network],
}

/// The label that stands for a text: lower-case, with a hyphen for whatever a label may not have.
pub fn label_of(text: &str) -> String {
    let mut label = String::with_capacity(text.len());
    let mut replacing = false;
    for byte in text.bytes().map(|byte| byte.to_ascii_lowercase()) {
        let fits = byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if fits {
            label.push(char::from(byte));
        } else if !replacing {
            // Several in a row are one hyphen.
            label.push('-');
        }
        replacing = !fits;
    }
    label
}

/// What names of an account's services and instances end with, in the zones of one of its networks.
pub fn suffixes(plan: &Plan, network: NetworkId, owner: &Account, owns_label: bool) -> Vec<String> {
    let account = owners(owner, owns_label).pop().unwrap_or_else(|| owner.id.to_string());
    let zones = plan.zones_of(network).iter();
    zones.flat_map(|zone| [format!("svc.{account}.{zone}"), format!("inst.{account}.{zone}")]).collect()
}

/// The labels of an account, its id first.
fn owners(owner: &Account, owns_label: bool) -> Vec<String> {
    let mut labels = vec![owner.id.to_string()];
    let login = label_of(&owner.login);
    if owns_label && login.len() <= LABEL_MAX {
        labels.push(login);
    }
    labels
}

/// Groups while they are put together, by their first names.
type Groups = BTreeMap<String, Group>;

/// What one instance is called, beside what it says itself.
struct Calls {
    id: String,
    alias: Option<String>,
    /// See [`owners`].
    owners: Vec<String>,
}

impl Subject<'_> {
    /// What there should be; no part at all for an instance without names.
    pub fn published(&self, plan: &Plan) -> Published {
        Published { instance: self.instance.id, parts: self.parts(plan).into_iter().collect() }
    }

    /// The same by zones.
    pub fn parts(&self, plan: &Plan) -> BTreeMap<String, Vec<Group>> {
        let said = Said::by(self.instance);
        if said.disabled || !self.is_there() || !(self.owner.names_enabled || said.reverse_ptr.is_some()) {
            return BTreeMap::new();
        }
        let calls = Calls {
            id: self.instance.id.to_string(),
            alias: Some(label_of(&self.instance.alias)).filter(|alias| is_alias_label(alias)),
            owners: owners(self.owner, self.owns_label),
        };
        let serves = self.owner.names_enabled && self.state == PublicState::Running && !said.down;
        let mut zones: BTreeMap<String, Groups> = BTreeMap::new();
        for nic in &self.instance.nics {
            let Some(network) = self.networks.iter().find(|network| network.id == nic.network) else { continue };
            let names = plan.zones_of(nic.network);
            for zone in names {
                let groups = zones.entry(zone.clone()).or_default();
                let apart = (plan.takes_the_rest(network.id) && network.owners.contains(&self.owner.id))
                    .then(|| label_of(&network.name))
                    .filter(|label| (1..=LABEL_MAX).contains(&label.len()));
                for prefix in std::iter::once(None).chain(apart.map(Some)) {
                    add_instance(groups, &calls, &said, nic, prefix.as_deref());
                    if self.owner.names_enabled {
                        add_services(groups, &calls, &said, nic, prefix.as_deref(), serves.then_some(zone.as_str()));
                    }
                }
            }
            let called = said.reverse_ptr.clone().or_else(|| {
                let own = names.iter().map(|zone| format!("{}.{zone}", calls.primary()));
                own.min_by(|one, other| (one.len(), one).cmp(&(other.len(), other)))
            });
            if let Some(called) = called {
                add_reverse(&mut zones, network, nic, &called);
            }
        }
        let parts = zones.into_iter().map(|(zone, groups)| {
            let groups = groups.into_values().filter_map(|group| within_bounds(group, &zone));
            let groups = groups.collect();
            (zone, groups)
        });
        parts.filter(|(_, groups): &(String, Vec<Group>)| !groups.is_empty()).collect()
    }

    /// Whether its addresses are its own and will stay so: not those of one that could not be made or is on its way out, which may be
    /// somebody else's in a moment.
    fn is_there(&self) -> bool {
        let instance = self.instance;
        let ends = instance.released || instance.intent.wanted == Wanted::Absent || instance.is_lost();
        !ends && !matches!(self.state, PublicState::Deleted | PublicState::Failed)
    }
}

impl Calls {
    /// The name it is called by where only one can be said.
    fn primary(&self) -> String {
        let owner = self.owners.last().map_or("", String::as_str);
        format!("{}.inst.{owner}", self.alias.as_ref().unwrap_or(&self.id))
    }
}

/// Whether an instance can be found by its name: not by one that is too long, nor by one that looks like the id of another.
fn is_alias_label(alias: &str) -> bool {
    (1..=LABEL_MAX).contains(&alias.len()) && alias.parse::<InstanceId>().is_err()
}

fn addresses(nic: &Nic) -> impl Iterator<Item = Data> + '_ {
    nic.addresses().map(|address| match address {
        IpAddr::V4(address) => Data::A(address),
        IpAddr::V6(address) => Data::Aaaa(address),
    })
}

/// The names of one kind: `<what>.<kind>.<owner>`, for each label of the owner's, below the name of a network if there is one.
fn names_of(calls: &Calls, what: &str, kind: &str, prefix: Option<&str>) -> Vec<String> {
    let prefix = prefix.map(|prefix| format!("{prefix}.")).unwrap_or_default();
    calls.owners.iter().map(|owner| format!("{prefix}{what}.{kind}.{owner}")).collect()
}

fn add(groups: &mut Groups, names: &[String], shared: bool, data: impl IntoIterator<Item = Data>) {
    let Some(first) = names.first() else { return };
    let group =
        groups.entry(first.clone()).or_insert_with(|| Group { names: names.to_vec(), shared, data: Vec::new() });
    group.data.extend(data);
}

fn add_challenges(groups: &mut Groups, names: &[String], shared: bool, said: &Said) {
    if !said.challenges.is_empty() {
        let names: Vec<String> = names.iter().map(|name| format!("{ACME_LABEL}.{name}")).collect();
        add(groups, &names, shared, said.challenges.iter().cloned().map(Data::Txt));
    }
}

fn add_instance(groups: &mut Groups, calls: &Calls, said: &Said, nic: &Nic, prefix: Option<&str>) {
    let id = Data::Txt(calls.id.clone());
    // Ids are one instance's alone; two names may become one label.
    let both = [(Some(&calls.id), false), (calls.alias.as_ref(), true)];
    for (what, shared) in both.into_iter().filter_map(|(what, shared)| Some((what?, shared))) {
        let names = names_of(calls, what, "inst", prefix);
        add(groups, &names, shared, addresses(nic).chain([id.clone()]));
        add_challenges(groups, &names, shared, said);
    }
}

fn add_services(
    groups: &mut Groups,
    calls: &Calls,
    said: &Said,
    nic: &Nic,
    prefix: Option<&str>,
    serving: Option<&str>,
) {
    for (service, ports) in &said.services {
        let names = names_of(calls, service, "svc", prefix);
        add_challenges(groups, &names, true, said);
        let Some(zone) = serving else { continue };
        let srv = |port: &Port| Data::Srv {
            priority: port.priority,
            weight: port.weight,
            port: port.port,
            target: format!("{}.{zone}", calls.primary()),
        };
        add(groups, &names, true, addresses(nic).chain([Data::Txt(calls.id.clone())]).chain(ports.iter().map(srv)));
    }
}

fn add_reverse(zones: &mut BTreeMap<String, Groups>, network: &Network, nic: &Nic, called: &str) {
    if network.fabric.is_some() {
        return;
    }
    for address in nic.addresses() {
        let place = network.subnet_for(address).and_then(|subnet| reverse::place(subnet, address));
        if let Some((zone, name)) = place {
            // Networks of different wires may have the same subnet, but an instance only gets what nobody else has on its own.
            add(zones.entry(zone).or_default(), &[name], true, [Data::Ptr(called.to_owned())]);
        }
    }
}

/// A group as it is kept: in order, nothing twice, and no name that DNS has no room for.
fn within_bounds(mut group: Group, zone: &str) -> Option<Group> {
    group.data.sort();
    group.data.dedup();
    group.names.retain(|name| name.len() + 1 + zone.len() <= NAME_MAX);
    (!group.names.is_empty()).then_some(group)
}

/// Whose label a login's is: the account made first, of several in one moment that with the lowest id.
pub fn label_owner<'a>(accounts: impl Iterator<Item = &'a Account>) -> Option<AccountId> {
    accounts.min_by_key(|account| (account.created_at, account.id)).map(|account| account.id)
}

/// What a name is answered with: what every group that has it says, in order, at most [`VALUES_MAX`] of one type.
pub fn merged<'a>(name: &str, groups: impl Iterator<Item = &'a Group>) -> Vec<Data> {
    let mut all: Vec<&Data> =
        groups.filter(|group| group.names.iter().any(|known| known == name)).flat_map(|group| &group.data).collect();
    all.sort_unstable();
    all.dedup();
    let mut kept: Vec<Data> = Vec::with_capacity(all.len().min(VALUES_MAX));
    let mut of_kind = 0;
    for data in all {
        let is_same_kind = kept.last().is_some_and(|last| std::mem::discriminant(last) == std::mem::discriminant(data));
        of_kind = if is_same_kind { of_kind + 1 } else { 1 };
        if of_kind <= VALUES_MAX {
            kept.push(data.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests;
