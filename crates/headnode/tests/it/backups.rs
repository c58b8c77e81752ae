//! Backups that headnodes fetch from each other, over their real doors.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, body::Body, routing::get};
use base::{
    clock::{Clock as _, SystemClock},
    shutdown::{Shutdown, Trigger},
};
use control::{
    Control, ControlConfig,
    tables::{HEADNODES, SERVERS},
};
use flow::loops::Loop as _;
use futures_util::{StreamExt as _, stream};
use headnode::{
    Settings,
    backup::{KeepOthers, Offers},
    inquiries::Inquiries,
    listen::{self, Limits},
    nodelink::{self, NodeCertificates},
    pki::{self, Pki},
    tls::{ClientCertificates, TlsSource},
};
use model::{
    headnode::{Headnode, Stage},
    id::ServerId,
    part::Digest,
    server::Server,
    time::Timestamp,
};
use nodeapi::kit::OfferedBackup;
use store::{Store, Transaction, memory::Memory};

/// How long anything may take on a machine that has much else to do.
const AMPLE: Duration = Duration::from_secs(120);
/// Ids before and behind any other.
const FIRST: &str = "00000000-0000-4000-8000-000000000001";
const LAST: &str = "ffffffff-ffff-4fff-bfff-ffffffffffff";
const NAME: &str = "dc-1-20261128T065900Z-r7.neso-backup";

/// A headnode's files, below the authority of another one.
struct Site {
    settings: Settings,
    pki: Pki,
    _root: tempfile::TempDir,
}

impl Site {
    fn new(beside: Option<&Self>) -> Self {
        Self::named(beside, None)
    }

    fn named(beside: Option<&Self>, id: Option<&str>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        if let Some(other) = beside {
            fs::create_dir_all(settings.pki_dir()).unwrap();
            for name in ["ca.pem", "ca.key"] {
                fs::copy(other.settings.pki_dir().join(name), settings.pki_dir().join(name)).unwrap();
            }
        }
        if let Some(id) = id {
            fs::write(settings.pki_dir().join("server-id"), format!("{id}\n")).unwrap();
        }
        let (pki, _) = pki::ensure(&settings, Timestamp(SystemClock.now_ms())).unwrap();
        Self { settings, pki, _root: root }
    }

    /// What this one keeps of `other`'s.
    fn kept(&self, other: ServerId) -> PathBuf {
        self.settings.backup_dir().join("others").join(other.to_string())
    }

    async fn control(&self, store: &Store, me: Option<ServerId>, shutdown: Shutdown) -> Control {
        let images = self.settings.headnode_dir().join("images");
        let config = ControlConfig { headnode: me, ..ControlConfig::new("dc-1", images) };
        Control::start(store.clone(), Arc::new(SystemClock), config, shutdown)
    }

    /// Listens, and answers with `router`.
    async fn listen(&self, router: Router, shutdown: Shutdown) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tls = TlsSource::open(&self.pki, ClientCertificates::Optional).unwrap();
        base::task::spawn("link", listen::serve("link", listener, tls, router, Limits::NODES, None, shutdown));
        address
    }
}

fn record(id: ServerId, hostname: &str, node_link: String) -> Transaction {
    let headnode = Headnode {
        id,
        hostname: hostname.to_owned(),
        cloudapi: String::new(),
        node_link,
        ops: String::new(),
        member: None,
        stage: Stage::Active,
        joined_at: Timestamp(1),
        shared_settings: Digest::of_bytes(&[]),
        release: String::new(),
    };
    Transaction::new().create(&SERVERS, Server::new(id, hostname, Timestamp(1))).create(&HEADNODES, headnode)
}

/// One that takes backups and one that fetches them.
struct Pair {
    maker: Site,
    offers: Offers,
    fetcher: Site,
    keep: KeepOthers,
    store: Store,
    shutdown: Shutdown,
    _trigger: Trigger,
}

impl Pair {
    async fn new() -> Self {
        let (trigger, shutdown) = Shutdown::new();
        let maker = Site::new(None);
        let fetcher = Site::new(Some(&maker));
        let store = Store::open(Arc::new(Memory::new()), control::schema()).await.unwrap();
        let offers = Offers::new(&maker.settings);
        let control = maker.control(&store, None, shutdown.clone()).await;
        let router = nodelink::router(
            control,
            maker.settings.clone(),
            Inquiries::default(),
            offers.clone(),
            NodeCertificates::default(),
            shutdown.clone(),
        );
        let address = maker.listen(router, shutdown.clone()).await;
        store.commit(record(maker.pki.server_id, "maker", address)).await.unwrap();
        store.commit(record(fetcher.pki.server_id, "fetcher", String::new())).await.unwrap();
        let control = fetcher.control(&store, Some(fetcher.pki.server_id), shutdown.clone()).await;
        let keep = KeepOthers::new(&control, &fetcher.settings, &fetcher.pki);
        fs::create_dir_all(maker.settings.backup_dir()).unwrap();
        Self { maker, offers, fetcher, keep, store, shutdown, _trigger: trigger }
    }

    fn file(&self) -> PathBuf {
        self.maker.settings.backup_dir().join(NAME)
    }

