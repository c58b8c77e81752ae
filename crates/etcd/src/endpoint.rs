//! Where members are, and the certificates they want to see.

use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc};

use http::Uri;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// One member's address for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    tls: bool,
}

/// The port members listen on for clients unless told otherwise.
const CLIENT_PORT: u16 = 2379;

impl Endpoint {
    /// Reads `https://HOST[:PORT]`. Without TLS (`http://`) only this machine itself may be named: what is stored is every tenant's.
    ///
    /// # Errors
    /// With what is wrong about it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` is no endpoint: {why}");
        let uri: Uri = text.parse().map_err(|_| wrong("it is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("it must begin with https://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if uri.path() != "/" || uri.query().is_some() || authority.as_str().contains('@') {
            return Err(wrong("it must end after the host and the port"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let on_this_machine = host.parse::<IpAddr>().map_or(host == "localhost", |address| address.is_loopback());
        if !tls && !on_this_machine {
            return Err(wrong("without TLS only a loopback address may be named"));
        }
        Ok(Self { host, port: authority.port_u16().unwrap_or(CLIENT_PORT), tls })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is reached with TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// What paths are appended to.
    pub(crate) fn base(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{self}")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Files that prove the members to us and us to them, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The authority that signed the members' certificates.
    pub authority: PathBuf,
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("read `{path}`")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// They are read, but do not fit together.
    #[error("use certificate `{path}`")]
    Rustls {
        /// Our certificate.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
}

impl Tls {
    /// Read the files.
    ///
    /// # Errors
    /// When one cannot be read, or they do not fit together.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let pem = |path: &PathBuf| {
            let path = path.clone();
            move |source| TlsError::Pem { path, source }
        };
        let rustls = |source| TlsError::Rustls { path: self.certificate.clone(), source };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.authority).map_err(pem(&self.authority))?).map_err(rustls)?;
        let chain = CertificateDer::pem_file_iter(&self.certificate).map_err(pem(&self.certificate))?;
        let chain = chain.collect::<Result<Vec<_>, _>>().map_err(pem(&self.certificate))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(pem(&self.key))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(rustls)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(rustls)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_mistakes_named() {
        let read = |text| Endpoint::parse(text).map(|endpoint| endpoint.base());
        assert_eq!(read("https://10.0.0.1:2379").unwrap(), "https://10.0.0.1:2379");
        assert_eq!(read("https://one.example").unwrap(), "https://one.example:2379");
        assert_eq!(read("https://[fd00::1]:4").unwrap(), "https://[fd00::1]:4");
        assert_eq!(read("http://127.0.0.1:1").unwrap(), "http://127.0.0.1:1");
        for (text, why) in [
            ("10.0.0.1:2379", "https://"),
            ("ftp://10.0.0.1", "https://"),
            ("http://10.0.0.1:2379", "loopback"),
            ("https://10.0.0.1/path", "after the host"),
            ("https://me@10.0.0.1", "after the host"),
            ("", "not a URL"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
