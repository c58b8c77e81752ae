//! Asking for more headnodes, fewer, or others.
//!
//! One change at a time: its flows are of one subject, and are made together in the commit that checks whether all of it may be done. A flow
//! whose predecessor failed fails too, so two machines of which the first cannot be one leave things as they were.

use std::{sync::Arc, time::Duration};

use flow::{FLOWS, FlowId, FlowKind as _, FlowRecord, FlowState, StepError, Wait, record::BY_SUBJECT};
use model::{
    headnode::Stage,
    id::ServerId,
    instance::Caller,
    quorum::{self, Fitness, Seat},
    state::Reachability,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use store::{Entry, Snapshot, Transaction};

use super::{HeadnodeAdd, HeadnodeRemove, members::KeptIn};
use crate::{
    Control, Error, Result,
    tables::{BEATS, HEADNODES, SERVERS},
};

/// Subject of every flow that changes which headnodes there are.
pub const SUBJECT: &str = "headnodes";
/// Machines in one request.
const MACHINES_MAX: usize = 8;
/// A flow waits so long for the one before it.
const BEFORE_WITHIN: Duration = Duration::from_secs(3 * 3_600);

/// What a flow about a headnode is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// The machine.
    pub server: ServerId,
    /// What it calls itself.
    pub hostname: String,
    /// Which of its times as a headnode this is about.
    pub since: Timestamp,
    /// Where its member listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberPlace>,
    /// The flow that must have succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<FlowId>,
    /// Who asked.
    pub caller: Caller,
}

/// Where a member listens, both `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPlace {
    /// For headnodes.
    pub client: String,
    /// For members.
    pub peer: String,
}

/// A machine that is to become a headnode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub server: ServerId,
    /// What it found out about itself.
    pub fitness: Fitness,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Machines that become headnodes.
    pub add: Vec<Candidate>,
    /// One that ceases to be one.
    pub remove: Option<ServerId>,
    /// Even numbers are welcome.
    pub even: bool,
    /// Version of this program.
    pub release: String,
}

/// Checks all of it and makes its flows, in the order in which they run.
pub async fn change(control: &Control, wanted: &Wanted, caller: &Caller) -> Result<Vec<FlowId>> {
    if wanted.add.len() > MACHINES_MAX {
        return Err(Error::invalid("servers", format!("must be {MACHINES_MAX} at most")));
    }
    let members = control.members().map_err(Error::Conflict)?;
    let kept_in = members.kept_in();
    if kept_in == KeptIn::File && !wanted.add.is_empty() {
        members.check().await.map_err(|error| Error::Conflict(base::errors::chain(&error)))?;
    }
    let decided = control.store.update(|snapshot| decide(&Moment { control, snapshot, kept_in, wanted, caller }));
    Ok(decided.await?.1)
}

/// The flows of the very change that is asked for, when it is under way, in the order in which they run: whoever asks again, because the answer was lost
/// with who was to give it, is told which they are.
pub fn begun(snapshot: &Snapshot, add: &[ServerId], remove: Option<ServerId>) -> Option<Vec<FlowId>> {
    let asked: Vec<(bool, ServerId)> =
        add.iter().map(|id| (true, *id)).chain(remove.map(|server| (false, server))).collect();
    let open = snapshot.find(&FLOWS, BY_SUBJECT, SUBJECT).filter(|flow| is_under_way(flow));
    let mut open: Vec<(FlowId, bool, Input)> = open
        .map(|flow| Some((flow.id, flow.kind == HeadnodeAdd::NAME, serde_json::from_value(flow.input.clone()).ok()?)))
        .collect::<Option<_>>()?;
    let is_about = |one: &(bool, ServerId)| open.iter().any(|(_, is_added, input)| (*is_added, input.server) == *one);
    let is_done = |(is_added, server): &(bool, ServerId)| {
        let known = snapshot.get(&HEADNODES, &server.to_string());
        known.map_or(!is_added, |known| *is_added && known.stage == Stage::Active)
    };
    let is_the_same = !open.is_empty()
        && open.iter().all(|(_, is_added, input)| asked.contains(&(*is_added, input.server)))
        && asked.iter().all(|one| is_about(one) || is_done(one));
    if !is_the_same {
        return None;
    }
    let mut flows = Vec::new();
    while let Some(next) = next_of(&open) {
        flows.push(open.remove(next).0);
    }
    Some(flows)
}

