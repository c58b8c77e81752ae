//! TLS for the listeners: one server certificate, client certificates where a listener asks for them, and renewal
//! without a restart: a listener takes the configuration of the moment for each connection, and when it is replaced, lets
//! the connections made with the old one finish what is under way and no more.

use std::sync::Arc;

use base::clock::Clock;
use model::time::Timestamp;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use tokio::sync::watch;

use crate::{
    pki::{self, Made, Pki, PkiError},
    settings::Settings,
};

/// Whether a listener asks its clients for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Anybody may connect; requests prove themselves.
    NotAsked,
    /// Anybody may connect; a certificate that is shown must be one the datacenter's authority signed. The authority's own is
    /// shown too, for those who know its fingerprint and nothing else.
    Optional,
    /// Nobody connects without one that the datacenter's authority signed.
    Required,
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
pub struct TlsSource(watch::Sender<Arc<ServerConfig>>);

impl TlsSource {
    /// Reads the certificate files.
    pub fn open(pki: &Pki, clients: ClientCertificates) -> Result<Self, TlsError> {
        Ok(Self(watch::Sender::new(Arc::new(build(pki, clients)?))))
    }

    /// Reads the files again. Connections that are open are told to come again.
    pub fn reload(&self, pki: &Pki, clients: ClientCertificates) -> Result<(), TlsError> {
        self.0.send_replace(Arc::new(build(pki, clients)?));
        Ok(())
    }

    /// What a new connection uses, and news of its replacement.
    pub fn subscribe(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.0.subscribe()
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
            self.tenants.reload(&pki, ClientCertificates::NotAsked)?;
            self.nodes.reload(&pki, ClientCertificates::Optional)?;
            self.members.reload(&pki, ClientCertificates::Required)?;
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
        ClientCertificates::Optional | ClientCertificates::Required => {
            let authority = pki.authority()?;
            let mut roots = RootCertStore::empty();
            roots.add(authority.clone()).map_err(|error| library(&error))?;
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            if clients == ClientCertificates::Optional {
                verifier = verifier.allow_unauthenticated();
                chain.push(authority);
            }
            builder.with_client_cert_verifier(verifier.build().map_err(|error| library(&error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| library(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
