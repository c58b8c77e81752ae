//! A machine becomes a headnode: flow `headnode-add`.
//!
//! ```text
//!  claim ─► move_store ─► add_member ─► tell ─► await_files ─► await_beat ─► promote ─► activate
//!  record:  file to       a learner,    role:   fetched and     its headnode  the member  record:
//!  joining  etcd, once    no vote yet   running written down    commits       votes       active
//! ```
//! Until `promote` nothing depends on the machine, so undoing it takes nothing from anybody: its member, which has no vote, is taken out first, then
//! the machine is told to forget, then the record goes. What was promoted is activated by one commit, which cannot fail for good. The store
//! stays in etcd when it was moved: going back would be another pause, and one member keeps it as well as a file does.

use std::time::Duration;

use flow::{At, FlowKind, Progress, Step, StepError, Wait};
use model::{
    headnode::{Headnode, MemberAddresses, Stage},
    part::Digest,
    role::{HeadnodeRole, HeadnodeState, HeadnodeWanted},
    server::Server,
    time::Timestamp,
};
use store::{Snapshot, Transaction};

use super::{
    change::{Input, check_before, own_beat},
    members::{KeptIn, MembersError, NewMember, Promotion},
};
use crate::{
    Control, placement,
    tables::{BEATS, HEADNODES, SERVERS},
};

/// The machine gets this long to fetch and write what a headnode needs.
const FILES_WITHIN: Duration = Duration::from_secs(10 * 60);
/// Its headnode gets this long to start: it reads every record first.
const BEAT_WITHIN: Duration = Duration::from_secs(10 * 60);
/// Its member gets this long to catch up.
const VOTE_WITHIN: Duration = Duration::from_secs(30 * 60);
/// Taking it back waits this long for the machine to say that nothing is left; one that is away hears of it when it comes back.
const FORGET_MS: i64 = 60_000;
/// Note of when that began.
const TAKING_BACK: &str = "taking_back";
/// Tries of what members are asked.
const ATTEMPTS: u32 = 60;

/// See the head of this file.
pub struct HeadnodeAdd;

impl FlowKind for HeadnodeAdd {
    const NAME: &'static str = "headnode-add";
    type Input = Input;
    type Context = Control;

    fn steps() -> Vec<Step<Self>> {
        vec![
            Step::new("claim", |at| Box::pin(claim(at))).undo(|at| Box::pin(unclaim(at))),
            Step::new("move_store", |at| Box::pin(move_store(at))).attempts(ATTEMPTS),
            Step::new("add_member", |at| Box::pin(add_member(at)))
                .undo(|at| Box::pin(take_back(at)))
                .attempts(ATTEMPTS),
            Step::new("tell", |at| Box::pin(tell(at))),
            Step::new("await_files", |at| Box::pin(await_files(at))),
            Step::new("await_beat", |at| Box::pin(await_beat(at))),
            Step::new("promote", |at| Box::pin(promote(at))).attempts(ATTEMPTS),
            Step::new("activate", |at| Box::pin(activate(at))),
        ]
    }
}

type Here<'a> = At<'a, HeadnodeAdd>;
type Outcome = Result<Progress, StepError>;

/// Why a verb about members did not work, as a step says it.
pub(super) fn refused(error: MembersError) -> StepError {
    match error {
        MembersError::Refused(why) => StepError::Fail(why),
        MembersError::Failed { .. } => StepError::Retry(base::errors::chain(&error)),
    }
}

async fn claim(at: Here<'_>) -> Outcome {
    if let Some(wait) = check_before(at.snapshot, at.input)? {
        return Ok(wait.into());
    }
    let (control, input) = (at.context.clone(), at.input.clone());
    Ok(Progress::decide(move |snapshot| {
        let server = server(snapshot, &input)?;
        let key = input.server.to_string();
        let transaction = match snapshot.get(&HEADNODES, &key) {
            Some(known) if known.joined_at == input.since => return Ok(Transaction::new()),
            Some(_) => return Err(StepError::Fail(format!("{} is a headnode already", input.hostname))),
            None => Transaction::new().create(&HEADNODES, joining(&input)),
        };
        let transaction = match snapshot.get(&BEATS, &key) {
            Some(beat) => transaction.delete(&BEATS, &beat),
            None => transaction,
        };
        // From now on it takes as many instances as headnodes do.
        let headnode = placement::with_room(&control, Server { headnode: true, ..server.value.clone() });
        Ok(transaction.replace(&SERVERS, &server, headnode))
    }))
}

