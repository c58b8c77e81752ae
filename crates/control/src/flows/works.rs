//! The judgement of each kind of flow.

use std::time::Duration;

use model::{
    instance::{Instance, Wanted},
    network::Nic,
    placement::Demand,
    server::Server,
    target::{Phase, ZoneFact, ZoneState},
    time::Timestamp,
};
use store::{Snapshot, Transaction};

use super::{Input, Verdict, Work, overtaken};
use crate::{Control, placement, tables::SERVERS};

/// A deletion waits for its machine however long that is away: giving its addresses to somebody else would be worse.
const DESTROY_DEADLINE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Making an instance.
pub struct Provision;
/// Starting a stopped one.
pub struct Start;
/// Stopping one.
pub struct Stop;
/// Rebooting a running one.
pub struct Reboot;
/// Giving one another size.
pub struct Resize;
/// Adding NICs to one, or removing some.
pub struct Nics;
/// Changing the metadata of one from outside.
pub struct Metadata;
/// Deleting one.
pub struct Destroy;

impl Work for Provision {
    const NAME: &'static str = "provision";
    const STEP: &'static str = "await_running";

    fn deadline(control: &Control) -> Duration {
        millis(control.config.provision_deadline_ms)
    }

    fn judge(instance: &Instance, _input: &Input) -> Verdict {
        if let Some(verdict) = overtaken(instance, Wanted::Running).filter(|_| instance.intent.wanted == Wanted::Absent)
        {
            return verdict;
        }
        match &instance.fact {
            Some(fact) if fact.starts_done > 0 => Verdict::Done,
            Some(fact) if fact.state == ZoneState::Failed => Verdict::Failed(reason(fact)),
            _ => Verdict::NotYet("the machine to report that the instance runs"),
        }
    }

    fn done(instance: &mut Instance, now: Timestamp) -> Vec<Phase> {
        let made = instance.fact.as_ref().map_or_else(Vec::new, |fact| fact.timeline.clone());
        let ends = |phase: &Phase| phase.at.plus_millis(i64::try_from(phase.ms).unwrap_or(i64::MAX));
        // From the end of the last phase on the machine until its word had arrived and was written down.
        let since = made.iter().map(ends).max().unwrap_or(instance.created_at).min(now);
        instance.timeline.extend(made);
        instance.timeline.push(Phase { name: "ready".to_owned(), at: since, ms: now.millis_since(since) });
        instance.timeline.clone()
    }

    fn failed(_: &Control, _: &Snapshot, instance: &mut Instance, _: &Input, why: &str) -> Transaction {
        // A deleted one is on its way already. Else its machine is told to leave no trace, and what it holds is given
        // back when the machine says so; the record stays and says why.
        if instance.delete_asked_at.is_none() {
            instance.intent.wanted = Wanted::Absent;
            instance.failure = Some(why.to_owned());
        }
        Transaction::new()
    }
}

impl Work for Start {
    const NAME: &'static str = "start";
    const STEP: &'static str = "await_running";

    fn judge(instance: &Instance, input: &Input) -> Verdict {
        if let Some(verdict) = overtaken(instance, Wanted::Running) {
            return verdict;
        }
        match &instance.fact {
            Some(fact) if fact.starts_done >= input.starts => came_up(fact),
            Some(fact) if gave_up(fact, input) => Verdict::Failed(reason(fact)),
            _ => Verdict::NotYet("the machine to report that the instance runs"),
        }
    }
}

impl Work for Stop {
    const NAME: &'static str = "stop";
    const STEP: &'static str = "await_stopped";

    fn judge(instance: &Instance, input: &Input) -> Verdict {
        if let Some(verdict) = overtaken(instance, Wanted::Stopped) {
            return verdict;
        }
        let Some(fact) = &instance.fact else { return Verdict::NotYet("the machine to report on the instance") };
        // A start that was asked for before the stop may be under way: the machine counts it as carried out once it
        // knows of the stop.
        let settled = fact.starts_done >= input.starts && fact.reboots_done >= input.reboots;
        match fact.state {
            ZoneState::Stopped | ZoneState::Absent if settled => Verdict::Done,
            _ if gave_up(fact, input) => Verdict::Failed(reason(fact)),
            _ => Verdict::NotYet("the machine to report that the instance is stopped"),
        }
    }
}

impl Work for Reboot {
    const NAME: &'static str = "reboot";
    const STEP: &'static str = "await_rebooted";

    fn judge(instance: &Instance, input: &Input) -> Verdict {
        if let Some(verdict) = overtaken(instance, Wanted::Running) {
            return verdict;
        }
        match &instance.fact {
            Some(fact) if fact.reboots_done >= input.reboots => came_up(fact),
            Some(fact) if gave_up(fact, input) => Verdict::Failed(reason(fact)),
            _ => Verdict::NotYet("the machine to report that the instance was rebooted"),
        }
    }
}

impl Work for Resize {
    const NAME: &'static str = "resize";
    const STEP: &'static str = "await_limits";

