//! Asking for the end of an instance.

use model::{
    id::InstanceId,
    instance::{Caller, Wanted},
};

use super::{InstanceView, change::with_flow, decide, release};
use crate::{Control, Error, Result, Scope, flows::Destroy};

/// Deletes an instance in whatever state it is. Its addresses and name are free again as soon as its machine says that
/// nothing is left; asking again until then changes nothing, and after that is [`Error::Gone`].
pub async fn delete(control: &Control, caller: &Caller, scope: Scope, id: InstanceId) -> Result<InstanceView> {
    decide(control, scope, id, |snapshot, entry| {
        if entry.deletion_protection {
            return Err(Error::DeletionProtected);
        }
        if entry.delete_asked_at.is_some() {
            return Ok(None);
        }
        let mut instance = entry.value.clone();
        instance.intent.wanted = Wanted::Absent;
        instance.delete_asked_at = Some(control.now());
        if instance.lost_at.is_some() {
            // Its history says so; from here on it is on its way like any other.
            instance.failure = None;
        }
        let mut decision = with_flow::<Destroy>(control, instance, caller, "destroy");
        // What failed and was cleaned up already has nothing left to wait for.
        if decision.instance.released {
            decision.transaction = release::end(snapshot, &mut decision.instance, control.now(), decision.transaction);
        }
        // It leads to less being stored, so it works on a full disk too.
        decision.transaction = decision.transaction.may_use_reserve();
        Ok(Some(decision))
    })
    .await
}
