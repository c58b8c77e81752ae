//! Instances: asking for them, changing what they should be, and seeing what they are.
//!
//! A verb changes the intent and starts a flow in the same commit; the flow waits for the machine's fact and writes the
//! outcome into the instance's history. What needs no machine (a name, a tag, protection) is one commit with its
//! history entry. The public state is computed, never stored.

mod change;
pub mod changes;
mod create;
mod delete;
pub mod metadata;
pub mod nics;
pub(crate) mod release;
pub mod tags;
mod wanted_nics;

use std::{net::IpAddr, sync::Arc};

use model::{
    account::Account,
    id::{InstanceId, NetworkId},
    instance::{AuditEntry, Brand, Caller, Instance, TagValue},
    names::LABEL_MAX,
    network::{Network, Nic},
    state::{self, PublicState},
    time::Timestamp,
};
use serde::{Serialize, de::DeserializeOwned};
use store::{Entry, Snapshot, Transaction};

use crate::{
    Control, Error, Result, Scope,
    tables::{BY_OWNER, CLAIMS, Claim, INSTANCES, NETWORKS},
};

pub use change::{reboot, rename, resize, set_deletion_protection, set_firewall, start, stop};
pub use create::{CreateInstance, NetworkChoice, create, faults};
pub use delete::delete;

/// Instances one page of a list has at most: CloudAPI's own limit.
pub const PAGE_MAX: usize = 1_000;

/// An instance with what follows from its record.
#[derive(Debug, Clone)]
pub struct InstanceView {
    /// The record.
    pub instance: Arc<Entry<Instance>>,
    /// What the public sees.
    pub state: PublicState,
    /// Its NICs with their networks.
    pub nics: Vec<NicView>,
    /// For [`PublicState::Offline`]: when its machine was last heard of.
    pub last_seen_at: Option<Timestamp>,
}

/// A NIC with what follows from the records.
#[derive(Debug, Clone)]
pub struct NicView {
    /// The NIC.
    pub nic: Nic,
    /// Its network; `None` should the network have vanished.
    pub network: Option<Arc<Entry<Network>>>,
    /// Whether the machine has made it.
    pub state: NicState,
}

/// Condition of a NIC as CloudAPI words it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicState {
    /// The machine has not made it yet.
    Provisioning,
    /// In force.
    Running,
    /// Its instance is stopped.
    Stopped,
}

impl NicState {
    /// CloudAPI's spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

impl InstanceView {
    /// The view of `instance` at one moment.
    pub(crate) fn of(control: &Control, snapshot: &Snapshot, instance: Arc<Entry<Instance>>) -> Self {
        let state = state_of(control, &instance);
        let made = instance.fact.as_ref().map_or(&[][..], |fact| &fact.nics);
        let nics = instance
            .nics
            .iter()
            .map(|nic| NicView {
                network: snapshot.get(&NETWORKS, &nic.network.to_string()),
                state: match state {
                    PublicState::Running if made.contains(&nic.mac) => NicState::Running,
                    PublicState::Running | PublicState::Provisioning => NicState::Provisioning,
                    _ => NicState::Stopped,
                },
                nic: nic.clone(),
            })
            .collect();
        let last_seen_at = match state {
            PublicState::Offline => control.nodes.heard(instance.server).map(|heard| heard.at).or_else(|| {
                snapshot
                    .get(&crate::tables::SERVERS, &instance.server.to_string())
                    .and_then(|server| server.last_seen_at)
            }),
            _ => None,
        };
        Self { instance, state, nics, last_seen_at }
    }

    /// The address the primary NIC is called by.
    pub fn primary_ip(&self) -> Option<IpAddr> {
        self.instance.nics.iter().find(|nic| nic.primary)?.first_address()
    }

    /// Every address, in the order of the NICs.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.instance.nics.iter().flat_map(Nic::addresses)
    }

    /// Every network, in the order of the NICs.
    pub fn networks(&self) -> impl Iterator<Item = NetworkId> {
        self.instance.nics.iter().map(|nic| nic.network)
    }
}

