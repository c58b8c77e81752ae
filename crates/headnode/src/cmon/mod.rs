//! The container monitor, as Triton's: what instances use, told to whoever may see them, over TLS with a client certificate.
//!
//! ```text
//! request ─► host: who is asked for? ─► watcher: whose certificate? ─► theirs? ─► too many? ─► what there is to watch,
//!                                                                                             or the meters, some seconds old
//!   GET /v1/discover?groups=a,b    cmon.<zone>             the account's instances that run
//!   GET /v1/gz/discover            cmon.<zone>             machines                           operators
//!   GET /metrics                   <instance id>.cmon.…    an instance                        its account
//!                                  <machine id>.cmon.…     a machine                          operators
//!                                  cmon.<zone>, an address this headnode                      operators
//!   GET /metrics/instances         <machine id>.cmon.…     all its instances                  operators
//! ```
//! What is somebody else's does not exist: 404, as in Triton. Every headnode is one, and answers from its own copy of the records whether or not
//! that is known to be the newest: whoever watches wants to see how things are when they are bad. Metrics are asked of the machines ([`Meters`])
//! and stored nowhere.

pub mod certificate;
pub mod counters;
pub mod host;
pub mod issue;
pub mod watcher;

use std::{borrow::Cow, io::Write as _, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Query},
    response::{IntoResponse as _, Response},
};
use cloudapi::types::monitor::{Container, Containers, MachineTarget, Machines, MonitorError};
use control::{Control, instances, metrics as watched, servers};
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use model::{
    id::{InstanceId, ServerId},
    metrics::{Exposition, Labels, exposition::CONTENT_TYPE, groups, instance, machine},
};
use rustls_pki_types::CertificateDer;

use self::{
    counters::{Counters, News, Refused, Served},
    host::Asked,
    watcher::{Stranger, Watcher, Watchers},
};
use crate::{
    cloudapi::{
        Rate,
        throttle::{Group, Throttle},
    },
    inquiries::AskError,
    listen::Shown,
    meters::Meters,
    telemetry::Telemetry,
};

/// How fast one account may ask: enough for 10,000 instances every 15 s, with room for a second Prometheus that begins just now.
pub const RATE: Rate = Rate { burst: 2_000, per_second: 1_000.0 };
/// Answers of so many bytes are made smaller for who takes that: a list of many instances. Metrics of one are not worth it.
const COMPRESSED_MIN_BYTES: usize = 64 << 10;

/// Of the login in a certificate that is logged.
const CLAIM_MAX_CHARS: usize = 64;

/// The monitor. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Monitor(Arc<Inner>);

struct Inner {
    control: Control,
    meters: Meters,
    watchers: Watchers,
    throttle: Throttle,
    counters: Counters,
    news: News,
    /// What this headnode tells of itself.
    telemetry: Option<Telemetry>,
}

/// An answer.
struct Reply {
    what: Served,
    kind: &'static str,
    body: String,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("there is nothing here")]
    NoSuchPlace,
    #[error("only GET is answered")]
    Method,
    #[error("{0}")]
    Stranger(Stranger),
    #[error("there is nothing here that you may see")]
    NotTheirs,
    #[error("it does not run")]
    NotRunning,
    #[error("this is for operators")]
    NotOperator,
    #[error("invalid \"groups\": {0}")]
    BadGroups(String),
    #[error("you ask more often than {} times a second", RATE.per_second)]
    TooMany { wait_seconds: u64 },
    #[error("its machine does not answer")]
    Silent(AskError),
}

/// The monitor's routes.
pub fn router(monitor: Monitor) -> Router {
    Router::new().fallback(move |request: Request<Body>| answer(monitor.clone(), request))
}

async fn answer(monitor: Monitor, request: Request<Body>) -> Response {
    // Whatever a body says, nobody reads it.
    let (parts, _) = request.into_parts();
    let asked = Ask {
        shown: parts.extensions.get::<Shown>().map(|shown| &*shown.0),
        remote: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0),
        headers: &parts.headers,
        uri: &parts.uri,
    };
    let outcome = match parts.method {
        Method::GET | Method::HEAD => monitor.decide(&asked).await,
        _ => Err(Refusal::Method),
    };
    match outcome {
        Ok(reply) => {
            monitor.0.counters.served(reply.what);
            written(reply, asked.headers)
        }
        Err(refusal) => monitor.refuse(&refusal, &asked),
    }
}