fn joining(input: &Input) -> Headnode {
    Headnode {
        id: input.server,
        hostname: input.hostname.clone(),
        // It says these itself when it starts.
        cloudapi: String::new(),
        node_link: String::new(),
        ops: String::new(),
        member: None,
        stage: Stage::Joining,
        joined_at: input.since,
        shared_settings: Digest::of_bytes(&[]),
        release: String::new(),
    }
}

fn server(snapshot: &Snapshot, input: &Input) -> Result<std::sync::Arc<store::Entry<Server>>, StepError> {
    let found = snapshot.get(&SERVERS, &input.server.to_string());
    found.ok_or_else(|| {
        StepError::Fail(format!("server {} ({}) is no part of this datacenter any more", input.server, input.hostname))
    })
}

async fn unclaim(at: Here<'_>) -> Outcome {
    let (control, input) = (at.context.clone(), at.input.clone());
    Ok(Progress::decide(move |snapshot| {
        let key = input.server.to_string();
        let Some(known) = snapshot.get(&HEADNODES, &key).filter(|known| known.joined_at == input.since) else {
            return Ok(Transaction::new());
        };
        let mut transaction = Transaction::new().may_use_reserve().delete(&HEADNODES, &known);
        if let Some(beat) = snapshot.get(&BEATS, &key) {
            transaction = transaction.delete(&BEATS, &beat);
        }
        if let Some(server) = snapshot.get(&SERVERS, &key) {
            let plain = placement::with_room(&control, Server { headnode: false, ..server.value.clone() });
            transaction = transaction.replace(&SERVERS, &server, plain);
        }
        Ok(transaction)
    }))
}

async fn move_store(at: Here<'_>) -> Outcome {
    let members = at.context.members().map_err(StepError::Fail)?;
    if members.kept_in() == KeptIn::File {
        let moved = members.move_store().await.map_err(refused)?;
        at.notes.set("moved_records", moved.records);
        at.notes.set("pause_ms", moved.pause_ms);
        base::crash::point("control.headnode.moved");
        tracing::info!(
            records = moved.records,
            pause_ms = moved.pause_ms,
            "the store was moved; writes waited so long"
        );
    }
    Ok(Progress::Done)
}

async fn add_member(at: Here<'_>) -> Outcome {
    let members = at.context.members().map_err(StepError::Fail)?;
    if members.kept_in() == KeptIn::ElsewhereKept {
        return Ok(Progress::Done);
    }
    let Some(place) = at.input.member.clone() else {
        return Err(StepError::Fail("it is not known where its member could listen".to_owned()));
    };
    members.add_learner(new_member(at.input, &place)).await.map_err(refused)?;
    base::crash::point("control.headnode.learner");
    let input = at.input.clone();
    Ok(Progress::decide(move |snapshot| {
        let Some(known) = snapshot.get(&HEADNODES, &input.server.to_string()) else { return Ok(Transaction::new()) };
        let url = |place: &str| format!("https://{place}");
        let member = MemberAddresses { client: url(&place.client), peer: url(&place.peer) };
        let known_now = Headnode { member: Some(member), ..known.value.clone() };
        Ok(Transaction::new().replace(&HEADNODES, &known, known_now))
    }))
}

fn new_member(input: &Input, place: &super::change::MemberPlace) -> NewMember {
    NewMember { server: input.server, client: place.client.clone(), peer: place.peer.clone() }
}

/// First the member, which nobody needs; then the machine.
async fn take_back(at: Here<'_>) -> Outcome {
    let members = at.context.members().map_err(StepError::Fail)?;
    if members.kept_in() == KeptIn::Members {
        members.remove(at.input.server).await.map_err(refused)?;
    }
    let key = at.input.server.to_string();
    let Some(server) = at.snapshot.get(&SERVERS, &key) else { return Ok(Progress::Done) };
    let Some(role) = server.headnode_role.as_ref().filter(|role| role.since == at.input.since) else {
        // It was never told.
        return Ok(Progress::Done);
    };
    if role.wanted == HeadnodeWanted::Running {
        return tell_absent(&at, &key).await;
    }
    let is_gone = server.headnode_fact.as_ref().is_some_and(|fact| fact.is(role.since, HeadnodeState::Absent));
    let begun = at.notes.get::<i64>(TAKING_BACK).unwrap_or(at.now);
    at.notes.set(TAKING_BACK, begun);
    if is_gone || at.now.saturating_sub(begun) >= FORGET_MS {
        return Ok(Progress::Done);
    }
    let what = "the machine to say that nothing of a headnode is left";
    Ok(own_beat(at.context, Wait::within(FILES_WITHIN, what).on(&SERVERS, key)).into())
}

