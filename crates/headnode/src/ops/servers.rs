//! Machines: those that are part of the datacenter, and invitations for others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use axum::{
    Extension, Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    routing::{get, post},
};
use control::{Control, servers};
use model::{id::InstanceId, instance::Caller, server::Invite, state::Reachability, wire::WireFact};
use nodeapi::join::Fingerprint;
use opsapi::{Forget, InviteView, NewInvite, ServerChange, ServerDrain, ServerView, WireView};

use super::{Answer, Body, Ops, Refusal, value, values};
use crate::settings::is_address;

pub(super) fn routes() -> Router<Ops> {
    Router::new()
        .route("/v1/servers", get(list_servers))
        .route("/v1/servers/{server}", get(one_server).post(change_server).delete(forget_server))
        .route("/v1/servers/{server}/accept", post(accept_server))
        .route("/v1/servers/{server}/refuse", post(refuse_server))
        .route("/v1/servers/{server}/drain", post(drain_server))
        .route("/v1/invites", get(list_invites).post(invite))
        .route("/v1/invites/{invite}", axum::routing::delete(withdraw))
}

/// A server by id or host name.
pub(super) fn find_server(control: &Control, server: &str) -> Result<servers::ServerView, Refusal> {
    if let Ok(id) = server.parse() {
        return Ok(servers::get(control, id)?);
    }
    let found = servers::list(control).into_iter().find(|found| found.server.hostname == server);
    found.ok_or_else(|| control::Error::not_found("server", server).into())
}

/// Host names of machines by where they are met.
struct Names(BTreeMap<IpAddr, String>);

impl Names {
    fn of(servers: &[servers::ServerView]) -> Self {
        let met = |view: &servers::ServerView| Some((view.server.underlay?, view.server.hostname.clone()));
        Self(servers.iter().filter_map(met).collect())
    }
}

/// Wires of one machine in a list of machines: those that are not well, and not all of a machine that is cut off.
const LISTED_WIRES: usize = 16;

fn view(control: &Control, found: &servers::ServerView) -> ServerView {
    let names = Names::of(&servers::list(control));
    ServerView { wires: wires(found, &names, |_| true).collect(), ..listed(control, found, &names) }
}

fn wires<'a>(
    found: &'a servers::ServerView,
    names: &'a Names,
    which: impl Fn(&WireFact) -> bool + 'a,
) -> impl Iterator<Item = WireView> + 'a {
    let wires = found.wires.facts.iter().filter(move |(_, fact)| which(fact));
    wires.map(|(machine, fact)| WireView {
        machine: *machine,
        hostname: names.0.get(machine).cloned(),
        fact: fact.clone(),
    })
}

fn listed(control: &Control, found: &servers::ServerView, names: &Names) -> ServerView {
    let now = control.now();
    let mut server = value(&found.server);
    server.target_seen = found.target_seen;
    ServerView {
        server,
        reachable: control.nodes.heard(found.server.id).is_some() && found.reachability == Reachability::Reachable,
        condition: found.condition,
        last_heard_ms: found.last_seen_at.map(|at| now.millis_since(at)),
        strangers: found.strangers.clone(),
        underlay_needed: found.underlay_needed,
        wires: wires(found, names, |fact| !fact.is_well()).take(LISTED_WIRES).collect(),
        wires_well: found.wires.facts.values().filter(|fact| fact.is_well()).count(),
        wires_age_ms: found.wires.age_ms,
        wires_of: found.wires.of,
        clock: found.clock,
    }
}

async fn list_servers(State(ops): State<Ops>) -> Answer<Vec<ServerView>> {
    let servers = servers::list(&ops.control);
    let names = Names::of(&servers);
    Ok(Json(servers.iter().map(|server| listed(&ops.control, server, &names)).collect()))
}

async fn one_server(State(ops): State<Ops>, Path(server): Path<String>) -> Answer<ServerView> {
    Ok(Json(view(&ops.control, &find_server(&ops.control, &server)?)))
}

async fn accept_server(State(ops): State<Ops>, Path(server): Path<String>) -> Answer<ServerView> {
    set_accepts(&ops, &server, true).await
}

