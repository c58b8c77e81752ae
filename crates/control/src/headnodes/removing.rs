//! A machine ceases to be a headnode: flow `headnode-remove`. It stays a node, with its instances.
//!
//! ```text
//!  leave ─► remove_member ─► tell ─► await_gone ─► forget
//!  record:  its vote is      role:   or it does    record and
//!  leaving  nobody's         absent  not answer    beats go
//! ```
//! The first two steps may refuse, and then it is what it was. Once its member is out nothing can fail any more: a machine that is dead does not keep
//! the flow waiting, and is told when it comes back, because its role stays in its server's record.

use std::time::Duration;

use flow::{At, FlowKind, Progress, Step, StepError, Wait};
use model::{
    headnode::{Headnode, Stage},
    quorum,
    role::HeadnodeState,
    server::Server,
    state::Reachability,
};
use store::Transaction;

use super::{
    adding::{absent, refused},
    change::{Input, check_before, own_beat, step_seconds},
    members::KeptIn,
};
use crate::{
    Control, placement,
    tables::{BEATS, HEADNODES, SERVERS},
};

/// A machine that lives gets this long to put its headnode away.
const GONE_SECONDS: u64 = 180;
/// The wait for it never ends by itself: the time above does.
const GONE_WITHIN: Duration = Duration::from_secs(3_600);
/// Tries of what members are asked.
const ATTEMPTS: u32 = 60;

/// See the head of this file.
pub struct HeadnodeRemove;

impl FlowKind for HeadnodeRemove {
    const NAME: &'static str = "headnode-remove";
    type Input = Input;
    type Context = Control;

    fn steps() -> Vec<Step<Self>> {
        vec![
            Step::new("leave", |at| Box::pin(leave(at))).undo(|at| Box::pin(stay(at))),
            Step::new("remove_member", |at| Box::pin(remove_member(at))).attempts(ATTEMPTS),
            Step::new("tell", |at| Box::pin(tell(at))),
            Step::new("await_gone", |at| Box::pin(await_gone(at))),
            Step::new("forget", |at| Box::pin(forget(at))),
        ]
    }
}

type Here<'a> = At<'a, HeadnodeRemove>;
type Outcome = Result<Progress, StepError>;

async fn leave(at: Here<'_>) -> Outcome {
    if let Some(wait) = check_before(at.snapshot, at.input)? {
        return Ok(wait.into());
    }
    let input = at.input.clone();
    Ok(Progress::decide(move |snapshot| {
        let Some(known) = snapshot.get(&HEADNODES, &input.server.to_string()) else {
            return Err(StepError::Fail(format!("{} is no headnode any more", input.hostname)));
        };
        let active = snapshot.scan(&HEADNODES).filter(|one| one.stage == Stage::Active && one.id != input.server);
        if active.count() == 0 {
            let why = quorum::check_count(1, 0, true).err().unwrap_or_default();
            return Err(StepError::Fail(why));
        }
        let leaving = Headnode { stage: Stage::Leaving, ..known.value.clone() };
        Ok(Transaction::new().replace(&HEADNODES, &known, leaving))
    }))
}

async fn stay(at: Here<'_>) -> Outcome {
    let input = at.input.clone();
    Ok(Progress::decide(move |snapshot| {
        let Some(known) = snapshot.get(&HEADNODES, &input.server.to_string()) else { return Ok(Transaction::new()) };
        let active = Headnode { stage: Stage::Active, ..known.value.clone() };
        Ok(Transaction::new().may_use_reserve().replace(&HEADNODES, &known, active))
    }))
}

async fn remove_member(at: Here<'_>) -> Outcome {
    let members = at.context.members().map_err(StepError::Fail)?;
    match members.kept_in() {
        KeptIn::ElsewhereKept => return Ok(Progress::Done),
        KeptIn::File => return Err(StepError::Fail("the store is a file of the only headnode".to_owned())),
        KeptIn::Members => {}
    }
    let cluster = members.status().await.map_err(refused)?;
    cluster.check_removal(at.input.server).map_err(refused)?;
    members.remove(at.input.server).await.map_err(refused)?;
    base::crash::point("control.headnode.member-out");
    Ok(Progress::Done)
}

async fn tell(at: Here<'_>) -> Outcome {
    let (control, input) = (at.context.clone(), at.input.clone());
    Ok(Progress::decide(move |snapshot| {
        let Some(server) = snapshot.get(&SERVERS, &input.server.to_string()) else { return Ok(Transaction::new()) };
        let role = Some(absent(snapshot, &input.server.to_string(), input.since));
        let told = Server { headnode: false, headnode_role: role, ..server.value.clone() };
        Ok(Transaction::new().replace(&SERVERS, &server, placement::with_room(&control, told)))
    }))
}

async fn await_gone(at: Here<'_>) -> Outcome {
    let key = at.input.server.to_string();
    let Some(server) = at.snapshot.get(&SERVERS, &key) else { return Ok(Progress::Done) };
    let fact = server.headnode_fact.as_ref().filter(|fact| fact.since == at.input.since);
    let is_gone = fact.is_some_and(|fact| fact.state == HeadnodeState::Absent);
    let now = at.context.now();
    let is_away = at.context.nodes.reachability(at.input.server, now) == Reachability::Unreachable;
    if is_gone || is_away || step_seconds(at.flow, "await_gone", at.now) >= GONE_SECONDS {
        at.notes.set("put_away", is_gone);
        return Ok(Progress::Done);
    }
    let what = match fact.and_then(|fact| fact.error.as_deref()) {
        Some(error) => format!("{} to put its headnode away, which says: {error}", at.input.hostname),
        None => format!("{} to put its headnode away", at.input.hostname),
    };
    Ok(own_beat(at.context, Wait::within(GONE_WITHIN, what).on(&SERVERS, key)).into())
}

async fn forget(at: Here<'_>) -> Outcome {
    let input = at.input.clone();
    Ok(Progress::decide(move |snapshot| {
        let key = input.server.to_string();
        let mut transaction = Transaction::new().may_use_reserve();
        if let Some(known) = snapshot.get(&HEADNODES, &key) {
            transaction = transaction.delete(&HEADNODES, &known);
        }
        if let Some(beat) = snapshot.get(&BEATS, &key) {
            transaction = transaction.delete(&BEATS, &beat);
        }
        Ok(transaction)
    }))
}
