//! Sending signed requests and reading answers.

use std::{
    collections::BTreeMap,
    fmt,
    net::Ipv6Addr,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use model::{
    id::{ImageId, InstanceId, MacAddr, NetworkId},
    instance::TagValue,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::time::timeout;

use super::{Profile, Signer, repeat, signer::SignerError, tls};
use crate::{
    error::ErrorBody,
    signature::http_date,
    types::{
        Account, AccountUpdate, Audit, CreateKey, CreateMachine, Image, ImageUpdate, Key, Machine, Network,
        NetworkChoice, NetworkIp, Nic, Package, service::STALE, stats::Stats,
    },
};

/// Headnodes a profile names at most.
const BASES_MAX: usize = 16;
/// Largest answer read, bytes: a page of 1,000 instances with much metadata.
const ANSWER_MAX: usize = 64 << 20;
/// Instances per page: the contract's maximum.
const PAGE: usize = 1_000;
/// What may stand in a path segment as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The profile's URL or trust cannot be used.
    #[error("cannot use the profile: {0}")]
    Profile(String),
    /// Signing failed.
    #[error("failed to sign the request")]
    Sign(#[from] SignerError),
    /// The server cannot be reached.
    #[error("failed to reach {url}")]
    Connect {
        /// Where.
        url: String,
        /// What the network said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("{url} did not answer within {seconds} s")]
    Timeout {
        /// Where.
        url: String,
        /// How long it had.
        seconds: u64,
    },
    /// The change feed ended, and would again.
    #[error("the change feed ended: {reason}")]
    Closed {
        /// Why, in the server's words if it said so.
        reason: String,
    },
    /// The server says no.
    #[error("{} ({})", body.message, body.code)]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// What it says.
        body: ErrorBody,
    },
    /// The answer is not what the contract says.
    #[error("cannot read the answer of {url} (status {status})")]
    Answer {
        /// Where.
        url: String,
        /// HTTP status.
        status: StatusCode,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// Which instances to list.
#[derive(Debug, Clone, Default)]
pub struct MachineFilter(BTreeMap<String, String>);

impl MachineFilter {
    /// Adds one filter of the contract: `name`, `state`, `tag.role` …
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.insert(key.into(), value.into());
        self
    }
}

/// A client of one account in one datacenter.
pub struct Client {
    http: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// For connections that become something else, which HTTP/2 has another way for.
    pub(super) http1: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// URL of each headnode: the first that answers is kept.
    pub(super) bases: Vec<String>,
    /// Index of the one that answered last; a hint, so relaxed ordering is enough.
    pub(super) preferred: AtomicUsize,
    account: String,
    key_id: String,
    signer: Signer,
    clock: fn() -> i64,
    /// What the last answer's [`STALE`] said, milliseconds; none is 0.
    stale_ms: AtomicU64,
    /// See [`Client::resent`].
    pub(super) resent: AtomicBool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({} as {})", self.bases.join(", "), self.account)
    }
}

/// What is asked for, to be signed anew each time it is sent.
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) target: String,
    body: Option<Bytes>,
}

/// An answer, before its body is read as something.
pub(super) struct Answer {
    url: String,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Bytes,
}

