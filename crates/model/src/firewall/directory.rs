//! All instances of the datacenter by what rules call them.
//!
//! Kept up to date one instance at a time: [`Directory::insert`] and [`Directory::remove`] cost what the instance's tags cost,
//! and return what was there, from which [`changed_sets`] tells whose addresses may be different now. The index is per owner; a global
//! rule asks every owner's, which is rare and cheap enough.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use super::{
    apply::{InstanceView, Selector, SetKey},
    target::AddressSet,
};
use crate::id::{AccountId, InstanceId};

/// Instances by owner, id and tags.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    instances: HashMap<InstanceId, InstanceView>,
    /// Without empty entries at any level.
    owners: HashMap<AccountId, Owned>,
}

/// One account's instances. Ordered, so that what is made of it is the same every time.
#[derive(Debug, Clone, Default)]
struct Owned {
    all: BTreeSet<InstanceId>,
    tags: BTreeMap<String, BTreeMap<String, BTreeSet<InstanceId>>>,
}

impl Directory {
    /// One that knows these instances.
    pub fn new(instances: impl IntoIterator<Item = InstanceView>) -> Self {
        let mut directory = Self::default();
        for instance in instances {
            directory.insert(instance);
        }
        directory
    }

    /// Adds or replaces an instance and returns what was known of it.
    pub fn insert(&mut self, instance: InstanceView) -> Option<InstanceView> {
        let before = self.remove(instance.id);
        let owned = self.owners.entry(instance.owner).or_default();
        owned.all.insert(instance.id);
        for (name, value) in &instance.tags {
            let values = owned.tags.entry(name.clone()).or_default();
            values.entry(value.clone()).or_default().insert(instance.id);
        }
        self.instances.insert(instance.id, instance);
        before
    }

    /// Forgets an instance and returns what was known of it.
    pub fn remove(&mut self, id: InstanceId) -> Option<InstanceView> {
        let instance = self.instances.remove(&id)?;
        if let Some(owned) = self.owners.get_mut(&instance.owner) {
            owned.remove(&instance);
            if owned.all.is_empty() {
                self.owners.remove(&instance.owner);
            }
        }
        Some(instance)
    }

    /// What is known of an instance.
    pub fn get(&self, id: InstanceId) -> Option<&InstanceView> {
        self.instances.get(&id)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &InstanceView> {
        self.instances.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.instances.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    /// The instances a key stands for, by id.
    pub fn members(&self, key: &SetKey) -> BTreeSet<InstanceId> {
        self.select(key).map(|instance| instance.id).collect()
    }

    /// The addresses a key stands for.
    pub fn addresses(&self, key: &SetKey) -> AddressSet {
        self.select(key).flat_map(|instance| instance.addresses.iter().copied()).collect()
    }

    fn select<'a>(&'a self, key: &'a SetKey) -> Box<dyn Iterator<Item = &'a InstanceView> + 'a> {
        let ids: Box<dyn Iterator<Item = &InstanceId>> = match (&key.selector, key.scope) {
            (Selector::Vm(id), _) => {
                return Box::new(self.get(*id).filter(|instance| key.matches(instance)).into_iter());
            }
            (selector, Some(owner)) => {
                Box::new(self.owners.get(&owner).into_iter().flat_map(|owned| owned.select(selector)))
            }
            (selector, None) => Box::new(self.owners.values().flat_map(|owned| owned.select(selector))),
        };
        Box::new(ids.filter_map(|id| self.instances.get(id)))
    }

    /// Instances that have an address: several where tenants' networks overlap. Looks at every instance.
    pub fn with_address(&self, address: IpAddr) -> impl Iterator<Item = &InstanceView> {
        self.iter().filter(move |instance| instance.addresses.contains(&address))
    }
}

impl Owned {
    fn remove(&mut self, instance: &InstanceView) {
        self.all.remove(&instance.id);
        for (name, value) in &instance.tags {
            let Some(values) = self.tags.get_mut(name) else { continue };
            if let Some(members) = values.get_mut(value) {
                members.remove(&instance.id);
                if members.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                self.tags.remove(name);
            }
        }
    }

    fn select<'a>(&'a self, selector: &'a Selector) -> Box<dyn Iterator<Item = &'a InstanceId> + 'a> {
        match selector {
            Selector::AllVms => Box::new(self.all.iter()),
            Selector::Vm(id) => Box::new(self.all.get(id).into_iter()),
            Selector::Tag { name, value: None } => {
                Box::new(self.tags.get(name).into_iter().flat_map(BTreeMap::values).flatten())
            }
            Selector::Tag { name, value: Some(value) } => {
                Box::new(self.tags.get(name).and_then(|values| values.get(value)).into_iter().flatten())
            }
        }
    }
}

/// Keys whose addresses may differ when one instance changes from `before` to `after`; `None` is not being there. Documents
/// without a set of one of these keys, on nodes without the instance, stay as they are.
pub fn changed_sets(before: Option<&InstanceView>, after: Option<&InstanceView>) -> BTreeSet<SetKey> {
    let keys =
        |view: Option<&InstanceView>| -> BTreeSet<SetKey> { view.into_iter().flat_map(InstanceView::keys).collect() };
    let addresses = |view: Option<&InstanceView>| -> AddressSet {
        view.into_iter().flat_map(|view| view.addresses.iter().copied()).collect()
    };
    let (old, new) = (keys(before), keys(after));
    if addresses(before) == addresses(after) { &old ^ &new } else { &old | &new }
}
