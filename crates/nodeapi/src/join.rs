//! How a machine that nobody knows becomes a node.
//!
//! ```text
//! node                                             headnode
//!  ├─ TLS, no certificate shown ───────────────────►│ shows its own and the authority's
//!  │  the authority's fingerprint is the invited one, and it signed the other for a headnode: else end
//!  ├─ GET /v1/hello ───────────────────────────────►│ datacenter, time
//!  │  the clocks agree: else end
//!  └─ POST /v1/join: token, certificate request ───►│ certificate, server id
//! ```
//! The operator carries the fingerprint and the token over, so neither side has to trust the network. The token leaves the node
//! only when it knows to whom it talks. A clock that is wrong makes certificates look wrong: for the first question the
//! time in them is not looked at, so that the answer can say what the trouble is.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use model::{id::ServerId, server::MachineIdentity, time::Timestamp};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::{
    client::{CONNECT_TIMEOUT, headnode_name, nonsense, refusal, whole},
    link::LinkError,
};

/// Largest body of a join or renewal, bytes: a certificate request, and a machine with many network cards.
pub const JOIN_MAX_BYTES: usize = 16 << 10;

/// How far the clocks of two machines may be apart, milliseconds. Signatures of tenants are taken for as long.
pub const CLOCK_TOLERANCE_MS: u64 = 300_000;

/// For the answer to one of the two requests.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a headnode tells anybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What its datacenter is called.
    pub datacenter: String,
    /// Its time.
    pub now: Timestamp,
    /// How often the datacenter's records were begun anew from one survivor: a headnode that hears of more than it knows of was left behind.
    #[serde(default)]
    pub era: u64,
}

/// A machine asks to be let in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// From an operator.
    pub token: String,
    /// Certificate request, PEM. Only its key and its proof count.
    pub request_pem: String,
    /// What the machine calls itself.
    pub hostname: String,
    /// What tells it from others.
    pub identity: MachineIdentity,
    /// Its time.
    pub now: Timestamp,
    /// It brings instances of a datacenter that is no more, and this is who it was there. It stays that, since it holds what it was told under that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt: Option<ServerId>,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the token.
        f.debug_struct("JoinRequest").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

/// It is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// Who it is from now on.
    pub server: ServerId,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The authority's certificate, PEM.
    pub authority_pem: String,
    /// What the datacenter is called.
    pub datacenter: String,
    /// Its region.
    pub region: String,
    /// Suffix of instances' names.
    pub dns_suffix: String,
}

/// A node asks for another certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Certificate request, PEM.
    pub request_pem: String,
}

/// Here it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewAnswer {
    /// The certificate, PEM.
    pub certificate_pem: String,
}

/// SHA-256 of a certificate, as people carry it: `SHA256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// Of the first certificate in a PEM text, if there is one.
    pub fn of_pem(pem: &[u8]) -> Option<Self> {
        Some(Self::of(&CertificateDer::from_pem_slice(pem).ok()?))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SHA256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a fingerprint is `SHA256:` and 64 hex digits, as `neso adm node invite` prints it".to_owned();
        let digits: String = text.strip_prefix("SHA256:").ok_or_else(wrong)?.replace(':', "");
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// Why a machine did not get in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The other end is not the invited one's.
    #[error(
        "`{address}` belongs to another authority, {found}: the fingerprint is of another datacenter, or somebody is between; nothing was sent"
    )]
    Stranger {
        /// Who was called.
        address: String,
        /// Fingerprints it showed.
        found: String,
    },
    /// Certificates would not work with this clock.
    #[error("this machine's clock is {off} the headnode's; set it (a time service keeps it right), then join again")]
    Clock {
        /// `2 h 5 min behind`.
        off: String,
    },
    /// Everything else, the headnode's refusals among it.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// How far `here` is from `there`, in words; `None` within [`CLOCK_TOLERANCE_MS`].
pub fn clock_off(here: Timestamp, there: Timestamp) -> Option<String> {
    let apart = here.0.abs_diff(there.0);
    if apart <= CLOCK_TOLERANCE_MS {
        return None;
    }
    let minutes = apart / 60_000;
    let (days, hours, minutes) = (minutes / 1_440, minutes / 60 % 24, minutes % 60);
    let parts = [(days, "d"), (hours, "h"), (minutes, "min")];
    let words: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n} {unit}")).collect();
    let side = if here < there { "behind" } else { "ahead of" };
    Some(format!("{} {side}", words.join(" ")))
}

/// A headnode whose authority was proven.
pub struct Door {
    http: HttpClient<hyper_rustls::HttpsConnector<HttpConnector>, Full<Bytes>>,
    address: String,
}

