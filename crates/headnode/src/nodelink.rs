//! The node link's door: targets down, reports up, image files out, questions and answers. See [`nodeapi`] for the contract.
//!
//! Who speaks is known from the client certificate and from nothing in the request: a node can only ask for its own target
//! and report for itself. Image files are named by their SHA-256 and may be fetched from any offset, so a cut transfer
//! goes on where it stopped.
//!
//! A certificate alone does not let anybody in: the server must still be part of the datacenter, and the machine that shows it the
//! one it was made for ([`control::servers::check_member`]). Both are looked at with every request, and a wait that is under way when its
//! server is forgotten ends. A headnode that is not well ([`control::headnodes::Headnodes::is_out`]) sends everybody to another one.

mod join;

use std::{
    collections::HashMap,
    io::SeekFrom,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base::shutdown::Shutdown;
use control::{Control, tables::HEADNODES};
use model::{
    delta::{Held, ReportNews, TargetNews},
    headnode::Stage,
    id::ServerId,
    time::Timestamp,
};
use nodeapi::{
    DOCUMENT_MAX_BYTES, ErrorBody, LONG_POLL_SECONDS, MACHINE_HEADER, REPORT_DELTA, TARGET_DELTA,
    inquiry::{ANSWER_MAX_BYTES, Answer},
    join::JOIN_MAX_BYTES,
};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::{
    backup::Offers,
    inquiries::Inquiries,
    kit, members,
    pki::{Peer, Role},
    settings::Settings,
};

/// Bytes of an image read at a time.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Clone)]
struct Link {
    control: Control,
    settings: Arc<Settings>,
    inquiries: Inquiries,
    offers: Offers,
    shutdown: Shutdown,
    gate: Arc<join::Gate>,
    certificates: NodeCertificates,
}

/// The certificate each node showed last. Clones are one.
#[derive(Clone, Default)]
pub struct NodeCertificates {
    /// Serial number and end. A leaf lock, held for one look-up.
    shown: Arc<Mutex<HashMap<ServerId, (String, Timestamp)>>>,
}

impl NodeCertificates {
    /// When they end.
    pub fn ends(&self) -> HashMap<ServerId, Timestamp> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.iter().map(|(server, (_, ends_at))| (*server, *ends_at)).collect()
    }

    /// Notes, and says once, with which certificate a node reports.
    pub(crate) fn note(&self, server: ServerId, serial: &str, ends_at: Timestamp) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.get(&server).is_none_or(|(known, _)| known != serial) {
            tracing::info!(%server, serial, "a node shows a certificate it did not show before");
            shown.insert(server, (serial.to_owned(), ends_at));
        }
    }
}

/// The certificate a connection showed.
type Shown = Option<Extension<Peer>>;

impl Link {
    /// The server behind a request, which is part of the datacenter and on its own machine, and whose certificate has not ended.
    fn member(&self, peer: Shown, headers: &HeaderMap) -> Result<ServerId, Refusal> {
        // By a clock that is wrong it may look so.
        if self.control.headnodes.is_out() {
            return Err(elsewhere());
        }
        refuse_ended(&peer, self.control.now())?;
        self.known(peer, headers)
    }

    /// The same, also when its certificate has ended: it may get another.
    fn known(&self, peer: Shown, headers: &HeaderMap) -> Result<ServerId, Refusal> {
        let server = server_of(peer)?;
        if self.control.headnodes.is_out() {
            return Err(elsewhere());
        }
        let shown = headers.get(MACHINE_HEADER).and_then(|value| serde_json::from_slice(value.as_bytes()).ok());
        control::servers::check_member(&self.control, server, shown.as_ref())?;
        Ok(server)
    }

    /// Why a wait of `server` ends before its time.
    async fn interrupted(&self, server: ServerId) -> Refusal {
        tokio::select! {
            () = self.shutdown.wait() => Refusal(StatusCode::SERVICE_UNAVAILABLE, "the headnode is stopping".to_owned()),
            () = self.control.headnodes.going_out() => elsewhere(),
            () = control::servers::forgotten(&self.control, server) => match control::servers::check_member(&self.control, server, None) {
                Err(error) => error.into(),
                Ok(()) => Refusal(StatusCode::SERVICE_UNAVAILABLE, "ask again".to_owned()),
            },
        }
    }
}

