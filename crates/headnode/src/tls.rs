//! TLS for the listeners: one server certificate, client certificates where a listener asks for them, and renewal
//! without a restart: a listener takes the configuration of the moment for each connection.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};

use crate::pki::{Pki, PkiError};

/// Whether a listener asks its clients for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Anybody may connect; requests prove themselves.
    NotAsked,
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
pub struct TlsSource(Arc<RwLock<Arc<ServerConfig>>>);

impl TlsSource {
    /// Reads the certificate files.
    pub fn open(pki: &Pki, clients: ClientCertificates) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(Arc::new(build(pki, clients)?)))))
    }

    /// Reads the files again; connections that are open keep what they have.
    pub fn reload(&self, pki: &Pki, clients: ClientCertificates) -> Result<(), TlsError> {
        let fresh = Arc::new(build(pki, clients)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// What a new connection uses.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn build(pki: &Pki, clients: ClientCertificates) -> Result<ServerConfig, TlsError> {
    let library = |error: &dyn std::error::Error| TlsError::Rustls(error.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (chain, key) = pki.server.load()?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| library(&error))?;
    let builder = match clients {
        ClientCertificates::NotAsked => builder.with_no_client_auth(),
        ClientCertificates::Required => {
            let mut roots = RootCertStore::empty();
            roots.add(pki.authority()?).map_err(|error| library(&error))?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| library(&error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| library(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