    /// Names of what was fetched, of the maker's.
    fn fetched(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.fetcher.kept(self.maker.pki.server_id)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// Transfers that began and ended.
#[derive(Default)]
struct Transfers {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// Dropped with the transfer.
struct Transfer(Arc<Transfers>);

impl Transfer {
    fn begin(all: &Arc<Transfers>) -> Self {
        all.begun.fetch_add(1, Ordering::SeqCst);
        Self(all.clone())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// Another headnode, which offers one backup of `bytes`, sends `content` as that, and hangs then where there are `stuck` ones.
async fn stand_in(pair: &Pair, id: &str, bytes: u64, content: Vec<u8>, stuck: Option<Arc<Transfers>>) -> ServerId {
    let site = Site::named(Some(&pair.maker), Some(id));
    let offered = OfferedBackup { name: NAME.to_owned(), bytes, sha256: "7".repeat(64) };
    let body = async move || {
        let content = stream::once(std::future::ready(Ok::<_, std::io::Error>(content.clone())));
        let Some(stuck) = &stuck else { return Body::from_stream(content) };
        let transfer = Transfer::begin(stuck);
        Body::from_stream(content.chain(stream::pending()).inspect(move |_| _ = &transfer))
    };
    let router = Router::new()
        .route("/v1/backups", get(async move || Json(vec![offered])))
        .route(&format!("/v1/backups/{NAME}"), get(body));
    let address = site.listen(router, pair.shutdown.clone()).await;
    pair.store.commit(record(site.pki.server_id, id, address)).await.unwrap();
    site.pki.server_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_damaged_is_not_kept_and_is_fetched_again() {
    let pair = Pair::new().await;
    let sound = vec![7_u8; 900_000];
    let mut damaged = sound.clone();
    damaged[500_000] ^= 1;
    fs::write(pair.file(), &sound).unwrap();
    // What it is, is known; what its disk makes of it later is another thing.
    let offered = pair.offers.to(ServerId::random(), Vec::new()).await.unwrap();
    assert_eq!((offered.len(), offered[0].bytes), (1, 900_000));
    fs::write(pair.file(), &damaged).unwrap();
    for _ in 0..2 {
        let why = pair.keep.pass().await.unwrap_err().to_string();
        assert!(why.contains("maker") && why.contains("did not arrive as it was offered"), "{why}");
        assert!(pair.fetched().is_empty(), "{:?}", pair.fetched());
    }
    fs::write(pair.file(), &sound).unwrap();
    assert!(pair.keep.pass().await.unwrap().contains("fetched 1"));
    assert_eq!(pair.fetched(), [NAME]);
    assert_eq!(fs::read(pair.fetcher.kept(pair.maker.pki.server_id).join(NAME)).unwrap(), sound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shorter_or_longer_than_it_was_said_to_be_is_not_kept() {
    let pair = Pair::new().await;
    for (id, bytes) in [(FIRST, 999), (LAST, 1_001)] {
        let other = stand_in(&pair, id, bytes, vec![7; 1_000], None).await;
        let why = pair.keep.pass().await.unwrap_err().to_string();
        assert!(why.contains("did not arrive as it was offered"), "{why}");
        assert!(fs::read_dir(pair.fetcher.kept(other)).unwrap().next().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_stuck_keeps_nobody_from_the_others() {
    let pair = Pair::new().await;
    let stuck = Arc::new(Transfers::default());
    for id in [FIRST, LAST] {
        stand_in(&pair, id, 1 << 20, vec![7; 10], Some(stuck.clone())).await;
    }
    fs::write(pair.file(), "a backup").unwrap();
    // One after the other, the second of the stuck ones would begin when the first had ended.
    let count = |of: &AtomicUsize| of.load(Ordering::SeqCst);
    let arrived = async {
        while pair.fetched() != [NAME] || count(&stuck.begun) < 2 || count(&stuck.ended) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        arrived = tokio::time::timeout(AMPLE, arrived) => arrived.expect("it comes while others are stuck"),
        done = pair.keep.pass() => panic!("two are stuck: {done:?}"),
    }
}

/// What arrived before a transfer was cut is not fetched again; and when it is not what it should be, all of it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_was_cut_goes_on_where_it_was() {
    let pair = Pair::new().await;
    let sound: Vec<u8> = (0..900_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    fs::write(pair.file(), &sound).unwrap();
    let kept = pair.fetcher.kept(pair.maker.pki.server_id);
    let (begun, arrived) = (kept.join(format!("{NAME}.new")), kept.join(NAME));
    fs::create_dir_all(&kept).unwrap();
    fs::write(kept.join("dc-1-20200101T000000Z-r1.neso-backup.new"), "nobody offers it any more").unwrap();

    let mut other = sound[..500_000].to_vec();
    other[7] ^= 1;
    fs::write(&begun, &other).unwrap();
    let why = pair.keep.pass().await.unwrap_err().to_string();
    assert!(why.contains("did not arrive as it was offered"), "what was there counts: {why}");
    assert!(pair.fetched().is_empty(), "{:?}", pair.fetched());

    let longer = [&sound[..], b"more"].concat();
    for there in [&sound[..500_000], &sound, &longer, b""] {
        fs::write(&begun, there).unwrap();
        assert!(pair.keep.pass().await.unwrap().contains("fetched 1"), "{} bytes were there", there.len());
        assert_eq!(pair.fetched(), [NAME]);
        assert!(fs::read(&arrived).unwrap() == sound, "{} bytes were there", there.len());
        fs::remove_file(&arrived).unwrap();
    }
}
