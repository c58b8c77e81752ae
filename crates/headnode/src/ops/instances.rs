//! Instances of every account, and the flows that work on them.

use axum::{
    Extension, Json, Router,
    extract::{Path, Query, State},
    routing::{get, post},
};
use control::{
    Control, Scope, instances,
    instances::InstanceView as Found,
    tables::{INSTANCES, SERVERS},
};
use flow::{FLOWS, FlowRecord, FlowState};
use model::{id::MacAddr, instance::Caller, time::Timestamp};
use nodeapi::inquiry::{CONSOLE_MAX_BYTES, Console, Question};
use opsapi::{ConsoleView, FlowView, InstanceView, LastSeen, NicChange, NicView, StepView};
use serde::Deserialize;

use super::{Answer, AskError, Body, Ops, Refusal, accounts};

pub(super) fn routes() -> Router<Ops> {
    Router::new()
        .route("/v1/instances", get(list))
        .route("/v1/instances/{instance}", get(one).delete(remove))
        .route("/v1/instances/{instance}/nics", get(list_nics))
        .route("/v1/instances/{instance}/nics/{mac}", post(set_nic))
        .route("/v1/instances/{instance}/console", get(console))
        .route("/v1/instances/{instance}/start", post(start))
        .route("/v1/instances/{instance}/stop", post(stop))
        .route("/v1/instances/{instance}/reboot", post(reboot))
        .route("/v1/flows", get(list_flows))
        .route("/v1/flows/{flow}", get(one_flow))
}

/// Which instances to list.
#[derive(Debug, Deserialize)]
struct Which {
    account: Option<String>,
    server: Option<String>,
}

fn view(control: &Control, found: &Found) -> InstanceView {
    let instance = found.instance.value.clone();
    let primary = instance.nics.iter().find(|nic| nic.primary).or(instance.nics.first());
    let last_seen = found.last_seen_at.map(|at| {
        let snapshot = control.snapshot();
        let headnode = snapshot.scan(&SERVERS).find(|server| server.headnode);
        let by = headnode.map(|server| server.hostname.clone()).unwrap_or_default();
        LastSeen { at, age_ms: control.now().millis_since(at), by }
    });
    InstanceView {
        last_seen,
        state: found.state.as_str().to_owned(),
        primary_ip: primary.and_then(|nic| nic.first_address()),
        owner_login: control::accounts::get(control, instance.owner).ok().map(|owner| owner.login.clone()),
        instance,
    }
}

/// Every instance that is not deleted.
pub(super) fn all(control: &Control) -> impl Iterator<Item = Found> {
    let present: Vec<_> = control.snapshot().scan(&INSTANCES).filter(|found| found.deleted_at.is_none()).collect();
    present.into_iter().map(|found| instances::view(control, found))
}

async fn list(State(ops): State<Ops>, Query(which): Query<Which>) -> Answer<Vec<InstanceView>> {
    let scope = match &which.account {
        Some(account) => Scope::Account(accounts::find(&ops.control, account)?.id),
        None => Scope::All,
    };
    let found = all(&ops.control).filter(|found| scope.covers(found.instance.owner));
    let on =
        |view: &InstanceView| which.server.as_ref().is_none_or(|server| view.instance.server.to_string() == *server);
    Ok(Json(found.map(|found| view(&ops.control, &found)).filter(on).collect()))
}

/// An instance by id, short id, or an alias that only one has.
pub(super) fn find(control: &Control, instance: &str) -> Result<Found, Refusal> {
    if let Ok(id) = instance.parse() {
        return Ok(instances::get(control, Scope::All, id)?);
    }
    let fits = |found: &Found| found.instance.alias == instance || found.instance.id.short() == instance;
    let mut fitting: Vec<Found> = all(control).filter(fits).collect();
    match (fitting.pop(), fitting.len()) {
        (Some(found), 0) => Ok(found),
        (None, _) => Err(control::Error::not_found("instance", instance).into()),
        (Some(_), more) => {
            let why = format!("{} instances are called \"{instance}\"; name one by its id", more + 1);
            Err(control::Error::Conflict(why).into())
        }
    }
}

async fn one(State(ops): State<Ops>, Path(instance): Path<String>) -> Answer<InstanceView> {
    Ok(Json(view(&ops.control, &find(&ops.control, &instance)?)))
}

fn nic(found: instances::NicView) -> NicView {
    let (network, state) = (found.network.map(|network| network.name.clone()), found.state.as_str().to_owned());
    NicView { nic: found.nic, network_name: network, state }
}

async fn list_nics(State(ops): State<Ops>, Path(instance): Path<String>) -> Answer<Vec<NicView>> {
    let found = find(&ops.control, &instance)?;
    let nics = instances::nics::list(&ops.control, Scope::All, found.instance.id)?;
    Ok(Json(nics.into_iter().map(nic).collect()))
}

async fn set_nic(
    State(ops): State<Ops>,
    Extension(caller): Extension<Caller>,
    Path((instance, mac)): Path<(String, MacAddr)>,
    Body(NicChange { ipv6_ips }): Body<NicChange>,
) -> Answer<NicView> {
    let id = find(&ops.control, &instance)?.instance.id;
    let changed = instances::nics::set_addresses6(&ops.control, &caller, Scope::All, id, mac, &ipv6_ips).await?;
    Ok(Json(nic(changed)))
}