/// Which of `open` waits for none of the others.
fn next_of(open: &[(FlowId, bool, Input)]) -> Option<usize> {
    let waits = |input: &Input| input.after.is_some_and(|before| open.iter().any(|(id, ..)| *id == before));
    open.iter().position(|(.., input)| !waits(input))
}

/// What a change is decided on.
struct Moment<'a> {
    control: &'a Control,
    snapshot: &'a Snapshot,
    kept_in: KeptIn,
    wanted: &'a Wanted,
    caller: &'a Caller,
}

fn decide(moment: &Moment<'_>) -> Result<(Transaction, Vec<FlowId>)> {
    let Moment { control, snapshot, wanted, caller, .. } = *moment;
    if let Some(flow) = under_way(snapshot) {
        return Err(Error::Conflict(format!(
            "headnodes are being changed already, by flow {} ({}); `neso adm ha status` shows how far it is",
            flow.id, flow.kind
        )));
    }
    let roster = control.headnodes.roster();
    // One that is alone beats seldom; that it decides this says that it lives.
    let lives = |id: ServerId| roster.is_fresh(id) || control.headnodes.me() == Some(id);
    let seats: Vec<Seat> = snapshot
        .scan(&HEADNODES)
        .map(|one| Seat { id: one.id, hostname: one.hostname.clone(), fresh: lives(one.id) })
        .collect();
    let mut works = Vec::new();
    for (number, candidate) in wanted.add.iter().enumerate() {
        let input = admitted(moment, &seats, candidate, number)?;
        let alike = works.iter().find(|(_, known): &&(bool, Input)| known.hostname == input.hostname);
        match alike {
            Some((_, known)) if known.server == input.server => {
                return Err(Error::invalid("servers", format!("{} is named twice", input.hostname)));
            }
            Some((_, known)) => {
                return Err(Error::Conflict(format!(
                    "servers {} and {} are both called {}: give one another name",
                    known.server, input.server, input.hostname
                )));
            }
            None => {}
        }
        works.push((true, input));
    }
    if let Some(server) = wanted.remove {
        let leaving = dismissed(snapshot, server, caller)?;
        // One that is dead goes first, since the others count it as missing; one that lives serves until the other does.
        let at = if lives(server) { works.len() } else { 0 };
        works.insert(at, (false, leaving));
    }
    let (before, after) = (seats.len(), seats.len() + wanted.add.len() - usize::from(wanted.remove.is_some()));
    let is_replacement = after == before;
    if !is_replacement || after == 0 {
        quorum::check_count(before, after, wanted.even).map_err(Error::Conflict)?;
    }
    Ok(flows(works, control.now()))
}

fn flows(works: Vec<(bool, Input)>, now: Timestamp) -> (Transaction, Vec<FlowId>) {
    let (mut transaction, mut ids): (Transaction, Vec<FlowId>) = (Transaction::new(), Vec::new());
    for (is_added, input) in works {
        let id = FlowId::new(now.0);
        let input = Input { after: ids.last().copied(), ..input };
        let record = match is_added {
            true => flow::record_for::<HeadnodeAdd>(id, SUBJECT, &input, now.0),
            false => flow::record_for::<HeadnodeRemove>(id, SUBJECT, &input, now.0),
        };
        transaction = transaction.create(&FLOWS, record);
        ids.push(id);
    }
    (transaction, ids)
}