/// The routes. `shutdown` ends long polls early; `certificates` learns what nodes show.
pub fn router(
    control: Control,
    settings: Settings,
    inquiries: Inquiries,
    offers: Offers,
    certificates: NodeCertificates,
    shutdown: Shutdown,
) -> Router {
    let (settings, gate) = (Arc::new(settings), Arc::new(join::Gate::new()));
    Router::new()
        .route("/v1/hello", get(join::hello))
        .route("/v1/join", post(join::join).layer(DefaultBodyLimit::max(JOIN_MAX_BYTES)))
        .route("/v1/renew", post(join::renew).layer(DefaultBodyLimit::max(JOIN_MAX_BYTES)))
        .route("/v1/target", get(target))
        .route("/v1/report", post(report).layer(DefaultBodyLimit::max(DOCUMENT_MAX_BYTES)))
        .route("/v1/images/{sha256}", get(image))
        .route("/v1/headnode-kit", get(headnode_kit))
        .route("/v1/backups", get(backups))
        .route("/v1/backups/{name}", get(backup))
        .route("/v1/inquiries", get(inquiry))
        .route("/v1/inquiries/{id}", post(answer).layer(DefaultBodyLimit::max(ANSWER_MAX_BYTES)))
        .with_state(Link { control, settings, inquiries, offers, shutdown, gate, certificates })
}

/// Seconds after which a headnode that is not well may be asked again.
const RETRY_SECONDS: u64 = 5;

/// What a headnode says that is not well, so that others are asked.
fn elsewhere() -> Refusal {
    let why = "this headnode is not well or cannot reach the store; ask another one".to_owned();
    Refusal(StatusCode::SERVICE_UNAVAILABLE, why)
}

/// A refusal in the contract's shape.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.0, Json(ErrorBody { message: self.1 })).into_response();
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_SECONDS.into());
        }
        response
    }
}

impl From<control::Error> for Refusal {
    fn from(error: control::Error) -> Self {
        let status = match &error {
            control::Error::NotFound { .. } => StatusCode::NOT_FOUND,
            control::Error::Invalid(_) => StatusCode::BAD_REQUEST,
            control::Error::NotAuthorized(_) => StatusCode::FORBIDDEN,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, base::errors::chain(&error))
    }
}

/// Refuses who shows a certificate that has ended.
fn refuse_ended(peer: &Shown, now: Timestamp) -> Result<(), Refusal> {
    match peer.as_deref().filter(|peer| peer.ends_at < now) {
        Some(peer) => {
            let why = format!(
                "the certificate of this machine ended at {}; its node gets another by itself, or `neso node renew` now",
                peer.ends_at
            );
            Err(Refusal(StatusCode::UNAUTHORIZED, why))
        }
        None => Ok(()),
    }
}

/// The server behind a connection.
fn server_of(peer: Option<Extension<Peer>>) -> Result<ServerId, Refusal> {
    let refuse = |why: String| Refusal(StatusCode::FORBIDDEN, why);
    let Some(Extension(peer)) = peer else {
        return Err(refuse("the connection carries no client certificate".to_owned()));
    };
    if peer.unit != Role::Node.unit() {
        return Err(refuse(format!("the certificate of \"{}\" is not a node's", peer.name)));
    }
    peer.name.parse().map_err(|_| refuse(format!("\"{}\" in the certificate is no server id", peer.name)))
}

#[derive(Deserialize)]
struct Have {
    have: u64,
    /// Kept as text, so that nonsense counts as none and gets the whole.
    digest: Option<String>,
}

async fn target(
    State(link): State<Link>,
    peer: Shown,
    headers: HeaderMap,
    Query(Have { have, digest }): Query<Have>,
) -> Result<Response, Refusal> {
    let server = link.member(peer, &headers)?;
    let held = Held { generation: have, digest: digest.and_then(|digest| digest.parse().ok()) };
    tokio::select! {
        biased;
        refusal = link.interrupted(server) => Err(refusal),
        newer = control::servers::watch_news(&link.control, server, held) => Ok(match newer? {
            Some(TargetNews::Whole(target)) => Json(target).into_response(),
            Some(TargetNews::Delta(delta)) => ([(header::CONTENT_TYPE, TARGET_DELTA)], Json(delta)).into_response(),
            None => StatusCode::NO_CONTENT.into_response(),
        }),
    }
}

