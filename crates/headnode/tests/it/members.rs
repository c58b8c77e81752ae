//! A store that moves from its file into members, members that come, go and lose their data: real ones, each beside a headnode of its own under a
//! directory of its own. What the supervisor does with the member's process is done by a task here.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use base::clock::{Clock as _, SystemClock};
use control::{
    headnodes::members::{KeptIn, Members as _, MembersError, Moved, NewMember, Promotion},
    tables::HEADNODES,
};
use flow::loops::Loop as _;
use headnode::{
    Settings,
    members::{Keeper, TendMembers, file::ClusterFile, open_store, process},
    pki,
};
use model::{
    headnode::{Headnode, Stage},
    id::ServerId,
    part::Digest,
    time::Timestamp,
};
use store::{Store, Transaction};

/// How long anything may take on a machine that has much else to do.
const AMPLE: Duration = Duration::from_secs(180);

struct Bed {
    settings: Settings,
    server: ServerId,
    root: tempfile::TempDir,
    child: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
}

impl Bed {
    fn new() -> Option<Self> {
        if !etcd::local::is_installed() {
            println!("skipped: etcd is not installed (Debian's package etcd-server)");
            return None;
        }
        // In memory: what etcd does with a disk is its own affair.
        let root = tempfile::Builder::new().prefix("neso-members-").tempdir_in("/dev/shm").unwrap();
        let mut settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        settings.datacenter.name = "members-test".to_owned();
        let (pki, _) = pki::ensure(&settings, now()).unwrap();
        let (child, stop) = (Arc::default(), Arc::default());
        let bed = Self { server: pki.server_id, settings, root, child, stop };
        bed.supervise();
        Some(bed)
    }