/// Which instances to list; `None` is any.
#[derive(Debug, Clone, Default)]
pub struct InstanceFilter {
    /// Name.
    pub name: Option<String>,
    /// Brand.
    pub brand: Option<Brand>,
    /// Image.
    pub image: Option<model::id::ImageId>,
    /// Name of the package.
    pub package: Option<String>,
    /// MiB of memory.
    pub memory: Option<u64>,
    /// State; deleted ones are only listed when it is asked for, or by `tombstone_ms`.
    pub state: Option<PublicState>,
    /// States of which one must match, when there are several that mean the same to the caller.
    pub states: Vec<PublicState>,
    /// Tags with their values as text, `*` for any value.
    pub tags: Vec<(String, String)>,
    /// Also those deleted within so many milliseconds.
    pub tombstone_ms: Option<i64>,
}

/// The instance with an id. A deleted one is [`Error::Gone`] with its last record, for as long as that is kept.
pub fn get(control: &Control, scope: Scope, id: InstanceId) -> Result<InstanceView> {
    let snapshot = control.snapshot();
    let instance = present(&snapshot, scope, id)?;
    Ok(InstanceView::of(control, &snapshot, instance))
}

/// The instance with an id, deleted or not.
pub fn get_even_deleted(control: &Control, scope: Scope, id: InstanceId) -> Result<InstanceView> {
    let snapshot = control.snapshot();
    let instance = recorded(&snapshot, scope, id)?;
    Ok(InstanceView::of(control, &snapshot, instance))
}

/// The view of a record that is at hand already, e.g. out of [`Error::Gone`].
pub fn view(control: &Control, instance: Arc<Entry<Instance>>) -> InstanceView {
    InstanceView::of(control, &control.snapshot(), instance)
}

/// The state the public sees, of a record that is at hand already.
pub fn state_of(control: &Control, instance: &Instance) -> PublicState {
    state::public(instance, control.nodes.reachability(instance.server, control.now()))
}

/// Instances of one account, or of all, that pass `filter`, in the order of their ids: `limit` (at most [`PAGE_MAX`]) from
/// `offset` on.
pub fn list(
    control: &Control,
    scope: Scope,
    filter: &InstanceFilter,
    limit: usize,
    offset: usize,
) -> Vec<InstanceView> {
    let snapshot = control.snapshot();
    let now = control.now();
    // A name is unique among an owner's present instances: no need to look at the others.
    if let (Scope::Account(owner), Some(name), None, None) = (scope, &filter.name, filter.state, filter.tombstone_ms) {
        let held = snapshot.get(&CLAIMS, &Claim::alias(owner, name));
        let found = held.and_then(|claim| snapshot.get(&INSTANCES, &claim.holder));
        let views = found.filter(|instance| may_pass(instance, filter, now)).into_iter();
        let views = views.map(|instance| InstanceView::of(control, &snapshot, instance));
        return views.filter(|view| has_state(view.state, filter)).skip(offset).take(limit).collect();
    }
    let candidates: Box<dyn Iterator<Item = Arc<Entry<Instance>>>> = match scope {
        Scope::Account(owner) => Box::new(snapshot.find(&INSTANCES, BY_OWNER, &owner.to_string())),
        Scope::All => Box::new(snapshot.scan(&INSTANCES)),
    };
    candidates
        .filter(|instance| may_pass(instance, filter, now) && has_state(state_of(control, instance), filter))
        .skip(offset)
        .take(limit.min(PAGE_MAX))
        .map(|instance| InstanceView::of(control, &snapshot, instance))
        .collect()
}

/// The history of an instance, newest first; a deleted one has it too.
pub fn audit(control: &Control, scope: Scope, id: InstanceId) -> Result<Vec<AuditEntry>> {
    let instance = recorded(&control.snapshot(), scope, id)?;
    Ok(instance.history.iter().rev().cloned().collect())
}

/// Everything but the state.
fn may_pass(instance: &Instance, filter: &InstanceFilter, now: Timestamp) -> bool {
    let deleted_passes = |at: Timestamp| {
        filter.state == Some(PublicState::Deleted)
            || filter.states.contains(&PublicState::Deleted)
            || filter.tombstone_ms.is_some_and(|within| now.0.saturating_sub(at.0) <= within)
    };
    instance.deleted_at.is_none_or(deleted_passes)
        && filter.name.as_ref().is_none_or(|name| instance.alias == *name)
        && filter.brand.is_none_or(|brand| instance.brand == brand)
        && filter.image.is_none_or(|image| instance.image == image)
        && filter.package.as_ref().is_none_or(|package| instance.package_name == *package)
        && filter.memory.is_none_or(|memory| instance.limits.memory.0 == memory)
        && filter
            .tags
            .iter()
            .all(|(key, value)| instance.tags.get(key).is_some_and(|tag| value == "*" || tag_text(tag) == *value))
}

