//! Giving back what an instance holds: addresses, Ethernet addresses, its share of the machine, its name.
//!
//! Done in the very commit that learns from the machine that nothing is left, so there is no moment at which an address
//! is free while something may still use it, and none at which it is held by nothing. Repeating it changes nothing.

use model::{
    instance::{Instance, Wanted},
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
/// tenant deletes it. What its machine held for it is the caller's to write down.
pub(crate) fn release(
    snapshot: &Snapshot,
    instance: &mut Instance,
    now: Timestamp,
    mut transaction: Transaction,
) -> Transaction {
    if !instance.released {
        transaction = allocate::give_back(snapshot, instance.id, &[], transaction);
        instance.released = true;
    }
    if instance.delete_asked_at.is_some() && instance.deleted_at.is_none() {
        transaction = end(snapshot, instance, now, transaction);
    }
    transaction
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