/// What the flow of the `number`th machine that is added is told, if it may be one.
fn admitted(moment: &Moment<'_>, seats: &[Seat], candidate: &Candidate, number: usize) -> Result<Input> {
    let Moment { control, snapshot, kept_in, wanted, caller } = *moment;
    let id = candidate.server;
    let server = snapshot.get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
    let name = &server.hostname;
    quorum::check_seat(seats, id, name).map_err(Error::Conflict)?;
    let heard = control.nodes.heard(id).is_some_and(|heard| !heard.leaving);
    if !heard || control.nodes.reachability(id, control.now()) == Reachability::Unreachable {
        return Err(Error::Conflict(format!(
            "{name} is not heard of: `neso adm server get {name}` says since when; start its node (`neso up` there) first"
        )));
    }
    let with_member = kept_in != KeptIn::ElsewhereKept;
    let mut why = quorum::unfit(&candidate.fitness, &wanted.release, control.now(), with_member);
    let host = host_of(snapshot, server.underlay.map(|address| address.to_string()));
    if with_member && host.is_none() {
        why.push(
            "it has no address between machines, at which other headnodes could reach it: set fabric.underlay_address in its \
             settings and restart its node"
                .to_owned(),
        );
    }
    if !why.is_empty() {
        return Err(Error::Conflict(format!("{name} cannot become a headnode: {}", why.join("; "))));
    }
    let member = host.filter(|_| with_member).and_then(|host| place_of(&host, &candidate.fitness));
    let since = control.now().plus_millis(i64::try_from(number).unwrap_or(0));
    Ok(Input { server: id, hostname: name.clone(), since, member, after: None, caller: caller.clone() })
}

/// Where a machine is reached: at its address between machines; where all headnodes are on one machine, at its loopback address.
fn host_of(snapshot: &Snapshot, underlay: Option<String>) -> Option<String> {
    let bracketed = |host: String| if host.contains(':') { format!("[{host}]") } else { host };
    let is_here = |one: Arc<Entry<model::headnode::Headnode>>| {
        one.node_link.starts_with("127.") || one.node_link.starts_with("[::1]")
    };
    let all_here = || snapshot.scan(&HEADNODES).all(is_here);
    underlay.map(bracketed).or_else(|| all_here().then(|| "127.0.0.1".to_owned()))
}

/// Where its member would listen.
pub(super) fn place_of(host: &str, fitness: &Fitness) -> Option<MemberPlace> {
    let (client, peer) = (fitness.client_port?, fitness.peer_port?);
    Some(MemberPlace { client: format!("{host}:{client}"), peer: format!("{host}:{peer}") })
}

fn dismissed(snapshot: &Snapshot, server: ServerId, caller: &Caller) -> Result<Input> {
    let known = snapshot.get(&HEADNODES, &server.to_string()).ok_or_else(|| Error::not_found("headnode", server))?;
    let since = snapshot.get(&SERVERS, &server.to_string()).and_then(|server| server.headnode_role.clone());
    Ok(Input {
        server,
        hostname: known.hostname.clone(),
        since: since.map_or(known.joined_at, |role| role.since),
        member: None,
        after: None,
        caller: caller.clone(),
    })
}

/// The flow that changes headnodes now, or is parked in the middle of it.
pub fn under_way(snapshot: &Snapshot) -> Option<Arc<Entry<FlowRecord>>> {
    snapshot.find(&FLOWS, BY_SUBJECT, SUBJECT).find(|flow| is_under_way(flow))
}

fn is_under_way(flow: &FlowRecord) -> bool {
    flow.state.is_open() || flow.state == FlowState::Parked
}

/// Waits for the flow before, and fails if that did.
pub(super) fn check_before(snapshot: &Snapshot, input: &Input) -> Result<Option<Wait>, StepError> {
    let Some(before) = input.after else { return Ok(None) };
    // One that ended long ago may be archived already.
    let Some(flow) = snapshot.get(&FLOWS, &before.to_string()) else { return Ok(None) };
    match flow.state {
        FlowState::Succeeded => Ok(None),
        FlowState::Failed => Err(StepError::Fail(format!("flow {before} before this one failed"))),
        _ => Ok(Some(Wait::within(BEFORE_WITHIN, format!("flow {before}")).on(&FLOWS, before.to_string()))),
    }
}

/// Waits also for this headnode's own next beat: to look again soon at what no record tells.
pub(super) fn own_beat(control: &Control, wait: Wait) -> Wait {
    match control.headnodes.me() {
        Some(me) => wait.on(&BEATS, me.to_string()),
        None => wait,
    }
}

/// How long ago a step began, seconds.
pub(super) fn step_seconds(flow: &FlowRecord, name: &str, now: i64) -> u64 {
    let begun = flow.steps.iter().find(|step| step.name == name);
    let begun = begun.and_then(|step| step.started_at).unwrap_or(now);
    u64::try_from(now.saturating_sub(begun)).unwrap_or(0) / 1_000
}
