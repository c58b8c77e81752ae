//! Nodes' client against real listeners: who is let in, who is believed, what happens when headnodes go and certificates change.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Extension, Json, Router, body::Body, extract::State, http::StatusCode, routing::get, routing::post};
use base::shutdown::{Shutdown, Trigger};
use headnode::{
    Settings,
    listen::{self, Limits},
    pki::{self, Peer, Pki},
    tls::{ClientCertificates, TlsSource},
};
use model::{
    delta::{Held, ReportNews},
    id::ServerId,
    target::Report,
    time::Timestamp,
};
use nodeapi::{
    ReportAnswer,
    client::{Client, Settings as LinkSettings},
    link::{HeadnodeLink as _, LinkError},
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle};

/// A moment in the life of the certificates these tests make.
fn now() -> Timestamp {
    use base::clock::{Clock as _, SystemClock};
    Timestamp(SystemClock.now_ms())
}

/// A datacenter's certificates.
struct Authority {
    settings: Settings,
    pki: Pki,
    _root: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        let (pki, _) = pki::ensure(&settings, now()).unwrap();
        Self { settings, pki, _root: root }
    }

    /// What a node is told to reach `addresses`.
    fn node(&self, addresses: &[SocketAddr]) -> LinkSettings {
        let read = |path| std::fs::read_to_string(path).unwrap();
        LinkSettings {
            headnodes: addresses.iter().map(SocketAddr::to_string).collect(),
            is_here: false,
            authority_pem: read(&self.pki.ca.certificate),
            certificate_pem: read(&self.pki.node.certificate),
            key_pem: read(&self.pki.node.key),
            machine: model::server::MachineIdentity::default(),
        }
    }
}

/// A headnode that answers and remembers who asked.
struct Headnode {
    address: SocketAddr,
    tls: TlsSource,
    said: Arc<Said>,
    trigger: Trigger,
    task: JoinHandle<()>,
}

struct Said {
    /// Number and serial of the certificate of each report.
    serials: Mutex<Vec<String>>,
    /// A permit lets one wait for a target end.
    news: Semaphore,
    waiting: Semaphore,
    refuses: bool,
}

impl Headnode {
    async fn start(authority: &Authority) -> Self {
        Self::start_as(authority, false).await
    }

    async fn start_as(authority: &Authority, refuses: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = TlsSource::open(&authority.pki, ClientCertificates::Required).unwrap();
        let said =
            Arc::new(Said { serials: Mutex::default(), news: Semaphore::new(0), waiting: Semaphore::new(0), refuses });
        let router = Router::new()
            .route("/v1/target", get(wait_for_news))
            .route("/v1/report", post(note_report))
            .route("/v1/images/{sha256}", get(async || Body::from(vec![7; 100_000])))
            .with_state(said.clone());
        let (trigger, shutdown) = Shutdown::new();
        let serving = listen::serve("test", listener, tls.clone(), router, Limits::NODES, None, shutdown);
        Self { address, tls, said, trigger, task: base::task::spawn("headnode under test", serving) }
    }

    fn serials(&self) -> Vec<String> {
        self.said.serials.lock().unwrap().clone()
    }

    async fn end(self) {
        self.trigger.fire();
        self.task.await.unwrap();
    }
}

async fn wait_for_news(State(said): State<Arc<Said>>) -> StatusCode {
    said.waiting.add_permits(1);
    said.news.acquire().await.unwrap().forget();
    StatusCode::NO_CONTENT
}

async fn note_report(
    State(said): State<Arc<Said>>,
    Extension(peer): Extension<Peer>,
    Json(_): Json<Report>,
) -> Result<Json<ReportAnswer>, StatusCode> {
    said.serials.lock().unwrap().push(peer.serial);
    if said.refuses {
        Err(StatusCode::SERVICE_UNAVAILABLE)
    } else {
        Ok(Json(ReportAnswer { generation: 1, held: None, received_at: None, answered_at: None }))
    }
}

fn report() -> ReportNews {
    ReportNews::Whole(Box::new(Report::bare(ServerId::random(), "one")))
}

/// What a node says that holds no target.
const NOTHING: Held = Held { generation: 0, digest: None };

/// The serial number of the certificate a listener shows to a newcomer.
async fn shown_by(authority: &Authority, address: SocketAddr) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.pki.authority().unwrap()).unwrap();
    let (chain, key) = authority.pki.node.load().unwrap();
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let (_, certificate) = x509_parser::parse_x509_certificate(&shown).unwrap();
    certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn renewed_certificates_are_used_without_a_restart() {
    let authority = Authority::new();
    let headnode = Headnode::start(&authority).await;
    let client = Arc::new(Client::new(&authority.node(&[headnode.address])).unwrap());
    let (old_server, old_node) = (authority.pki.server.serial().unwrap(), authority.pki.node.serial().unwrap());
    assert_eq!(shown_by(&authority, headnode.address).await, old_server);
    client.report(&report()).await.unwrap();
    // A long poll is under way on the connection while everything is renewed.
    let polling = base::task::spawn("poll", {
        let client = client.clone();
        async move { client.target(NOTHING).await }
    });
    headnode.said.waiting.acquire().await.unwrap().forget();

    let (pki, made) = pki::renew(&authority.settings, now()).unwrap();
    assert_eq!(made.0.len(), 3);
    let (new_server, new_node) = (pki.server.serial().unwrap(), pki.node.serial().unwrap());
    assert!(new_server != old_server && new_node != old_node);
    headnode.tls.reload(&pki).unwrap();
    assert_eq!(shown_by(&authority, headnode.address).await, new_server);
    // The node has not heard yet: it comes again with what it has.
    client.report(&report()).await.unwrap();
    client.renew(&authority.node(&[headnode.address])).unwrap();
    client.report(&report()).await.unwrap();
    assert_eq!(headnode.serials(), [old_node.clone(), old_node, new_node]);

    headnode.said.news.add_permits(1);
    assert!(matches!(polling.await.unwrap(), Ok(None)), "what was under way was cut");
    headnode.end().await;
}

