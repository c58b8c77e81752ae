//! A listener that takes every certificate: those that nobody knows are worth no more than none.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use base::{
    clock::{Clock as _, SystemClock},
    shutdown::Shutdown,
};
use headnode::{
    Settings,
    listen::{self, Limits},
    pki,
    tls::{ClientCertificates, TlsSource},
};
use model::time::Timestamp;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Strangers at once.
const STRANGERS: usize = 3;
/// More than that.
const COME: usize = 8;

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A certificate that anybody can make.
fn fresh() -> Own {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "ana");
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    (vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

/// A connection that was answered once and is still there.
async fn stays(address: SocketAddr, authority: &CertificateDer<'static>, own: &Own) -> Option<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(own.0.clone(), own.1.clone_key())
        .unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.ok()?;
    let mut begin = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_exact(&mut begin)).await;
    read.expect("it is answered or closed").ok()?;
    assert_eq!(&begin, b"HTTP/1.1 200");
    Some(stream)
}

#[tokio::test]
async fn a_certificate_that_nobody_knows_does_not_make_a_place() {
    let root = tempfile::tempdir().unwrap();
    let settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
    let (pki, _) = pki::ensure(&settings, Timestamp(SystemClock.now_ms())).unwrap();
    let authority = pki.authority().unwrap();
    let tls = TlsSource::open(&pki, ClientCertificates::Any).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", get(async || "here"));
    let limits = Limits { strangers: Some(STRANGERS), ..Limits::WATCHERS };
    let known = fresh();
    let knows: listen::Knows = Arc::new({
        let known = known.0[0].to_vec();
        move |shown| shown == known
    });
    let (trigger, shutdown) = Shutdown::new();
    let serving = listen::serve("test", listener, tls, router, limits, Some(knows), shutdown);
    let task = base::task::spawn("strangers under test", serving);

    let mut held = Vec::new();
    for _ in 0..COME {
        held.extend(stays(address, &authority, &fresh()).await);
    }
    assert_eq!(held.len(), STRANGERS, "of {COME} with fresh certificates");
    for number in 0..COME {
        held.push(stays(address, &authority, &known).await.unwrap_or_else(|| panic!("known, {number}")));
    }
    drop(held);
    trigger.fire();
    task.await.unwrap();
}
