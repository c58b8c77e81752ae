//! An instance's metadata. The guest may change it too; its changes arrive with the machine's reports.
//!
//! Passwords (`…_pw`) and a few more keys live in a half of their own that tenants see only when they ask for it
//! ([`is_internal_key`]); the guest sees both as one. The line in the history is written when the machine serves the change.

use std::collections::BTreeMap;

use model::{
    id::InstanceId,
    instance::{Caller, Instance, Wanted},
    rules,
    target::is_internal_key,
};
use store::Transaction;

use super::{Decision, InstanceView, change::with_flow, decide, edited, present};
use crate::{Control, Error, Result, Scope, flows};

/// Keys with values.
pub type Metadata = BTreeMap<String, String>;

/// All metadata.
pub fn get(control: &Control, scope: Scope, id: InstanceId) -> Result<Metadata> {
    Ok(present(&control.snapshot(), scope, id)?.metadata.to_map())
}

/// Keys that [`delete_all`] leaves: nobody could log in any more without them.
const KEPT: [&str; 2] = ["administrator_pw", "root_authorized_keys"];

/// Adds keys, or changes those that are there. Keys of the hidden half go there.
pub async fn add(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    metadata: Metadata,
) -> Result<InstanceView> {
    change(control, caller, scope, id, "set_metadata", |open, internal| {
        for (key, value) in metadata.clone() {
            let half = if is_internal_key(&key) { &mut *internal } else { &mut *open };
            half.insert(key, value);
        }
        Ok(())
    })
    .await
}

/// Removes one key.
pub async fn delete_one(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    key: &str,
) -> Result<InstanceView> {
    change(control, caller, scope, id, "remove_metadata", |open, internal| {
        let half = if is_internal_key(key) { internal } else { open };
        half.remove(key).map(|_| ()).ok_or_else(|| Error::not_found("metadata key", key))
    })
    .await
}

/// Removes all metadata the tenant sees, but what logging in needs.
pub async fn delete_all(control: &Control, caller: &Caller, scope: Scope, id: InstanceId) -> Result<InstanceView> {
    change(control, caller, scope, id, "replace_metadata", |open, _| {
        open.retain(|key, _| KEPT.contains(&key.as_str()));
        Ok(())
    })
    .await
}

/// One change of both halves: what tenants see, and what only the guest and operators do.
async fn change(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    action: &str,
    edit: impl Fn(&mut Metadata, &mut Metadata) -> Result<()>,
) -> Result<InstanceView> {
    decide(control, scope, id, |_, entry| {
        let (mut open, mut internal) = (entry.metadata.to_map(), entry.internal_metadata.to_map());
        edit(&mut open, &mut internal)?;
        for half in [&open, &internal] {
            rules::check_metadata(half).map_err(|(field, why)| Error::invalid(field, why))?;
        }
        let mut instance =
            Instance { metadata: open.into(), internal_metadata: internal.into(), ..entry.value.clone() };
        if instance.metadata == entry.metadata && instance.internal_metadata == entry.internal_metadata {
            return Ok(None);
        }
        if instance.released || instance.intent.wanted == Wanted::Absent {
            // No machine serves it any more: nothing to wait for.
            let edit = |edited: &mut Instance| *edited = instance;
            let instance = edited(entry, action, caller, control.now(), edit);
            return Ok(Some(Decision { instance, transaction: Transaction::new() }));
        }
        instance.metadata_edits += 1;
        Ok(Some(with_flow::<flows::Metadata>(control, instance, caller, action)))
    })
    .await
}
