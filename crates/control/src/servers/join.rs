//! How machines come in: invitations, and taking one in who shows its token.
//!
//! A token is 244 random bits. It is told once, to the operator who asked; the record keeps its hash. The commit that takes a
//! machine in marks the invitation used, so two machines with one token cannot both get in.
//!
//! The answer may be lost on its way. So the invitation also keeps which key came with the token: the same machine with the same key
//! is told the same again, until it was heard of as a node. Whoever reads the token later has another key.
//!
//! A machine whose datacenter is no more may bring the instances it runs, if the invitation says so. It stays the server it was, and is told nothing
//! until an operator has had them made known ([`crate::rebuild`]).

use std::{collections::BTreeMap, sync::Arc};

use model::{
    id::{InviteId, ServerId},
    part::Digest,
    server::{Invite, Likeness, MachineIdentity, Restored, Server, Trait},
    time::Timestamp,
};
use nodeapi::join::clock_off;
use sha2::{Digest as _, Sha256};
use store::{Entry, Snapshot, Transaction};

use super::{NewServer, fresh};
use crate::{
    Control, Error, Result, placement,
    servers::COMMENTS_MAX_BYTES,
    tables::{INVITES, SERVERS},
};

/// Longest life of an invitation, hours: a token that lies about for longer is found by others.
pub const INVITE_HOURS_MAX: u32 = 24 * 30;
/// Most invitations that are kept: more machines than one rolls out at once.
const INVITES_MAX: usize = 4_096;
/// Used and expired invitations are kept for so long, milliseconds: long enough to tell a person what happened to theirs.
const KEPT_MS: i64 = 30 * 86_400_000;
/// How every token begins, so that one is recognized where it should not be.
const TOKEN_PREFIX: &str = "neso-join-";

/// What an operator wants of an invitation.
#[derive(Debug, Clone, Default)]
pub struct NewInvite {
    /// Life, hours.
    pub hours: u32,
    /// See [`Invite::adopt`].
    pub adopt: bool,
    /// See [`Invite::traits`].
    pub traits: BTreeMap<String, Trait>,
    /// See [`Invite::rack`].
    pub rack: Option<String>,
    /// See [`Invite::comments`].
    pub comments: String,
}

/// A machine that wants in.
#[derive(Clone)]
pub struct Candidate {
    /// What it shows.
    pub token: String,
    /// See [`Server::hostname`].
    pub hostname: String,
    /// See [`Server::identity`].
    pub identity: MachineIdentity,
    /// What its clock says.
    pub clock: Timestamp,
    /// Which key it wants a certificate for, and has proven to have.
    pub key: Digest,
    /// Who it was in a datacenter that is no more, if it brings instances of that one.
    pub adopt: Option<ServerId>,
}

/// Makes an invitation; beside its record, its token.
pub async fn invite(control: &Control, new: NewInvite) -> Result<(Arc<Entry<Invite>>, String)> {
    if !(1..=INVITE_HOURS_MAX).contains(&new.hours) {
        return Err(Error::invalid("hours", format!("must be between 1 and {INVITE_HOURS_MAX}, not {}", new.hours)));
    }
    if new.comments.len() > COMMENTS_MAX_BYTES {
        return Err(Error::invalid("comments", format!("is longer than {COMMENTS_MAX_BYTES} bytes")));
    }
    super::check_rack(new.rack.as_deref())?;
    super::check_traits(&new.traits)?;
    // Ids of version 4 come from the operating system's generator for keys.
    let chance = || InviteId::random().uuid().simple().to_string();
    let token = format!("{TOKEN_PREFIX}{}{}", chance(), chance());
    let now = control.now();
    let invite = Invite {
        id: InviteId::random(),
        token_sha256: hash(&token),
        created_at: now,
        expires_at: now.plus_millis(i64::from(new.hours) * 3_600_000),
        used_by: None,
        used_key: None,
        adopt: new.adopt,
        traits: new.traits,
        rack: new.rack,
        comments: new.comments,
    };
    let id = invite.id;
    control
        .store
        .update(|snapshot| {
            let all: Vec<_> = snapshot.scan(&INVITES).collect();
            let old = all.iter().filter(|old| now.0 - old.expires_at.0 > KEPT_MS);
            let (mut transaction, mut kept) = (Transaction::new().create(&INVITES, invite.clone()), all.len());
            for old in old.take(INVITES_MAX) {
                transaction = transaction.delete(&INVITES, old);
                kept -= 1;
            }
            if kept >= INVITES_MAX {
                return Err(Error::Conflict(format!(
                    "there are {kept} invitations; withdraw some with `neso adm node withdraw`"
                )));
            }
            Ok((transaction, ()))
        })
        .await?;
    let record = control.snapshot().get(&INVITES, &id.to_string());
    Ok((record.ok_or_else(|| Error::not_found("invitation", id))?, token))
}

/// All invitations, newest first.
pub fn invites(control: &Control) -> Vec<Arc<Entry<Invite>>> {
    let mut invites: Vec<_> = control.snapshot().scan(&INVITES).collect();
    invites.sort_by_key(|invite| std::cmp::Reverse((invite.created_at, invite.id)));
    invites
}