async fn report(State(link): State<Link>, peer: Shown, headers: HeaderMap, body: Bytes) -> Result<Response, Refusal> {
    let shown = peer.as_deref().cloned();
    let server = link.member(peer, &headers)?;
    if let Some(shown) = shown {
        link.certificates.note(server, &shown.serial, shown.ends_at);
    }
    let is_delta = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == REPORT_DELTA);
    let news = match is_delta {
        true => serde_json::from_slice(&body).map(ReportNews::Delta),
        false => serde_json::from_slice(&body).map(ReportNews::Whole),
    };
    let news = news.map_err(|error| Refusal(StatusCode::BAD_REQUEST, format!("this is no report: {error}")))?;
    if news.server() != server {
        let why = format!("the certificate is server {server}'s, the report server {}'s", news.server());
        return Err(Refusal(StatusCode::FORBIDDEN, why));
    }
    Ok(Json(control::servers::apply_news(&link.control, server, &news).await?).into_response())
}

/// The datacenter's keys: to a machine that was asked to run a headnode, and to nobody else. Nothing of it is logged.
async fn headnode_kit(State(link): State<Link>, peer: Shown, headers: HeaderMap) -> Result<Response, Refusal> {
    let server = link.member(peer, &headers)?;
    let since = control::servers::check_headnode(&link.control, server)?;
    let settings = link.settings.clone();
    let store = members::kit(&link.control, &settings, server).await;
    let store = store.map_err(|error| Refusal(StatusCode::SERVICE_UNAVAILABLE, base::errors::chain(&error)))?;
    let made = base::task::blocking("kit", move || kit::make(&settings, since, store)).await;
    let kit = made.map_err(|error| Refusal(StatusCode::SERVICE_UNAVAILABLE, base::errors::chain(&error)))?;
    tracing::info!(%server, files = kit.files.len(), "a machine fetches what a headnode needs");
    Ok(Json(kit).into_response())
}

#[derive(Deserialize)]
struct HeldBackups {
    #[serde(default)]
    held: String,
}

impl Link {
    /// The headnode behind a request: one that takes part, and nobody else.
    fn headnode(&self, peer: Shown, headers: &HeaderMap) -> Result<ServerId, Refusal> {
        let server = self.member(peer, headers)?;
        let record = self.control.snapshot().get(&HEADNODES, &server.to_string());
        match record.is_some_and(|record| record.stage == Stage::Active) {
            true => Ok(server),
            false => Err(Refusal(StatusCode::FORBIDDEN, "backups are for headnodes alone".to_owned())),
        }
    }
}

async fn backups(
    State(link): State<Link>,
    peer: Shown,
    headers: HeaderMap,
    Query(HeldBackups { held }): Query<HeldBackups>,
) -> Result<Response, Refusal> {
    let headnode = link.headnode(peer, &headers)?;
    let held = held.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let offered = link.offers.to(headnode, held).await;
    let offered = offered.map_err(|error| Refusal(StatusCode::SERVICE_UNAVAILABLE, base::errors::chain(&error)))?;
    Ok(Json(offered).into_response())
}

#[derive(Deserialize)]
struct Behind {
    /// Bytes that whoever asks has already.
    #[serde(default)]
    from: u64,
}

async fn backup(
    State(link): State<Link>,
    peer: Shown,
    Path(name): Path<String>,
    Query(Behind { from }): Query<Behind>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let headnode = link.headnode(peer, &headers)?;
    let (offers, asked) = (link.offers.clone(), name.clone());
    let gone = || Refusal(StatusCode::NOT_FOUND, format!("there is no backup `{name}` here any more"));
    let path = base::task::blocking("backup-file", move || offers.file(&asked)).await.ok_or_else(gone)?;
    let mut file = tokio::fs::File::open(&path).await.map_err(|_| gone())?;
    let size = file.metadata().await.map_err(|_| gone())?.len();
    // Who has more than there is has something else.
    let from = if from <= size { from } else { 0 };
    file.seek(SeekFrom::Start(from)).await.map_err(|_| gone())?;
    tracing::info!(%headnode, name, from, "another headnode fetches a backup");
    let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    Ok((status, Body::from_stream(ReaderStream::with_capacity(file, CHUNK_BYTES))).into_response())
}