/// Which part of a console.
#[derive(Debug, Deserialize)]
struct Part {
    #[serde(default = "console_bytes")]
    max_bytes: u32,
    after: Option<String>,
}

/// Bytes of a console when nobody says how many: a boot and what went wrong in it.
const fn console_bytes() -> u32 {
    64 << 10
}

async fn console(
    State(ops): State<Ops>,
    Path(instance): Path<String>,
    Query(Part { max_bytes, after }): Query<Part>,
) -> Answer<ConsoleView> {
    if max_bytes == 0 || max_bytes > CONSOLE_MAX_BYTES {
        let why = format!("is {max_bytes}; use 1 to {CONSOLE_MAX_BYTES}");
        return Err(control::Error::invalid("max_bytes", why).into());
    }
    let instance = find(&ops.control, &instance)?.instance;
    let question = Question::Console { instance: instance.id, max_bytes, after };
    match ops.inquiries.ask(instance.server, question).await? {
        nodeapi::inquiry::Answer::Console(Console { text, next, lost }) => {
            Ok(Json(ConsoleView { instance: instance.id, text, next, lost }))
        }
        nodeapi::inquiry::Answer::Refused { why } => Err(AskError::Refused(why).into()),
        _ => Err(AskError::Refused("the machine answered something else".to_owned()).into()),
    }
}

async fn start(
    State(ops): State<Ops>,
    Extension(caller): Extension<Caller>,
    Path(instance): Path<String>,
) -> Answer<InstanceView> {
    let id = find(&ops.control, &instance)?.instance.id;
    instances::start(&ops.control, &caller, Scope::All, id).await?;
    one(State(ops), Path(instance)).await
}

async fn stop(
    State(ops): State<Ops>,
    Extension(caller): Extension<Caller>,
    Path(instance): Path<String>,
) -> Answer<InstanceView> {
    let id = find(&ops.control, &instance)?.instance.id;
    instances::stop(&ops.control, &caller, Scope::All, id).await?;
    one(State(ops), Path(instance)).await
}

async fn reboot(
    State(ops): State<Ops>,
    Extension(caller): Extension<Caller>,
    Path(instance): Path<String>,
) -> Answer<InstanceView> {
    let id = find(&ops.control, &instance)?.instance.id;
    instances::reboot(&ops.control, &caller, Scope::All, id).await?;
    one(State(ops), Path(instance)).await
}

async fn remove(
    State(ops): State<Ops>,
    Extension(caller): Extension<Caller>,
    Path(instance): Path<String>,
) -> Answer<()> {
    let id = find(&ops.control, &instance)?.instance.id;
    instances::delete(&ops.control, &caller, Scope::All, id).await?;
    Ok(Json(()))
}

/// Which flows to list.
#[derive(Debug, Deserialize)]
struct Flows {
    #[serde(default)]
    unfinished: bool,
    /// Those that have left the store, instead of those in it.
    #[serde(default)]
    archived: bool,
    /// Only those about this.
    subject: Option<String>,
    /// At most so many.
    limit: Option<usize>,
}

async fn list_flows(State(ops): State<Ops>, Query(which): Query<Flows>) -> Answer<Vec<FlowView>> {
    let limit = which.limit.unwrap_or(control::flows::ARCHIVED_MAX);
    if which.archived {
        let found = control::flows::archived(&ops.control, which.subject, limit).await?;
        return Ok(Json(found.iter().map(flow_view).collect()));
    }
    let mut found: Vec<_> = ops.control.snapshot().scan(&FLOWS).collect();
    found.retain(|flow| which.subject.as_ref().is_none_or(|subject| flow.subject == *subject));
    found.retain(|flow| !which.unfinished || flow.ended_at.is_none() || flow.state == FlowState::Parked);
    found.sort_by_key(|flow| std::cmp::Reverse(flow.created_at));
    found.truncate(limit);
    Ok(Json(found.iter().map(|flow| flow_view(flow)).collect()))
}

async fn one_flow(State(ops): State<Ops>, Path(flow): Path<String>) -> Answer<FlowView> {
    let found = ops.control.snapshot().get(&FLOWS, &flow);
    let found = found.ok_or_else(|| control::Error::not_found("flow", &flow))?;
    Ok(Json(flow_view(&found)))
}

pub(super) fn flow_view(flow: &FlowRecord) -> FlowView {
    FlowView {
        id: flow.id.to_string(),
        kind: flow.kind.clone(),
        subject: flow.subject.clone(),
        state: word(&flow.state),
        error: flow.error.clone(),
        created_at: Timestamp(flow.created_at),
        ended_at: flow.ended_at.map(Timestamp),
        steps: flow
            .steps
            .iter()
            .map(|step| StepView {
                name: step.name.clone(),
                state: word(&step.state),
                attempts: step.attempts,
                started_at: step.started_at.map(Timestamp),
                ended_at: step.ended_at.map(Timestamp),
                error: step.error.clone(),
            })
            .collect(),
    }
}

/// A state as its record spells it.
fn word(state: &impl serde::Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word.to_ascii_lowercase(),
        _ => "unknown".to_owned(),
    }
}
