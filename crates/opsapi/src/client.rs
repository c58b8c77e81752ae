//! The operator's client: one method per request, typed answers, errors in the server's words.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
pub(crate) use http::Method;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use model::{
    account::{Account, AccountKey},
    image::Image,
    meters::NodeMeters,
    network::{Address, Network},
    package::Package,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::AsyncReadExt as _;

use crate::{
    CertificateView, ConsoleView, Datacenter, ErrorBody, FlowView, InstanceView, LoopView, NetworkView, NewAccount,
    NewKey, NewNetwork, NewPackage, STALE_HEADER, ServerView,
};

/// Largest answer we take, bytes: a listing of a full datacenter.
const ANSWER_MAX_BYTES: usize = 256 << 20;
/// Headnodes that are asked at most.
const ADDRESSES_MAX: usize = 16;
/// How long one of several headnodes may take to answer what changes nothing. More than a question to a node takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// The name in every headnode's certificate, whatever its address.
const HEADNODE_NAME: &str = "headnode.neso.internal";
/// Bytes read from an image file at a time.
const CHUNK_BYTES: usize = 256 << 10;

const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate files are missing or wrong.
    #[error("failed to load operator certificate `{path}`: {why}")]
    Certificate {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// Nobody answered.
    #[error("the headnode's ops API at {address} does not answer")]
    Connect {
        /// Where.
        address: String,
        /// What the system said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection broke.
    #[error("the answer of the ops API broke off")]
    Broken {
        /// What the system said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The headnode refused.
    #[error("{}", .body.message)]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// In the server's words.
        body: ErrorBody,
    },
    /// The answer cannot be understood.
    #[error("the ops API answered {what} with something else")]
    Answer {
        /// Which request.
        what: String,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The file to send cannot be read.
    #[error("failed to read `{path}`")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The object was not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }

    /// Nobody listens there (yet).
    pub fn is_connect(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A connection to the ops API, with an operator's certificate. Clone freely.
#[derive(Clone)]
pub struct Client {
    http: HttpClient<HttpsConnector<HttpConnector>, Body>,
    /// Of every headnode that is known, the one to ask first in front.
    addresses: Arc<[String]>,
    /// Index of the one that answered last; a hint, so relaxed ordering is enough.
    preferred: Arc<AtomicUsize>,
    /// What the last answer's [`STALE_HEADER`] said, milliseconds; none is 0.
    stale_ms: Arc<AtomicU64>,
}

impl Client {
    /// Reads `operator.pem`, `operator.key` and `ca.pem` from `directory`; connects on first use.
    pub fn open(address: SocketAddr, directory: &Path) -> Result<Self, Error> {
        let fail = |path: &Path, why: String| Error::Certificate { path: path.display().to_string(), why };
        let certificate = |name: &str| {
            let path = directory.join(name);
            CertificateDer::from_pem_file(&path).map_err(|error| fail(&path, error.to_string()))
        };
        let mut roots = RootCertStore::empty();
        roots.add(certificate("ca.pem")?).map_err(|error| fail(&directory.join("ca.pem"), error.to_string()))?;
        let key_path = directory.join("operator.key");
        let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|error| fail(&key_path, error.to_string()))?;
        let tls = ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_root_certificates(roots).with_client_auth_cert(
                    vec![certificate("operator.pem").map_err(|error| rustls::Error::General(error.to_string()))?],
                    key,
                )
            })
            .map_err(|error| fail(directory, error.to_string()))?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        // Head and body leave in two writes: without this the second waits 40 ms for the other side's delayed ACK.
        tcp.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .with_server_name_resolver(FixedServerNameResolver::new(
                ServerName::try_from(HEADNODE_NAME).expect("the constant is a host name"),
            ))
            .enable_http1()
            .wrap_connector(tcp);
        let http = HttpClient::builder(TokioExecutor::new()).build(connector);
        let addresses = vec![address.to_string()].into();
        Ok(Self { http, addresses, preferred: Arc::default(), stale_ms: Arc::default() })
    }

    /// The same, which asks others where the first does not answer: a request that was not sent, or that changes nothing.
    #[must_use]
    pub fn or_else_at(self, others: impl IntoIterator<Item = String>) -> Self {
        let mut addresses = self.addresses.to_vec();
        for other in others.into_iter().take(ADDRESSES_MAX) {
            if !addresses.contains(&other) {
                addresses.push(other);
            }
        }
        Self { addresses: addresses.into(), ..self }
    }

    /// Sends a request whose body is read once.
    async fn send(&self, method: Method, path: &str, kind: &str, body: Body) -> Result<Bytes, Error> {
        let address = &self.addresses[self.preferred.load(Ordering::Relaxed) % self.addresses.len()];
        self.send_to(address, method, path, kind, body).await
    }

    /// Sends a request to the first headnode that can be asked.
    async fn send_json(&self, method: Method, path: &str, json: Bytes) -> Result<Bytes, Error> {
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.addresses.len());
        for offset in 0..count {
            let index = (first + offset) % count;
            let body = Full::new(json.clone()).map_err(|never| match never {}).boxed_unsync();
            let sending = self.send_to(&self.addresses[index], method.clone(), path, "application/json", body);
            let outcome = match count {
                1 => sending.await,
                // One that was stopped where it stood takes connections and says nothing.
                _ if method == Method::GET => tokio::time::timeout(PATIENCE, sending)
                    .await
                    .unwrap_or_else(|late| Err(Error::Broken { source: late.into() })),
                _ => sending.await,
            };
            let may_go_on = match &outcome {
                Err(Error::Connect { .. }) => true,
                Err(Error::Broken { .. }) => method == Method::GET,
                _ => false,
            };
            if !may_go_on || offset + 1 == count {
                if outcome.is_ok() {
                    self.preferred.store(index, Ordering::Relaxed);
                }
                return outcome;
            }
        }
        unreachable!("there is at least one address")
    }

    async fn send_to(&self, address: &str, method: Method, path: &str, kind: &str, body: Body) -> Result<Bytes, Error> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{address}{path}"))
            .header(header::CONTENT_TYPE, kind)
            .body(body)
            .expect("path segments are percent-encoded and the content type is a constant");
        let answer = self.http.request(request).await.map_err(|error| match error.is_connect() {
            true => Error::Connect { address: address.to_owned(), source: error.into() },
            false => Error::Broken { source: error.into() },
        })?;
        let status = answer.status();
        let stale = answer.headers().get(STALE_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        self.stale_ms.store(stale.unwrap_or(0), Ordering::Relaxed);
        let body = Limited::new(answer.into_body(), ANSWER_MAX_BYTES)
            .collect()
            .await
            .map_err(|source| Error::Broken { source })?
            .to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| ErrorBody {
            code: status.as_str().to_owned(),
            message: format!("{status}: {}", String::from_utf8_lossy(&body[..body.len().min(400)])),
            fields: Vec::new(),
        });
        Err(Error::Refused { status, body })
    }

    /// For how long the headnode that answered last has not known whether what it shows is the newest; `None` when it is.
    pub fn stale(&self) -> Option<Duration> {
        let stale_ms = self.stale_ms.load(Ordering::Relaxed);
        (stale_ms > 0).then(|| Duration::from_millis(stale_ms))
    }

    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        let json = match body {
            Some(body) => {
                serde_json::to_vec(body).map_err(|source| Error::Answer { what: format!("{method} {path}"), source })?
            }
            None => Vec::new(),
        };
        let what = format!("{method} {path}");
        let answer = self.send_json(method, path, json.into()).await?;
        let text: &[u8] = if answer.is_empty() { b"null" } else { &answer };
        serde_json::from_slice(text).map_err(|source| Error::Answer { what, source })
    }

    /// An answer that is plain text.
    async fn get_text(&self, path: &str) -> Result<String, Error> {
        let bytes = self.send_json(Method::GET, path, Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::GET, path, None::<&()>).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn act<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::POST, path, None::<&()>).await
    }

    pub(crate) async fn remove(&self, path: &str) -> Result<(), Error> {
        self.call(Method::DELETE, path, None::<&()>).await
    }
}

pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// The requests.
impl Client {
    /// The datacenter at a glance.
    pub async fn datacenter(&self) -> Result<Datacenter, Error> {
        self.get("/v1/datacenter").await
    }

    /// Every certificate of the headnode's machine.
    pub async fn certificates(&self) -> Result<Vec<CertificateView>, Error> {
        self.get("/v1/certificates").await
    }

    /// Makes all certificates anew but the authority's.
    pub async fn renew_certificates(&self) -> Result<Vec<CertificateView>, Error> {
        self.act("/v1/certificates/renew").await
    }

    /// Every account.
    pub async fn accounts(&self) -> Result<Vec<Account>, Error> {
        self.get("/v1/accounts").await
    }

    /// One account, by login or id.
    pub async fn account(&self, account: &str) -> Result<Account, Error> {
        self.get(&format!("/v1/accounts/{}", segment(account))).await
    }

    /// Makes an account.
    pub async fn create_account(&self, account: &NewAccount) -> Result<Account, Error> {
        self.post("/v1/accounts", account).await
    }

    /// Refuses (or again takes) an account's requests.
    pub async fn set_account_disabled(&self, account: &str, disabled: bool) -> Result<Account, Error> {
        let verb = if disabled { "disable" } else { "enable" };
        self.act(&format!("/v1/accounts/{}/{verb}", segment(account))).await
    }

