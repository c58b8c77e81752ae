//! What the records, the store and the loops say: flows, headnodes, members, machines, instances.

use std::collections::BTreeMap;

use control::{
    headnodes::{
        self, HeadnodeView,
        members::{Cluster, MemberState},
    },
    instances, servers,
    tables::INSTANCES,
};
use flow::{FLOWS, FlowState, loops::LoopStatus};
use model::{
    headnode::Beat,
    metrics::{Exposition, Labels, Value},
    server::Condition,
    state::PublicState,
    time::Timestamp,
};

use super::{
    Row, Sources, distribution,
    families::{
        FLOW_OLDEST, FLOWS as FLOWS_FAMILY, HEADNODE_AGE, HEADNODE_BEHIND, HEADNODE_CLOCK, HEADNODE_COMMIT,
        HEADNODE_FRESH, HEADNODE_IMAGES, HEADNODE_LAG, HEADNODE_SICK, HEADNODE_SYNC, HEADNODE_WORKS,
        INSTANCES as INSTANCES_FAMILY, LOOP_AGE, LOOP_FAILURES, LOOP_PASSES, LOOP_PERIOD, MEMBER_ALARMS, MEMBER_BEHIND,
        MEMBER_LEADS, MEMBER_QUOTA, MEMBER_SIZE, MEMBER_UP, MEMBER_USED, MEMBER_VOTING, NODE_ACCEPTS, NODE_AGE,
        NODE_BEHIND, NODE_CERTIFICATE, NODE_CLOCK, NODE_CONDITION, NODE_INSTANCES, NODE_LINKED, NODE_MEMORY,
        NODE_MEMORY_RESERVED, NODE_POOL, NODE_POOL_RESERVED, NODE_REACHABLE, NODE_STRANGERS, STORE_AGAIN, STORE_COMMIT,
        STORE_CONFLICTS, STORE_FAILURES, STORE_MAJORITY, STORE_RECORDS, STORE_REVISION, STORE_SILENT, STORE_WAITING,
    },
    flag, put, rows, seconds_of_ms, seconds_of_signed_ms,
};

/// States in which a flow has not ended.
const UNENDED: [(FlowState, &str); 3] =
    [(FlowState::Running, "running"), (FlowState::Undoing, "undoing"), (FlowState::Parked, "parked")];

const STATES: [PublicState; 6] = [
    PublicState::Provisioning,
    PublicState::Running,
    PublicState::Stopping,
    PublicState::Stopped,
    PublicState::Offline,
    PublicState::Failed,
];

/// Writes all of it.
pub(super) fn write(sources: &Sources, members: Option<&Cluster>, text: &mut Exposition) {
    flows(sources, text);
    loops(&sources.loops.status(), sources.started_at, sources.control.now(), text);
    store(sources, text);
    if let Some(cluster) = members {
        text.one(&MEMBER_QUOTA, sources.settings.store.quota_mib << 20);
        let subjects: Vec<_> = cluster.members.iter().map(|member| (member_labels(member), member.clone())).collect();
        rows(MEMBER_ROWS, &subjects, text);
    }
    let headnodes: Vec<_> =
        headnodes::list(&sources.control).into_iter().map(|view| (headnode_labels(&view), view)).collect();
    rows(HEADNODE_ROWS, &headnodes, text);
    nodes(sources, text);
    instances_by_state(sources, text);
}

fn flows(sources: &Sources, text: &mut Exposition) {
    let now = sources.control.now();
    let known = sources.flow_kinds.iter().flat_map(|kind| UNENDED.map(|(_, state)| ((*kind).to_owned(), state)));
    let mut found: BTreeMap<(String, &str), (u64, Option<i64>)> = known.map(|key| (key, (0, None))).collect();
    for flow in sources.control.snapshot().scan(&FLOWS) {
        let Some((_, state)) = UNENDED.iter().find(|(state, _)| *state == flow.state) else { continue };
        let (count, oldest) = found.entry((flow.kind.clone(), state)).or_default();
        *count += 1;
        *oldest = Some(oldest.map_or(flow.created_at, |oldest| oldest.min(flow.created_at)));
    }
    let labels = |(kind, state): &(String, &str)| Labels::none().with("kind", kind).with("state", state);
    let counts: Vec<_> = found.iter().map(|(key, (count, _))| (labels(key), Value::Count(*count))).collect();
    put(&FLOWS_FAMILY, &counts, text);
    let age = |oldest: Option<i64>| seconds_of_ms(oldest.map_or(0, |oldest| now.millis_since(Timestamp(oldest))));
    let ages: Vec<_> = found.iter().map(|(key, (_, oldest))| (labels(key), age(*oldest))).collect();
    put(&FLOW_OLDEST, &ages, text);
}