    fn judge(instance: &Instance, input: &Input) -> Verdict {
        if instance.intent.wanted == Wanted::Absent {
            return Verdict::Failed("overtaken by the deletion of the instance".to_owned());
        }
        if instance.limits != input.limits {
            return Verdict::Failed("overtaken by a later resize".to_owned());
        }
        match &instance.fact {
            Some(fact) if fact.limits.as_ref() == Some(&input.limits) => Verdict::Done,
            Some(fact) if gave_up(fact, input) => Verdict::Failed(reason(fact)),
            _ => Verdict::NotYet("the machine to report the new limits in force"),
        }
    }

    fn failed(
        control: &Control,
        snapshot: &Snapshot,
        instance: &mut Instance,
        input: &Input,
        _why: &str,
    ) -> Transaction {
        let Some(before) = input.before.as_ref().filter(|_| instance.limits == input.limits && !instance.released)
        else {
            return Transaction::new();
        };
        // One that is to be gone is not given a size any more.
        if instance.intent.wanted == Wanted::Absent {
            return Transaction::new();
        }
        let Some(server) = snapshot.get(&SERVERS, &instance.server.to_string()) else { return Transaction::new() };
        let had = Demand::held_by(instance);
        let mut old = instance.clone();
        old.package = before.package;
        old.package_name.clone_from(&before.package_name);
        old.limits = before.limits.clone();
        let wants = Demand::held_by(&old);
        // The old size is held until a smaller one is in force. But it may have come into force a moment ago, and somebody else have the room
        // by now; or the old size was itself never in force. Then it stays as asked for.
        if model::placement::fits(wants, had, &control.config.placement, &server).is_err() {
            return Transaction::new();
        }
        *instance = old;
        if wants == had {
            return Transaction::new();
        }
        let reserved = server.reserved.minus(had).plus(wants);
        let promised = placement::with_room(control, Server { reserved, ..server.value.clone() });
        Transaction::new().replace(&SERVERS, &server, promised)
    }
}

impl Work for Nics {
    const NAME: &'static str = "nics";
    const STEP: &'static str = "await_nics";

    fn judge(instance: &Instance, input: &Input) -> Verdict {
        if instance.intent.wanted == Wanted::Absent {
            return Verdict::Failed("overtaken by the deletion of the instance".to_owned());
        }
        let Some(fact) = &instance.fact else { return Verdict::NotYet("the machine to report on the instance") };
        let six = |nic: &Nic| fact.addresses6.get(&nic.mac).into_iter().flatten().copied().eq(nic.addresses6());
        let is_there = |nic: &Nic| fact.nics.contains(&nic.mac) && six(nic);
        let same = fact.nics.len() == instance.nics.len() && instance.nics.iter().all(is_there);
        match fact.state {
            _ if same => Verdict::Done,
            _ if gave_up(fact, input) => Verdict::Failed(reason(fact)),
            _ => Verdict::NotYet("the machine to report the NICs in force"),
        }
    }
}

impl Work for Metadata {
    const NAME: &'static str = "metadata";
    const STEP: &'static str = "await_served";

    fn judge(instance: &Instance, input: &Input) -> Verdict {
        if instance.metadata_edits_served >= input.metadata_edits {
            return Verdict::Done;
        }
        if instance.intent.wanted == Wanted::Absent {
            return Verdict::Failed("overtaken by the deletion of the instance".to_owned());
        }
        Verdict::NotYet("the machine to serve the new metadata; it will as soon as it is back")
    }
}

impl Work for Destroy {
    const NAME: &'static str = "destroy";
    const STEP: &'static str = "await_gone";

    fn deadline(_: &Control) -> Duration {
        DESTROY_DEADLINE
    }

    fn judge(instance: &Instance, _input: &Input) -> Verdict {
        if instance.deleted_at.is_some() {
            Verdict::Done
        } else {
            Verdict::NotYet("the machine to report that nothing of the instance is left")
        }
    }
}

/// It was started; is it up?
fn came_up(fact: &ZoneFact) -> Verdict {
    match (fact.state, &fact.exit) {
        (ZoneState::Running, _) => Verdict::Done,
        (ZoneState::Stopped, Some(exit)) => Verdict::Failed(format!("the instance ended right after: {}", exit.reason)),
        (ZoneState::Failed, _) => Verdict::Failed(reason(fact)),
        _ => Verdict::NotYet("the machine to report that the instance runs"),
    }
}

/// Whether the machine gave up since this was asked for.
fn gave_up(fact: &ZoneFact, input: &Input) -> bool {
    is_given_up(fact) && !input.failed_before
}

/// Whether the machine tries no longer.
pub(super) fn is_given_up(fact: &ZoneFact) -> bool {
    fact.state == ZoneState::Failed || fact.gave_up
}

fn reason(fact: &ZoneFact) -> String {
    fact.error.clone().unwrap_or_else(|| "the machine gave up without saying why".to_owned())
}

pub(super) fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}