#[tokio::test]
async fn a_key_that_does_not_fit_changes_nothing() {
    let authority = Authority::new();
    let headnode = Headnode::start(&authority).await;
    let good = authority.node(&[headnode.address]);
    let client = Client::new(&good).unwrap();
    pki::renew(&authority.settings, now()).unwrap();
    let torn = LinkSettings { key_pem: authority.node(&[]).key_pem, ..good };
    assert!(matches!(client.renew(&torn), Err(LinkError::Setup { .. })));
    client.report(&report()).await.unwrap();
    headnode.end().await;
}

#[tokio::test]
async fn another_headnode_takes_over() {
    let authority = Authority::new();
    let (one, other) = (Headnode::start(&authority).await, Headnode::start(&authority).await);
    let refusing = Headnode::start_as(&authority, true).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = nobody.local_addr().unwrap();
    drop(nobody);
    let addresses = [dead, refusing.address, one.address, other.address];
    let client = Client::new(&authority.node(&addresses)).unwrap();
    client.report(&report()).await.unwrap();
    client.report(&report()).await.unwrap();
    assert_eq!(
        (refusing.serials().len(), one.serials().len(), other.serials().len()),
        (1, 2, 0),
        "who answered is asked"
    );
    one.end().await;
    client.report(&report()).await.unwrap();
    assert_eq!(other.serials().len(), 1);
    other.end().await;
    refusing.end().await;
    assert!(matches!(client.report(&report()).await, Err(LinkError::Unreachable { .. })));
}

#[tokio::test]
async fn strangers_are_refused_on_both_sides() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let headnode = Headnode::start(&ours).await;
    // A headnode of another datacenter is not believed.
    let misled = Client::new(&theirs.node(&[headnode.address])).unwrap();
    assert!(matches!(misled.report(&report()).await, Err(LinkError::Unreachable { .. })));
    // A node of another datacenter is not let in, even if it trusts us.
    let intruder = LinkSettings { authority_pem: ours.node(&[]).authority_pem, ..theirs.node(&[headnode.address]) };
    let intruder = Client::new(&intruder).unwrap();
    assert!(intruder.report(&report()).await.is_err());
    assert!(headnode.serials().is_empty());
    for bad in [LinkSettings { headnodes: Vec::new(), ..ours.node(&[]) }, {
        let mut many = ours.node(&[]);
        many.headnodes = vec!["127.0.0.1:1".to_owned(); nodeapi::client::ADDRESSES_MAX + 1];
        many
    }] {
        assert!(matches!(Client::new(&bad), Err(LinkError::Setup { .. })));
    }
    headnode.end().await;
}

#[tokio::test]
async fn answers_are_bounded_and_files_come_in_pieces() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = TlsSource::open(&authority.pki, ClientCertificates::Required).unwrap();
    let endless = async || {
        let piece = bytes::Bytes::from(vec![b' '; 1 << 20]);
        Body::from_stream(futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone())))
    };
    let refusal = async || (StatusCode::NOT_FOUND, Json(nodeapi::ErrorBody { message: "no such file".to_owned() }));
    let router = Router::new()
        .route("/v1/target", get(endless))
        .route("/v1/report", post(async || "this is no answer"))
        .route("/v1/images/absent", get(refusal))
        .route("/v1/images/there", get(async || Body::from(vec![7; 100_000])));
    let (trigger, shutdown) = Shutdown::new();
    let task = base::task::spawn("test", listen::serve("test", listener, tls, router, Limits::NODES, None, shutdown));
    let client = Client::new(&authority.node(&[address])).unwrap();

    let too_long = tokio::time::timeout(Duration::from_secs(60), client.target(NOTHING)).await.unwrap();
    assert!(matches!(&too_long, Err(LinkError::Nonsense { why, .. }) if why.contains("longer")), "{too_long:?}");
    assert!(matches!(client.report(&report()).await, Err(LinkError::Nonsense { .. })));
    match client.image("absent").await {
        Err(LinkError::Refused { status: 404, message, .. }) => assert_eq!(message, "no such file"),
        other => panic!("{:?}", other.err()),
    }
    let (mut file, mut size) = (client.image("there").await.unwrap(), 0);
    while let Some(piece) = file.next().await.unwrap() {
        assert!(piece.iter().all(|byte| *byte == 7));
        size += piece.len();
    }
    assert_eq!(size, 100_000);
    drop((file, client));
    trigger.fire();
    task.await.unwrap();
}
