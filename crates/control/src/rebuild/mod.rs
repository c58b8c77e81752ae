//! After a restore: what machines have, and what a backup knows, become one again.
//!
//! A backup is older than what machines have. Instances made since are known to their machines alone; instances deleted since are known
//! to the backup alone, and a machine that is told of one would make it anew, empty, from its image. So a restore marks every
//! server ([`Server::restored`]), and a marked one is told nothing: its machine goes on with the document it holds, firewall, peers and
//! all.
//!
//! ```text
//!  restored ─► reports ─► what it has no more is marked lost ─► nobody has strangers? told again
//!                                                            └─ some have: an operator looks, then they are adopted
//! ```
//! *Lost* ([`Instance::is_lost`]) is no order to destroy: should the machine have it after all, its next report takes the mark away.
//!
//! All machines are told again together, as far as they have spoken: one machine's firewall and fabrics refer to instances on
//! others, and would forget those not yet adopted. A machine that stays silent holds up the others until an operator says to go
//! on without it.
//!
//! A machine whose datacenter is no more comes the same way, by an invitation that allows it: it is marked as after a restore, of a backup that knows
//! nothing of it.
//!
//! An instance is *adopted* ([`adopt`]) from what its machine was told of it last ([`LastTold`]): one commit makes the records that
//! would have told the machine just that, so that nothing changes there. Rules of the firewall that it enforces and the records lack come back the
//! same way ([`adopt_rule`]). Whoever runs a headnode asks each machine for them once it has spoken; until then nothing goes on by itself.

mod adopt;
mod missing;
mod rules;

use std::collections::BTreeSet;

use model::{
    id::{InstanceId, ServerId},
    instance::{AuditEntry, Caller, Instance, Wanted},
    server::{Restored, Server},
    target::{Report, ZoneFact, ZoneState},
    time::Timestamp,
};
use store::{Entry, Snapshot, Transaction};

pub use adopt::{Judgement, adopt, judge};
pub use rules::{RuleJudgement, adopt_rule, judge_rule, not_asked_for_rules, rules_compared};

use crate::{
    Control, Error, Result,
    tables::{BY_SERVER, INSTANCES, SERVERS},
};

/// Why a lost instance is in state `failed`.
pub const LOST: &str = "it was lost, or deleted after the backup this datacenter was restored from; delete it, and create it again if it is needed";

/// Instances marked in one commit.
const LOST_PER_COMMIT: usize = 24;

/// From which report on a machine counts as having looked at itself, when it holds no document: an agent that starts says
/// what it was told of at once, and finds the rest within its first words.
const LOOKED_AFTER: u64 = 3;

/// Whether there is something of an instance on its machine that stays.
pub(crate) fn is_there(fact: &ZoneFact) -> bool {
    !matches!(fact.state, ZoneState::Absent | ZoneState::Removing)
}

/// Takes the mark of a lost instance away: its machine has it.
pub(crate) fn found(instance: &mut Instance, now: Timestamp) {
    instance.lost_at = None;
    if instance.failure.as_deref() == Some(LOST) {
        instance.failure = None;
    }
    noted(instance, Caller::System, "found", None, now);
}

fn noted(instance: &mut Instance, caller: Caller, action: &str, error: Option<&str>, now: Timestamp) {
    instance.updated_at = now;
    instance.record(AuditEntry {
        action: action.to_owned(),
        success: error.is_none(),
        time: now,
        caller,
        error: error.map(str::to_owned),
        timeline: Vec::new(),
    });
}

/// Compares the records of a restored store with what a machine says. Costs nothing when there was no restore.
pub(crate) async fn compare(control: &Control, id: ServerId, report: &Report) -> Result<()> {
    let snapshot = control.snapshot();
    let Some(server) = snapshot.get(&SERVERS, &id.to_string()).filter(|server| server.restored.is_some()) else {
        return Ok(());
    };
    if report.target_seen == 0 && report.sequence < LOOKED_AFTER {
        return Ok(());
    }
    let lost: Vec<InstanceId> = snapshot
        .find(&INSTANCES, BY_SERVER, &id.to_string())
        .filter(|entry| is_missing(entry, report))
        .map(|entry| entry.id)
        .collect();
    for some in lost.chunks(LOST_PER_COMMIT) {
        let now = control.now();
        let marking = control.store.update(|snapshot| Ok::<_, Error>((mark_lost(snapshot, some, report, now), ())));
        marking.await?;
    }
    if !lost.is_empty() {
        tracing::warn!(server = %id, count = lost.len(), "instances of the backup are not on their machine any more; they are marked as failed");
    }
    let strangers = control.nodes.heard(id).map_or(0, |heard| heard.strangers.len());
    let is_said =
        |server: &Server| server.restored.is_none_or(|restored| restored.compared && restored.strangers == strangers);
    if !is_said(&server) {
        control
            .store
            .update(|snapshot| {
                let Some(entry) = snapshot.get(&SERVERS, &id.to_string()).filter(|entry| !is_said(entry)) else {
                    return Ok::<_, Error>((Transaction::new(), ()));
                };
                let restored = entry.restored.map(|restored| Restored { compared: true, strangers, ..restored });
                let said = Server { restored, target_seen: report.target_seen, ..entry.value.clone() };
                Ok((Transaction::new().may_use_reserve().replace(&SERVERS, &entry, said), ()))
            })
            .await?;
    }
    if is_at_rest(&control.snapshot(), control.config.asks_for_rules) {
        go_on(control, None).await?;
    }
    Ok(())
}

