//! Headnodes: who runs the control plane, who of them beats, and whose work is whose.
//!
//! ```text
//!   my beat ── a commit, every second ──► store ──► everybody's mirror ──► roster: who is fresh, by the own clock of when it arrived
//!                                                                             │
//!                                          flows, loops over everything ◄─────┘  each works out alike whose they are
//! ```
//! A beat is good for [`BEAT_FRESH_MS`] from when it arrived *here*: what the sender's clock says is shown and never believed. So a
//! headnode that cannot commit, or whose mirror does not follow, falls out of its own roster as well as of the others', and owns nothing until
//! its next beat.
//!
//! A control plane that was not told which headnode it is ([`ControlConfig::headnode`]) is alone, as in most tests.
//!
//! [`ControlConfig::headnode`]: crate::ControlConfig::headnode
//! [`BEAT_FRESH_MS`]: model::headnode::BEAT_FRESH_MS

pub mod members;

mod adding;
mod beating;
mod change;
mod lacking;
mod removing;
mod roster;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use model::{
    headnode::{BEAT_FRESH_MS, Beat, HEADNODES_MAX, Headnode, MemberAddresses, Stage},
    id::ServerId,
    part::Digest,
    release::may_start,
    role::{HeadnodeRole, HeadnodeWanted},
    server::Server,
};
use store::{Entry, Snapshot, Transaction};
use tokio::time::Instant;

use crate::{
    Control, Error, Result, placement,
    tables::{BEATS, HEADNODES, SERVERS},
};

pub use adding::HeadnodeAdd;
pub use beating::{Measure, beat, keep_beating, sickness, successors};
pub use change::{Candidate, Input, MemberPlace, SUBJECT, Wanted, begun, change, under_way};
pub use lacking::{Missing, NoMajority};
pub use removing::HeadnodeRemove;
pub(crate) use roster::start;
pub use roster::{Headnodes, Roster};

/// How often it is looked whether headnodes of another release beat.
const RELEASE_POLL: Duration = Duration::from_millis(200);

/// What a headnode says of itself when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// See [`Headnode::hostname`].
    pub hostname: String,
    /// See [`Headnode::cloudapi`].
    pub cloudapi: String,
    /// See [`Headnode::node_link`].
    pub node_link: String,
    /// See [`Headnode::ops`].
    pub ops: String,
    /// See [`Headnode::member`]; `None` leaves what is recorded.
    pub member: Option<MemberAddresses>,
    /// See [`Headnode::shared_settings`].
    pub shared_settings: Digest,
    /// See [`Headnode::release`].
    pub release: String,
}

/// A headnode with its last beat and what is made of it here.
#[derive(Debug, Clone)]
pub struct HeadnodeView {
    /// The record.
    pub headnode: Arc<Entry<Headnode>>,
    /// Its last beat.
    pub beat: Option<Arc<Entry<Beat>>>,
    /// How long ago that arrived here, milliseconds; `None` when none has since this process began.
    pub heard_ms: Option<u64>,
    /// That is not too long.
    pub fresh: bool,
    /// It has a share of the work.
    pub works: bool,
}

/// Writes down that this headnode is one, and how it is reached. A new one is active at once: those that are to join have a record that says so
/// before they start. One that was taken out is refused, also when it was dead then and comes back.
pub async fn register(control: &Control, id: ServerId, says: &Announcement) -> Result<()> {
    let now = control.now();
    let decided = control.store.update(|snapshot| {
        let server = snapshot.get(&SERVERS, &id.to_string());
        let role = server.as_ref().and_then(|server| server.headnode_role.as_ref());
        if role.is_some_and(|role| role.wanted == HeadnodeWanted::Absent) {
            let why = "this machine was taken out of the headnodes; its node puts away what is left of one";
            return Err(Error::Conflict(why.to_owned()));
        }
        let known = snapshot.get(&HEADNODES, &id.to_string());
        let is_joining = known.as_ref().is_some_and(|known| known.stage == Stage::Joining);
        let transaction = match known {
            Some(entry) => announced(&entry, says),
            None if snapshot.count(&HEADNODES) >= HEADNODES_MAX => {
                let why = format!("there are {HEADNODES_MAX} headnodes already; remove one first");
                return Err(Error::Conflict(why));
            }
            None => {
                let headnode = Headnode {
                    id,
                    hostname: says.hostname.clone(),
                    cloudapi: says.cloudapi.clone(),
                    node_link: says.node_link.clone(),
                    ops: says.ops.clone(),
                    member: says.member.clone(),
                    stage: Stage::Active,
                    joined_at: now,
                    shared_settings: says.shared_settings,
                    release: says.release.clone(),
                };
                Transaction::new().create(&HEADNODES, headnode)
            }
        };
        Ok((transaction.may_use_reserve(), is_joining))
    });
    if decided.await?.1 {
        base::crash::point("control.headnode.announced");
    }
    Ok(())
}

