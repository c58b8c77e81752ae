//! Servers: the machines that join, what they report, and what each is told.

mod report;
pub mod targets;

use std::{collections::BTreeMap, sync::Arc};

use model::{
    id::{InstanceId, ServerId},
    server::{Hardware, Ratios, Reserved, Server},
    state::Reachability,
    time::Timestamp,
};
use store::{Entry, Transaction};

use crate::{
    Control, Error, Result,
    error::counted,
    placement,
    tables::{BY_SERVER, INSTANCES, SERVERS},
};

pub use report::apply_report;
pub use targets::{SharedTarget, target_for, watch_shared_target, watch_target};

/// Bytes of an operator's comment on a machine.
const COMMENTS_MAX_BYTES: usize = 4_096;

/// A machine with what follows from its record and from what was heard of it.
#[derive(Debug, Clone)]
pub struct ServerView {
    /// The record.
    pub server: Arc<Entry<Server>>,
    /// Whether reports arrive.
    pub reachability: Reachability,
    /// When the last one did.
    pub last_seen_at: Option<Timestamp>,
    /// Generation of the target it has written down.
    pub target_seen: u64,
    /// Generation of the newest target.
    pub target_generation: u64,
    /// What its last report spoke of and no record knows as its own. Left alone: only an explicit target destroys.
    pub strangers: Vec<InstanceId>,
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
            let server = Server {
                id,
                hostname: new.hostname.clone(),
                accepts_instances: true,
                headnode: new.headnode,
                hardware: Hardware::default(),
                reserved: Reserved::default(),
                last_seen_at: None,
                boot_id: None,
                target_seen: 0,
                generation_base: 0,
                generation_floor: 0,
                comments: new.comments.clone(),
                traits: BTreeMap::new(),
                rack: None,
                nic_tags: None,
                ratios: Ratios::default(),
                roominess: 0,
                created_at: now,
            };
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
    modify(control, id, |server| server.accepts_instances = accepts).await
}

/// Writes an operator's comment.
pub async fn set_comments(control: &Control, id: ServerId, comments: &str) -> Result<ServerView> {
    if comments.len() > COMMENTS_MAX_BYTES {
        return Err(Error::invalid("comments", format!("is longer than {COMMENTS_MAX_BYTES} bytes")));
    }
    modify(control, id, |server| comments.clone_into(&mut server.comments)).await
}

/// Forgets a machine that has no instances.
pub async fn forget(control: &Control, id: ServerId) -> Result<()> {
    control
        .store
        .update(|snapshot| {
            let server = snapshot.get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
            let instances = snapshot.find(&INSTANCES, BY_SERVER, &id.to_string()).count();
            if instances > 0 {
                let instances = counted(instances, "instance");
                return Err(Error::InUse(format!(
                    "server {} has {instances}; delete what it has first",
                    server.hostname
                )));
            }
            Ok((Transaction::new().delete(&SERVERS, &server), ()))
        })
        .await?;
    control.nodes.forget(id);
    Ok(())
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
    ServerView {
        reachability: control.nodes.reachability(server.id, control.now()),
        last_seen_at: heard.as_ref().map(|heard| heard.at).or(server.last_seen_at),
        target_seen: heard.as_ref().map_or(server.target_seen, |heard| heard.target_seen),
        target_generation: control.targets.generation(server.id),
        strangers: heard.map(|heard| heard.strangers.into_keys().collect()).unwrap_or_default(),
        server,
    }
}