fn loops(all: &[LoopStatus], started_at: Timestamp, now: Timestamp, text: &mut Exposition) {
    let subject = |status: &LoopStatus| {
        let age = now.millis_since(status.last_success_at.map_or(started_at, Timestamp));
        (Labels::none().with("loop", status.name), (status.clone(), age))
    };
    let subjects: Vec<(Labels, (LoopStatus, u64))> = all.iter().map(subject).collect();
    let told: &[Row<(LoopStatus, u64)>] = &[
        (&LOOP_AGE, |(_, age)| Some(seconds_of_ms(*age))),
        (&LOOP_PERIOD, |(status, _)| Some(seconds_of_ms(status.period_ms))),
        (&LOOP_PASSES, |(status, _)| Some(status.passes.into())),
        (&LOOP_FAILURES, |(status, _)| Some(status.failures.into())),
    ];
    rows(told, &subjects, text);
}

fn store(sources: &Sources, text: &mut Exposition) {
    let (control, counts) = (&sources.control, sources.control.store.counts());
    let snapshot = control.snapshot();
    text.one(&STORE_REVISION, snapshot.revision().0);
    let sizes: Vec<_> = snapshot
        .table_sizes()
        .into_iter()
        .map(|(table, count)| (Labels::none().with("table", table), Value::Count(count as u64)))
        .collect();
    put(&STORE_RECORDS, &sizes, text);
    text.histograms(&STORE_COMMIT, [(&Labels::none(), &distribution(&counts.commits))]);
    text.one(&STORE_CONFLICTS, counts.conflicts);
    text.one(&STORE_FAILURES, counts.failures);
    text.one(&STORE_AGAIN, counts.decided_again);
    text.one(&STORE_WAITING, counts.waiting as u64);
    text.one(&STORE_SILENT, counts.silent.as_secs_f64());
    text.one(&STORE_MAJORITY, flag(control.headnodes.lacking().is_none()));
}

fn member_labels(member: &MemberState) -> Labels {
    Labels::none().with("member", &member.name)
}

const MEMBER_ROWS: &[Row<MemberState>] = &[
    (&MEMBER_UP, |member| Some(flag(member.said.is_ok()))),
    (&MEMBER_VOTING, |member| Some(flag(member.voting))),
    (&MEMBER_LEADS, |member| Some(flag(member.said.as_ref().ok()?.leads))),
    (&MEMBER_SIZE, |member| Some(member.said.as_ref().ok()?.size_bytes.into())),
    (&MEMBER_USED, |member| Some(member.said.as_ref().ok()?.used_bytes.into())),
    (&MEMBER_BEHIND, |member| Some(member.said.as_ref().ok()?.behind.into())),
    (&MEMBER_ALARMS, |member| Some((member.said.as_ref().ok()?.alarms.len() as u64).into())),
];

fn headnode_labels(view: &HeadnodeView) -> Labels {
    Labels::none().with("headnode", &view.headnode.hostname).with("server", &view.headnode.id.to_string())
}

fn beat(view: &HeadnodeView) -> Option<&Beat> {
    Some(&view.beat.as_deref()?.value)
}

const HEADNODE_ROWS: &[Row<HeadnodeView>] = &[
    (&HEADNODE_FRESH, |view| Some(flag(view.fresh))),
    (&HEADNODE_WORKS, |view| Some(flag(view.works))),
    (&HEADNODE_AGE, |view| view.heard_ms.map(seconds_of_ms)),
    (&HEADNODE_SICK, |view| Some(flag(beat(view)?.health.sick.is_some()))),
    (&HEADNODE_COMMIT, |view| Some(seconds_of_ms(beat(view)?.health.commit_ms))),
    (&HEADNODE_LAG, |view| Some(seconds_of_ms(beat(view)?.health.lag_ms))),
    (&HEADNODE_BEHIND, |view| beat(view)?.health.behind_ms().map(seconds_of_ms)),
    (&HEADNODE_CLOCK, |view| beat(view)?.health.clock_offset_ms.map(seconds_of_signed_ms)),
    (&HEADNODE_SYNC, |view| beat(view)?.health.sync_ms.map(seconds_of_ms)),
    (&HEADNODE_IMAGES, |view| Some(beat(view)?.health.images_missing.into())),
];

