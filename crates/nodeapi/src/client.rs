//! The link over the network: HTTP/2 in mutually authenticated TLS, to whichever headnode answers.
//!
//! One connection carries everything; HTTP/2 pings notice a peer that vanished without a word. When a request fails to
//! reach the headnode in use, the others are tried once each ([`crate::dial`]); the one that answered is kept. Questions are the exception: they
//! are waited for at every headnode, each on a connection of its own. Deadlines are here, retries are not: the agent's loops own those.

use std::{
    sync::{Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use model::{
    delta::{Held, ReportNews, TargetNews},
    id::{InquiryId, ServerId},
    server::MachineIdentity,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};

use crate::{
    DOCUMENT_MAX_BYTES, ErrorBody, HEADNODE_NAME, LONG_POLL_SECONDS, MACHINE_HEADER, REPORT_DELTA, ReportAnswer,
    TARGET_DELTA,
    dial::Dial,
    inquiry::{Answer, Inquiry},
    join::{JOIN_MAX_BYTES, RenewAnswer, RenewRequest},
    kit::{BACKUPS_MAX_BYTES, HeadnodeKit, KIT_MAX_BYTES, OfferedBackup},
    link::{BoxFuture, Chunks, HeadnodeLink, LinkError},
};

/// For an answer that needs no waiting, seconds. A headnode writes to its disk before it answers, so some patience.
const ANSWER_SECONDS: u64 = 15;

/// Beyond [`LONG_POLL_SECONDS`] before a long poll counts as lost, seconds.
const LONG_POLL_MARGIN_SECONDS: u64 = 10;

/// Between two pieces of a file, seconds.
const CHUNK_SECONDS: u64 = 30;

/// To open a TCP connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Between HTTP/2 pings, and for the answer to one: a headnode that was stopped where it stood is left after twice that.
const PING: Duration = Duration::from_secs(5);

/// HTTP/2 window of one stream, bytes: an image should fill a fast link, an idle agent should hold little.
const WINDOW_BYTES: u32 = 1 << 20;

/// Content type of everything that has no other.
const JSON: &str = "application/json";

/// Most headnode addresses.
pub const ADDRESSES_MAX: usize = 16;

/// Who to call and how to prove who we are; all certificates as PEM text.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `host:port` of every headnode that is known from the start.
    pub headnodes: Vec<String>,
    /// The first of them is on this machine, and preferred to all others.
    pub is_here: bool,
    /// The datacenter's certificate authority.
    pub authority_pem: String,
    /// The node's certificate chain; its common name is the server's id.
    pub certificate_pem: String,
    /// The key that goes with it.
    pub key_pem: String,
    /// What tells this machine from others.
    pub machine: MachineIdentity,
}

type Http = HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A [`HeadnodeLink`] over TLS.
pub struct Client {
    /// Replaced by [`Client::renew`]. Held to copy or replace one handle.
    http: RwLock<Http>,
    // Leaf data: held to look an order up, or to note who answered.
    dial: Mutex<Dial>,
    /// Value of [`MACHINE_HEADER`].
    machine: String,
}

impl Client {
    /// Prepares a link; nothing is connected before the first request. Must be called within a tokio runtime.
    pub fn new(settings: &Settings) -> Result<Self, LinkError> {
        if settings.headnodes.is_empty() || settings.headnodes.len() > ADDRESSES_MAX {
            let why = format!("there are {}, allowed are 1 to {ADDRESSES_MAX}", settings.headnodes.len());
            return Err(LinkError::Setup { what: "list of headnode addresses", why });
        }
        Ok(Self {
            http: RwLock::new(connections(settings)?),
            dial: Mutex::new(Dial::new(settings.headnodes.clone(), settings.is_here)),
            machine: serde_json::to_string(&settings.machine).map_err(|error| nonsense("connect", &error))?,
        })
    }

    /// Shows another certificate from the next request on; what is under way ends on the connections it has. On an error
    /// nothing changes. The list of headnodes stays as it was.
    pub fn renew(&self, settings: &Settings) -> Result<(), LinkError> {
        let fresh = connections(settings)?;
        *self.http.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Asks for a certificate for the key behind a request (PEM).
    pub async fn certify(&self, request_pem: String) -> Result<String, LinkError> {
        let doing = "renew the certificate";
        let body = serde_json::to_vec(&RenewRequest { request_pem }).map_err(|error| nonsense(doing, &error))?;
        let response = self.send(doing, Method::POST, "/v1/renew", body.into(), ANSWER_SECONDS).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(doing, response).await);
        }
        let bytes = whole(doing, response, JOIN_MAX_BYTES).await?;
        let answer: RenewAnswer = serde_json::from_slice(&bytes).map_err(|error| nonsense(doing, &error))?;
        Ok(answer.certificate_pem)
    }

    /// Asks for what this machine needs to run a headnode.
    pub async fn headnode_kit(&self) -> Result<HeadnodeKit, LinkError> {
        let doing = "fetch what a headnode needs";
        let response = self.send(doing, Method::GET, "/v1/headnode-kit", Bytes::new(), ANSWER_SECONDS).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(doing, response).await);
        }
        let bytes = whole(doing, response, KIT_MAX_BYTES).await?;
        // What is wrong with it is not said in its own words: they hold keys.
        let nonsense =
            |_| LinkError::Nonsense { doing: doing.to_owned(), why: "it is no kit this program knows".to_owned() };
        serde_json::from_slice(&bytes).map_err(nonsense)
    }

    /// Backups that a headnode offers to another one, which says which it holds already.
    pub async fn backups(&self, held: &[String]) -> Result<Vec<OfferedBackup>, LinkError> {
        let doing = "ask for backups";
        let path = format!("/v1/backups?held={}", held.join(","));
        let response = self.send(doing, Method::GET, &path, Bytes::new(), ANSWER_SECONDS).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(doing, response).await);
        }
        let bytes = whole(doing, response, BACKUPS_MAX_BYTES).await?;
        serde_json::from_slice(&bytes).map_err(|error| nonsense(doing, &error))
    }

    /// Begins to read a backup that is offered, behind its first `from` bytes; and says where it begins, which a headnode of an earlier release does at 0.
    pub async fn backup(&self, name: &str, from: u64) -> Result<(u64, Box<dyn Chunks>), LinkError> {
        let doing = format!("fetch backup {name}");
        let path = format!("/v1/backups/{name}?from={from}");
        let response = self.send(&doing, Method::GET, &path, Bytes::new(), ANSWER_SECONDS).await?;
        let begin = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => from,
            _ => return Err(refusal(&doing, response).await),
        };
        Ok((begin, Box::new(ImageChunks { doing, body: response.into_body() })))
    }

    fn dial(&self) -> MutexGuard<'_, Dial> {
        self.dial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn http(&self) -> Http {
        self.http.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a request with JSON.
    async fn send(
        &self,
        doing: &str,
        method: Method,
        path: &str,
        body: Bytes,
        seconds: u64,
    ) -> Result<Response<Incoming>, LinkError> {
        self.send_as(doing, method, path, (JSON, body), seconds, &[StatusCode::SERVICE_UNAVAILABLE]).await
    }

    /// Sends a request to the preferred headnode, or to the first other one that can be reached and does not answer with one of `refusals`: what
    /// one has not or cannot, another may.
    async fn send_as(
        &self,
        doing: &str,
        method: Method,
        path: &str,
        (content_type, body): (&'static str, Bytes),
        seconds: u64,
        refusals: &[StatusCode],
    ) -> Result<Response<Incoming>, LinkError> {
        let order = self.dial().order();
        let (mut last, count) = (None, order.len());
        for (number, address) in order.into_iter().enumerate() {
            let is_last = number + 1 == count;
            match self.send_to(&address, doing, method.clone(), path, (content_type, body.clone()), seconds).await {
                Ok(response) if refusals.contains(&response.status()) && !is_last => {
                    last = Some(refusal(doing, response).await);
                }
                Ok(response) => {
                    if !refusals.contains(&response.status()) {
                        self.dial().answered(&address);
                    }
                    return Ok(response);
                }
                Err(error @ LinkError::Setup { .. }) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("a link has at least one headnode"))
    }

    /// Sends a request to the headnode at `address`.
    async fn send_to(
        &self,
        address: &str,
        doing: &str,
        method: Method,
        path: &str,
        (content_type, body): (&'static str, Bytes),
        seconds: u64,
    ) -> Result<Response<Incoming>, LinkError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{address}{path}"))
            .header(CONTENT_TYPE, content_type)
            .header(MACHINE_HEADER, &self.machine)
            .body(Full::new(body))
            .map_err(|error| LinkError::Setup { what: "headnode address", why: error.to_string() })?;
        match tokio::time::timeout(Duration::from_secs(seconds), self.http().request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unreachable(doing, error)),
            Err(_) => Err(LinkError::Slow { doing: doing.to_owned(), seconds }),
        }
    }
}

/// Why a request did not get through.
fn unreachable(doing: &str, error: hyper_util::client::legacy::Error) -> LinkError {
    let (doing, is_about_time) = (doing.to_owned(), is_about_time(&error));
    let source = Box::new(error);
    match is_about_time {
        true => LinkError::Clock { doing, source },
        false => LinkError::Unreachable { doing, source },
    }
}

/// Whether a certificate was refused for the time in it.
fn is_about_time(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::{CertificateError as Why, Error as TlsError};
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(TlsError::InvalidCertificate(why)) = error.downcast_ref() {
            return matches!(
                why,
                Why::NotValidYet | Why::NotValidYetContext { .. } | Why::Expired | Why::ExpiredContext { .. }
            );
        }
        // What an IO error carries is skipped by its own chain.
        let carried = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = carried.map_or_else(|| error.source(), |carried| Some(carried));
    }
    false
}