    /// Starts the member whenever it is wanted and does not run.
    fn supervise(&self) {
        let (settings, pid, stop) = (self.settings.clone(), self.child.clone(), self.stop.clone());
        let log = self.root.path().join("member.log");
        base::task::spawn("supervisor", async move {
            while !stop.load(Ordering::SeqCst) {
                if process::is_wanted(&settings)
                    && let Ok(command) = process::command(&settings, now())
                {
                    let out = std::fs::File::options().create(true).append(true).open(&log).unwrap();
                    let mut member = base::process::command(&command.program);
                    member.env_clear().args(&command.arguments).stdout(out.try_clone().unwrap()).stderr(out);
                    let mut member = member.spawn().unwrap();
                    pid.store(member.id().unwrap_or(0), Ordering::SeqCst);
                    while member.try_wait().unwrap().is_none() && !stop.load(Ordering::SeqCst) {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    let _ = member.kill().await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }

    async fn open(&self) -> (Store, Arc<Keeper>) {
        let (engine, keeper) = open_store(&self.settings, self.server, Arc::new(SystemClock)).await.unwrap();
        let store = Store::open(engine, control::schema()).await.unwrap();
        keeper.attach(store.clone());
        (store, keeper)
    }

    /// A headnode's record, as it registers itself.
    async fn register(&self, store: &Store) {
        let record = Headnode {
            id: self.server,
            hostname: self.server.to_string(),
            cloudapi: "127.0.0.1:1".to_owned(),
            node_link: "127.0.0.1:2".to_owned(),
            ops: "127.0.0.1:3".to_owned(),
            member: None,
            stage: Stage::Active,
            joined_at: now(),
            shared_settings: Digest::of(&"the same"),
            release: "test".to_owned(),
        };
        store.commit(Transaction::new().create(&HEADNODES, record)).await.unwrap();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Err(error) = base::daemon::kill(self.child.load(Ordering::SeqCst)) {
            println!("the member has ended already: {error}");
        }
    }
}

fn now() -> Timestamp {
    Timestamp(SystemClock.now_ms())
}

async fn until<T, E: std::fmt::Debug>(what: &str, ask: impl AsyncFn() -> Result<T, E>) -> T {
    let asked = tokio::time::timeout(AMPLE, async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(error) => {
                    println!("{what}: {error:?}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    });
    asked.await.unwrap_or_else(|_| panic!("in time: {what}"))
}

fn names(store: &Store) -> Vec<String> {
    let snapshot = store.snapshot();
    snapshot.scan(&HEADNODES).map(|entry| entry.hostname.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_moves_into_its_first_member_and_is_found_there() {
    let Some(bed) = Bed::new() else { return };
    let file = bed.settings.headnode_dir();
    std::fs::create_dir_all(&file).unwrap();
    let (store, keeper) = bed.open().await;
    assert_eq!(keeper.kept_in(), KeptIn::File);
    assert!(matches!(keeper.status().await, Err(MembersError::Refused(why)) if why.contains("in a file")));
    bed.register(&store).await;
    let before = store.snapshot().revision();
    keeper.check().await.unwrap();
    let moved = keeper.move_store().await.unwrap();
    println!("{moved:?}");
    assert!(moved.records >= 1);
    assert_eq!(keeper.kept_in(), KeptIn::Members);
    assert_eq!(keeper.move_store().await.unwrap(), Moved::default(), "it is there");
    assert!(store.snapshot().revision() > before);
    let other = Bed::new().unwrap();
    other.register(&store).await;
    let all = names(&store);
    assert_eq!(all.len(), 2);
    assert!(!file.join("store.db").exists());
    let aside = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("store.db.moved-");
    assert!(std::fs::read_dir(&file).unwrap().flatten().any(|entry| aside(&entry)));

    // Who starts now finds it there, without being told.
    drop((store, keeper));
    let (store, keeper) = bed.open().await;
    assert_eq!((keeper.kept_in(), names(&store)), (KeptIn::Members, all));
    let status = keeper.status().await.unwrap();
    assert_eq!((status.voting(), status.well(), status.faults_tolerated()), (1, 1, 0));
    let own = status.on(bed.server).unwrap();
    assert!(own.said.as_ref().unwrap().leads);
    let last = keeper.remove(bed.server).await.unwrap_err();
    assert!(last.to_string().contains("only copy"), "{last}");

    // A node's certificate opens nothing there: the store has an authority of its own.
    let (datacenter, _) = pki::ensure(&bed.settings, now()).unwrap();
    let node = etcd::Tls {
        authority: pki::StorePki::of(&bed.settings).authority,
        certificate: datacenter.node.certificate,
        key: datacenter.node.key,
    };
    let stranger = etcd::Admin::new(&own.clients, Some(node)).unwrap();
    let why = base::errors::chain(&stranger.members().await.unwrap_err());
    assert!(why.contains("do not trust each other"), "{why}");
}

/// Ports of the loopback address nobody listens on now.
fn addresses() -> (String, String) {
    let held: Vec<_> = (0..2).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    let address = |socket: &TcpListener| socket.local_addr().unwrap().to_string();
    (address(&held[0]), address(&held[1]))
}

/// What a flow does to make `bed` one more headnode's member.
async fn join(keeper: &Keeper, first: &Bed, bed: &Bed) {
    let authority = pki::StorePki::of(&first.settings);
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    pki::adopt_store_authority(&bed.settings, &text(&authority.authority), &text(&authority.authority_key)).unwrap();
    let (client, peer) = addresses();
    let new = NewMember { server: bed.server, client: client.clone(), peer: peer.clone() };
    let invited = until("add", async || keeper.add_learner(new.clone()).await).await;
    assert_eq!(keeper.add_learner(new.clone()).await.unwrap(), invited, "asked again it is the same");
    assert!(matches!(keeper.promote(bed.server).await.unwrap(), Promotion::NotYet(why) if why.contains("not started")));
    let another = NewMember { server: ServerId::random(), client: "127.0.0.1:1".into(), peer: "127.0.0.1:2".into() };
    let refused = keeper.add_learner(another).await.unwrap_err();
    assert!(refused.to_string().contains("another member is being added"), "{refused}");
    ClusterFile::invited(&invited, &client, &peer, 0).save(&bed.settings).unwrap();
    until("vote", async || match keeper.promote(bed.server).await {
        Ok(Promotion::Voting) => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_and_one_that_lost_its_data_begins_anew() {
    let (Some(one), Some(two), Some(three)) = (Bed::new(), Bed::new(), Bed::new()) else { return };
    std::fs::create_dir_all(one.settings.headnode_dir()).unwrap();
    let (store, keeper) = one.open().await;
    one.register(&store).await;
    keeper.move_store().await.unwrap();
    join(&keeper, &one, &two).await;
    join(&keeper, &one, &three).await;
    let status = keeper.status().await.unwrap();
    assert_eq!((status.voting(), status.well(), status.faults_tolerated()), (3, 3, 1), "{status:?}");
    // The first headnode learns where all of them are, and so does its file.
    let first = TendMembers::new(keeper.clone());
    first.pass().await.unwrap();
    assert_eq!(ClusterFile::load(&one.settings).unwrap().unwrap().endpoints.len(), 3);

    // Others open it as theirs; what is written through one is seen through the other.
    let (second_store, second_keeper) = two.open().await;
    two.register(&second_store).await;
    until("seen", async || match names(&store).len() {
        2 => Ok(()),
        count => Err(count),
    })
    .await;
    let second = TendMembers::new(second_keeper.clone());
    second.pass().await.unwrap();
    assert!(ClusterFile::load(&two.settings).unwrap().unwrap().member.unwrap().started);

    // Its data are gone with it. It must not start as who it was, and comes back by itself.
    let data = two.settings.headnode_dir().join("member");
    let id_of = |status: &control::headnodes::members::Cluster| status.on(two.server).cloned();
    let before = id_of(&keeper.status().await.unwrap()).unwrap();
    assert!(before.voting && before.said.is_ok());
    std::fs::rename(&data, data.with_extension("gone")).unwrap();
    base::daemon::kill(two.child.load(Ordering::SeqCst)).unwrap();
    until("it does not answer", async || match id_of(&keeper.status().await.unwrap()).unwrap().said {
        Ok(facts) => Err(facts),
        Err(_) => Ok(()),
    })
    .await;
    assert!(matches!(process::command(&two.settings, now()), Err(process::StartError::DataGone(_))));
    store.commit(Transaction::new()).await.unwrap();
    until("it votes again", async || {
        let passed = second.pass().await.map_err(|error| error.to_string())?;
        let status = keeper.status().await.map_err(|error| error.to_string())?;
        match id_of(&status) {
            Some(member) if member.voting && member.said.is_ok() && data.join("member/wal").exists() => Ok(()),
            other => Err(format!("{passed}: {other:?}")),
        }
    })
    .await;
    assert_eq!(keeper.status().await.unwrap().voting(), 3);

    // Taken out alive, and once more; then the rest is too few for another.
    until("remove", async || keeper.remove(three.server).await).await;
    keeper.remove(three.server).await.unwrap();
    let status = keeper.status().await.unwrap();
    assert_eq!((status.voting(), status.faults_tolerated()), (2, 0));
    two.stop.store(true, Ordering::SeqCst);
    // Only looked at until it is: taking the first out while the other lives would be right.
    until("the other is dead", async || match id_of(&keeper.status().await.unwrap()).unwrap().said {
        Ok(facts) => Err(facts),
        Err(_) => Ok(()),
    })
    .await;
    // No majority is left: who is there and who is not is told all the same.
    let status = keeper.status().await.unwrap();
    assert_eq!((status.voting(), status.well()), (2, 1), "{status:?}");
    let refused = keeper.remove(one.server).await.unwrap_err();
    assert!(refused.to_string().contains("are needed to commit"), "{refused}");
}
