//! An instance's metadata. The guest may change it too; its changes arrive with the machine's reports.

use std::collections::BTreeMap;

use model::{id::InstanceId, instance::Caller, rules};
use store::Transaction;

use super::{Decision, InstanceView, decide, edited, present};
use crate::{Control, Error, Result, Scope};

/// Keys with values.
pub type Metadata = BTreeMap<String, String>;

/// All metadata.
pub fn get(control: &Control, scope: Scope, id: InstanceId) -> Result<Metadata> {
    Ok(present(&control.snapshot(), scope, id)?.metadata.clone())
}

/// Adds keys, or changes those that are there.
pub async fn add(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    metadata: Metadata,
) -> Result<InstanceView> {
    change(control, caller, scope, id, "set_metadata", |present| {
        present.extend(metadata.clone());
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
    change(control, caller, scope, id, "remove_metadata", |present| {
        present.remove(key).map(|_| ()).ok_or_else(|| Error::not_found("metadata key", key))
    })
    .await
}

/// Removes all metadata of the tenant.
pub async fn delete_all(control: &Control, caller: &Caller, scope: Scope, id: InstanceId) -> Result<InstanceView> {
    change(control, caller, scope, id, "remove_metadata", |present| {
        present.clear();
        Ok(())
    })
    .await
}

async fn change(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    action: &str,
    edit: impl Fn(&mut Metadata) -> Result<()>,
) -> Result<InstanceView> {
    decide(control, scope, id, |_, entry| {
        let mut metadata = entry.metadata.clone();
        edit(&mut metadata)?;
        rules::check_metadata(&metadata).map_err(|(field, why)| Error::invalid(field, why))?;
        Ok((metadata != entry.metadata).then(|| Decision {
            instance: edited(entry, action, caller, control.now(), |instance| instance.metadata = metadata),
            transaction: Transaction::new(),
        }))
    })
    .await
}
