//! What this machine's node does about its role as a headnode: it takes a kit in, or puts away what there was.
//!
//! The target says what is wanted ([`model::role`]); what was done is in [`headnode::role`]'s file, from which the supervisor knows which
//! processes there are. Everything may be cut anywhere and is begun again: files of a kit appear whole, and nothing is removed before the
//! headnode's processes have ended and cannot begin again, because we hold what they hold while they run.

use std::{sync::Arc, time::Duration};

use base::{backoff::Backoff, daemon::PidFile};
use headnode::{Settings, kit, role};
use model::{
    role::{HeadnodeFact, HeadnodeRole, HeadnodeState, HeadnodeWanted},
    time::Timestamp,
};
use nodeapi::client::Client as LinkClient;
use tokio::{sync::watch, time::Instant};

use crate::{
    context::Place,
    failure::{Failure, Outcome},
    install, supervise,
};

/// First and longest pause after a failure.
const PAUSE_FLOOR: Duration = Duration::from_millis(500);
/// See [`PAUSE_FLOOR`].
const PAUSE_CEILING: Duration = Duration::from_secs(15);
/// How often we look whether a headnode that started here found that it was taken out: reads a small file.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
/// The processes of a headnode get this long to end before we say that they do not; then we wait again.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// How often we look whether they have.
const END_POLL: Duration = Duration::from_millis(100);

/// See the head of this file.
pub(crate) struct Promoter {
    place: Place,
    settings: Settings,
    link: Arc<LinkClient>,
    roles: watch::Receiver<Option<HeadnodeRole>>,
    facts: watch::Sender<Option<HeadnodeFact>>,
}

/// What follows.
enum Next {
    /// Another role.
    Wait,
    /// Another process of ours, which reads other settings.
    Restart,
}

impl Promoter {
    /// With it, where it is told its role, and where it says how far it is.
    pub(crate) fn new(
        place: Place,
        settings: Settings,
        link: Arc<LinkClient>,
    ) -> (Self, watch::Sender<Option<HeadnodeRole>>, watch::Receiver<Option<HeadnodeFact>>) {
        let (role, roles) = watch::channel(None);
        let (facts, said) = watch::channel(role::read(&settings));
        (Self { place, settings, link, roles, facts }, role, said)
    }

