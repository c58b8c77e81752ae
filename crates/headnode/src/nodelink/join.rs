//! Letting machines in that show no certificate, and new certificates for those that have one. See [`nodeapi::join`].
//!
//! Anybody may knock, so it is cheap: requests are counted for all strangers together, beyond [`RATE`] they are told to come
//! later, and a token is one hash and one look. A certificate request is checked before the token is spent. Who lost the answer and asks
//! again with the same key gets another certificate for it, as the same server.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use axum::{
    Json,
    extract::{ConnectInfo, State},
    http::{HeaderMap, StatusCode},
};
use control::servers::{self, Candidate};
use model::{id::ServerId, server::MACS_MAX, time::Timestamp};
use nodeapi::join::{Hello, JoinAnswer, JoinRequest, RenewAnswer, RenewRequest};

use super::{Link, Refusal, Shown};
use crate::pki;

/// Strangers' requests: so many at once, and a second in the long run. A rack of machines that is rolled out passes.
const RATE: (f64, f64) = (50.0, 10.0);
/// Longest token that is looked at, bytes.
const TOKEN_MAX: usize = 256;
/// Longest host name, bytes: the kernel's own limit.
const HOSTNAME_MAX: usize = 64;

/// A bucket of tokens for all strangers.
#[derive(Debug)]
pub(super) struct Gate {
    /// What is left, and when that was counted (milliseconds since 1970). Leaf data: held for a few instructions.
    left: Mutex<(f64, i64)>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { left: Mutex::new((RATE.0, 0)) }
    }

    fn admit(&self, now: Timestamp) -> Result<(), Refusal> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = now.0.saturating_sub(left.1).max(0) as f64 / 1_000.0;
        let tokens = (left.0 + seconds * RATE.1).min(RATE.0);
        *left = (tokens - f64::from(u8::from(tokens >= 1.0)), now.0);
        match tokens >= 1.0 {
            true => Ok(()),
            false => Err(Refusal(
                StatusCode::TOO_MANY_REQUESTS,
                "too many machines knock at once; try again in a few seconds".to_owned(),
            )),
        }
    }
}

pub(super) async fn hello(State(link): State<Link>) -> Result<Json<Hello>, Refusal> {
    let now = link.control.now();
    link.gate.admit(now)?;
    let era = crate::members::left_behind::era(&link.settings);
    Ok(Json(Hello { datacenter: link.settings.datacenter.name.clone(), now, era }))
}

pub(super) async fn join(
    State(link): State<Link>,
    remote: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    Json(request): Json<JoinRequest>,
) -> Result<Json<JoinAnswer>, Refusal> {
    let now = link.control.now();
    link.gate.admit(now)?;
    let invalid = |why: String| Refusal(StatusCode::BAD_REQUEST, why);
    if request.token.len() > TOKEN_MAX {
        return Err(invalid(format!("token: is longer than {TOKEN_MAX} bytes")));
    }
    if !(1..=HOSTNAME_MAX).contains(&request.hostname.len()) || request.hostname.contains(char::is_control) {
        return Err(invalid(format!("hostname: must have 1 to {HOSTNAME_MAX} bytes and no control characters")));
    }
    if request.identity.macs.len() > MACS_MAX {
        return Err(invalid(format!("identity.macs: has more than {MACS_MAX} entries")));
    }
    let in_request = |error: pki::PkiError| invalid(format!("request_pem: {}", base::errors::chain(&error)));
    let key = pki::key_of(&request.request_pem).map_err(in_request)?;
    let candidate = Candidate {
        token: request.token,
        hostname: request.hostname,
        identity: request.identity,
        clock: request.now,
        key,
        adopt: request.adopt,
    };
    let before = servers::returning(&link.control, &candidate);
    let server = before.or(candidate.adopt).unwrap_or_else(ServerId::random);
    let (settings, request_pem) = (link.settings.clone(), request.request_pem);
    let made = base::task::blocking("certify", move || {
        let certificate = pki::certify(&settings, &request_pem, server, now)?;
        let path = settings.pki_dir().join("ca.pem");
        let authority =
            std::fs::read_to_string(&path).map_err(|source| pki::PkiError::Io { doing: "read", path, source })?;
        Ok::<_, pki::PkiError>((certificate, authority))
    });
    let (certificate_pem, authority_pem) = made.await.map_err(in_request)?;
    let from = remote.map_or_else(|| "?".to_owned(), |remote| remote.0.0.to_string());
    match servers::admit(&link.control, server, &candidate).await {
        Ok(record) => {
            tracing::info!(%server, hostname = record.hostname, from, again = before.is_some(), brings = candidate.adopt.is_some(), "a machine joined");
        }
        Err(error) => {
            tracing::warn!(hostname = candidate.hostname, from, %error, "a machine was not let in");
            return Err(error.into());
        }
    }
    let datacenter = &link.settings.datacenter;
    Ok(Json(JoinAnswer {
        server,
        certificate_pem,
        authority_pem,
        datacenter: datacenter.name.clone(),
        region: datacenter.region.clone(),
        dns_suffix: datacenter.dns_suffix.clone(),
    }))
}

pub(super) async fn renew(
    State(link): State<Link>,
    peer: Shown,
    headers: HeaderMap,
    Json(RenewRequest { request_pem }): Json<RenewRequest>,
) -> Result<Json<RenewAnswer>, Refusal> {
    let server = link.known(peer, &headers)?;
    let (settings, now) = (link.settings.clone(), link.control.now());
    let made = base::task::blocking("certify", move || pki::certify(&settings, &request_pem, server, now)).await;
    let certificate_pem = made
        .map_err(|error| Refusal(StatusCode::BAD_REQUEST, format!("request_pem: {}", base::errors::chain(&error))))?;
    tracing::info!(%server, "a node gets another certificate");
    Ok(Json(RenewAnswer { certificate_pem }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_waits_and_one_after_the_other_gets_in() {
        let gate = Gate::new();
        let now = Timestamp(1_800_000_000_000);
        let in_crowd = (0..100).filter(|_| gate.admit(now).is_ok()).count();
        assert_eq!(in_crowd, 50);
        assert_eq!((0..100).filter(|_| gate.admit(now.plus_millis(1_000)).is_ok()).count(), 10);
    }
}
