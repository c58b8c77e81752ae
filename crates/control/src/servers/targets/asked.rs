//! A machine asks for news.
//!
//! A machine that says by digest which document it holds is told only what is new in the next one ([`model::delta`]). For that the
//! last few documents it was sent are kept; they share their parts, so each costs a few pointers per instance.
//!
//! What settings and the program itself put in a document has no revision. So each machine's first word after a restart is held
//! against the document of the same generation; where the contents differ, the machine's base is raised, and with it the generation.
//!
//! Several headnodes make the same document of the same records, but not always under the same number: one that has just started counts a
//! document from a later revision, and one that hears of several changes at once counts it from the last of them. A machine that moves between
//! them is told nothing twice that matters: who holds a higher number holds the same content or a newer one. While their settings or programs differ, so do their documents; a machine then keeps
//! the one it was told last, and each headnode raises a machine's generation for that once at most, so that they do not raise for ever.

use std::time::Duration;

use model::{
    delta::{Held, TargetDelta, TargetNews},
    id::ServerId,
    part::Digest,
    server::Server,
    target::Target,
};
use store::Transaction;

use super::{Machine, Targets};
use crate::{Control, Error, Result, tables::SERVERS};

/// Documents a machine was sent that are kept. It holds the last, or the one before while that is on its way.
const SENT_MAX: usize = 4;

/// Waits until the document of `server` is newer than generation `have`, and returns it; `None` when that takes longer than
/// [`nodeapi::LONG_POLL_SECONDS`].
pub async fn watch_target(control: &Control, server: ServerId, have: u64) -> Result<Option<Target>> {
    if control.snapshot().get(&SERVERS, &server.to_string()).is_none() {
        return Err(Error::not_found("server", server));
    }
    let mut generation = control.targets.subscribe(server);
    let newer = generation.wait_for(|generation| *generation > have);
    tokio::select! {
        biased;
        known = newer => match known {
            Ok(_) => {}
            Err(_) => return Err(Error::not_found("server", server)),
        },
        () = control.clock.sleep(Duration::from_secs(nodeapi::LONG_POLL_SECONDS)) => return Ok(None),
    }
    Ok(control.targets.target(server))
}

/// The same for a machine that may know the document before: then only what is new.
pub async fn watch_news(control: &Control, server: ServerId, held: Held) -> Result<Option<TargetNews>> {
    let again = control.headnodes.me().is_some() && control.headnodes.agree(&control.snapshot());
    if control.targets.is_other(server, held, again) {
        raise_generation(control, server).await?;
        control.targets.note_compared(server);
    }
    let target = watch_target(control, server, held.generation).await?;
    Ok(target.map(|target| control.targets.news(target, held.digest)))
}

/// Counts a machine's generations from one higher, because what it holds under its newest one is not what that stands for now.
async fn raise_generation(control: &Control, id: ServerId) -> Result<()> {
    control
        .store
        .update(|snapshot| {
            let server = snapshot.get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
            let raised = Server { generation_base: server.generation_base.saturating_add(1), ..server.value.clone() };
            Ok::<_, Error>((Transaction::new().may_use_reserve().replace(&SERVERS, &server, raised), ()))
        })
        .await?;
    tracing::info!(server = %id, "settings or program make another document of the same records: the machine is told");
    Ok(())
}

impl Targets {
    /// The shortest form of `target` for a machine that holds the document with digest `held`.
    fn news(&self, target: Target, held: Option<Digest>) -> TargetNews {
        let digest = target.digest();
        let base = match held {
            // The same under an older number.
            Some(held) if held == digest => Some(target.clone()),
            Some(held) => {
                let state = self.lock();
                let mut sent = state.machines.get(&target.server).into_iter().flat_map(|machine| &machine.sent);
                sent.find(|(sent, _)| *sent == held).map(|(_, target)| target.clone())
            }
            None => None,
        };
        let news = match base {
            Some(base) => TargetNews::Delta(Box::new(TargetDelta::between(&base, &target))),
            None => TargetNews::Whole(target.clone()),
        };
        if let Some(machine) = self.lock().machines.get_mut(&target.server) {
            machine.sent_generation = target.generation;
            machine.sent.retain(|(sent, _)| *sent != digest);
            machine.sent.push_back((digest, target));
            if machine.sent.len() > SENT_MAX {
                machine.sent.pop_front();
            }
        }
        news
    }

    /// Whether a machine holds another document than ours under the same generation, or under a later one of which we have seen all that led
    /// to it. True until [`Targets::note_compared`]; after that, where it may be looked at `again`, when it comes from another headnode and not from here.
    fn is_other(&self, server: ServerId, held: Held, again: bool) -> bool {
        let Some(digest) = held.digest else { return false };
        let is_due = {
            let state = self.lock();
            state.machines.get(&server).is_some_and(|machine| machine.is_due(held.generation, state.revision, again))
        };
        if !is_due {
            return false;
        }
        let is_same = self.target(server).is_none_or(|target| target.digest() == digest);
        if is_same {
            self.note_compared(server);
        }
        !is_same
    }

    fn note_compared(&self, server: ServerId) {
        if let Some(machine) = self.lock().machines.get_mut(&server) {
            machine.compared = true;
        }
    }
}

impl Machine {
    /// Whether the document that a machine holds as `held` is to be compared with ours, which shows every change up to revision `seen`.
    fn is_due(&self, held: u64, seen: u64, again: bool) -> bool {
        let ours = *self.generation.borrow();
        let is_open = !self.compared || again && self.sent_generation != held;
        is_open && (ours == held || ours > 0 && (ours..=seen.saturating_add(self.base)).contains(&held))
    }
}