    /// Gives the instances of an account names in DNS, or takes them away.
    pub async fn set_account_names(&self, account: &str, enabled: bool) -> Result<Account, Error> {
        let verb = if enabled { "enable-names" } else { "disable-names" };
        self.act(&format!("/v1/accounts/{}/{verb}", segment(account))).await
    }

    /// An account's keys.
    pub async fn keys(&self, account: &str) -> Result<Vec<AccountKey>, Error> {
        self.get(&format!("/v1/accounts/{}/keys", segment(account))).await
    }

    /// Adds a key to an account.
    pub async fn add_key(&self, account: &str, key: &NewKey) -> Result<AccountKey, Error> {
        self.post(&format!("/v1/accounts/{}/keys", segment(account)), key).await
    }

    /// Removes a key, by name or fingerprint.
    pub async fn remove_key(&self, account: &str, key: &str) -> Result<(), Error> {
        self.remove(&format!("/v1/accounts/{}/keys/{}", segment(account), segment(key))).await
    }

    /// Every package.
    pub async fn packages(&self) -> Result<Vec<Package>, Error> {
        self.get("/v1/packages").await
    }

    /// One package, by name or id.
    pub async fn package(&self, package: &str) -> Result<Package, Error> {
        self.get(&format!("/v1/packages/{}", segment(package))).await
    }

    /// Makes a package.
    pub async fn create_package(&self, package: &NewPackage) -> Result<Package, Error> {
        self.post("/v1/packages", package).await
    }

    /// Offers a package, or no longer.
    pub async fn set_package_active(&self, package: &str, active: bool) -> Result<Package, Error> {
        let verb = if active { "activate" } else { "deactivate" };
        self.act(&format!("/v1/packages/{}/{verb}", segment(package))).await
    }

    /// Every network.
    pub async fn networks(&self) -> Result<Vec<Network>, Error> {
        self.get("/v1/networks").await
    }

    /// One network, by name or id.
    pub async fn network(&self, network: &str) -> Result<NetworkView, Error> {
        self.get(&format!("/v1/networks/{}", segment(network))).await
    }

    /// Makes a network.
    pub async fn create_network(&self, network: &NewNetwork) -> Result<Network, Error> {
        self.post("/v1/networks", network).await
    }

    /// Removes a network nobody uses.
    pub async fn delete_network(&self, network: &str) -> Result<(), Error> {
        self.remove(&format!("/v1/networks/{}", segment(network))).await
    }

    /// Addresses of a network that are in use or reserved.
    pub async fn addresses(&self, network: &str) -> Result<Vec<Address>, Error> {
        self.get(&format!("/v1/networks/{}/ips", segment(network))).await
    }

    /// Every image.
    pub async fn images(&self) -> Result<Vec<Image>, Error> {
        self.get("/v1/images").await
    }

    /// One image, by id, name or name@version.
    pub async fn image(&self, image: &str) -> Result<Image, Error> {
        self.get(&format!("/v1/images/{}", segment(image))).await
    }

    /// Makes an image's record from its manifest (version 2).
    pub async fn create_image(&self, manifest: &serde_json::Value) -> Result<Image, Error> {
        self.post("/v1/images", manifest).await
    }

    /// Sends an image's file, which must be what the manifest said; then the image is active. `progress` hears of bytes
    /// sent so far.
    pub async fn add_image_file(
        &self,
        image: &str,
        file: &Path,
        progress: impl FnMut(u64) + Send + 'static,
    ) -> Result<Image, Error> {
        let path = format!("/v1/images/{}/file", segment(image));
        let opened = tokio::fs::File::open(file)
            .await
            .map_err(|source| Error::File { path: file.display().to_string(), source })?;
        let chunks =
            futures_util::stream::unfold((opened, 0, progress), |(mut opened, sent, mut progress)| async move {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                let mut limited = (&mut opened).take(CHUNK_BYTES as u64);
                match limited.read_to_end(&mut chunk).await {
                    Ok(0) => None,
                    Ok(read) => {
                        let sent = sent + read as u64;
                        progress(sent);
                        Some((Ok(Frame::data(Bytes::from(chunk))), (opened, sent, progress)))
                    }
                    Err(error) => Some((Err(error), (opened, sent, progress))),
                }
            });
        let body = StreamBody::new(chunks).boxed_unsync();
        let answer = self.send(Method::PUT, &path, "application/octet-stream", body).await?;
        serde_json::from_slice(&answer).map_err(|source| Error::Answer { what: format!("PUT {path}"), source })
    }

