//! Servers: the machines that join, what they report, and what each is told.

mod change;
mod join;
mod peers;
mod report;
pub(crate) mod reports;
pub mod targets;
mod walls;

use std::sync::Arc;

use model::{
    clock::ClockReading,
    id::{InstanceId, ServerId},
    role::{HeadnodeRole, HeadnodeWanted},
    server::{Condition, Likeness, MachineIdentity, Server, Sign, condition},
    state::Reachability,
    time::Timestamp,
    wire::{Wires, overhead},
};
use store::{Entry, Transaction};

use crate::{Control, Error, Result, placement, tables::SERVERS};

pub use change::{ServerChange, change, drain, forget};
use change::{check_rack, check_traits, fresh};
pub use join::{Candidate, INVITE_HOURS_MAX, NewInvite, admit, invite, invites, returning, withdraw};
pub(crate) use report::let_go;
pub use report::{apply_news, apply_report};
pub use targets::{target_for, watch_news, watch_target};

/// Bytes of an operator's comment on a machine.
const COMMENTS_MAX_BYTES: usize = 4_096;

/// A machine with what follows from its record and from what was heard of it.
#[derive(Debug, Clone)]
pub struct ServerView {
    /// The record.
    pub server: Arc<Entry<Server>>,
    /// Whether reports arrive.
    pub reachability: Reachability,
    /// How it is.
    pub condition: Condition,
    /// When the last one did.
    pub last_seen_at: Option<Timestamp>,
    /// Generation of the target it has written down.
    pub target_seen: u64,
    /// Generation of the newest target.
    pub target_generation: u64,
    /// What its last report spoke of and no record knows as its own. Left alone: only an explicit target destroys.
    pub strangers: Vec<InstanceId>,
    /// What it found out about its wires to other machines.
    pub wires: Wires,
    /// Its clock beside the headnode's, as of its last report.
    pub clock: Option<ClockReading>,
    /// Largest packet that full ones of the datacenter's fabrics become at its address between machines, bytes.
    pub underlay_needed: Option<u32>,
}

/// What is known of a machine before its first report.
#[derive(Debug, Clone, Default)]
pub struct NewServer {
    /// See [`Server::hostname`].
    pub hostname: String,
    /// See [`Server::headnode`].
    pub headnode: bool,
    /// See [`Server::comments`].
    pub comments: String,
}

/// Takes a machine into the datacenter. One that is known already is left as it is.
pub async fn register(control: &Control, id: ServerId, new: NewServer) -> Result<ServerView> {
    let now = control.now();
    control
        .store
        .update(|snapshot| {
            if snapshot.get(&SERVERS, &id.to_string()).is_some() {
                return Ok((Transaction::new(), ()));
            }
            let server = fresh(id, &new, now);
            Ok::<_, Error>((Transaction::new().create(&SERVERS, placement::with_room(control, server)), ()))
        })
        .await?;
    get(control, id)
}

/// All machines, by host name.
pub fn list(control: &Control) -> Vec<ServerView> {
    let mut views: Vec<ServerView> = control.snapshot().scan(&SERVERS).map(|server| view(control, server)).collect();
    views.sort_by(|one, other| (&one.server.hostname, one.server.id).cmp(&(&other.server.hostname, other.server.id)));
    views
}

/// One machine.
pub fn get(control: &Control, id: ServerId) -> Result<ServerView> {
    let server = control.snapshot().get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
    Ok(view(control, server))
}

/// Opens a machine for new instances, or closes it. Those it has stay.
pub async fn set_accepts_instances(control: &Control, id: ServerId, accepts: bool) -> Result<ServerView> {
    modify(control, id, |server| {
        server.accepts_instances = accepts;
        if accepts {
            server.drain = None;
        }
    })
    .await
}

/// Refuses a machine that is not, or is not any more, the server its certificate names.
pub fn check_member(control: &Control, id: ServerId, identity: Option<&MachineIdentity>) -> Result<()> {
    let Some(server) = control.snapshot().get(&SERVERS, &id.to_string()) else {
        return Err(Error::NotAuthorized(format!(
            "server {id} is no part of this datacenter any more: an operator forgot it. Its instances run on untended; to \
             come back, `neso clean-data` and join with a new invitation"
        )));
    };
    match (&server.identity, identity) {
        (Some(known), Some(shown)) if known.likeness(shown) == Likeness::Other => Err(Error::NotAuthorized(format!(
            "this is not the machine that joined as server {id} ({}): {} differ. A certificate is good on its own machine \
             only; if its hardware was replaced, `neso adm server set {id} --new-hardware`",
            server.hostname,
            known.differences(shown)
        ))),
        _ => Ok(()),
    }
}

/// Refuses a machine that was not asked to run a headnode; since when one was.
pub fn check_headnode(control: &Control, id: ServerId) -> Result<Timestamp> {
    let server = control.snapshot().get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
    match &server.headnode_role {
        Some(HeadnodeRole { since, wanted: HeadnodeWanted::Running, .. }) => Ok(*since),
        _ => Err(Error::NotAuthorized(format!(
            "server {id} ({}) is not to run a headnode; `neso adm ha add {}` asks it to",
            server.hostname, server.hostname
        ))),
    }
}

/// Resolves when `id` is forgotten.
pub async fn forgotten(control: &Control, id: ServerId) {
    let gone = control.targets.gone(id);
    // Looked at after the wait began, so that a server that went in between is seen too.
    if control.snapshot().get(&SERVERS, &id.to_string()).is_some() {
        gone.await;
    }
}

async fn modify(control: &Control, id: ServerId, edit: impl Fn(&mut Server)) -> Result<ServerView> {
    control
        .store
        .update(|snapshot| {
            let entry = snapshot.get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
            let mut server = entry.value.clone();
            edit(&mut server);
            Ok::<_, Error>((Transaction::new().replace(&SERVERS, &entry, placement::with_room(control, server)), ()))
        })
        .await?;
    get(control, id)
}

fn view(control: &Control, server: Arc<Entry<Server>>) -> ServerView {
    let heard = control.nodes.heard(server.id);
    let reachability = control.nodes.reachability(server.id, control.now());
    let sign = heard.as_ref().map(|heard| Sign { at: heard.at, leaving: heard.leaving, goes_down: heard.goes_down });
    let now = control.now();
    let wires = heard.as_ref().map_or_else(Wires::default, |heard| Wires {
        facts: heard.wires.facts.clone(),
        age_ms: heard.wires_age_ms(now),
        of: heard.wires.of,
    });
    let needed = |underlay| u32::from(control.config.fabric.mtu) + overhead(underlay);
    ServerView {
        wires,
        clock: heard.as_ref().and_then(|heard| heard.clock),
        underlay_needed: server.underlay.map(needed),
        condition: condition(&server, sign, reachability, control.now()),
        reachability,
        last_seen_at: heard.as_ref().map(|heard| heard.at).or(server.last_seen_at),
        target_seen: heard.as_ref().map_or(server.target_seen, |heard| heard.target_seen),
        target_generation: control.targets.generation(server.id),
        strangers: heard.map(|heard| heard.strangers.into_keys().collect()).unwrap_or_default(),
        server,
    }
}