/// A machine as it is told of.
struct Node {
    view: servers::ServerView,
    is_linked: bool,
    age_ms: Option<u64>,
    certificate_left_ms: Option<i64>,
}

const NODE_ROWS: &[Row<Node>] = &[
    (&NODE_REACHABLE, |node| match node.view.condition {
        Condition::SettingUp => None,
        Condition::Unreachable { .. } => Some(flag(false)),
        _ => Some(flag(true)),
    }),
    (&NODE_AGE, |node| node.age_ms.map(seconds_of_ms)),
    (&NODE_LINKED, |node| Some(flag(node.is_linked))),
    (&NODE_BEHIND, |node| Some(node.view.target_generation.saturating_sub(node.view.target_seen).into())),
    (&NODE_ACCEPTS, |node| Some(flag(node.view.server.accepts_instances))),
    (&NODE_INSTANCES, |node| Some(u64::from(node.view.server.reserved.instances).into())),
    (&NODE_STRANGERS, |node| Some((node.view.strangers.len() as u64).into())),
    (&NODE_MEMORY, |node| Some(node.view.server.hardware.memory.bytes().into())),
    (&NODE_MEMORY_RESERVED, |node| Some(node.view.server.reserved.memory.bytes().into())),
    (&NODE_POOL, |node| Some(node.view.server.hardware.pool_size.bytes().into())),
    (&NODE_POOL_RESERVED, |node| Some(node.view.server.reserved.disk.bytes().into())),
    (&NODE_CLOCK, |node| {
        let measured = node.view.clock.map(|clock| clock.ahead_ms).or(node.view.server.clock_ahead_ms);
        measured.map(seconds_of_signed_ms)
    }),
    (&NODE_CERTIFICATE, |node| node.certificate_left_ms.map(seconds_of_signed_ms)),
];

fn nodes(sources: &Sources, text: &mut Exposition) {
    let (control, now) = (&sources.control, sources.control.now());
    let ends = sources.certificates.ends();
    let me = control.headnodes.me();
    let of = |view: servers::ServerView| {
        let id = view.server.id;
        let labels = Labels::none().with("node", &view.server.hostname).with("server", &id.to_string());
        let node = Node {
            is_linked: me.is_some() && view.server.heard_by == me,
            age_ms: view.last_seen_at.map(|at| now.millis_since(at)),
            certificate_left_ms: ends.get(&id).map(|end| end.0.saturating_sub(now.0)),
            view,
        };
        (labels, node)
    };
    let subjects: Vec<(Labels, Node)> = servers::list(control).into_iter().map(of).collect();
    rows(NODE_ROWS, &subjects, text);
    let condition = |(labels, node): &(Labels, Node)| {
        (labels.with("condition", condition_name(node.view.condition)), Value::Count(1))
    };
    put(&NODE_CONDITION, &subjects.iter().map(condition).collect::<Vec<_>>(), text);
}

const fn condition_name(condition: Condition) -> &'static str {
    match condition {
        Condition::SettingUp => "setting_up",
        Condition::Running => "running",
        Condition::Drained => "drained",
        Condition::Rebooting { .. } => "rebooting",
        Condition::Restarting { .. } => "restarting",
        Condition::Unreachable { .. } => "unreachable",
    }
}

fn instances_by_state(sources: &Sources, text: &mut Exposition) {
    let control = &sources.control;
    let mut counts = STATES.map(|state| (state, 0_u64));
    for found in control.snapshot().scan(&INSTANCES).filter(|found| found.deleted_at.is_none()) {
        let state = instances::state_of(control, &found);
        if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == state) {
            *count += 1;
        }
    }
    let told = counts.map(|(state, count)| (Labels::none().with("state", state.as_str()), Value::Count(count)));
    put(&INSTANCES_FAMILY, &told, text);
}
