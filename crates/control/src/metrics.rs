//! Whose instances are watched from outside: those of an account that run now.

use std::sync::Arc;

use model::{
    id::{AccountId, InstanceId, ServerId},
    instance::Instance,
    metrics::groups,
    state::PublicState,
};
use store::Entry;

use crate::{
    Control, instances,
    tables::{BY_OWNER, BY_SERVER, INSTANCES},
};

/// The instances of an account that run, and are in one of `wanted` where that names any.
pub fn watched(control: &Control, owner: AccountId, wanted: &[&str]) -> Vec<Arc<Entry<Instance>>> {
    let snapshot = control.snapshot();
    let found = snapshot.find(&INSTANCES, BY_OWNER, &owner.to_string());
    let is_wanted =
        |instance: &Instance| wanted.is_empty() || groups::of(instance).iter().any(|group| wanted.contains(group));
    found.filter(|instance| runs(control, instance) && is_wanted(instance)).collect()
}

/// The instances of a machine that run.
pub fn watched_on(control: &Control, server: ServerId) -> Vec<Arc<Entry<Instance>>> {
    let snapshot = control.snapshot();
    let found = snapshot.find(&INSTANCES, BY_SERVER, &server.to_string());
    found.filter(|instance| runs(control, instance)).collect()
}

/// The machine of one instance of an account; `None` when the account has no such instance, or it does not run.
pub fn machine_of(control: &Control, owner: AccountId, id: InstanceId) -> Option<ServerId> {
    let instance = control.snapshot().get(&INSTANCES, &id.to_string())?;
    (instance.owner == owner && runs(control, &instance)).then_some(instance.server)
}

fn runs(control: &Control, instance: &Instance) -> bool {
    instances::state_of(control, instance) == PublicState::Running
}