    /// Follows the role. Ends when this process should: the machine's settings are others now.
    pub(crate) async fn run(mut self) {
        let mut pauses = Backoff::new(PAUSE_FLOOR, PAUSE_CEILING);
        loop {
            let role = self.roles.borrow_and_update().clone();
            let followed = self.follow(role).await;
            let pause = match followed {
                Ok(Next::Restart) => return,
                Ok(Next::Wait) => {
                    pauses.reset();
                    LOOK_PERIOD
                }
                Err(failure) => {
                    tracing::warn!(error = failure.message, "this machine is not yet what it should be");
                    self.facts.send_modify(|fact| {
                        if let Some(fact) = fact {
                            fact.error = Some(failure.to_string());
                        }
                    });
                    pauses.next_delay()
                }
            };
            tokio::select! {
                biased;
                changed = self.roles.changed() => if changed.is_err() {
                    // The agent has ended, and so do we when we are told.
                    std::future::pending::<()>().await;
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn follow(&self, role: Option<HeadnodeRole>) -> Outcome<Next> {
        let known = role::read(&self.settings);
        let leaving = known.as_ref().filter(|known| known.state == HeadnodeState::Leaving).map(|known| known.since);
        match (role, leaving) {
            (Some(role), _) if role.wanted == HeadnodeWanted::Absent => {
                self.give_up(role.since, known, &role.headnodes).await
            }
            // The headnode here found out by itself, and nobody else may be known to this node who could tell.
            (role, Some(since)) if role.as_ref().is_none_or(|role| role.since <= since) => {
                self.give_up(since, known, &role::others(&self.settings)).await
            }
            (Some(role), _) if known.is_none() && self.settings.join.is_none() => {
                // The datacenter began here.
                self.say(role.since, HeadnodeState::Ready);
                Ok(Next::Wait)
            }
            (Some(role), _) => self.take_on(role.since, known).await,
            (None, _) => Ok(Next::Wait),
        }
    }

    async fn take_on(&self, since: Timestamp, known: Option<HeadnodeFact>) -> Outcome<Next> {
        match &known {
            Some(fact) if fact.is(since, HeadnodeState::Ready) => {}
            Some(HeadnodeFact { state: HeadnodeState::Ready | HeadnodeState::Leaving, since: before, .. }) => {
                // What is here is of a role that ended while nobody could say so.
                self.remove(*before, &role::others(&self.settings)).await?;
            }
            _ => {}
        }
        if !known.is_some_and(|fact| fact.is(since, HeadnodeState::Ready)) {
            self.say(since, HeadnodeState::Preparing);
            let kit = self.link.headnode_kit().await?;
            if kit.since != since {
                return Err(Failure::new("the headnode sent what another role needs"));
            }
            base::crash::point("neso.kit.fetched");
            let (path, settings) = (self.place.settings_path(), self.settings.clone());
            base::task::blocking("kit", move || {
                kit::take_in(&path, &settings, &kit)?;
                base::crash::point("neso.kit.taken");
                role::write(&settings, since, HeadnodeState::Ready, &[])?;
                Ok::<_, Failure>(())
            })
            .await?;
            tracing::info!("this machine runs a headnode from now on");
        }
        self.units().await?;
        self.say(since, HeadnodeState::Ready);
        Ok(Next::Wait)
    }

    async fn give_up(&self, since: Timestamp, known: Option<HeadnodeFact>, others: &[String]) -> Outcome<Next> {
        let was_first = self.settings.join.is_none();
        let is_done = known.as_ref().is_some_and(|fact| fact.is(since, HeadnodeState::Absent));
        if !is_done {
            self.remove(since, others).await?;
            tracing::info!("this machine runs no headnode any more");
        }
        self.say(since, HeadnodeState::Absent);
        Ok(if was_first { Next::Restart } else { Next::Wait })
    }

    /// Ends what runs of a headnode and puts its files away.
    async fn remove(&self, since: Timestamp, others: &[String]) -> Outcome {
        role::write(&self.settings, since, HeadnodeState::Leaving, others)?;
        base::crash::point("neso.headnode.leaving");
        self.say(since, HeadnodeState::Leaving);
        self.units().await?;
        let _alone = self.wait_ended("headnode").await?;
        let _alone = (_alone, self.wait_ended("member").await?);
        base::crash::point("neso.headnode.ended");
        let (path, settings) = (self.place.settings_path(), self.settings.clone());
        let others = others.to_vec();
        base::task::blocking("put away", move || {
            kit::remove(&path, &settings, &others)?;
            base::crash::point("neso.headnode.removed");
            role::write(&settings, since, HeadnodeState::Absent, &[])?;
            Ok::<_, Failure>(())
        })
        .await
    }

    /// Waits until a process has ended, and keeps it from beginning.
    async fn wait_ended(&self, name: &str) -> Outcome<PidFile> {
        let path = supervise::pid_file(&self.settings, name);
        let begun = Instant::now();
        loop {
            match PidFile::take(&path) {
                Ok(held) => return Ok(held),
                Err(error) if begun.elapsed() > END_PATIENCE => return Err(error.into()),
                Err(_) => tokio::time::sleep(END_POLL).await,
            }
        }
    }

    /// Under systemd there is no supervisor that follows the role.
    async fn units(&self) -> Outcome {
        match install::is_installed(&self.place) {
            true => install::follow_role(&self.place, &self.settings).await,
            false => Ok(()),
        }
    }

    fn say(&self, since: Timestamp, state: HeadnodeState) {
        let fact = HeadnodeFact { since, state, error: None };
        self.facts.send_if_modified(|said| {
            let error = said.as_ref().filter(|said| said.is(since, state)).and_then(|said| said.error.clone());
            // What stands in the way is said until it does not any more.
            let fact = match state {
                HeadnodeState::Preparing | HeadnodeState::Leaving => HeadnodeFact { error, ..fact },
                _ => fact,
            };
            said.as_ref() != Some(&fact) && {
                *said = Some(fact);
                true
            }
        });
    }
}