/// The name every headnode shows.
pub(crate) fn headnode_name() -> ServerName<'static> {
    ServerName::try_from(HEADNODE_NAME).expect("the constant is a host name")
}

/// Connections with the identity in `settings`; none is made before the first request.
fn connections(settings: &Settings) -> Result<Http, LinkError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls(settings)?)
        .https_only()
        .with_server_name_resolver(FixedServerNameResolver::new(headnode_name()))
        .enable_http2()
        .wrap_connector(tcp);
    Ok(HttpClient::builder(TokioExecutor::new())
        .http2_only(true)
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(WINDOW_BYTES)
        .http2_initial_connection_window_size(WINDOW_BYTES)
        .build(connector))
}

fn tls(settings: &Settings) -> Result<ClientConfig, LinkError> {
    let setup = |what: &'static str, why: String| LinkError::Setup { what, why };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("authority", &settings.authority_pem)? {
        roots.add(certificate).map_err(|error| setup("authority", error.to_string()))?;
    }
    let chain = certificates("certificate", &settings.certificate_pem)?;
    let key =
        PrivateKeyDer::from_pem_slice(settings.key_pem.as_bytes()).map_err(|error| setup("key", error.to_string()))?;
    ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| setup("TLS version", error.to_string()))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| setup("certificate", error.to_string()))
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if found.is_empty() => Err(LinkError::Setup { what, why: "it holds no certificate".to_owned() }),
        Ok(found) => Ok(found),
        Err(error) => Err(LinkError::Setup { what, why: error.to_string() }),
    }
}

