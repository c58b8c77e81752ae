//! NIC tags: the wires networks lie on, and how large a frame each carries.
//!
//! A tag comes to be with the first network on it, or before, when it carries more than ordinary frames. Networks of a store
//! that is older than the tags' table have tags all the same; they are listed as if they had been made then.

use std::{collections::BTreeMap, sync::Arc};

use model::{
    network::{Network, NicTag},
    rules,
};
use store::{Entry, Snapshot, Transaction};

use super::check_description;
use crate::{
    Control, Error, FieldCode, Result,
    error::{Faults, counted},
    tables::{NETWORKS, NIC_TAGS},
};

/// Bytes of a frame's content that every tag carries.
pub const MTU_MIN: u16 = 1_500;
/// Bytes of a frame's content that a tag carries at most.
pub const MTU_MAX: u16 = 9_000;

/// A NIC tag and who is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagView {
    /// The tag.
    pub tag: NicTag,
    /// Names of the networks on it.
    pub networks: Vec<String>,
}

/// Makes a tag.
pub async fn create(control: &Control, name: &str, mtu: u16, description: Option<String>) -> Result<TagView> {
    let mut faults = Faults::default();
    faults.check("name", rules::check_nic_tag(name));
    check_mtu(mtu, &mut faults);
    check_description(description.as_deref(), &mut faults);
    faults.finish()?;
    let tag = NicTag { name: name.to_owned(), mtu, description, created_at: control.now() };
    control
        .store
        .update(|snapshot| {
            if found(snapshot, name).is_some() {
                return Err(Error::AlreadyExists { what: "NIC tag", name: name.to_owned() });
            }
            Ok((Transaction::new().create(&NIC_TAGS, tag.clone()), ()))
        })
        .await?;
    get(control, name)
}

/// The tag with a name.
pub fn get(control: &Control, name: &str) -> Result<TagView> {
    let snapshot = control.snapshot();
    let tag = found(&snapshot, name).ok_or_else(|| Error::not_found("NIC tag", name))?;
    Ok(TagView { networks: on(&snapshot, name).iter().map(|network| network.name.clone()).collect(), tag })
}

/// Every tag, by name.
pub fn list(control: &Control) -> Vec<TagView> {
    let snapshot = control.snapshot();
    let view = |tag: NicTag| (tag.name.clone(), TagView { tag, networks: Vec::new() });
    let mut views: BTreeMap<String, TagView> = snapshot.scan(&NIC_TAGS).map(|tag| view(tag.value.clone())).collect();
    for network in snapshot.scan(&NETWORKS).filter(|network| network.fabric.is_none()) {
        let seen = views.entry(network.nic_tag.clone()).or_insert_with(|| view(implied(&network)).1);
        seen.networks.push(network.name.clone());
    }
    views.into_values().collect()
}

/// Changes how large a frame a tag carries; never below what its networks need.
pub async fn set_mtu(control: &Control, name: &str, mtu: u16) -> Result<TagView> {
    let mut faults = Faults::default();
    check_mtu(mtu, &mut faults);
    faults.finish()?;
    control
        .store
        .update(|snapshot| {
            let tag = found(snapshot, name).ok_or_else(|| Error::not_found("NIC tag", name))?;
            if let Some(network) = on(snapshot, name).into_iter().find(|network| network.mtu > mtu) {
                let why = format!("network \"{}\" on this tag has an MTU of {}", network.name, network.mtu);
                return Err(Error::field("mtu", FieldCode::Conflict, why));
            }
            let changed = NicTag { mtu, ..tag };
            let transaction = Transaction::new();
            let transaction = match snapshot.get(&NIC_TAGS, name) {
                Some(entry) => transaction.replace(&NIC_TAGS, &entry, changed),
                None => transaction.create(&NIC_TAGS, changed),
            };
            Ok((transaction, ()))
        })
        .await?;
    get(control, name)
}

/// Forgets a tag no network is on.
pub async fn delete(control: &Control, name: &str) -> Result<()> {
    control
        .store
        .update(|snapshot| {
            let users = on(snapshot, name).len();
            if users > 0 {
                return Err(Error::InUse(format!("NIC tag \"{name}\" carries {}", counted(users, "network"))));
            }
            let tag = snapshot.get(&NIC_TAGS, name).ok_or_else(|| Error::not_found("NIC tag", name))?;
            Ok((Transaction::new().delete(&NIC_TAGS, &tag), ()))
        })
        .await?;
    Ok(())
}

/// Sees to it that there is a tag for `network` that carries its frames.
pub(super) fn with_tag(snapshot: &Snapshot, network: &Network, transaction: Transaction) -> Result<Transaction> {
    let Some(tag) = snapshot.get(&NIC_TAGS, &network.nic_tag) else {
        return Ok(transaction.create(&NIC_TAGS, implied(network)));
    };
    if network.mtu > tag.mtu {
        let why = format!("NIC tag \"{}\" carries {} bytes at most; raise its MTU first", tag.name, tag.mtu);
        return Err(Error::field("mtu", FieldCode::Conflict, why));
    }
    Ok(transaction.require(&NIC_TAGS, &tag))
}

fn found(snapshot: &Snapshot, name: &str) -> Option<NicTag> {
    let made = snapshot.get(&NIC_TAGS, name).map(|tag| tag.value.clone());
    made.or_else(|| on(snapshot, name).iter().map(|network| implied(network)).max_by_key(|tag| tag.mtu))
}

fn on(snapshot: &Snapshot, name: &str) -> Vec<Arc<Entry<Network>>> {
    snapshot.scan(&NETWORKS).filter(|network| network.nic_tag == name).collect()
}

/// The tag that a network on it speaks of.
fn implied(network: &Network) -> NicTag {
    NicTag {
        name: network.nic_tag.clone(),
        mtu: network.mtu.max(MTU_MIN),
        description: None,
        created_at: network.created_at,
    }
}

fn check_mtu(mtu: u16, faults: &mut Faults) {
    if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
        faults.check("mtu", Err(format!("must be between {MTU_MIN} and {MTU_MAX} bytes, not {mtu}")));
    }
}
