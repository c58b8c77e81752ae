//! The members, and which of them is asked.
//!
//! One member is *preferred* and gets every call; who fails (no connection, no answer in time, no leader in its sight) is left for the
//! next in line. All members answer alike, so there is nothing to choose but who is well. Members come and go while calls are made
//! ([`Cluster::set_endpoints`]).
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
    tls: Option<Tls>,
    // Leaf data: read and replaced in a few instructions.
    state: Mutex<State>,
}

struct State {
    preferred: usize,
    /// Never empty.
    members: Vec<(Endpoint, Option<Channel>)>,
}

/// Which member a call went to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place(Endpoint);

impl Cluster {
    /// `endpoints` must not be empty.
    pub(crate) fn new(endpoints: Vec<Endpoint>, tls: Option<Tls>) -> Self {
        let members = endpoints.into_iter().map(|endpoint| (endpoint, None)).collect();
        Self { tls, state: Mutex::new(State { preferred: 0, members }) }
    }

    /// The members are at `endpoints` from now on, which must not be empty. Who is asked now is asked on, if it is still one of them.
    pub(crate) fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        self.with(|state| {
            let asked = state.members[state.preferred].0.clone();
            let mut known = std::mem::take(&mut state.members);
            let mut channel_of = |endpoint: &Endpoint| {
                known.iter_mut().find(|(other, _)| other == endpoint).and_then(|(_, channel)| channel.take())
            };
            state.members = endpoints
                .into_iter()
                .map(|endpoint| {
                    let channel = channel_of(&endpoint);
                    (endpoint, channel)
                })
                .collect();
            state.preferred = state.position(&asked).unwrap_or(0);
        });
    }

    /// Names of all members, for messages.
    pub(crate) fn names(&self) -> String {
        let names: Vec<String> =
            self.with(|state| state.members.iter().map(|(endpoint, _)| endpoint.to_string()).collect());
        names.join(", ")
    }

    /// All members, and the certificates they are shown.
    pub(crate) fn endpoints(&self) -> (Vec<Endpoint>, Option<&Tls>) {
        let endpoints = self.with(|state| state.members.iter().map(|(endpoint, _)| endpoint.clone()).collect());
        (endpoints, self.tls.as_ref())
    }

    pub(crate) fn len(&self) -> usize {
        self.with(|state| state.members.len())
    }

    /// A connection to the preferred member. If it cannot be had, the next one is preferred from now on.
    pub(crate) async fn channel(&self) -> Result<(Place, Channel), CallError> {
        let (place, open) = self.with(|state| {
            let (endpoint, channel) = &state.members[state.preferred];
            (Place(endpoint.clone()), channel.clone().filter(Channel::is_open))
        });
        if let Some(open) = open {
            return Ok((place, open));
        }
        match Channel::dial(&place.0, self.tls.as_ref()).await {
            Ok(channel) => {
                self.with(|state| {
                    if let Some(position) = state.position(&place.0) {
                        state.members[position].1 = Some(channel.clone());
                    }
                });
                Ok((place, channel))
            }
            Err(error) => {
                self.leave(&place);
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
            self.leave(&place);
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
    pub(crate) fn leave(&self, place: &Place) {
        self.with(|state| {
            let Some(left) = state.position(&place.0) else { return };
            state.members[left].1 = None;
            if state.preferred == left {
                state.preferred = (left + 1) % state.members.len();
                tracing::debug!(left = %place.0, next = %state.members[state.preferred].0, "another etcd member is asked");
            }
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn position(&self, endpoint: &Endpoint) -> Option<usize> {
        self.members.iter().position(|(other, _)| other == endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(ports: &[u16]) -> Vec<Endpoint> {
        ports.iter().map(|port| Endpoint::parse(&format!("http://127.0.0.1:{port}")).unwrap()).collect()
    }

    #[test]
    fn who_is_asked_stays_when_members_come_and_go() {
        let cluster = Cluster::new(endpoints(&[1, 2, 3]), None);
        let asked = || cluster.with(|state| state.members[state.preferred].0.to_string());
        let place = |port| Place(endpoints(&[port]).remove(0));
        cluster.leave(&place(1));
        assert_eq!(asked(), "127.0.0.1:2");
        // Somebody else's failure changes nothing.
        cluster.leave(&place(3));
        assert_eq!(asked(), "127.0.0.1:2");
        cluster.set_endpoints(endpoints(&[4, 3, 2]));
        assert_eq!((asked().as_str(), cluster.len()), ("127.0.0.1:2", 3));
        cluster.leave(&place(2));
        assert_eq!(asked(), "127.0.0.1:4", "the first after the last");
        cluster.set_endpoints(endpoints(&[5]));
        assert_eq!(asked(), "127.0.0.1:5", "who was asked has gone");
        cluster.leave(&place(4));
        cluster.leave(&place(5));
        assert_eq!(asked(), "127.0.0.1:5");
    }
}
