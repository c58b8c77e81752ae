//! Tenants' VLANs and the numbers they have in the datacenter.

use std::{ops::RangeInclusive, sync::Arc};

use model::{
    address::first_gap,
    id::AccountId,
    network::{FABRIC_VLAN_MAX, FabricVlan},
    rules,
};
use store::{Entry, Snapshot, Transaction};

use crate::{
    Control, Error, Result,
    error::{Faults, counted},
    networks::{allocate, check_description},
    tables::{BY_VNI, CLAIMS, Claim, NETWORKS, VLANS, vlan_key},
};

/// What a new VLAN is made of; see [`FabricVlan`] for the fields.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct NewVlan {
    pub vlan: u16,
    pub name: String,
    pub description: Option<String>,
}

/// What changes of a VLAN; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct VlanChange {
    pub name: Option<String>,
    pub description: Option<String>,
}

/// Makes a VLAN of `owner`'s.
pub async fn vlan_create(control: &Control, owner: AccountId, new: NewVlan) -> Result<Arc<Entry<FabricVlan>>> {
    let mut faults = Faults::default();
    if new.vlan > FABRIC_VLAN_MAX {
        faults.check("vlan_id", Err(format!("must be between 0 and {FABRIC_VLAN_MAX}")));
    }
    check(&new.name, new.description.as_deref(), &mut faults);
    faults.finish()?;
    let now = control.now();
    control
        .update(|snapshot| {
            if snapshot.contains(&VLANS, &vlan_key(owner, new.vlan)) {
                return Err(Error::AlreadyExists { what: "VLAN", name: new.vlan.to_string() });
            }
            let vnis = &control.config.fabric.vnis;
            let (vni, transaction) = take_vni(vnis, snapshot, owner, new.vlan, Transaction::new())?;
            let vlan = FabricVlan {
                owner,
                vlan: new.vlan,
                name: new.name.clone(),
                description: new.description.clone(),
                vni,
                created_at: now,
            };
            Ok((transaction.create(&VLANS, vlan), ()))
        })
        .await?;
    vlan_get(control, owner, new.vlan)
}

/// The VLAN of `owner`'s with a number.
pub fn vlan_get(control: &Control, owner: AccountId, vlan: u16) -> Result<Arc<Entry<FabricVlan>>> {
    recorded(&control.snapshot(), owner, vlan)
}

/// The VLANs of `owner`, or of everybody, in the order of their numbers.
pub fn vlan_list(control: &Control, owner: Option<AccountId>) -> Vec<Arc<Entry<FabricVlan>>> {
    let snapshot = control.snapshot();
    match owner {
        Some(owner) => {
            let own = snapshot.range(&VLANS, &format!("{owner}/"));
            own.take_while(|vlan| vlan.owner == owner).collect()
        }
        None => snapshot.scan(&VLANS).collect(),
    }
}

/// Renames or describes a VLAN.
pub async fn vlan_update(
    control: &Control,
    owner: AccountId,
    vlan: u16,
    change: VlanChange,
) -> Result<Arc<Entry<FabricVlan>>> {
    control
        .update(|snapshot| {
            let entry = recorded(snapshot, owner, vlan)?;
            let changed = FabricVlan {
                name: change.name.clone().unwrap_or_else(|| entry.name.clone()),
                description: change.description.clone().or_else(|| entry.description.clone()),
                ..entry.value.clone()
            };
            let mut faults = Faults::default();
            check(&changed.name, changed.description.as_deref(), &mut faults);
            faults.finish()?;
            Ok::<_, Error>((Transaction::new().replace(&VLANS, &entry, changed), ()))
        })
        .await?;
    vlan_get(control, owner, vlan)
}

/// Deletes a VLAN without networks, and gives its number back.
pub async fn vlan_delete(control: &Control, owner: AccountId, vlan: u16) -> Result<()> {
    control
        .update(|snapshot| {
            let entry = recorded(snapshot, owner, vlan)?;
            let networks = snapshot.find(&NETWORKS, BY_VNI, &entry.vni.to_string()).count();
            if networks > 0 {
                let networks = counted(networks, "network");
                return Err(Error::InUse(format!("VLAN {vlan} has {networks}; delete what is on it first")));
            }
            let transaction = Transaction::new().delete(&VLANS, &entry);
            Ok(match snapshot.get(&CLAIMS, &Claim::vni(entry.vni)) {
                Some(claim) => (transaction.delete(&CLAIMS, &claim), ()),
                None => (transaction, ()),
            })
        })
        .await?;
    Ok(())
}

/// Takes a number nobody has for VLAN `vlan` of `owner`: the first free one from a random one on.
pub(super) fn take_vni(
    vnis: &RangeInclusive<u32>,
    snapshot: &Snapshot,
    owner: AccountId,
    vlan: u16,
    transaction: Transaction,
) -> Result<(u32, Transaction)> {
    let (first, last) = (*vnis.start(), *vnis.end());
    let count = last.saturating_sub(first).saturating_add(1);
    let middle = first + allocate::chance() % count;
    let free = free_vni(snapshot, middle, last).or_else(|| free_vni(snapshot, first, middle));
    let vni = free.ok_or(Error::NoVni { count })?;
    let claim = Claim { name: Claim::vni(vni), holder: vlan_key(owner, vlan) };
    Ok((vni, transaction.create(&CLAIMS, claim)))
}

fn free_vni(snapshot: &Snapshot, first: u32, last: u32) -> Option<u32> {
    let taken = snapshot.range(&CLAIMS, &Claim::vni(first.saturating_sub(1)));
    let numbers = taken.map_while(|claim| claim.name.strip_prefix(Claim::VNI)?.parse::<u128>().ok());
    first_gap(first.into(), last.into(), numbers, |_| true).and_then(|vni| u32::try_from(vni).ok())
}

/// The record of a VLAN.
pub(super) fn recorded(snapshot: &Snapshot, owner: AccountId, vlan: u16) -> Result<Arc<Entry<FabricVlan>>> {
    snapshot.get(&VLANS, &vlan_key(owner, vlan)).ok_or_else(|| Error::not_found("VLAN", vlan))
}

fn check(name: &str, description: Option<&str>, faults: &mut Faults) {
    faults.check("name", rules::check_name(name));
    check_description(description, faults);
}
