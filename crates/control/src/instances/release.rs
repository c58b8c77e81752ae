//! Giving back what an instance holds: addresses, Ethernet addresses, its share of the machine, its name.
//!
//! Done in the very commit that learns from the machine that nothing is left, so there is no moment at which an address
//! is free while something may still use it, and none at which it is held by nothing. Repeating it changes nothing.

use model::{
    instance::{Instance, Wanted},
    placement::Demand,
    time::Timestamp,
};
use store::{Snapshot, Transaction};

use crate::{
    networks::allocate,
    tables::{CLAIMS, Claim},
};

/// Whether `instance` is to be gone and still holds something, a name for its tombstone among it.
pub(crate) fn is_wanted(instance: &Instance) -> bool {
    let holds = !instance.released || (instance.delete_asked_at.is_some() && instance.deleted_at.is_none());
    instance.intent.wanted == Wanted::Absent && holds
}

/// Gives everything back, and turns a deleted instance into its tombstone. A failed one keeps name and record until its
/// tenant deletes it. Also returns what its machine need not promise any more, which the caller writes down.
pub(crate) fn release(
    snapshot: &Snapshot,
    instance: &mut Instance,
    now: Timestamp,
    mut transaction: Transaction,
) -> (Option<Demand>, Transaction) {
    let mut freed = None;
    if !instance.released {
        transaction = allocate::give_back(snapshot, instance.id, &[], transaction);
        freed = Some(Demand::of(&instance.limits));
        instance.released = true;
    }
    if instance.delete_asked_at.is_some() && instance.deleted_at.is_none() {
        transaction = end(snapshot, instance, now, transaction);
    }
    (freed, transaction)
}

/// Turns a released instance into its tombstone and frees its name.
pub(crate) fn end(
    snapshot: &Snapshot,
    instance: &mut Instance,
    now: Timestamp,
    transaction: Transaction,
) -> Transaction {
    instance.deleted_at = Some(now);
    instance.updated_at = now;
    match snapshot.get(&CLAIMS, &Claim::alias(instance.owner, &instance.alias)) {
        Some(claim) if claim.holder == instance.id.to_string() => transaction.delete(&CLAIMS, &claim),
        _ => transaction,
    }
}
