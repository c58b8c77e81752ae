//! The ops API: what operators may see and do. See [`opsapi`] for the contract.
//!
//! Every handler turns a request into one call of `control` and its answer into JSON. Operators stand outside accounts:
//! they see every account's objects, and what they change is written down under the name in their certificate.

mod accounts;
mod backups;
mod firewall;
mod firewall_log;
mod headnodes;
mod images;
mod infra;
mod instances;
mod meters;
mod names;
mod networks;
mod overview;
mod path;
mod placement;
mod rebuild;
mod servers;
mod usage;

use std::{ops::Deref, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Request, State},
    http::{Method, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use control::{Control, FieldError};
use model::{instance::Caller, time::Timestamp};
use opsapi::{BODY_MAX_BYTES, ErrorBody, FieldBody};
use serde::de::DeserializeOwned;
use store::Entry;

use crate::{
    backup::Offers,
    inquiries::{AskError, Inquiries},
    meters::Meters,
    names::NameServer,
    nodelink::NodeCertificates,
    pki::{Peer, Pki, Role},
    settings::Settings,
    telemetry::{Requests, Sources, Telemetry, requests},
    tls::Certificates,
};

/// What handlers share.
#[derive(Clone)]
pub struct Ops {
    inner: Arc<Inner>,
    telemetry: Telemetry,
}

/// See [`Ops`].
pub struct Inner {
    /// The control plane.
    pub control: Control,
    /// What other headnodes fetch, and hold.
    pub offers: Offers,
    /// The way to ask nodes.
    pub inquiries: Inquiries,
    /// What machines use.
    pub meters: Meters,
    /// Where requests are counted, tenants' too.
    pub requests: Requests,
    /// The certificates that nodes show.
    pub node_certificates: NodeCertificates,
    /// Kinds of flows there are.
    pub flow_kinds: Vec<&'static str>,
    /// Where everything lies.
    pub settings: Settings,
    /// The certificates, for their ends.
    pub pki: Pki,
    /// Their renewal.
    pub certificates: Arc<Certificates>,
    /// The name server on this machine.
    pub names: NameServer,
    /// The loops, for their state.
    pub loops: flow::loops::Board,
    /// When this process began.
    pub started_at: Timestamp,
}

impl Ops {
    /// Shares `inner` with the handlers.
    pub fn new(inner: Inner) -> Self {
        let telemetry = Telemetry::new(Sources {
            control: inner.control.clone(),
            settings: inner.settings.clone(),
            requests: inner.requests.clone(),
            inquiries: inner.inquiries.clone(),
            certificates: inner.node_certificates.clone(),
            loops: inner.loops.clone(),
            flow_kinds: inner.flow_kinds.clone(),
            names: inner.names.clone(),
            offers: inner.offers.clone(),
            started_at: inner.started_at,
        });
        Self { inner: Arc::new(inner), telemetry }
    }

    /// What this headnode tells of itself.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }
}

impl Deref for Ops {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

/// The routes.
pub fn router(ops: Ops) -> Router {
    Router::new()
        .merge(overview::routes())
        .merge(accounts::routes())
        .merge(backups::routes())
        .merge(infra::routes())
        .merge(names::routes())
        .merge(networks::routes())
        .merge(instances::routes())
        .merge(placement::routes())
        .merge(rebuild::routes())
        .merge(servers::routes())
        .merge(firewall::routes())
        .merge(firewall_log::routes())
        .merge(headnodes::routes())
        .merge(path::routes())
        .merge(meters::routes())
        .merge(usage::routes())
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .merge(images::routes())
        .fallback(async || {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "NotFound",
                "there is no such resource; see the manual's chapter on the ops API",
            )
        })
        .layer(middleware::from_fn_with_state(ops.clone(), on_newest))
        .layer(middleware::from_fn(only_operators))
        .layer(middleware::from_fn_with_state(ops.requests.clone(), requests::count))
        .with_state(ops)
}

/// Lets only operators' certificates through, and tells handlers who it is. A watcher may read metrics.
async fn only_operators(mut request: Request, next: Next) -> Response {
    let caller = match request.extensions().get::<Peer>() {
        Some(peer) if peer.unit == Role::Operator.unit() => Caller::Operator { user: peer.name.clone() },
        Some(peer) if peer.unit == Role::Watcher.unit() && meters::is_watching(&request) => {
            return next.run(request).await;
        }
        Some(peer) => {
            let why = format!("the certificate of \"{}\" is not an operator's", peer.name);
            return Refusal::new(StatusCode::FORBIDDEN, "NotAuthorized", why).into_response();
        }
        None => {
            let why = "the connection carries no client certificate";
            return Refusal::new(StatusCode::FORBIDDEN, "NotAuthorized", why).into_response();
        }
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Answers from the newest state, or says since when it is not known. Refuses changes at once while nothing can be changed.
async fn on_newest(State(ops): State<Ops>, request: Request, next: Next) -> Response {
    if let Some(lack) = ops.control.headnodes.lacking()
        && !matches!(*request.method(), Method::GET | Method::HEAD)
    {
        return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "Unavailable", lack.for_operators()).into_response();
    }
    let fresh = ops.control.store.fresh().await;
    let mut response = next.run(request).await;
    if let Err(stale) = fresh {
        let age = u64::try_from(stale.age.as_millis()).unwrap_or(u64::MAX);
        response.headers_mut().insert(opsapi::STALE_HEADER, age.into());
    }
    response
}

/// A refusal in the contract's shape.
struct Refusal {
    status: StatusCode,
    body: ErrorBody,
}

impl Refusal {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, body: ErrorBody { code: code.to_owned(), message: message.into(), fields: Vec::new() } }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

impl From<control::Error> for Refusal {
    fn from(error: control::Error) -> Self {
        use control::Error;
        let (status, code) = match &error {
            Error::NotFound { .. } => (StatusCode::NOT_FOUND, "NotFound"),
            Error::Gone(_) => (StatusCode::GONE, "Gone"),
            Error::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
            Error::NotAuthorized(_) => (StatusCode::FORBIDDEN, "NotAuthorized"),
            Error::InUse(_) => (StatusCode::CONFLICT, "InUse"),
            Error::AlreadyExists { .. } => (StatusCode::CONFLICT, "AlreadyExists"),
            Error::InsufficientCapacity(_) | Error::NoAddress { .. } | Error::NoVni { .. } => {
                (StatusCode::CONFLICT, "InsufficientCapacity")
            }
            Error::Conflict(_) | Error::DeletionProtected | Error::InvalidState { .. } => {
                (StatusCode::CONFLICT, "Conflict")
            }
            Error::Unavailable(_) | Error::Store(store::CommitError::Engine(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "Unavailable")
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        };
        // Operators may know the causes; for them they are the answer.
        let mut refusal = Self::new(status, code, base::errors::chain(&error));
        if let Error::Invalid(fields) = error {
            let body = |field: FieldError| FieldBody { field: field.field, message: field.message };
            refusal.body.fields = fields.into_iter().map(body).collect();
        }
        refusal
    }
}

impl From<AskError> for Refusal {
    fn from(error: AskError) -> Self {
        let (status, code) = match &error {
            AskError::Busy(_) | AskError::Silent(_) => (StatusCode::SERVICE_UNAVAILABLE, "Unavailable"),
            AskError::Refused(_) | AskError::Failed(_) => (StatusCode::CONFLICT, "Conflict"),
        };
        Self::new(status, code, error.to_string())
    }
}

/// What a handler returns.
type Answer<T> = Result<Json<T>, Refusal>;

/// A JSON body, refused in the contract's words.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(|error| Refusal::new(error.status(), "Invalid", error.body_text()))?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, "Invalid", format!("the body is not what is needed here: {error}"))
        })
    }
}

/// The value of a record.
fn value<T: Clone>(entry: &Arc<Entry<T>>) -> T {
    entry.value.clone()
}

/// The values of records.
fn values<T: Clone>(entries: &[Arc<Entry<T>>]) -> Vec<T> {
    entries.iter().map(value).collect()
}