async fn inquiry(State(link): State<Link>, peer: Shown, headers: HeaderMap) -> Result<Response, Refusal> {
    let server = link.member(peer, &headers)?;
    tokio::select! {
        asked = tokio::time::timeout(Duration::from_secs(LONG_POLL_SECONDS), link.inquiries.next(server)) => {
            Ok(asked.map_or_else(|_| StatusCode::NO_CONTENT.into_response(), |inquiry| Json(inquiry).into_response()))
        }
        refusal = link.interrupted(server) => Err(refusal),
    }
}

async fn answer(
    State(link): State<Link>,
    peer: Shown,
    headers: HeaderMap,
    Path(id): Path<String>,
    Json(answer): Json<Answer>,
) -> Result<StatusCode, Refusal> {
    let server = link.member(peer, &headers)?;
    let known = id.parse().is_ok_and(|id| link.inquiries.answered(server, id, answer));
    match known {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Refusal(StatusCode::NOT_FOUND, "nobody waits for this answer any more".to_owned())),
    }
}

async fn image(
    State(link): State<Link>,
    peer: Shown,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    link.member(peer, &headers)?;
    let gone = |why: String| Refusal(StatusCode::NOT_FOUND, why);
    let path = control::images::file_path(&link.control, &sha256)?;
    let mut file = tokio::fs::File::open(&path)
        .await
        .map_err(|error| gone(format!("image file {sha256} is not on this headnode: {error}")))?;
    let size = file.metadata().await.map_err(|error| gone(error.to_string()))?.len();
    let first = match headers.get(header::RANGE) {
        None => None,
        Some(range) => {
            Some(range.to_str().ok().and_then(first_byte).filter(|first| *first < size).ok_or_else(|| {
                Refusal(StatusCode::RANGE_NOT_SATISFIABLE, format!("only `bytes=N-` with N below {size} is understood"))
            })?)
        }
    };
    let start = first.unwrap_or(0);
    file.seek(SeekFrom::Start(start)).await.map_err(|error| gone(error.to_string()))?;
    let rest = size - start;
    let body = Body::from_stream(ReaderStream::with_capacity(file.take(rest), CHUNK_BYTES));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, rest.into());
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/octet-stream"));
    if first.is_some() {
        let value = format!("bytes {start}-{}/{size}", size.saturating_sub(1));
        if let Ok(value) = value.parse() {
            headers.insert(header::CONTENT_RANGE, value);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// `bytes=N-` as N.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_to_the_end_are_understood() {
        assert_eq!(first_byte("bytes=0-"), Some(0));
        assert_eq!(first_byte("bytes=17-"), Some(17));
        for wrong in ["bytes=-5", "bytes=1-2", "items=1-", "bytes=x-", ""] {
            assert_eq!(first_byte(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_a_nodes_certificate_speaks_for_a_server() {
        let id = ServerId::random();
        let ends_at = Timestamp(1_800_000_000_000);
        let peer = |name: String, unit: &str| {
            Some(Extension(Peer { name, unit: unit.into(), serial: String::new(), ends_at }))
        };
        assert_eq!(server_of(peer(id.to_string(), "node")).ok(), Some(id));
        assert!(server_of(peer(id.to_string(), "operator")).is_err());
        assert!(server_of(peer("admin".into(), "node")).is_err());
        assert!(server_of(None).is_err());
        let shown = peer(id.to_string(), "node");
        assert!(refuse_ended(&shown, ends_at).is_ok() && refuse_ended(&None, ends_at).is_ok());
        let Err(Refusal(status, why)) = refuse_ended(&shown, ends_at.plus_millis(1)) else { panic!("it has ended") };
        assert!(status == StatusCode::UNAUTHORIZED && why.contains("neso node renew"), "{why}");
    }
}