/// What of a request is looked at.
struct Ask<'a> {
    shown: Option<&'a [u8]>,
    remote: Option<SocketAddr>,
    headers: &'a HeaderMap,
    uri: &'a Uri,
}

impl Ask<'_> {
    /// The name the monitor was called by.
    fn host(&self) -> Option<&str> {
        let header = || self.headers.get(header::HOST)?.to_str().ok();
        self.uri.authority().map(http::uri::Authority::as_str).or_else(header)
    }

    /// The groups that are wanted; all when none are named.
    fn groups(&self) -> Result<Option<String>, Refusal> {
        let Query(fields) = Query::<Vec<(String, String)>>::try_from_uri(self.uri)
            .map_err(|error| Refusal::BadGroups(error.body_text()))?;
        let mut wanted = fields.into_iter().filter(|(name, _)| name == "groups").map(|(_, value)| value);
        let first = wanted.next();
        match wanted.next() {
            None => Ok(first),
            Some(_) => Err(Refusal::BadGroups("it is there twice".to_owned())),
        }
    }
}

impl Monitor {
    /// Of the accounts and instances of `control`; `authority` signs operators' certificates. `telemetry` is what this headnode tells of itself
    /// beside what is counted here.
    pub fn new(
        control: Control,
        meters: Meters,
        authority: CertificateDer<'static>,
        telemetry: Option<Telemetry>,
    ) -> Self {
        Self(Arc::new(Inner {
            watchers: Watchers::new(control.clone(), authority),
            control,
            meters,
            throttle: Throttle::new(Some(RATE)),
            counters: Counters::default(),
            news: News::default(),
            telemetry,
        }))
    }

    /// Whether who showed this certificate is let in, as of now.
    pub fn knows(&self, shown: &[u8]) -> bool {
        self.0.watchers.find(Some(shown)).is_ok()
    }

    async fn decide(&self, ask: &Ask<'_>) -> Result<Reply, Refusal> {
        let asked = ask.host().and_then(host::read).ok_or(Refusal::NoSuchPlace)?;
        let path = ask.uri.path();
        if path == "/_ping" || path == "/v1/_ping" {
            return Ok(Reply { what: Served::Ping, kind: "text/plain; charset=utf-8", body: "OK".to_owned() });
        }
        let watcher = self.0.watchers.find(ask.shown).map_err(Refusal::Stranger)?;
        if let Some(account) = watcher.counted() {
            let admitted = self.0.throttle.admit(account, Group::Monitor, self.0.control.now().0);
            admitted.map_err(|wait_seconds| Refusal::TooMany { wait_seconds })?;
        }
        match (path, asked) {
            ("/v1/discover", _) => self.containers(&watcher, ask.groups()?.as_deref()),
            ("/v1/gz/discover", _) => self.machines(&watcher),
            ("/metrics", Asked::Monitor) => self.own(&watcher).await,
            ("/metrics", Asked::Id { instance, server }) => self.metrics(&watcher, instance, server).await,
            ("/metrics/instances", Asked::Id { server, .. }) => self.all_on(&watcher, server).await,
            _ => Err(Refusal::NoSuchPlace),
        }
    }

    fn containers(&self, watcher: &Watcher, wanted: Option<&str>) -> Result<Reply, Refusal> {
        let wanted = wanted.map(groups::read).transpose().map_err(Refusal::BadGroups)?.unwrap_or_default();
        let control = &self.0.control;
        let found = watcher.account().map(|account| watched::watched(control, account.id, &wanted)).unwrap_or_default();
        let now = control.now();
        let containers = found.iter().map(|instance| Container {
            groups: groups::of(instance).into_iter().map(Cow::Borrowed).collect(),
            server_uuid: instance.server,
            vm_alias: Cow::Borrowed(&instance.alias),
            vm_brand: Cow::Borrowed(instance.brand.as_str()),
            vm_image_uuid: instance.image,
            vm_owner_uuid: instance.owner,
            vm_uuid: instance.id,
            vm_state: Cow::Borrowed("running"),
            cached_date: now.0,
        });
        Ok(json(Served::Containers, &Containers { containers: containers.collect() }))
    }

