//! Headnodes: how they are, and changing which there are.

use axum::{Extension, Json, Router, extract::State, routing::get};
use control::{
    Control,
    headnodes::{
        self, Candidate, Missing, NoMajority, SUBJECT, Wanted,
        members::{Cluster, KeptIn, MemberState},
    },
};
use flow::{FLOWS, FlowId, FlowState, record::BY_SUBJECT};
use model::{
    headnode::{Health, Stage},
    instance::Caller,
    quorum,
};
use nodeapi::inquiry::{Answer as NodeAnswer, Question};
use opsapi::{FlowView, HeadnodeView, HeadnodesChange, HeadnodesView, MemberView, MissingView, StoreKept, WaitingView};

use super::{Answer, Body, Ops, Refusal, instances::flow_view, servers::find_server};

pub(super) fn routes() -> Router<Ops> {
    Router::new().route("/v1/headnodes", get(show).post(change))
}

async fn change(
    State(ops): State<Ops>,
    Extension(caller): Extension<Caller>,
    Body(change): Body<HeadnodesChange>,
) -> Answer<Vec<FlowView>> {
    if change.add.is_empty() && change.remove.is_none() {
        return Err(control::Error::invalid("add", "names no machine").into());
    }
    let servers = change.add.iter().map(|name| Ok(find_server(&ops.control, name)?.server));
    let servers: Vec<_> = servers.collect::<Result<_, Refusal>>()?;
    let remove = change.remove.as_deref().map(|name| find_headnode(&ops.control, name)).transpose()?;
    let ids: Vec<_> = servers.iter().map(|server| server.id).collect();
    if let Some(flows) = headnodes::begun(&ops.control.snapshot(), &ids, remove) {
        return Ok(Json(views(&ops.control, &flows)));
    }
    let mut add = Vec::new();
    for server in servers {
        let answer = ops.inquiries.ask(server.id, Question::Fitness).await?;
        let NodeAnswer::Fitness(fitness) = answer else {
            let why = format!("{} answered something else than what it was asked", server.hostname);
            return Err(control::Error::Conflict(why).into());
        };
        add.push(Candidate { server: server.id, fitness });
    }
    let release = base::release::name().to_owned();
    let wanted = Wanted { add, remove, even: change.even, release };
    let flows = headnodes::change(&ops.control, &wanted, &caller).await?;
    Ok(Json(views(&ops.control, &flows)))
}

fn views(control: &Control, flows: &[FlowId]) -> Vec<FlowView> {
    let snapshot = control.snapshot();
    flows.iter().filter_map(|id| Some(flow_view(&*snapshot.get(&FLOWS, &id.to_string())?))).collect()
}

/// A headnode by its server's id or host name.
fn find_headnode(control: &Control, name: &str) -> Result<model::id::ServerId, Refusal> {
    let all = headnodes::list(control);
    let found = all.iter().find(|one| one.headnode.id.to_string() == name || one.headnode.hostname == name);
    let found = found.ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|one| one.headnode.hostname.as_str()).collect();
        control::Error::Conflict(format!("{name} is no headnode; these are: {}", names.join(", ")))
    })?;
    Ok(found.headnode.id)
}

