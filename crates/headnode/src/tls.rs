//! TLS for the listeners: one server certificate, client certificates where a listener asks for them, and renewal
//! without a restart: a listener takes the configuration of the moment for each connection, and when it is replaced, lets
//! the connections made with the old one finish what is under way and no more.

use std::{sync::Arc, time::Duration};

use base::clock::Clock;
use model::time::Timestamp;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use crate::{
    pki::{self, Made, Pki, PkiError},
    settings::Settings,
};

/// How long after its end a certificate is good for getting another, seconds: two years. A machine that was in storage comes back by itself; one that
/// must not is forgotten (`neso adm server forget`).
const ENDED_MAX_SECONDS: u64 = 730 * 86_400;

/// Whether a listener asks its clients for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Anybody may connect; requests prove themselves.
    NotAsked,
    /// Anybody may connect; a certificate that is shown must be one the datacenter's authority signed, and may have ended: whoever shows one of
    /// these is let in to get another and for nothing else ([`Peer::ends_at`](crate::pki::Peer::ends_at)). The authority's own is shown too, for those
    /// who know its fingerprint and nothing else.
    Optional,
    /// Nobody connects without one that the datacenter's authority signed.
    Required,
    /// Anybody may connect, with any certificate whose key they have: each request decides what it is worth.
    Any,
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate file.
    #[error("failed to load certificates for TLS")]
    Pki(#[from] PkiError),
    /// The library refused.
    #[error("failed to set up TLS: {0}")]
    Rustls(String),
}

/// The configuration of a listener, replaceable while it runs.
#[derive(Clone)]
pub struct TlsSource {
    config: watch::Sender<Arc<ServerConfig>>,
    clients: ClientCertificates,
}

impl TlsSource {
    /// Reads the certificate files.
    pub fn open(pki: &Pki, clients: ClientCertificates) -> Result<Self, TlsError> {
        Ok(Self { config: watch::Sender::new(Arc::new(build(pki, clients)?)), clients })
    }

    /// Reads the files again. Connections that are open are told to come again.
    pub fn reload(&self, pki: &Pki) -> Result<(), TlsError> {
        self.config.send_replace(Arc::new(build(pki, self.clients)?));
        Ok(())
    }

    /// Whether a certificate that a client showed is one of the datacenter's own for certain.
    pub fn shows_own(&self) -> bool {
        self.clients != ClientCertificates::Any
    }

    /// What a new connection uses, and news of its replacement.
    pub fn subscribe(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.subscribe()
    }
}

/// A headnode's certificates and the listeners that show them.
pub struct Certificates {
    /// Where they lie and what they say.
    pub settings: Settings,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Listeners that ask for no certificate.
    pub tenants: TlsSource,
    /// The node link.
    pub nodes: TlsSource,
    /// Listeners that require one.
    pub members: TlsSource,
    /// The container monitor.
    pub watchers: TlsSource,
}

impl Certificates {
    /// Renews what is due, and hands it to the listeners. Returns whose were made.
    pub fn keep(&self) -> Result<Vec<String>, TlsError> {
        self.hand_over(pki::ensure(&self.settings, Timestamp(self.clock.now_ms()))?)
    }

    /// Renews all but the authority's, and hands them to the listeners. Returns whose were made.
    pub fn renew(&self) -> Result<Vec<String>, TlsError> {
        self.hand_over(pki::renew(&self.settings, Timestamp(self.clock.now_ms()))?)
    }

    fn hand_over(&self, (pki, made): (Pki, Made)) -> Result<Vec<String>, TlsError> {
        if !made.0.is_empty() {
            for source in [&self.tenants, &self.nodes, &self.members, &self.watchers] {
                source.reload(&pki)?;
            }
        }
        Ok(made.0)
    }
}

fn build(pki: &Pki, clients: ClientCertificates) -> Result<ServerConfig, TlsError> {
    let library = |error: &dyn std::error::Error| TlsError::Rustls(error.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (mut chain, key) = pki.server.load()?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| library(&error))?;
    let builder = match clients {
        ClientCertificates::NotAsked => builder.with_no_client_auth(),
        ClientCertificates::Optional | ClientCertificates::Required | ClientCertificates::Any => {
            let authority = pki.authority()?;
            let mut roots = RootCertStore::empty();
            roots.add(authority.clone()).map_err(|error| library(&error))?;
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let takes = match clients {
                ClientCertificates::Optional => {
                    chain.push(authority);
                    Some(Takes::Ended)
                }
                ClientCertificates::Any => Some(Takes::All),
                ClientCertificates::NotAsked | ClientCertificates::Required => None,
            };
            if takes.is_some() {
                verifier = verifier.allow_unauthenticated();
            }
            let strict = verifier.build().map_err(|error| library(&error))?;
            builder.with_client_cert_verifier(match takes {
                Some(takes) => Arc::new(Lenient { strict, takes }),
                None => strict,
            })
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| library(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// What is taken that is refused otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// A certificate that has ended, verified as of the moment it did: everything else about it must be right.
    Ended,
    /// Every certificate. Who that is, and for how long, is decided by whoever answers.
    All,
}

/// Verifies certificates, or that there is none, as `strict` does, but for what it takes. That the client has the private key is proved always.
#[derive(Debug)]
struct Lenient {
    strict: Arc<dyn ClientCertVerifier>,
    takes: Takes,
}

impl Lenient {
    fn verify_as_it_ended(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        use rustls::CertificateError::{Expired, ExpiredContext};
        let strict = self.strict.verify_client_cert(end_entity, intermediates, now);
        let Err(rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. })) = &strict else { return strict };
        let Some(ends_at) = pki::Peer::of(end_entity).map(|peer| peer.ends_at) else { return strict };
        let then = Duration::from_secs(u64::try_from(ends_at.0 / 1_000).unwrap_or(0));
        match now.as_secs().saturating_sub(then.as_secs()) <= ENDED_MAX_SECONDS {
            true => self.strict.verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(then)),
            false => strict,
        }
    }
}

impl ClientCertVerifier for Lenient {
    fn offer_client_auth(&self) -> bool {
        self.strict.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.strict.client_auth_mandatory()
    }

    /// None where all are taken, so that clients show what they have.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        match self.takes {
            Takes::Ended => self.strict.root_hint_subjects(),
            Takes::All => &[],
        }
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match self.takes {
            Takes::Ended => self.verify_as_it_ended(end_entity, intermediates, now),
            Takes::All => Ok(ClientCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.strict.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.strict.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.strict.supported_verify_schemes()
    }
}