/// Refuses a program that is of too new or too old a release to work beside the headnodes that do ([`model::release`]). Before anything is written. Whoever
/// has such a release and does not beat is no reason: it may be gone for good, or is about to be replaced itself.
pub async fn admit_release(control: &Control, id: ServerId, release: &str) -> Result<()> {
    let run = |beat: Arc<Entry<Beat>>| (beat.started_at, beat.sequence);
    let before = control.snapshot();
    let deadline = Instant::now() + Duration::from_millis(BEAT_FRESH_MS);
    loop {
        let snapshot = control.snapshot();
        let others: Vec<_> = snapshot.scan(&HEADNODES).filter(|headnode| headnode.id != id).collect();
        let named = |headnodes: Vec<&Arc<Entry<Headnode>>>| {
            let named: Vec<_> = headnodes.iter().map(|one| (one.hostname.as_str(), one.release.as_str())).collect();
            may_start(release, named)
        };
        if named(others.iter().collect()).is_ok() {
            return Ok(());
        }
        let beats = |headnode: &&Arc<Entry<Headnode>>| {
            let key = headnode.id.to_string();
            snapshot.get(&BEATS, &key).map(run) != before.get(&BEATS, &key).map(run)
        };
        named(others.iter().filter(beats).collect()).map_err(Error::Conflict)?;
        if Instant::now() >= deadline {
            return Ok(());
        }
        tokio::time::sleep(RELEASE_POLL).await;
    }
}

/// The same for one that is known: its addresses may change while it runs. One that was taken out is not put in again. Returns whether something was
/// new.
pub async fn refresh(control: &Control, id: ServerId, says: &Announcement) -> Result<bool> {
    let decided = control.store.update(|snapshot| {
        let transaction =
            snapshot.get(&HEADNODES, &id.to_string()).map_or_else(Transaction::new, |entry| announced(&entry, says));
        let is_new = !transaction.is_empty();
        Ok::<_, Error>((transaction, is_new))
    });
    Ok(decided.await?.1)
}

/// Of all headnodes only `me` is one from now on: the store was begun anew from its member. The others are told to put theirs away, should they come back.
/// Returns their host names.
pub async fn leave_behind(control: &Control, me: ServerId) -> Result<Vec<String>> {
    let now = control.now();
    let decided = control.store.update(|snapshot| {
        let (mut transaction, mut names) = (Transaction::new().may_use_reserve(), Vec::new());
        let links = snapshot.get(&HEADNODES, &me.to_string()).map(|own| own.node_link.clone());
        let links: Vec<String> = links.into_iter().filter(|link| !is_anywhere(link)).collect();
        for lost in snapshot.scan(&HEADNODES).filter(|one| one.id != me) {
            let key = lost.id.to_string();
            names.push(lost.hostname.clone());
            transaction = transaction.delete(&HEADNODES, &lost);
            if let Some(beat) = snapshot.get(&BEATS, &key) {
                transaction = transaction.delete(&BEATS, &beat);
            }
            if let Some(server) = snapshot.get(&SERVERS, &key) {
                let role = HeadnodeRole { since: now, wanted: HeadnodeWanted::Absent, headnodes: links.clone() };
                let told = Server { headnode: false, headnode_role: Some(role), ..server.value.clone() };
                transaction = transaction.replace(&SERVERS, &server, placement::with_room(control, told));
            }
        }
        Ok::<_, Error>((transaction, names))
    });
    Ok(decided.await?.1)
}

fn announced(entry: &Entry<Headnode>, says: &Announcement) -> Transaction {
    let Announcement { hostname, cloudapi, node_link, ops, member, shared_settings, release } = says.clone();
    let member = member.or_else(|| entry.member.clone());
    let headnode =
        Headnode { hostname, cloudapi, node_link, ops, member, shared_settings, release, ..entry.value.clone() };
    match headnode == entry.value {
        true => Transaction::new(),
        false => Transaction::new().replace(&HEADNODES, entry, headnode),
    }
}

/// All headnodes, in the order of their ids.
pub fn list(control: &Control) -> Vec<HeadnodeView> {
    let snapshot = control.snapshot();
    let roster = control.headnodes.roster();
    let mut views: Vec<HeadnodeView> = snapshot
        .scan(&HEADNODES)
        .map(|headnode| HeadnodeView {
            beat: snapshot.get(&BEATS, &headnode.id.to_string()),
            heard_ms: control.headnodes.heard_ms(headnode.id),
            fresh: roster.is_fresh(headnode.id),
            works: roster.workers().contains(&headnode.id),
            headnode,
        })
        .collect();
    views.sort_by_key(|view| view.headnode.id);
    views
}

/// Where machines find the headnodes; none when there is only the one that the datacenter began on, which every machine joined.
pub(crate) fn node_links(snapshot: &Snapshot) -> Vec<String> {
    let active = snapshot.scan(&HEADNODES).filter(|headnode| headnode.stage == Stage::Active);
    let active: Vec<_> = active.filter(|headnode| !is_anywhere(&headnode.node_link)).collect();
    match active.as_slice() {
        [only] if !was_added(snapshot, only.id) => Vec::new(),
        all => all.iter().map(|headnode| headnode.node_link.clone()).collect(),
    }
}

/// Whether a headnode was added to others, which machines may have joined that know nothing of it.
fn was_added(snapshot: &Snapshot, headnode: ServerId) -> bool {
    snapshot.get(&SERVERS, &headnode.to_string()).is_some_and(|server| server.headnode_role.is_some())
}

/// Whether an address says where somebody listens and not where it is found.
fn is_anywhere(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
}
