//! Which rules there are, which of them an instance has, and which instances a rule has.
//!
//! Lists show disabled rules and instances whose firewall is off too: they answer "what would happen", and say of each whether it does.

use std::sync::Arc;

use model::{
    firewall::{FirewallRule, InstanceView as Filtered},
    id::{FirewallRuleId, InstanceId},
    instance::Instance,
};
use store::{Entry, Snapshot};

use super::{by_age, find};
use crate::{
    Control, Result, Scope,
    instances::{self, InstanceView},
    tables::{BY_OWNER, FIREWALL_RULES, INSTANCES, rule_owner},
};

/// Rules of an account, without the global ones; every rule for operators. Oldest first.
pub fn list(control: &Control, scope: Scope) -> Vec<Arc<Entry<FirewallRule>>> {
    let snapshot = control.snapshot();
    let mut rules: Vec<_> = match scope {
        Scope::Account(owner) => snapshot.find(&FIREWALL_RULES, BY_OWNER, &rule_owner(Some(owner))).collect(),
        Scope::All => snapshot.scan(&FIREWALL_RULES).collect(),
    };
    rules.sort_by_key(by_age);
    rules
}

/// Rules on one of whose sides an instance is: its owner's and the global ones.
pub fn of_instance(control: &Control, scope: Scope, id: InstanceId) -> Result<Vec<Arc<Entry<FirewallRule>>>> {
    let snapshot = control.snapshot();
    let instance = instances::present(&snapshot, scope, id)?;
    let view = filtered(&instance);
    let of = |owner| snapshot.find(&FIREWALL_RULES, BY_OWNER, &rule_owner(owner));
    let mut rules: Vec<_> = of(Some(instance.owner)).chain(of(None)).filter(|rule| rule.sides(&view).any()).collect();
    rules.sort_by_key(by_age);
    Ok(rules)
}

/// Instances in scope on one of a rule's sides, by their age.
pub fn whom(control: &Control, scope: Scope, id: FirewallRuleId) -> Result<Vec<InstanceView>> {
    let snapshot = control.snapshot();
    let rule = find(&snapshot, scope, id)?;
    let owner = match scope {
        Scope::Account(account) => Some(account),
        Scope::All => rule.owner,
    };
    let candidates = candidates(&snapshot, owner);
    let mut found: Vec<_> = candidates
        .into_iter()
        .filter(|instance| instance.deleted_at.is_none() && !instance.released && rule.sides(&filtered(instance)).any())
        .collect();
    found.sort_by_key(|instance| (instance.created_at, instance.id));
    Ok(found.into_iter().map(|instance| InstanceView::of(control, &snapshot, instance)).collect())
}

fn candidates(snapshot: &Snapshot, owner: Option<model::id::AccountId>) -> Vec<Arc<Entry<Instance>>> {
    match owner {
        Some(owner) => snapshot.find(&INSTANCES, BY_OWNER, &owner.to_string()).collect(),
        None => snapshot.scan(&INSTANCES).collect(),
    }
}

fn filtered(instance: &Instance) -> Filtered {
    let addresses = instance.nics.iter().flat_map(model::network::Nic::addresses).collect();
    Filtered::new(instance.id, instance.owner, &instance.tags, addresses, instance.firewall_enabled)
}