impl Door {
    /// Calls `address` (`host:port`) and learns that it belongs to the authority of `fingerprint`, and that this machine's clock,
    /// which says `now`, is right.
    pub async fn open(address: &str, fingerprint: Fingerprint, now: Timestamp) -> Result<(Self, Hello), JoinError> {
        let hello = Self::hello(address, fingerprint).await?;
        if let Some(off) = clock_off(now, hello.now) {
            return Err(JoinError::Clock { off });
        }
        let (door, _) = Self::with(address, fingerprint, Times::Checked)?;
        Ok((door, hello))
    }

    /// What the headnode at `address`, which belongs to the authority of `fingerprint`, says to anybody, its time among it. Certificates
    /// count whatever the time in them.
    pub async fn hello(address: &str, fingerprint: Fingerprint) -> Result<Hello, JoinError> {
        let (door, pinned) = Self::with(address, fingerprint, Times::Ignored)?;
        let hello = door.ask("say hello", Method::GET, "/v1/hello", Bytes::new()).await;
        hello.map_err(|error| pinned.explain(address, error))
    }

    /// Asks to be let in.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, JoinError> {
        let doing = "join";
        let body = serde_json::to_vec(request).map_err(|error| nonsense(doing, &error))?;
        Ok(self.ask(doing, Method::POST, "/v1/join", body.into()).await?)
    }

    fn with(address: &str, fingerprint: Fingerprint, times: Times) -> Result<(Self, Arc<Pinned>), LinkError> {
        let setup = |what: &'static str, why: String| LinkError::Setup { what, why };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let pinned = Arc::new(Pinned { fingerprint, times, provider: provider.clone(), shown: Mutex::default() });
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| setup("TLS version", error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(pinned.clone())
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .with_server_name_resolver(FixedServerNameResolver::new(headnode_name()))
            .enable_http2()
            .wrap_connector(tcp);
        let http = HttpClient::builder(TokioExecutor::new()).http2_only(true).build(connector);
        Ok((Self { http, address: address.to_owned() }, pinned))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        doing: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, LinkError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.address))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| LinkError::Setup { what: "headnode address", why: error.to_string() })?;
        let slow = |_| LinkError::Slow { doing: doing.to_owned(), seconds: PATIENCE.as_secs() };
        let answered = tokio::time::timeout(PATIENCE, self.http.request(request)).await.map_err(slow)?;
        let response =
            answered.map_err(|error| LinkError::Unreachable { doing: doing.to_owned(), source: Box::new(error) })?;
        if response.status() != StatusCode::OK {
            return Err(refusal(doing, response).await);
        }
        let bytes = whole(doing, response, JOIN_MAX_BYTES * 4).await?;
        serde_json::from_slice(&bytes).map_err(|error| nonsense(doing, &error))
    }
}

/// Whether the time in certificates counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    Checked,
    Ignored,
}

/// Takes a headnode's certificate when one that comes with it has the fingerprint and signed it.
#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
    times: Times,
    provider: Arc<CryptoProvider>,
    /// Fingerprints of authorities that were shown and are others.
    shown: Mutex<Option<String>>,
}

impl Pinned {
    fn explain(&self, address: &str, error: LinkError) -> JoinError {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner).take();
        match shown {
            Some(found) => JoinError::Stranger { address: address.to_owned(), found },
            None => error.into(),
        }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some(authority) = intermediates.iter().find(|shown| Fingerprint::of(shown) == self.fingerprint) else {
            let found: Vec<String> = intermediates.iter().map(|shown| Fingerprint::of(shown).to_string()).collect();
            let found = if found.is_empty() { "which it does not show".to_owned() } else { found.join(", ") };
            *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
            return Err(TlsError::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| TlsError::General(error.to_string()))?;
        let verify = |now| verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now);
        match (verify(now), self.times) {
            (
                Err(TlsError::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })),
                Times::Ignored,
            ) => verify(not_before),
            (Err(TlsError::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })), Times::Ignored) => {
                verify(not_after)
            }
            (verdict, _) => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_they_are_written() {
        let fingerprint = Fingerprint::of(&CertificateDer::from(b"certificate".to_vec()));
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        let upper = fingerprint.to_string()["SHA256:".len()..].to_uppercase();
        assert_eq!(format!("SHA256:{}:{}", &upper[..32], &upper[32..]).parse(), Ok(fingerprint));
        for wrong in ["", "SHA256:", "MD5:00", "SHA256:zz", &fingerprint.to_string()[..70]] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_clock_is_told_by_how_much() {
        let noon = Timestamp(1_800_000_000_000);
        assert_eq!(clock_off(noon, noon.plus_millis(299_000)), None);
        assert_eq!(clock_off(noon, noon.plus_millis(86_400_000 + 7_500_000)).as_deref(), Some("1 d 2 h 5 min behind"));
        assert_eq!(clock_off(noon.plus_millis(360_000), noon).as_deref(), Some("6 min ahead of"));
    }
}