/// Takes an invitation back.
pub async fn withdraw(control: &Control, id: InviteId) -> Result<()> {
    control
        .store
        .update(|snapshot| {
            let invite = snapshot.get(&INVITES, &id.to_string()).ok_or_else(|| Error::not_found("invitation", id))?;
            Ok::<_, Error>((Transaction::new().delete(&INVITES, &invite), ()))
        })
        .await?;
    Ok(())
}

/// The server that a machine became already whose answer was lost: with the token it shows, by the key it has.
pub fn returning(control: &Control, candidate: &Candidate) -> Option<ServerId> {
    let (snapshot, hashed) = (control.snapshot(), hash(&candidate.token));
    let invite = snapshot.scan(&INVITES).find(|invite| invite.token_sha256 == hashed)?;
    came_before(&snapshot, &invite, candidate)
}

fn came_before(snapshot: &Snapshot, invite: &Invite, candidate: &Candidate) -> Option<ServerId> {
    let server = snapshot.get(&SERVERS, &invite.used_by?.to_string())?;
    let is_same = server.identity.as_ref().is_none_or(|known| known.likeness(&candidate.identity) != Likeness::Other);
    // Once it was heard of it has its certificate, and there is nothing to repeat.
    (invite.used_key == Some(candidate.key) && is_same && server.boot_id.is_none()).then_some(server.id)
}

/// Takes in the machine that shows a token, as server `id`; again, if [`returning`] said so.
pub async fn admit(control: &Control, id: ServerId, candidate: &Candidate) -> Result<Arc<Entry<Server>>> {
    let now = control.now();
    if let Some(off) = clock_off(candidate.clock, now) {
        return Err(Error::invalid(
            "now",
            format!("this machine's clock is {off} the headnode's; set it, then join again"),
        ));
    }
    let hashed = hash(&candidate.token);
    control
        .store
        .update(|snapshot| {
            let found = snapshot.scan(&INVITES).find(|invite| invite.token_sha256 == hashed);
            let Some(invite) = found else {
                return Err(Error::NotAuthorized(
                    "the token is none of this datacenter's: it was cut or mistyped, withdrawn, or is another's; \
                     `neso adm node invite` makes one"
                        .to_owned(),
                ));
            };
            if came_before(snapshot, &invite, candidate) == Some(id) {
                return Ok((Transaction::new(), ()));
            }
            if let Some(by) = invite.used_by {
                return Err(Error::NotAuthorized(format!(
                    "the token was used by server {by}; each lets one machine in, `neso adm node invite` makes another"
                )));
            }
            if now >= invite.expires_at {
                return Err(Error::NotAuthorized(format!(
                    "the token expired at {}; `neso adm node invite` makes another",
                    invite.expires_at
                )));
            }
            check_brought(snapshot, &invite, candidate)?;
            let known = snapshot.scan(&SERVERS).find(|server| {
                let identity = server.identity.as_ref();
                identity.is_some_and(|known| known.likeness(&candidate.identity) == Likeness::Same)
            });
            if let Some(known) = known {
                return Err(Error::Conflict(format!(
                    "this machine is server {} ({}) already, its hardware says so; if it was installed anew, \
                     `neso adm server forget {}` first",
                    known.id, known.hostname, known.id
                )));
            }
            let new =
                NewServer { hostname: candidate.hostname.clone(), headnode: false, comments: invite.comments.clone() };
            let server = Server {
                identity: Some(candidate.identity.clone()),
                traits: invite.traits.clone(),
                rack: invite.rack.clone(),
                // It is told nothing until an operator has looked at what it brings.
                restored: candidate.adopt.map(|_| brought(now)),
                ..fresh(id, &new, now)
            };
            let used = Invite { used_by: Some(id), used_key: Some(candidate.key), ..invite.value.clone() };
            let transaction = Transaction::new()
                .replace(&INVITES, &invite, used)
                .create(&SERVERS, placement::with_room(control, server));
            Ok((transaction, ()))
        })
        .await?;
    control.snapshot().get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))
}

/// Of a machine that comes with instances nobody knows.
fn brought(now: Timestamp) -> Restored {
    Restored { taken_at: now, brought: true, compared: false, strangers: 0, rules: None }
}

/// Refuses a machine that brings instances where it may not, or that is known.
fn check_brought(snapshot: &Snapshot, invite: &Invite, candidate: &Candidate) -> Result<()> {
    if candidate.adopt.is_some() && !invite.adopt {
        return Err(Error::NotAuthorized(
            "the invitation does not allow a machine to bring instances of another datacenter; `neso adm node invite --adopt` \
             makes one that does"
                .to_owned(),
        ));
    }
    match candidate.adopt.and_then(|was| snapshot.get(&SERVERS, &was.to_string())) {
        None => Ok(()),
        Some(known) => Err(Error::Conflict(format!(
            "server {} ({}) is known here: this machine is of this datacenter, and `neso up` is all it needs",
            known.id, known.hostname
        ))),
    }
}

fn hash(token: &str) -> String {
    Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