async fn show(State(ops): State<Ops>) -> Answer<HeadnodesView> {
    let control = &ops.control;
    let lack = control.headnodes.lacking();
    let (kept_in, cluster) = match control.members() {
        Ok(members) => {
            let kept_in = members.kept_in();
            let cluster = match kept_in {
                // They were asked a moment ago, and most do not answer.
                _ if lack.is_some() => None,
                KeptIn::Members => Some(members.status().await.map_err(|error| base::errors::chain(&error))),
                KeptIn::File | KeptIn::ElsewhereKept => None,
            };
            (kept_in, cluster)
        }
        Err(_) => (KeptIn::File, None),
    };
    let (cluster, members_error) = match cluster {
        Some(Ok(cluster)) => (Some(cluster), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    let mut rows: Vec<HeadnodeView> =
        headnodes::list(control).iter().map(|found| row(&ops, found, cluster.as_ref())).collect();
    rows.sort_by(|one, other| one.hostname.cmp(&other.hostname));
    let known = |state: &&MemberState| state.server.is_some_and(|id| rows.iter().any(|row| row.id == id));
    let strangers = cluster.iter().flat_map(|cluster| &cluster.members).filter(|state| !known(state));
    let strangers = strangers.map(|state| state.name.clone()).collect();
    let may_be_lost = match (kept_in, &cluster) {
        (KeptIn::Members, Some(cluster)) => cluster.faults_tolerated(),
        _ if lack.is_some() => 0,
        (KeptIn::ElsewhereKept, _) => rows.iter().filter(|row| row.fresh).count().saturating_sub(1),
        _ => 0,
    };
    let meaning = match kept_in {
        KeptIn::ElsewhereKept => {
            format!("{} headnodes over a cluster that somebody else keeps: all but one may be lost", rows.len())
        }
        _ => quorum::meaning(rows.len()),
    };
    let mut view = HeadnodesView {
        now: control.now(),
        store: match kept_in {
            KeptIn::File => StoreKept::File,
            KeptIn::Members => StoreKept::Members,
            KeptIn::ElsewhereKept => StoreKept::Elsewhere,
        },
        headnodes: rows,
        strangers,
        members_error,
        waiting: lack.as_deref().map(waiting),
        may_be_lost,
        meaning,
        changes: changes(control),
        advice: Vec::new(),
    };
    view.advice = advice(&view);
    Ok(Json(view))
}

fn waiting(lack: &NoMajority) -> WaitingView {
    let missing = |missing: &Missing| MissingView {
        name: missing.name.clone(),
        address: missing.address.clone(),
        server: missing.server,
        last_beat: missing.last_beat,
    };
    WaitingView {
        since: lack.since,
        as_of: lack.as_of,
        voting: lack.voting,
        needed: lack.needed(),
        answering: lack.answering.clone(),
        missing: lack.missing.iter().map(missing).collect(),
        text: lack.for_operators(),
    }
}

fn row(ops: &Ops, found: &headnodes::HeadnodeView, cluster: Option<&Cluster>) -> HeadnodeView {
    let one = &found.headnode;
    let ours = ops.settings.shared().digest();
    HeadnodeView {
        id: one.id,
        hostname: one.hostname.clone(),
        answers: ops.control.headnodes.me() == Some(one.id),
        cloudapi: one.cloudapi.clone(),
        node_link: one.node_link.clone(),
        ops: one.ops.clone(),
        stage: one.stage,
        release: one.release.clone(),
        beat_age_ms: found.heard_ms,
        fresh: found.fresh,
        works: found.works,
        health: found.beat.as_ref().map_or_else(Health::default, |beat| beat.health.clone()),
        settings_differ: one.stage != Stage::Joining && one.shared_settings != ours,
        member: cluster.and_then(|cluster| cluster.on(one.id)).map(member),
    }
}

fn member(state: &MemberState) -> MemberView {
    match &state.said {
        Ok(facts) => MemberView {
            voting: state.voting,
            leads: facts.leads,
            version: facts.version.clone(),
            size_bytes: facts.size_bytes,
            used_bytes: facts.used_bytes,
            behind: facts.behind,
            alarms: facts.alarms.clone(),
            error: None,
        },
        Err(why) => MemberView { voting: state.voting, error: Some(why.clone()), ..MemberView::default() },
    }
}

/// Changes under way, and the last one if it failed.
fn changes(control: &Control) -> Vec<FlowView> {
    let mut flows: Vec<_> = control.snapshot().find(&FLOWS, BY_SUBJECT, SUBJECT).collect();
    flows.sort_by_key(|flow| flow.id);
    let last = flows.last().map(|flow| flow.id);
    let is_told = |state: FlowState, is_last: bool| {
        state.is_open() || state == FlowState::Parked || is_last && state == FlowState::Failed
    };
    flows.iter().filter(|flow| is_told(flow.state, Some(flow.id) == last)).map(|flow| flow_view(flow)).collect()
}

/// What to do when the store has no majority.
fn advice_without_majority(view: &HeadnodesView) -> Vec<String> {
    let Some(waiting) = &view.waiting else { return Vec::new() };
    let next = match view.store {
        StoreKept::Elsewhere => {
            "reads are answered; all goes on by itself as soon as enough of them answer: they are kept by somebody else, who is to start them"
        }
        _ => {
            "reads are answered; all goes on by itself as soon as enough of them answer: start those machines, or `neso up` there"
        }
    };
    let mut advice = vec![waiting.text.clone(), next.to_owned()];
    if view.store == StoreKept::Members {
        let last = "if they are gone for good: `neso adm recover --from-this-member`, typed here, says what a new beginning would cost";
        advice.push(last.to_owned());
    }
    advice
}

/// What to do next, the most urgent first.
fn advice(view: &HeadnodesView) -> Vec<String> {
    let mut advice = advice_without_majority(view);
    if let Some(error) = &view.members_error {
        advice.push(format!("the store's members cannot be asked: {error}"));
    }
    for one in &view.headnodes {
        let name = &one.hostname;
        // Nobody beats without a majority.
        let is_away = !one.fresh && one.stage == Stage::Active && view.headnodes.len() > 1 && view.waiting.is_none();
        if is_away {
            let since = one
                .beat_age_ms
                .map_or_else(|| "since this headnode started".to_owned(), |ms| format!("for {} s", ms / 1_000));
            advice.push(format!(
                "{name} does not beat {since}: `neso doctor` there says why; if the machine is lost, `neso adm ha replace {name} \
                 SERVER`"
            ));
        }
        if let Some(sick) = &one.health.sick {
            advice.push(format!("{name} is sick, and leaves the work to others: {sick}"));
        }
        if let Some(member) = &one.member {
            if let Some(error) = member.error.as_ref().filter(|_| !is_away) {
                advice.push(format!(
                    "the store's member on {name} does not answer: {error}; its log is `member.log` there"
                ));
            }
            for alarm in &member.alarms {
                advice.push(format!("the store's member on {name} complains: {alarm}"));
            }
        } else if view.store == StoreKept::Members
            && view.members_error.is_none()
            && view.waiting.is_none()
            && one.stage == Stage::Active
        {
            advice.push(format!(
                "{name} has no member of the store: `neso adm ha remove {name} --even`, then `neso adm ha add {name}`"
            ));
        }
        if one.settings_differ {
            advice.push(format!(
                "settings of {name} differ from those of the headnode that answers, where all must say the same: change both \
                 files, then restart their headnodes"
            ));
        }
    }
    let releases: Vec<&str> =
        view.headnodes.iter().map(|one| one.release.as_str()).filter(|text| !text.is_empty()).collect();
    if releases.windows(2).any(|two| two[0] != two[1]) {
        advice.push("headnodes run different versions: install the newest on all".to_owned());
    }
    for stranger in &view.strangers {
        advice.push(format!("the store has a member {stranger} that is no headnode's"));
    }
    if let Some(parked) = view.changes.iter().find(|flow| flow.state == "parked") {
        advice.push(format!("a change of headnodes stands still: `neso adm flow show {}` says why", parked.id));
    }
    let count = view.headnodes.len();
    if count == 1 {
        advice.push(
            "while this machine is away nothing can be changed: with two more (`neso adm ha add A B`) one may be lost"
                .to_owned(),
        );
    } else if count.is_multiple_of(2) && view.changes.is_empty() && view.store != StoreKept::Elsewhere {
        advice.push(format!("{}: add one more", quorum::meaning(count)));
    }
    advice
}

#[cfg(test)]
mod tests {
    use model::{id::ServerId, time::Timestamp};

    use super::*;

    fn one_called(name: &str) -> HeadnodeView {
        HeadnodeView {
            id: ServerId::from_random(name.len() as u128),
            hostname: name.to_owned(),
            answers: false,
            cloudapi: String::new(),
            node_link: String::new(),
            ops: String::new(),
            stage: Stage::Active,
            release: "1".to_owned(),
            beat_age_ms: Some(100),
            fresh: true,
            works: true,
            health: Health::default(),
            settings_differ: false,
            member: Some(MemberView { voting: true, ..MemberView::default() }),
        }
    }

    fn told(edit: impl FnOnce(&mut HeadnodesView)) -> Vec<String> {
        let mut view = HeadnodesView {
            now: Timestamp(0),
            store: StoreKept::Members,
            headnodes: vec![one_called("a"), one_called("bb"), one_called("ccc")],
            strangers: Vec::new(),
            members_error: None,
            waiting: None,
            may_be_lost: 1,
            meaning: String::new(),
            changes: Vec::new(),
            advice: Vec::new(),
        };
        edit(&mut view);
        advice(&view)
    }

    #[test]
    fn what_to_do_without_a_majority_hangs_on_who_keeps_the_store() {
        let waits = |view: &mut HeadnodesView| {
            let (since, text) = (Timestamp(0), "it waits for b".to_owned());
            let (voting, needed, answering) = (3, 2, vec!["a".to_owned()]);
            view.waiting =
                Some(WaitingView { since, as_of: None, voting, needed, answering, missing: Vec::new(), text });
        };
        let ours = told(waits).join("\n");
        assert!(ours.contains("it waits for b") && ours.contains("`neso up` there") && ours.contains("adm recover"));
        let theirs = told(|view| {
            waits(view);
            view.store = StoreKept::Elsewhere;
        });
        let theirs = theirs.join("\n");
        assert!(theirs.contains("it waits for b") && theirs.contains("kept by somebody else"), "{theirs}");
        assert!(!theirs.contains("neso up") && !theirs.contains("recover"), "they are not ours: {theirs}");
    }

    #[test]
    fn nothing_is_advised_where_all_is_well_and_each_trouble_is_named() {
        assert!(told(|_| ()).is_empty());
        let one = |edit: fn(&mut HeadnodesView)| told(edit).join("\n");
        assert!(one(|view| view.headnodes[1].fresh = false).contains("bb does not beat for 0 s"));
        assert!(one(|view| view.headnodes[1].health.sick = Some("slow disk".into())).contains("slow disk"));
        assert!(one(|view| view.headnodes[0].settings_differ = true).contains("settings of a differ"));
        assert!(one(|view| view.headnodes[0].release = "2".into()).contains("different versions"));
        assert!(one(|view| view.headnodes[2].member = None).contains("ccc has no member"));
        assert!(one(|view| drop(view.headnodes.pop())).contains("2 headnodes: none may be lost"));
        assert!(one(|view| view.headnodes.truncate(1)).contains("ha add A B"));
        assert!(one(|view| view.strangers.push("x".into())).contains("member x"));
    }
}