    /// Removes an image no instance uses.
    pub async fn delete_image(&self, image: &str) -> Result<(), Error> {
        self.remove(&format!("/v1/images/{}", segment(image))).await
    }

    /// Every server.
    pub async fn servers(&self) -> Result<Vec<ServerView>, Error> {
        self.get("/v1/servers").await
    }

    /// One server, by id or host name.
    pub async fn server(&self, server: &str) -> Result<ServerView, Error> {
        self.get(&format!("/v1/servers/{}", segment(server))).await
    }

    /// Lets a server take new instances, or not.
    pub async fn set_server_accepts(&self, server: &str, accepts: bool) -> Result<ServerView, Error> {
        let verb = if accepts { "accept" } else { "refuse" };
        self.act(&format!("/v1/servers/{}/{verb}", segment(server))).await
    }

    /// Instances; of one account (login or id) or on one server, when named.
    pub async fn instances(&self, account: Option<&str>, server: Option<&str>) -> Result<Vec<InstanceView>, Error> {
        let mut query = String::new();
        for (name, value) in [("account", account), ("server", server)] {
            if let Some(value) = value {
                let separator = if query.is_empty() { '?' } else { '&' };
                query.push_str(&format!("{separator}{name}={}", segment(value)));
            }
        }
        self.get(&format!("/v1/instances{query}")).await
    }

    /// One instance, by id, short id, or alias when only one has it.
    pub async fn instance(&self, instance: &str) -> Result<InstanceView, Error> {
        self.get(&format!("/v1/instances/{}", segment(instance))).await
    }

    /// `start`, `stop` or `reboot` an instance.
    pub async fn instance_action(&self, instance: &str, verb: &str) -> Result<InstanceView, Error> {
        self.act(&format!("/v1/instances/{}/{}", segment(instance), segment(verb))).await
    }

    /// What a server and its instances use, some seconds old.
    pub async fn meters(&self, server: &str) -> Result<NodeMeters, Error> {
        self.get(&format!("/v1/servers/{}/meters", segment(server))).await
    }

    /// What the headnode that answers tells of itself, as Prometheus reads it.
    pub async fn metrics(&self) -> Result<String, Error> {
        self.get_text("/v1/metrics").await
    }

    /// What a server and its instances use, likewise.
    pub async fn server_metrics(&self, server: &str) -> Result<String, Error> {
        self.get_text(&format!("/v1/servers/{}/metrics", segment(server))).await
    }

    /// What an instance wrote to its console: at most `max_bytes` of what follows `after`, or else the newest.
    pub async fn console(&self, instance: &str, max_bytes: u32, after: Option<&str>) -> Result<ConsoleView, Error> {
        let after = after.map_or_else(String::new, |after| format!("&after={}", segment(after)));
        self.get(&format!("/v1/instances/{}/console?max_bytes={max_bytes}{after}", segment(instance))).await
    }

    /// Deletes an instance.
    pub async fn delete_instance(&self, instance: &str) -> Result<(), Error> {
        self.remove(&format!("/v1/instances/{}", segment(instance))).await
    }

    /// Flows, newest first; only those that have not ended, when asked.
    pub async fn flows(&self, unfinished: bool) -> Result<Vec<FlowView>, Error> {
        self.get(&format!("/v1/flows?unfinished={unfinished}")).await
    }

    /// Flows that have left the headnode's store, newest first: all, or those about one subject.
    pub async fn archived_flows(&self, subject: Option<&str>, limit: usize) -> Result<Vec<FlowView>, Error> {
        let about = subject.map(|subject| format!("&subject={}", segment(subject))).unwrap_or_default();
        self.get(&format!("/v1/flows?archived=true&limit={limit}{about}")).await
    }

    /// One flow.
    pub async fn flow(&self, flow: &str) -> Result<FlowView, Error> {
        self.get(&format!("/v1/flows/{}", segment(flow))).await
    }

    /// The headnode's loops.
    pub async fn loops(&self) -> Result<Vec<LoopView>, Error> {
        self.get("/v1/loops").await
    }
}