    fn machines(&self, watcher: &Watcher) -> Result<Reply, Refusal> {
        if !watcher.is_operator() {
            return Err(Refusal::NotOperator);
        }
        let found = servers::list(&self.0.control);
        let cns = found.iter().map(|view| MachineTarget {
            server_uuid: view.server.id,
            server_hostname: Cow::Borrowed(&view.server.hostname),
        });
        Ok(json(Served::Machines, &Machines { cns: cns.collect() }))
    }

    async fn metrics(&self, watcher: &Watcher, id: InstanceId, server: ServerId) -> Result<Reply, Refusal> {
        let control = &self.0.control;
        if let Some(account) = watcher.account() {
            if let Some(machine) = watched::machine_of(control, account.id, id) {
                let meters = self.0.meters.of(machine).await.map_err(Refusal::Silent)?;
                let one = meters.instances.get(&id).ok_or(Refusal::NotRunning)?;
                return Ok(text(Served::Instance, instance::one(one, meters.at)));
            }
            if instances::get(control, control::Scope::Account(account.id), id).is_ok() {
                return Err(Refusal::NotRunning);
            }
        }
        if !watcher.is_operator() || servers::get(control, server).is_err() {
            return Err(Refusal::NotTheirs);
        }
        let meters = self.0.meters.of(server).await.map_err(Refusal::Silent)?;
        let mut told = Exposition::default();
        machine::all(&meters.machine, meters.at, &mut told);
        Ok(text(Served::Machine, told.into_text()))
    }

    /// All instances of a machine, told apart by labels: what an operator's Prometheus asks for once instead of once an instance.
    async fn all_on(&self, watcher: &Watcher, server: ServerId) -> Result<Reply, Refusal> {
        let control = &self.0.control;
        if !watcher.is_operator() || servers::get(control, server).is_err() {
            return Err(Refusal::NotTheirs);
        }
        let meters = self.0.meters.of(server).await.map_err(Refusal::Silent)?;
        let found = watched::watched_on(control, server);
        let labelled = found.iter().filter_map(|one| {
            let labels = Labels::none()
                .with("vm_uuid", &one.id.to_string())
                .with("vm_alias", &one.alias)
                .with("vm_owner_uuid", &one.owner.to_string());
            Some((labels, meters.instances.get(&one.id)?))
        });
        let mut told = Exposition::default();
        instance::all(&labelled.collect::<Vec<_>>(), &mut told);
        Ok(text(Served::Instances, told.into_text()))
    }

    /// This headnode itself.
    async fn own(&self, watcher: &Watcher) -> Result<Reply, Refusal> {
        if !watcher.is_operator() {
            return Err(Refusal::NotTheirs);
        }
        let mut told = Exposition::default();
        self.0.counters.tell(&mut told);
        let own = match &self.0.telemetry {
            Some(telemetry) => telemetry.text().await,
            None => String::new(),
        };
        Ok(text(Served::Headnode, own + &told.into_text()))
    }