impl Client {
    /// Connects lazily. `clock` gives seconds since 1970: signatures carry the time.
    pub fn new(profile: &Profile, signer: Signer, clock: fn() -> i64) -> Result<Self, ClientError> {
        let config = tls::config(profile.insecure, profile.ca_file.as_deref()).map_err(ClientError::Profile)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        // Head and body leave in two writes: without this the second waits 40 ms for the other side's delayed ACK.
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config.clone())
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(tcp.clone());
        let only1 = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
        let only1 = only1.wrap_connector(tcp);
        let bases: Vec<String> =
            profile.url.split(',').map(|base| base.trim().trim_end_matches('/').to_owned()).collect();
        if bases.len() > BASES_MAX {
            return Err(ClientError::Profile(format!("it names {} URLs, {BASES_MAX} are allowed", bases.len())));
        }
        for base in &bases {
            let uri = base.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
            uri.ok_or_else(|| ClientError::Profile(format!("`{base}` is not a URL like https://host:8443")))?;
        }
        Ok(Self {
            http: HyperClient::builder(TokioExecutor::new()).build(connector),
            http1: HyperClient::builder(TokioExecutor::new()).build(only1),
            bases,
            preferred: AtomicUsize::new(0),
            account: profile.act_as.clone().unwrap_or_else(|| profile.account.clone()),
            key_id: format!("/{}/keys/{}", profile.account, signer.fingerprint_md5),
            signer,
            clock,
            stale_ms: AtomicU64::new(0),
            resent: AtomicBool::new(false),
        })
    }

    /// For how long the headnode that answered last has not known whether what it shows is the newest; `None` when it is, and from
    /// servers that do not say.
    pub fn stale(&self) -> Option<Duration> {
        let stale_ms = self.stale_ms.load(Ordering::Relaxed);
        (stale_ms > 0).then(|| Duration::from_millis(stale_ms))
    }

    /// Whether the last call that changes something was sent again because an answer was lost. It is done once if it was accepted; if it was
    /// refused in the end, the sending whose answer was lost may have done it, or may yet.
    pub fn resent(&self) -> bool {
        self.resent.load(Ordering::Relaxed)
    }

    /// `GET /:account`.
    pub async fn account(&self) -> Result<Account<'static>, ClientError> {
        self.get("", &[]).await
    }

    /// URL of every service by name.
    pub async fn services(&self) -> Result<BTreeMap<String, String>, ClientError> {
        self.get("/services", &[]).await
    }

    /// All keys.
    pub async fn keys(&self) -> Result<Vec<Key<'static>>, ClientError> {
        self.get("/keys", &[]).await
    }

    /// Adds a key.
    pub async fn key_create(&self, key: &CreateKey) -> Result<Key<'static>, ClientError> {
        self.post("/keys", key).await
    }

    /// Changes the account.
    pub async fn account_update(&self, change: &AccountUpdate) -> Result<Account<'static>, ClientError> {
        self.post("", change).await
    }

    /// One key, by name or fingerprint.
    pub async fn key(&self, key: &str) -> Result<Key<'static>, ClientError> {
        self.get(&format!("/keys/{}", utf8_percent_encode(key, SEGMENT)), &[]).await
    }

    /// Removes a key.
    pub async fn key_delete(&self, key: &str) -> Result<(), ClientError> {
        self.send(Method::DELETE, &format!("/keys/{}", utf8_percent_encode(key, SEGMENT)), &[], None).await?.done()
    }

    /// Packages that match the contract's filters.
    pub async fn packages(&self, filters: &[(&str, &str)]) -> Result<Vec<Package<'static>>, ClientError> {
        self.get("/packages", filters).await
    }

    /// Images one may use that match the contract's filters; active ones, unless `state` says otherwise.
    pub async fn images(&self, filters: &[(&str, &str)]) -> Result<Vec<Image<'static>>, ClientError> {
        self.get("/images", filters).await
    }

    /// One image.
    pub async fn image(&self, id: ImageId) -> Result<Image<'static>, ClientError> {
        self.get(&format!("/images/{id}"), &[]).await
    }

    /// Changes what is said of an image.
    pub async fn image_update(&self, id: ImageId, change: &ImageUpdate) -> Result<Image<'static>, ClientError> {
        let path = format!("/images/{id}");
        self.send(Method::POST, &path, &[("action", "update")], Some(to_bytes(change))).await?.read()
    }

    /// Deletes an image.
    pub async fn image_delete(&self, id: ImageId) -> Result<(), ClientError> {
        self.send(Method::DELETE, &format!("/images/{id}"), &[], None).await?.done()
    }

    /// Addresses of a network that are in use or reserved, page by page.
    pub async fn network_ips(&self, id: NetworkId) -> Result<Vec<NetworkIp>, ClientError> {
        self.pages(&format!("/networks/{id}/ips"), &[]).await
    }

    /// Networks one may use.
    pub async fn networks(&self) -> Result<Vec<Network<'static>>, ClientError> {
        self.get("/networks", &[]).await
    }

    /// Name of each datacenter to its URL.
    pub async fn datacenters(&self) -> Result<BTreeMap<String, String>, ClientError> {
        self.get("/datacenters", &[]).await
    }

    /// Makes an instance.
    pub async fn machine_create(&self, wanted: &CreateMachine) -> Result<Machine<'static>, ClientError> {
        self.post("/machines", wanted).await
    }

    /// Makes an instance; the call has a name of the caller's own, and sending it again makes no second one.
    pub async fn machine_create_named(
        &self,
        wanted: &CreateMachine,
        name: &str,
    ) -> Result<Machine<'static>, ClientError> {
        let ask = self.ask(Method::POST, "/machines", &[], Some(to_bytes(wanted)));
        self.send_named(&ask, name).await?.read()
    }

    /// All instances that match, page by page.
    pub async fn machines(&self, filter: &MachineFilter) -> Result<Vec<Machine<'static>>, ClientError> {
        let query: Vec<(&str, &str)> = filter.0.iter().map(|(key, value)| (&**key, &**value)).collect();
        self.pages("/machines", &query).await
    }

    async fn pages<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<Vec<T>, ClientError> {
        let mut all = Vec::new();
        loop {
            let (limit, offset) = (PAGE.to_string(), all.len().to_string());
            let query = [query, &[("limit", &*limit), ("offset", &*offset)]].concat();
            let page: Vec<T> = self.get(path, &query).await?;
            let last = page.len() < PAGE;
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    /// What instances use: one, or all, page by page. Ours; another server knows nothing of it.
    pub async fn stats(&self, machine: Option<InstanceId>) -> Result<Vec<Stats<'static>>, ClientError> {
        match machine {
            Some(id) => self.get("/stats", &[("machine", &*id.to_string())]).await,
            None => self.pages("/stats", &[]).await,
        }
    }

    /// One instance; a deleted one too, for as long as the server remembers it.
    pub async fn machine(&self, id: InstanceId) -> Result<Machine<'static>, ClientError> {
        let answer = self.send(Method::GET, &format!("/machines/{id}"), &[], None).await?;
        if answer.status == StatusCode::GONE
            && let Ok(machine) = serde_json::from_slice(&answer.body)
        {
            return Ok(machine);
        }
        answer.read()
    }

    /// `start`, `stop`, `reboot`, `enable_firewall`, `disable_deletion_protection` …
    pub async fn machine_action(&self, id: InstanceId, action: &str) -> Result<(), ClientError> {
        self.machine_act(id, &json!({ "action": action })).await
    }

    /// Gives another package.
    pub async fn machine_resize(&self, id: InstanceId, package: &str) -> Result<(), ClientError> {
        self.machine_act(id, &json!({ "action": "resize", "package": package })).await
    }

    /// Gives another name.
    pub async fn machine_rename(&self, id: InstanceId, name: &str) -> Result<(), ClientError> {
        self.machine_act(id, &json!({ "action": "rename", "name": name })).await
    }

    async fn machine_act(&self, id: InstanceId, body: &serde_json::Value) -> Result<(), ClientError> {
        self.send(Method::POST, &format!("/machines/{id}"), &[], Some(to_bytes(body))).await?.done()
    }

    /// Deletes an instance.
    pub async fn machine_delete(&self, id: InstanceId) -> Result<(), ClientError> {
        self.send(Method::DELETE, &format!("/machines/{id}"), &[], None).await?.done()
    }

    /// What was done to an instance, newest first.
    pub async fn machine_audit(&self, id: InstanceId) -> Result<Vec<Audit<'static>>, ClientError> {
        self.get(&format!("/machines/{id}/audit"), &[]).await
    }

    /// Its tags.
    pub async fn tags(&self, id: InstanceId) -> Result<BTreeMap<String, TagValue>, ClientError> {
        self.get(&format!("/machines/{id}/tags"), &[]).await
    }

    /// Adds tags.
    pub async fn tags_add(
        &self,
        id: InstanceId,
        tags: &BTreeMap<String, TagValue>,
    ) -> Result<BTreeMap<String, TagValue>, ClientError> {
        self.post(&format!("/machines/{id}/tags"), tags).await
    }

    /// Removes a tag.
    pub async fn tag_delete(&self, id: InstanceId, tag: &str) -> Result<(), ClientError> {
        let path = format!("/machines/{id}/tags/{}", utf8_percent_encode(tag, SEGMENT));
        self.send(Method::DELETE, &path, &[], None).await?.done()
    }

    /// Its metadata.
    pub async fn metadata(&self, id: InstanceId) -> Result<BTreeMap<String, serde_json::Value>, ClientError> {
        self.get(&format!("/machines/{id}/metadata"), &[]).await
    }

    /// Adds metadata.
    pub async fn metadata_add(
        &self,
        id: InstanceId,
        metadata: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, serde_json::Value>, ClientError> {
        self.post(&format!("/machines/{id}/metadata"), metadata).await
    }

    /// Removes a metadata key.
    pub async fn metadata_delete(&self, id: InstanceId, key: &str) -> Result<(), ClientError> {
        let path = format!("/machines/{id}/metadata/{}", utf8_percent_encode(key, SEGMENT));
        self.send(Method::DELETE, &path, &[], None).await?.done()
    }

    /// Its NICs.
    pub async fn nics(&self, id: InstanceId) -> Result<Vec<Nic>, ClientError> {
        self.get(&format!("/machines/{id}/nics"), &[]).await
    }

    /// Adds a NIC.
    pub async fn nic_add(&self, id: InstanceId, network: &NetworkChoice) -> Result<Nic, ClientError> {
        self.post(&format!("/machines/{id}/nics"), &json!({ "network": network })).await
    }

    /// Makes the IPv6 addresses of a NIC those of a list. Our addition.
    pub async fn nic_set_addresses6(
        &self,
        id: InstanceId,
        mac: MacAddr,
        ipv6_ips: &[Ipv6Addr],
    ) -> Result<Nic, ClientError> {
        let body = json!({ "ipv6_ips": ipv6_ips });
        let path = format!("/machines/{id}/nics/{}", mac.bare());
        self.send(Method::PUT, &path, &[], Some(to_bytes(&body))).await?.read()
    }

    /// Removes a NIC.
    pub async fn nic_delete(&self, id: InstanceId, mac: MacAddr) -> Result<(), ClientError> {
        self.send(Method::DELETE, &format!("/machines/{id}/nics/{}", mac.bare()), &[], None).await?.done()
    }

    /// Any endpoint, for those without a method here: `target` begins with `/` and may have a query, both escaped already;
    /// `/my` at its beginning stands for the account. An answer without a body is null.
    pub async fn call(
        &self,
        method: Method,
        target: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<serde_json::Value, ClientError> {
        let own = target.strip_prefix("/my").filter(|rest| rest.is_empty() || rest.starts_with(['/', '?']));
        let target = match own {
            Some(rest) => format!("/{}{rest}", utf8_percent_encode(&self.account, SEGMENT)),
            None => target.to_owned(),
        };
        let ask = Ask { method, target, body: body.map(to_bytes) };
        let answer = self.see_through(&ask).await?.accepted()?;
        if answer.body.is_empty() { Ok(serde_json::Value::Null) } else { answer.read() }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, ClientError> {
        self.send(Method::GET, path, query, None).await?.read()
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.send(Method::POST, path, &[], Some(to_bytes(body))).await?.read()
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Bytes>,
    ) -> Result<Answer, ClientError> {
        self.see_through(&self.ask(method, path, query, body)).await
    }

    /// An answer that was not what was hoped for, as an error.
    pub(super) async fn refusal(url: &str, response: hyper::Response<hyper::body::Incoming>) -> ClientError {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = match Limited::new(response.into_body(), ANSWER_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(source) => return ClientError::Connect { url: url.to_owned(), source },
        };
        let answer = Answer { url: url.to_owned(), status, headers, body };
        match answer.accepted() {
            Err(error) => error,
            Ok(answer) => {
                let source = "it does not speak WebSocket".into();
                ClientError::Connect { url: answer.url, source }
            }
        }
    }

    async fn see_through(&self, ask: &Ask) -> Result<Answer, ClientError> {
        match ask.method {
            Method::GET | Method::HEAD => self.exchange(ask, None).await,
            _ => self.send_named(ask, &repeat::fresh_name()?).await,
        }
    }

    pub(super) fn ask(&self, method: Method, path: &str, query: &[(&str, &str)], body: Option<Bytes>) -> Ask {
        let mut target = format!("/{}{path}", utf8_percent_encode(&self.account, SEGMENT));
        for (position, (key, value)) in query.iter().enumerate() {
            target.push(if position == 0 { '?' } else { '&' });
            target.push_str(&format!("{}={}", utf8_percent_encode(key, SEGMENT), utf8_percent_encode(value, SEGMENT)));
        }
        Ask { method, target, body }
    }

    pub(super) async fn fetch(
        &self,
        url: &str,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Answer, ClientError> {
        let exchange = async {
            let response = self.http.request(request).await.map_err(|error| failed(url, error))?;
            let (status, headers) = (response.status(), response.headers().clone());
            let stale = headers.get(STALE).and_then(|value| value.to_str().ok()?.parse().ok());
            self.stale_ms.store(stale.unwrap_or(0), Ordering::Relaxed);
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
            let body = body.map_err(|source| ClientError::Connect { url: url.to_owned(), source })?.to_bytes();
            Ok(Answer { url: url.to_owned(), status, headers, body })
        };
        match timeout(within, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Timeout { url: url.to_owned(), seconds: within.as_secs() }),
        }
    }

    pub(super) async fn request(
        &self,
        ask: &Ask,
        url: &str,
        name: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let Ask { method, target, body } = ask;
        let date = http_date((self.clock)());
        let message = format!("(request-target): {} {target}\ndate: {date}", method.as_str().to_lowercase());
        let signature = BASE64.encode(self.signer.sign(message.as_bytes()).await?);
        let authorization = format!(
            r#"Signature keyId="{}",algorithm="{}",headers="(request-target) date",signature="{signature}""#,
            self.key_id,
            self.signer.algorithm(),
        );
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::DATE, date)
            .header(header::AUTHORIZATION, authorization)
            .header(header::ACCEPT, "application/json")
            .header("accept-version", "~9||~8")
            .header(header::USER_AGENT, concat!("neso/", env!("CARGO_PKG_VERSION")));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(name) = name {
            request = request.header(repeat::HEADER, name);
        }
        request.body(Full::new(body.clone().unwrap_or_default())).map_err(|error| unaskable(url, error))
    }
}

// === impl Answer ===

impl Answer {
    fn read<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let body = self.accepted()?;
        serde_json::from_slice(&body.body).map_err(|source| ClientError::Answer {
            url: body.url,
            status: body.status,
            source,
        })
    }

    fn done(self) -> Result<(), ClientError> {
        self.accepted().map(drop)
    }

    fn accepted(self) -> Result<Self, ClientError> {
        if self.status.is_success() {
            return Ok(self);
        }
        let body = serde_json::from_slice(&self.body).map_err(|source| ClientError::Answer {
            url: self.url,
            status: self.status,
            source,
        })?;
        Err(ClientError::Refused { status: self.status, body })
    }
}

pub(super) fn failed(url: &str, error: hyper_util::client::legacy::Error) -> ClientError {
    ClientError::Connect { url: url.to_owned(), source: Box::new(error) }
}

pub(super) fn unaskable(url: &str, error: http::Error) -> ClientError {
    ClientError::Profile(format!("cannot ask for `{url}`: {error}"))
}

fn to_bytes(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("request bodies are plain data with text keys").into()
}