async fn refuse_server(State(ops): State<Ops>, Path(server): Path<String>) -> Answer<ServerView> {
    set_accepts(&ops, &server, false).await
}

async fn set_accepts(ops: &Ops, server: &str, accepts: bool) -> Answer<ServerView> {
    let id = find_server(&ops.control, server)?.server.id;
    let changed = servers::set_accepts_instances(&ops.control, id, accepts).await?;
    Ok(Json(view(&ops.control, &changed)))
}

async fn change_server(
    State(ops): State<Ops>,
    Path(server): Path<String>,
    Body(change): Body<ServerChange>,
) -> Answer<ServerView> {
    let id = find_server(&ops.control, &server)?.server.id;
    let ServerChange { comments, rack, traits, no_traits, ratios, new_hardware } = change;
    let change = servers::ServerChange { comments, rack, traits, no_traits, ratios, new_hardware };
    Ok(Json(view(&ops.control, &servers::change(&ops.control, id, change).await?)))
}

async fn drain_server(
    State(ops): State<Ops>,
    Path(server): Path<String>,
    Body(drain): Body<ServerDrain>,
) -> Answer<ServerView> {
    let id = find_server(&ops.control, &server)?.server.id;
    Ok(Json(view(&ops.control, &servers::drain(&ops.control, id, &drain.reason).await?)))
}

async fn forget_server(
    State(ops): State<Ops>,
    Extension(caller): Extension<Caller>,
    Path(server): Path<String>,
    Query(Forget { give_up }): Query<Forget>,
) -> Answer<()> {
    let id = find_server(&ops.control, &server)?.server.id;
    let names = give_up.split(',').filter(|name| !name.is_empty());
    let given_up: Result<BTreeSet<InstanceId>, _> = names.map(str::parse).collect();
    let given_up =
        given_up.map_err(|_| control::Error::invalid("give_up", "must be ids of instances between commas"))?;
    Ok(Json(servers::forget(&ops.control, id, &given_up, &caller).await?))
}

async fn list_invites(State(ops): State<Ops>) -> Answer<Vec<Invite>> {
    Ok(Json(values(&servers::invites(&ops.control))))
}

async fn invite(State(ops): State<Ops>, Body(new): Body<NewInvite>) -> Answer<InviteView> {
    let address = match new.address {
        Some(address) if is_address(&address) => address,
        Some(address) => {
            let why = format!("must be `host:port`, not `{address}`");
            return Err(control::Error::invalid("address", why).into());
        }
        None => link_address(&ops)?,
    };
    let authority = ops.pki.authority().map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", base::errors::chain(&error))
    })?;
    let wanted = servers::NewInvite {
        hours: new.hours,
        adopt: new.adopt,
        traits: new.traits,
        rack: new.rack,
        comments: new.comments,
    };
    let (invite, token) = servers::invite(&ops.control, wanted).await?;
    Ok(Json(InviteView {
        invite: value(&invite),
        token,
        address,
        fingerprint: Fingerprint::of(&authority).to_string(),
    }))
}

/// Where other machines find the node link, if that can be told.
fn link_address(ops: &Ops) -> Result<String, Refusal> {
    let (listen, settings) = (ops.settings.listen.node_link, &ops.settings);
    let wrong = |why: &str| Refusal::from(control::Error::invalid("address", why));
    if listen.ip().is_loopback() {
        return Err(wrong(
            "the node link listens on this machine only: set listen.node_link to 0.0.0.0 and its port in the settings, and \
             restart the headnode",
        ));
    }
    let reported = servers::get(&ops.control, ops.pki.server_id).ok().and_then(|view| view.server.underlay);
    match crate::presence::reached_at(settings, listen, reported) {
        Some(address) => Ok(address),
        None => Err(wrong(
            "cannot be told: name where the new machine reaches this one with `--address HOST:PORT`, or set \
             fabric.underlay_address or listen.names in the settings",
        )),
    }
}

async fn withdraw(State(ops): State<Ops>, Path(invite): Path<String>) -> Answer<()> {
    let id = invite.parse().map_err(|_| control::Error::not_found("invitation", &invite))?;
    Ok(Json(servers::withdraw(&ops.control, id).await?))
}
