//! How far this headnode's copies of the store are behind it: what it shows, and what its member has.
//!
//! A member that is frozen, or cut off from the others while its machine is not, loses nothing but time, and nobody is told: its headnode
//! commits through another member. And a mirror that does not follow shows the past. So a majority is asked over and over how far the store is, and
//! that is compared with what is here.
//!
//! Where no majority answers nothing is known, and nothing is said: that is told elsewhere ([`crate::members::majority`]). A member that does not answer is where it was
//! when it last did.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base::shutdown::Shutdown;
use control::Control;
use etcd::Etcd;
use model::{
    behind::Course,
    headnode::{CopySigns, Stage},
};
use store::Engine as _;
use tokio::time::Instant;

use crate::members::Keeper;

/// From the end of one look to the next.
const PERIOD: Duration = Duration::from_secs(2);

/// See the head of this file.
pub struct CopyProbe {
    keeper: Arc<Keeper>,
    begun: Instant,
    // Leaf data: numbers are added, or all are compared.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    course: Course,
    /// How far what this headnode shows is; nothing while nobody looks.
    mirror: Option<u64>,
    member: Option<Member>,
}

/// The member beside this headnode.
#[derive(Debug, Clone, Default)]
struct Member {
    /// How far it was when it last said.
    revision: u64,
    /// Why it does not say now.
    silent: Option<String>,
}

impl CopyProbe {
    /// Of the store that `keeper` keeps.
    pub fn new(keeper: Arc<Keeper>) -> Self {
        Self { keeper, begun: Instant::now(), state: Mutex::default() }
    }

    /// Looks until `shutdown`.
    pub async fn run(self: Arc<Self>, control: Control, shutdown: Shutdown) {
        loop {
            // Whoever is alone has nobody to leave the work to.
            match self.keeper.engine().filter(|_| !control.headnodes.roster().is_alone()) {
                Some(engine) => {
                    if shutdown.unless(self.look(&control, &engine)).await.is_none() {
                        return;
                    }
                }
                None => *self.state() = State::default(),
            }
            if shutdown.unless(tokio::time::sleep(PERIOD)).await.is_none() {
                return;
            }
        }
    }

    /// What was measured last.
    pub fn signs(&self) -> CopySigns {
        let (state, now) = (self.state(), self.now());
        let behind = |revision| state.course.behind(now, revision);
        CopySigns {
            mirror: state.mirror.map(behind),
            member: state.member.as_ref().map(|member| behind(member.revision)),
            member_silent: state.member.as_ref().and_then(|member| member.silent.clone()),
        }
    }

    async fn look(&self, control: &Control, engine: &Etcd) {
        // First the store, then the copies: they may be further by then, and are not behind because they were asked earlier.
        let newest = match engine.newest() {
            Some(question) => question.await.ok(),
            None => None,
        };
        let seen = self.now();
        // In this order: while it joins there is no file to be read.
        let own = (self.keeper.stage() == Some(Stage::Active)).then(|| self.keeper.own_endpoint()).flatten();
        let said = match &own {
            Some(endpoint) => Some(engine.revision_of(endpoint).await),
            None => None,
        };
        let mirror = control.snapshot().revision().0;
        let mut state = self.state();
        if let Some(newest) = newest {
            state.course.note(seen, newest.0);
        }
        state.mirror = Some(mirror);
        state.member = said.map(|said| match said {
            Ok(revision) => Member { revision: revision.0, silent: None },
            // One that has not said anything yet begins with what it would have.
            Err(error) => Member {
                revision: state.member.as_ref().map_or(mirror, |known| known.revision),
                silent: Some(base::errors::chain(&error)),
            },
        });
        let slowest = state.member.as_ref().map_or(mirror, |member| member.revision.min(mirror));
        state.course.forget(slowest);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