/// Whether the backup knows an instance that `report` of its machine does not.
fn is_missing(instance: &Instance, report: &Report) -> bool {
    let is_meant = instance.intent.wanted != Wanted::Absent && !instance.released && instance.lost_at.is_none();
    is_meant && !report.zones.get(&instance.id).is_some_and(|fact| is_there(fact))
}

fn mark_lost(snapshot: &Snapshot, some: &[InstanceId], report: &Report, now: Timestamp) -> Transaction {
    let entries = some.iter().filter_map(|id| snapshot.get(&INSTANCES, &id.to_string()));
    let missing = entries.filter(|entry| entry.server == report.server && is_missing(entry, report));
    missing.fold(Transaction::new().may_use_reserve(), |transaction, entry| {
        let mut instance = entry.value.clone();
        instance.lost_at = Some(now);
        instance.failure = Some(LOST.to_owned());
        noted(&mut instance, Caller::System, "lost", Some(LOST), now);
        transaction.replace(&INSTANCES, &entry, instance)
    })
}

/// Whether every machine that holds something up has spoken, and nothing is left to decide.
fn is_at_rest(snapshot: &Snapshot, asks_for_rules: bool) -> bool {
    // One without instances, like the machine of a headnode that was lost, may be gone for good.
    let is_needed = |server: &Entry<Server>| {
        !(server.headnode || server.headnode_role.is_some())
            || snapshot.find(&INSTANCES, BY_SERVER, &server.id.to_string()).next().is_some()
    };
    snapshot.scan(&SERVERS).all(|server| match server.restored {
        None => true,
        Some(restored) if restored.compared => is_settled(restored, asks_for_rules),
        Some(_) => !is_needed(&server),
    })
}

/// Whether nothing is left to decide of what a machine has that has spoken.
fn is_settled(restored: Restored, asks_for_rules: bool) -> bool {
    restored.strangers == 0 && (!asks_for_rules || restored.rules == Some(0))
}

/// Tells machines again that have spoken since the restore, from above what each has seen: those in `looked_at`, of which somebody knows all that they
/// have; else those of which nothing is left to decide. All others are told nothing until their turn comes. Returns how many.
pub async fn go_on(control: &Control, looked_at: Option<&BTreeSet<ServerId>>) -> Result<usize> {
    let is_ready = |server: &Server, restored: Restored| match looked_at {
        Some(looked_at) => looked_at.contains(&server.id),
        None => is_settled(restored, control.config.asks_for_rules),
    };
    let is_meant =
        |server: &Server| server.restored.is_some_and(|restored| restored.compared && is_ready(server, restored));
    let snapshot = control.snapshot();
    let servers: Vec<ServerId> = snapshot.scan(&SERVERS).filter(|server| is_meant(server)).map(|it| it.id).collect();
    for id in &servers {
        control
            .store
            .update(|snapshot| {
                let Some(entry) = snapshot.get(&SERVERS, &id.to_string()).filter(|entry| is_meant(entry)) else {
                    return Ok::<_, Error>((Transaction::new(), ()));
                };
                let heard = control.nodes.heard(*id).map_or(0, |heard| heard.target_seen);
                let seen = heard.max(entry.target_seen);
                // What is durable now is below every revision to come, also while the state to decide on runs ahead of it.
                let durable = control.snapshot().revision().0;
                let told = Server {
                    restored: None,
                    generation_base: entry.generation_base.max(seen.saturating_sub(durable)),
                    generation_floor: entry.generation_floor.max(seen),
                    ..entry.value.clone()
                };
                Ok((Transaction::new().may_use_reserve().replace(&SERVERS, &entry, told), ()))
            })
            .await?;
        tracing::info!(server = %id, "its machine and the records agree after the restore: it is told what it should be again");
    }
    Ok(servers.len())
}
