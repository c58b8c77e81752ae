//! A listener: accepts, shakes hands, speaks HTTP/1.1 or HTTP/2, and stops when told.
//!
//! Strangers connect here, so everything has an end: connections are counted (a full house leaves newcomers in the
//! kernel's queue), handshakes and headers have deadlines, and idle connections are closed by the same header deadline.
//! When the listener's certificate is renewed, open connections finish what is under way and no more.
//! At shutdown nothing new is accepted, what is under way gets [`Limits::drain`] to finish, and the rest is cut.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo};
use base::shutdown::Shutdown;
use hyper::{Request, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls_pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::ServiceExt as _;

use crate::{pki::Peer, tls::TlsSource};

/// How much a listener takes on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Of them, those that showed no certificate where one may be shown, or one that nobody knows ([`Knows`]); they also end after [`STRANGER_LIFE`].
    pub strangers: Option<usize>,
    /// From TCP to TLS.
    pub handshake: Duration,
    /// For the headers of a request; also how long a connection may be idle.
    pub headers: Duration,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// What is under way at shutdown gets this long.
    pub drain: Duration,
}

impl Limits {
    /// CloudAPI: the whole world, mostly one short request per connection.
    pub const TENANTS: Self = Self {
        connections: 4_096,
        strangers: None,
        handshake: Duration::from_secs(10),
        headers: Duration::from_secs(60),
        streams: 100,
        drain: Duration::from_secs(10),
    };
    /// Node link: one connection per node, long polls; and a few machines that join.
    pub const NODES: Self = Self {
        connections: 4_096,
        strangers: Some(64),
        handshake: Duration::from_secs(10),
        headers: Duration::from_secs(120),
        streams: 200,
        drain: Duration::from_secs(2),
    };
    /// Container monitor: each Prometheus holds a connection for every instance it watches.
    pub const WATCHERS: Self = Self {
        connections: 32_768,
        strangers: Some(256),
        handshake: Duration::from_secs(10),
        headers: Duration::from_secs(120),
        streams: 100,
        drain: Duration::from_secs(2),
    };
    /// Ops API: a few people and their scripts.
    pub const OPERATORS: Self = Self {
        connections: 128,
        strangers: None,
        handshake: Duration::from_secs(10),
        headers: Duration::from_secs(60),
        streams: 100,
        drain: Duration::from_secs(10),
    };
}

/// A stranger's connection is good for a few requests and ends then.
const STRANGER_LIFE: Duration = Duration::from_secs(60);

/// Wait after a failed accept, e.g. when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is under way when the listener's certificate is renewed gets this long: an image may be on its way.
const RENEWAL_DRAIN: Duration = Duration::from_secs(1_800);

/// The certificate a client showed, for who judges it request by request.
#[derive(Clone)]
pub struct Shown(pub Arc<[u8]>);

/// Whether a certificate is anybody's, where every one is taken: a fresh one costs nothing, and must not be worth more than none.
pub type Knows = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Serves `router` until `shutdown`. Requests carry [`ConnectInfo`] and, when the client showed a certificate, [`Shown`]; where only the
/// datacenter's own are taken, also [`Peer`]. Without `knows` nobody who showed one is a stranger.
pub async fn serve(
    name: &'static str,
    listener: TcpListener,
    tls: TlsSource,
    router: Router,
    limits: Limits,
    knows: Option<Knows>,
    shutdown: Shutdown,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let strangers = limits.strangers.map(|most| Arc::new(Semaphore::new(most)));
    loop {
        let slot = tokio::select! {
            () = shutdown.wait() => break,
            slot = slots.clone().acquire_owned() => slot.expect("nobody closes this semaphore"),
        };
        let accepted = tokio::select! {
            () = shutdown.wait() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(listener = name, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = Connection {
            remote,
            tls: tls.clone(),
            router: router.clone(),
            limits,
            strangers: strangers.clone(),
            knows: knows.clone(),
            shutdown: shutdown.clone(),
        };
        base::task::spawn("connection", async move {
            if let Err(reason) = connection.run(stream).await {
                tracing::debug!(listener = name, %remote, %reason, "connection ended early");
            }
            drop(slot);
        });
    }
    drop(listener);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    if timeout(limits.drain, slots.acquire_many(all)).await.is_err() {
        tracing::info!(listener = name, "cutting connections that did not finish in time");
    }
}

struct Connection {
    remote: SocketAddr,
    tls: TlsSource,
    router: Router,
    limits: Limits,
    strangers: Option<Arc<Semaphore>>,
    knows: Option<Knows>,
    shutdown: Shutdown,
}

impl Connection {
    async fn run(self, stream: TcpStream) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        stream.set_nodelay(true)?;
        let mut config = self.tls.subscribe();
        let acceptor = TlsAcceptor::from(config.borrow_and_update().clone());
        let stream = timeout(self.limits.handshake, acceptor.accept(stream)).await??;
        let shown = shown(&stream);
        let own = shown.as_ref().filter(|_| self.tls.shows_own());
        let peer = own.and_then(|shown| Peer::of(&CertificateDer::from(&*shown.0)));
        // Members' slots must not go to those who only knock.
        let stranger = match &self.strangers {
            Some(strangers) if !self.is_known(shown.as_ref()) => Some(strangers.clone().try_acquire_owned()?),
            _ => None,
        };
        let life = if stranger.is_some() { STRANGER_LIFE } else { Duration::MAX };
        let remote = self.remote;
        let service = self.router.map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(remote));
            if let Some(peer) = &peer {
                request.extensions_mut().insert(peer.clone());
            }
            if let Some(shown) = &shown {
                request.extensions_mut().insert(shown.clone());
            }
            request.map(axum::body::Body::new)
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.limits.headers);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams)
            .keep_alive_interval(self.limits.headers)
            .keep_alive_timeout(self.limits.handshake);
        let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
        tokio::pin!(served);
        tokio::select! {
            done = served.as_mut() => return done,
            () = self.shutdown.wait() => served.as_mut().graceful_shutdown(),
            () = tokio::time::sleep(life) => served.as_mut().graceful_shutdown(),
            Ok(()) = config.changed() => {
                // Clients that keep a connection for months would never see the new certificate.
                served.as_mut().graceful_shutdown();
                tokio::select! {
                    done = served.as_mut() => return done,
                    () = self.shutdown.wait() => {}
                    () = tokio::time::sleep(RENEWAL_DRAIN) => return Ok(()),
                }
            }
        }
        timeout(self.limits.drain, served).await?
    }

    fn is_known(&self, shown: Option<&Shown>) -> bool {
        shown.is_some_and(|shown| self.knows.as_ref().is_none_or(|knows| knows(&shown.0)))
    }
}

fn shown(stream: &TlsStream<TcpStream>) -> Option<Shown> {
    let (_, session) = stream.get_ref();
    Some(Shown(Arc::from(session.peer_certificates()?.first()?.as_ref())))
}