fn has_state(state: PublicState, filter: &InstanceFilter) -> bool {
    // A tombstone that was asked for passes whatever state was asked for beside it only if that is its state.
    filter.state.is_none_or(|wanted| wanted == state) && (filter.states.is_empty() || filter.states.contains(&state))
}

/// A tag's value as a query writes it.
pub(crate) fn tag_text(value: &TagValue) -> String {
    match value {
        TagValue::Bool(value) => value.to_string(),
        TagValue::Number(value) => value.to_string(),
        TagValue::Text(value) => value.clone(),
    }
}

/// Whether an instance's name can be a label of DNS, when its owner's instances have such names.
pub(crate) fn check_label(owner: &Account, alias: &str) -> Result<(), String> {
    if owner.names_enabled && alias.len() > LABEL_MAX {
        return Err(format!(
            "has {} characters; at most {LABEL_MAX} are allowed while triton_cns_enabled is set for the account",
            alias.len()
        ));
    }
    Ok(())
}

/// The record, deleted or not, if `scope` covers it.
pub(crate) fn recorded(snapshot: &Snapshot, scope: Scope, id: InstanceId) -> Result<Arc<Entry<Instance>>> {
    snapshot
        .get(&INSTANCES, &id.to_string())
        .filter(|instance| scope.covers(instance.owner))
        .ok_or_else(|| Error::not_found("instance", id))
}

/// The record of an instance that is not deleted, if `scope` covers it.
pub(crate) fn present(snapshot: &Snapshot, scope: Scope, id: InstanceId) -> Result<Arc<Entry<Instance>>> {
    let instance = recorded(snapshot, scope, id)?;
    if instance.deleted_at.is_some() { Err(Error::Gone(instance)) } else { Ok(instance) }
}

/// One decision about an instance: what becomes of the record, and what else changes with it.
pub(crate) struct Decision {
    pub(crate) instance: Instance,
    pub(crate) transaction: Transaction,
}

/// Decides on the newest record until the store takes it. `decide` returns `None` when nothing is to be done.
pub(crate) async fn decide(
    control: &Control,
    scope: Scope,
    id: InstanceId,
    mut decide: impl FnMut(&Snapshot, &Arc<Entry<Instance>>) -> Result<Option<Decision>>,
) -> Result<InstanceView> {
    let decided = decide_on(control, scope, id, |snapshot, entry| Ok((decide(snapshot, entry)?, ())));
    decided.await.map(|(view, ())| view)
}

/// The same for decisions that make something: what `decide` returns beside the decision comes back with the view, also when the call
/// is repeated ([`Control::update`]).
pub(crate) async fn decide_on<R: Serialize + DeserializeOwned>(
    control: &Control,
    scope: Scope,
    id: InstanceId,
    mut decide: impl FnMut(&Snapshot, &Arc<Entry<Instance>>) -> Result<(Option<Decision>, R)>,
) -> Result<(InstanceView, R)> {
    let (_, made) = control
        .update(|snapshot| {
            let entry = present(snapshot, scope, id)?;
            let (decision, made) = decide(snapshot, &entry)?;
            let transaction = match decision {
                Some(decision) => decision.transaction.replace(&INSTANCES, &entry, decision.instance),
                None => Transaction::new(),
            };
            Ok::<_, Error>((transaction, made))
        })
        .await?;
    let snapshot = control.snapshot();
    // A delete that finished in between shows the tombstone rather than an error: the change was made.
    let instance = recorded(&snapshot, scope, id)?;
    Ok((InstanceView::of(control, &snapshot, instance), made))
}

/// A copy of the record with a change that needs no machine: written to the history at once.
pub(crate) fn edited(
    entry: &Entry<Instance>,
    action: &str,
    caller: &Caller,
    now: Timestamp,
    edit: impl FnOnce(&mut Instance),
) -> Instance {
    let mut instance = entry.value.clone();
    edit(&mut instance);
    instance.updated_at = now;
    instance.record(AuditEntry {
        action: action.to_owned(),
        success: true,
        time: now,
        caller: caller.clone(),
        error: None,
        timeline: Vec::new(),
    });
    instance
}
