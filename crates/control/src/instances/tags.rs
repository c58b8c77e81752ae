//! An instance's tags.

use std::collections::BTreeMap;

use model::{
    id::InstanceId,
    instance::{Caller, TagValue},
    pairs::Pairs,
    rules,
};
use store::Transaction;

use super::{Decision, InstanceView, decide, edited, present};
use crate::{Control, Error, Result, Scope};

/// Names with values.
pub type Tags = BTreeMap<String, TagValue>;

/// All tags.
pub fn get(control: &Control, scope: Scope, id: InstanceId) -> Result<Tags> {
    Ok(present(&control.snapshot(), scope, id)?.tags.to_map())
}

/// Adds tags, or changes those that are there.
pub async fn add(control: &Control, caller: &Caller, scope: Scope, id: InstanceId, tags: Tags) -> Result<InstanceView> {
    change(control, caller, scope, id, "set_tags", |present| {
        present.extend(tags.clone());
        Ok(())
    })
    .await
}

/// Has exactly these tags.
pub async fn replace(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    tags: Tags,
) -> Result<InstanceView> {
    change(control, caller, scope, id, "replace_tags", |present| {
        present.clone_from(&tags);
        Ok(())
    })
    .await
}

/// Removes one tag.
pub async fn delete_one(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    tag: &str,
) -> Result<InstanceView> {
    change(control, caller, scope, id, "remove_tags", |present| {
        present.remove(tag).map(|_| ()).ok_or_else(|| Error::not_found("tag", tag))
    })
    .await
}

/// Removes all tags.
pub async fn delete_all(control: &Control, caller: &Caller, scope: Scope, id: InstanceId) -> Result<InstanceView> {
    change(control, caller, scope, id, "remove_tags", |present| {
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
    edit: impl Fn(&mut Tags) -> Result<()>,
) -> Result<InstanceView> {
    decide(control, scope, id, |_, entry| {
        let mut tags = entry.tags.to_map();
        edit(&mut tags)?;
        rules::check_tags(&tags).map_err(|(field, why)| Error::invalid(field, why))?;
        let tags = Pairs::from(tags);
        Ok((tags != entry.tags).then(|| Decision {
            instance: edited(entry, action, caller, control.now(), |instance| instance.tags = tags),
            transaction: Transaction::new(),
        }))
    })
    .await
}