/// Reads a whole answer within its limits.
pub(crate) async fn whole(doing: &str, response: Response<Incoming>, max: usize) -> Result<Bytes, LinkError> {
    let mut body = response.into_body();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = next_chunk(doing, &mut body).await? {
        if bytes.len() + chunk.len() > max {
            return Err(LinkError::Nonsense { doing: doing.to_owned(), why: format!("it is longer than {max} bytes") });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

async fn next_chunk(doing: &str, body: &mut Incoming) -> Result<Option<Bytes>, LinkError> {
    loop {
        let frame = tokio::time::timeout(Duration::from_secs(CHUNK_SECONDS), body.frame())
            .await
            .map_err(|_| LinkError::Slow { doing: doing.to_owned(), seconds: CHUNK_SECONDS })?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => {
                return Err(LinkError::Unreachable { doing: doing.to_owned(), source: Box::new(error) });
            }
            // Trailers carry nothing for us.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The error in an answer that is not 2xx.
pub(crate) async fn refusal(doing: &str, response: Response<Incoming>) -> LinkError {
    /// Longest error text kept, bytes.
    const MESSAGE_MAX_BYTES: usize = 64 << 10;
    let status = response.status().as_u16();
    match whole(doing, response, MESSAGE_MAX_BYTES).await {
        Ok(bytes) => {
            let message = serde_json::from_slice::<ErrorBody>(&bytes).map_or_else(
                |_| String::from_utf8_lossy(&bytes[..bytes.len().min(512)]).into_owned(),
                |body| body.message,
            );
            LinkError::Refused { doing: doing.to_owned(), status, message }
        }
        Err(error) => error,
    }
}

pub(crate) fn nonsense(doing: &str, error: &serde_json::Error) -> LinkError {
    LinkError::Nonsense { doing: doing.to_owned(), why: error.to_string() }
}

impl HeadnodeLink for Client {
    fn target(&self, held: Held) -> BoxFuture<'_, Result<Option<TargetNews>, LinkError>> {
        Box::pin(async move {
            let doing = "fetch the target";
            let digest = held.digest.map(|digest| format!("&digest={digest}")).unwrap_or_default();
            let path = format!("/v1/target?have={}{digest}", held.generation);
            let seconds = LONG_POLL_SECONDS + LONG_POLL_MARGIN_SECONDS;
            let response = self.send(doing, Method::GET, &path, Bytes::new(), seconds).await?;
            match response.status() {
                StatusCode::OK => {
                    let is_delta = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == TARGET_DELTA);
                    let bytes = whole(doing, response, DOCUMENT_MAX_BYTES).await?;
                    let news = match is_delta {
                        true => serde_json::from_slice(&bytes).map(TargetNews::Delta),
                        false => serde_json::from_slice(&bytes).map(TargetNews::Whole),
                    };
                    news.map(Some).map_err(|error| nonsense(doing, &error))
                }
                StatusCode::NO_CONTENT => Ok(None),
                _ => Err(refusal(doing, response).await),
            }
        })
    }

    fn report<'a>(&'a self, report: &'a ReportNews) -> BoxFuture<'a, Result<ReportAnswer, LinkError>> {
        Box::pin(async move {
            let doing = "report";
            let (kind, body) = match report {
                ReportNews::Whole(report) => (JSON, serde_json::to_vec(report)),
                ReportNews::Delta(delta) => (REPORT_DELTA, serde_json::to_vec(delta)),
            };
            let body = body.map_err(|error| nonsense(doing, &error))?;
            let refusals = &[StatusCode::SERVICE_UNAVAILABLE];
            let response =
                self.send_as(doing, Method::POST, "/v1/report", (kind, body.into()), ANSWER_SECONDS, refusals).await?;
            if response.status() != StatusCode::OK {
                return Err(refusal(doing, response).await);
            }
            let bytes = whole(doing, response, DOCUMENT_MAX_BYTES).await?;
            serde_json::from_slice(&bytes).map_err(|error| nonsense(doing, &error))
        })
    }

    fn image<'a>(&'a self, sha256: &'a str) -> BoxFuture<'a, Result<Box<dyn Chunks>, LinkError>> {
        Box::pin(async move {
            let doing = format!("fetch image file {sha256}");
            let path = format!("/v1/images/{sha256}");
            // A headnode may not have every file.
            let refusals = &[StatusCode::SERVICE_UNAVAILABLE, StatusCode::NOT_FOUND];
            let sending = self.send_as(&doing, Method::GET, &path, (JSON, Bytes::new()), ANSWER_SECONDS, refusals);
            let response = sending.await?;
            if response.status() != StatusCode::OK {
                return Err(refusal(&doing, response).await);
            }
            let chunks: Box<dyn Chunks> = Box::new(ImageChunks { doing, body: response.into_body() });
            Ok(chunks)
        })
    }

    fn know(&self, machine: ServerId, headnodes: &[String]) {
        self.dial().know(machine, headnodes);
    }

    fn headnodes(&self) -> Vec<String> {
        self.dial().all()
    }

    fn inquiry<'a>(&'a self, headnode: &'a str) -> BoxFuture<'a, Result<Option<Inquiry>, LinkError>> {
        Box::pin(async move {
            let doing = "wait for a question";
            let seconds = LONG_POLL_SECONDS + LONG_POLL_MARGIN_SECONDS;
            let body = (JSON, Bytes::new());
            let response = self.send_to(headnode, doing, Method::GET, "/v1/inquiries", body, seconds).await?;
            match response.status() {
                StatusCode::OK => {
                    let bytes = whole(doing, response, DOCUMENT_MAX_BYTES).await?;
                    serde_json::from_slice(&bytes).map(Some).map_err(|error| nonsense(doing, &error))
                }
                StatusCode::NO_CONTENT => Ok(None),
                _ => Err(refusal(doing, response).await),
            }
        })
    }

    fn answer<'a>(
        &'a self,
        headnode: &'a str,
        id: InquiryId,
        answer: &'a Answer,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            let doing = "answer a question";
            let body = serde_json::to_vec(answer).map_err(|error| nonsense(doing, &error))?;
            let (path, body) = (format!("/v1/inquiries/{id}"), (JSON, body.into()));
            let response = self.send_to(headnode, doing, Method::POST, &path, body, ANSWER_SECONDS).await?;
            match response.status() {
                StatusCode::NO_CONTENT => Ok(()),
                _ => Err(refusal(doing, response).await),
            }
        })
    }
}

struct ImageChunks {
    doing: String,
    body: Incoming,
}

impl Chunks for ImageChunks {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, LinkError>> {
        Box::pin(async { next_chunk(&self.doing, &mut self.body).await })
    }
}
