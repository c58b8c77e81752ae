//! The members, and which of them is asked.
//!
//! One member is *preferred* and gets every call; who fails (no connection, no answer in time, no leader in its sight) is left for the
//! next in line. All members answer alike, so there is nothing to choose but who is well.
//!
//! Rejected: spreading calls over all members (a frozen one then costs every n-th call its deadline), and asking for the leader to
//! talk to it alone (a hop less, but a leader that is cut off from its majority believes in itself for a while).

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base::backoff::Backoff;
use prost::Message;
use tokio::time::Instant;

use crate::{
    call::{CallError, Channel},
    endpoint::{Endpoint, Tls},
};

/// Waits between attempts after every member was tried.
const RETRY_FLOOR: Duration = Duration::from_millis(50);
const RETRY_CEILING: Duration = Duration::from_secs(1);

pub(crate) struct Cluster {
    endpoints: Vec<Endpoint>,
    tls: Option<Tls>,
    // Leaf data: read and replaced in a few instructions.
    state: Mutex<State>,
}

struct State {
    preferred: usize,
    channels: Vec<Option<Channel>>,
}

/// Which member a call went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(usize);

impl Cluster {
    /// `endpoints` must not be empty.
    pub(crate) fn new(endpoints: Vec<Endpoint>, tls: Option<Tls>) -> Self {
        let channels = endpoints.iter().map(|_| None).collect();
        Self { endpoints, tls, state: Mutex::new(State { preferred: 0, channels }) }
    }

    /// Names of all members, for messages.
    pub(crate) fn names(&self) -> String {
        let names: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
        names.join(", ")
    }

    pub(crate) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// A connection to the preferred member. If it cannot be had, the next one is preferred from now on.
    pub(crate) async fn channel(&self) -> Result<(Place, Channel), CallError> {
        let (place, open) = self.with(|state| {
            let open = state.channels[state.preferred].clone().filter(Channel::is_open);
            (Place(state.preferred), open)
        });
        if let Some(open) = open {
            return Ok((place, open));
        }
        match Channel::dial(&self.endpoints[place.0], self.tls.as_ref()).await {
            Ok(channel) => {
                self.with(|state| state.channels[place.0] = Some(channel.clone()));
                Ok((place, channel))
            }
            Err(error) => {
                self.leave(place);
                Err(error)
            }
        }
    }

    /// Ask the preferred member once, and leave it if it is to blame for a failure.
    pub(crate) async fn ask<Q: Message, A: Message + Default>(
        &self,
        path: &str,
        question: &Q,
        within: Duration,
    ) -> Result<A, CallError> {
        let (place, channel) = self.channel().await?;
        let answer = channel.unary(path, question, within).await;
        if let Err(error) = &answer
            && error.is_the_members_fault()
        {
            self.leave(place);
        }
        answer
    }

    /// Ask one member after the other until one answers or refuses, for what may be asked twice.
    pub(crate) async fn ask_any<Q: Message, A: Message + Default>(
        &self,
        path: &str,
        question: &Q,
        within: Duration,
        deadline: Instant,
    ) -> Result<A, CallError> {
        let mut backoff = Backoff::new(RETRY_FLOOR, RETRY_CEILING);
        let mut tried = 0;
        loop {
            match self.ask(path, question, within).await {
                Err(error) if error.is_the_members_fault() && Instant::now() < deadline => {
                    tried += 1;
                    if tried % self.len() == 0 {
                        // Time does not mend certificates.
                        if matches!(error, CallError::Untrusted { .. }) {
                            return Err(error);
                        }
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
                answer => return answer,
            }
        }
    }

    /// Prefer the member after `place`, unless another one is preferred already. Its connection is not used again.
    pub(crate) fn leave(&self, place: Place) {
        self.with(|state| {
            state.channels[place.0] = None;
            if state.preferred == place.0 {
                state.preferred = (place.0 + 1) % state.channels.len();
                tracing::debug!(left = %self.endpoints[place.0], next = %self.endpoints[state.preferred], "another etcd member is asked");
            }
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