    fn refuse(&self, refusal: &Refusal, ask: &Ask<'_>) -> Response {
        let (status, code, kind) = match refusal {
            Refusal::NoSuchPlace => (StatusCode::NOT_FOUND, "NotFound", Refused::NoSuchPlace),
            Refusal::Method => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", Refused::NoSuchPlace),
            Refusal::Stranger(_) => (StatusCode::UNAUTHORIZED, "Unauthorized", Refused::Stranger),
            Refusal::NotTheirs => (StatusCode::NOT_FOUND, "NotFound", Refused::NotTheirs),
            Refusal::NotRunning => (StatusCode::NOT_FOUND, "NotFound", Refused::NotRunning),
            Refusal::NotOperator => (StatusCode::FORBIDDEN, "Forbidden", Refused::NotOperator),
            Refusal::BadGroups(_) => (StatusCode::BAD_REQUEST, "BadRequest", Refused::BadGroups),
            Refusal::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", Refused::TooMany),
            Refusal::Silent(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", Refused::Silent),
        };
        self.0.counters.refused(kind);
        self.log(refusal, kind, ask);
        let message = match refusal {
            // Which of its reasons it was is for the log: a stranger learns nothing about accounts.
            Refusal::Stranger(_) => "the certificate does not let you in".to_owned(),
            Refusal::NotRunning => Refusal::NotTheirs.to_string(),
            other => other.to_string(),
        };
        let body = MonitorError { code: Cow::Borrowed(code), message: Cow::Owned(message) };
        let mut response = (status, serde_json::to_string(&body).unwrap_or_default()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Refusal::TooMany { wait_seconds } = refusal {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(*wait_seconds));
        }
        response
    }

    /// Each refusal once an hour for each watcher, or address where nobody was let in; that an instance does not run is none of ours.
    fn log(&self, refusal: &Refusal, kind: Refused, ask: &Ask<'_>) {
        if kind == Refused::NotRunning {
            return;
        }
        let from = ask.remote.map(|remote| remote.ip().to_string()).unwrap_or_default();
        let login = ask.shown.and_then(|shown| self.0.watchers.claims(shown));
        if self.0.news.is_new(kind, kind.of(login.as_deref(), &from), self.0.control.now().0) {
            // Believed or not, and as long as whoever made it liked.
            let login = login.as_deref().map(|login| login.chars().take(CLAIM_MAX_CHARS).collect::<String>());
            let why = match refusal {
                Refusal::Silent(error) => error.to_string(),
                other => other.to_string(),
            };
            tracing::warn!(
                from,
                login,
                host = ask.host(),
                path = ask.uri.path(),
                why,
                "refused a watcher; further such refusals are counted, and logged again in an hour"
            );
        }
    }
}

fn text(what: Served, body: String) -> Reply {
    Reply { what, kind: CONTENT_TYPE, body }
}

fn json(what: Served, body: &impl serde::Serialize) -> Reply {
    // These types have only texts for keys.
    Reply { what, kind: "application/json", body: serde_json::to_string(body).unwrap_or_default() }
}

fn written(reply: Reply, asked: &HeaderMap) -> Response {
    let takes = asked.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    let takes = takes.is_some_and(|value| value.split(',').any(|part| part.trim().split(';').next() == Some("gzip")));
    let smaller = (takes && reply.body.len() >= COMPRESSED_MIN_BYTES).then(|| compressed(&reply.body)).flatten();
    let encoding = smaller.as_ref().map(|_| HeaderValue::from_static("gzip"));
    let mut response = match smaller {
        Some(bytes) => bytes.into_response(),
        None => reply.body.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(reply.kind));
    headers.extend(encoding.map(|encoding| (header::CONTENT_ENCODING, encoding)));
    response
}

fn compressed(body: &str) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    encoder.write_all(body.as_bytes()).and_then(|()| encoder.finish()).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use http_body_util::BodyExt as _;

    use super::*;

    async fn sent(body: &str, takes: &str) -> (Option<HeaderValue>, Vec<u8>) {
        let asked = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_str(takes).unwrap())]);
        let reply = Reply { what: Served::Containers, kind: "application/json", body: body.to_owned() };
        let (parts, body) = written(reply, &asked).into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        (parts.headers.get(header::CONTENT_ENCODING).cloned(), body)
    }

    #[tokio::test]
    async fn long_answers_are_made_smaller_for_who_takes_that() {
        let long = "instance ".repeat(COMPRESSED_MIN_BYTES / 9 + 1);
        let (encoding, body) = sent(&long, "br, gzip;q=0.8").await;
        assert_eq!(encoding, Some(HeaderValue::from_static("gzip")));
        let mut read = String::new();
        flate2::read::GzDecoder::new(body.as_slice()).read_to_string(&mut read).unwrap();
        assert!(read == long && body.len() < long.len() / 10);
        assert_eq!(sent(&long, "br").await, (None, long.clone().into_bytes()));
        assert_eq!(sent("short", "gzip").await, (None, b"short".to_vec()));
    }
}