/// What a machine is told that is to be no headnode any more.
pub(super) fn absent(snapshot: &Snapshot, key: &str, since: Timestamp) -> HeadnodeRole {
    let others = snapshot.scan(&HEADNODES).filter(|one| one.stage == Stage::Active && one.id.to_string() != key);
    let headnodes = others.map(|one| one.node_link.clone()).collect();
    HeadnodeRole { since, wanted: HeadnodeWanted::Absent, headnodes }
}

/// Tells the machine to forget, and looks again.
async fn tell_absent<K: FlowKind<Context = Control, Input = Input>>(at: &At<'_, K>, key: &str) -> Outcome {
    let since = at.input.since;
    let told = at.context.store.update(|snapshot| {
        let Some(server) = snapshot.get(&SERVERS, key) else { return Ok((Transaction::new(), ())) };
        let role = Some(absent(snapshot, key, since));
        let told = Server { headnode_role: role, ..server.value.clone() };
        Ok::<_, crate::Error>((Transaction::new().may_use_reserve().replace(&SERVERS, &server, told), ()))
    });
    told.await.map_err(|error| StepError::Retry(base::errors::chain(&error)))?;
    let what = "the machine to hear that it is no headnode";
    Ok(own_beat(at.context, Wait::within(FILES_WITHIN, what).on(&SERVERS, key)).into())
}

async fn tell(at: Here<'_>) -> Outcome {
    let input = at.input.clone();
    Ok(Progress::decide(move |snapshot| {
        let server = server(snapshot, &input)?;
        let wanted = HeadnodeWanted::Running;
        let role = Some(HeadnodeRole { since: input.since, wanted, headnodes: Vec::new() });
        let told = Server { headnode_role: role, ..server.value.clone() };
        Ok(Transaction::new().replace(&SERVERS, &server, told))
    }))
}

async fn await_files(at: Here<'_>) -> Outcome {
    let server = server(at.snapshot, at.input)?;
    let fact = server.headnode_fact.as_ref().filter(|fact| fact.since == at.input.since);
    if fact.is_some_and(|fact| fact.state == HeadnodeState::Ready) {
        return Ok(Progress::Done);
    }
    let what = match fact.and_then(|fact| fact.error.as_deref()) {
        Some(error) => format!("{} to prepare itself, which says: {error}", at.input.hostname),
        None => format!("{} to fetch what a headnode needs", at.input.hostname),
    };
    Ok(Wait::within(FILES_WITHIN, what).on(&SERVERS, at.input.server.to_string()).into())
}

async fn await_beat(at: Here<'_>) -> Outcome {
    let key = at.input.server.to_string();
    if at.snapshot.get(&BEATS, &key).is_some() {
        return Ok(Progress::Done);
    }
    let what = format!("the headnode on {} to start; `headnode.log` there says more", at.input.hostname);
    Ok(Wait::within(BEAT_WITHIN, what).on(&BEATS, key).into())
}

async fn promote(at: Here<'_>) -> Outcome {
    let members = at.context.members().map_err(StepError::Fail)?;
    if members.kept_in() == KeptIn::ElsewhereKept {
        return Ok(Progress::Done);
    }
    match members.promote(at.input.server).await.map_err(refused)? {
        Promotion::Voting => {
            base::crash::point("control.headnode.promoted");
            Ok(Progress::Done)
        }
        Promotion::NotYet(why) => {
            let what = format!("the store's member on {} to catch up: {why}", at.input.hostname);
            Ok(own_beat(at.context, Wait::within(VOTE_WITHIN, what).on(&BEATS, at.input.server.to_string())).into())
        }
    }
}

async fn activate(at: Here<'_>) -> Outcome {
    let input = at.input.clone();
    Ok(Progress::decide(move |snapshot| {
        let Some(known) = snapshot.get(&HEADNODES, &input.server.to_string()) else {
            return Err(StepError::Fail("its record is gone".to_owned()));
        };
        let active = Headnode { stage: Stage::Active, ..known.value.clone() };
        Ok(Transaction::new().replace(&HEADNODES, &known, active))
    }))
}
