//! The node link's door for machines that nobody knows, over real TLS.

use std::sync::Arc;

use base::{
    clock::{Clock, ManualClock, SystemClock},
    shutdown::Shutdown,
};
use control::{Control, ControlConfig, servers, servers::NewInvite, tables::SERVERS};
use headnode::{
    Settings,
    backup::Offers,
    inquiries::Inquiries,
    listen::{self, Limits},
    members::open_store,
    nodelink::{self, NodeCertificates},
    pki,
    tls::{ClientCertificates, TlsSource},
};
use model::{
    delta::{Held, ReportDelta, ReportNews, TargetNews},
    id::ServerId,
    role::{HeadnodeRole, HeadnodeWanted},
    server::{Hardware, MachineIdentity, Server, Underlay},
    target::{Report, Target},
    time::Timestamp,
};
use nodeapi::{
    client::{Client, Settings as LinkSettings},
    join::{Door, Fingerprint, JoinError, JoinRequest},
    kit::HeadnodeKit,
    link::{HeadnodeLink as _, LinkError},
};
use store::{Store, Transaction};

fn identity(number: u128) -> MachineIdentity {
    MachineIdentity { installation: Some(uuid::Uuid::from_u128(number)), ..MachineIdentity::default() }
}

fn router(control: &Control, settings: &Settings, shutdown: Shutdown) -> axum::Router {
    nodelink::router(
        control.clone(),
        settings.clone(),
        Inquiries::default(),
        Offers::new(settings),
        NodeCertificates::default(),
        shutdown,
    )
}

#[tokio::test]
async fn clocks_are_compared_keys_stay_and_the_forgotten_are_locked_out() {
    let root = tempfile::tempdir().unwrap();
    let settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
    // The headnode lives three days ahead of this machine: its certificates are not valid here yet.
    let here = Timestamp(SystemClock.now_ms());
    let there = here.plus_millis(3 * 86_400_000 + 60_000);
    let (clock, (trigger, shutdown)) = (Arc::new(ManualClock::new(there.0)), Shutdown::new());
    let (ahead, _) = pki::ensure(&settings, there).unwrap();
    std::fs::create_dir_all(settings.headnode_dir()).unwrap();
    let (engine, keeper) = open_store(&settings, ahead.server_id, clock.clone()).await.unwrap();
    let store = Store::open(engine, control::schema()).await.unwrap();
    let config = ControlConfig::new("dc-1".to_owned(), root.path().join("images"));
    let control = Control::start(store, clock.clone(), config, shutdown.clone());
    control.keep_store_with(keeper);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tls = TlsSource::open(&ahead, ClientCertificates::Optional).unwrap();
    let router = router(&control, &settings, shutdown.clone());
    let serving =
        base::task::spawn("link", listen::serve("link", listener, tls.clone(), router, Limits::NODES, None, shutdown));

    let fingerprint = Fingerprint::of(&ahead.authority().unwrap());
    match Door::open(&address, fingerprint, here).await.err() {
        Some(JoinError::Clock { off }) => assert_eq!(off, "3 d 1 min behind"),
        other => panic!("{other:?}"),
    }
    let other: Fingerprint = format!("SHA256:{}", "0".repeat(64)).parse().unwrap();
    match Door::open(&address, other, here).await.err() {
        Some(JoinError::Stranger { found, .. }) => assert_eq!(found, fingerprint.to_string()),
        other => panic!("{other:?}"),
    }

    // Its clock is set.
    clock.set(here.0);
    let (pki, _) = pki::renew(&settings, here).unwrap();
    tls.reload(&pki).unwrap();
    let (door, hello) = Door::open(&address, fingerprint, here).await.unwrap();
    assert_eq!(hello.datacenter, settings.datacenter.name);
    let (_, token) = servers::invite(&control, NewInvite { hours: 1, ..NewInvite::default() }).await.unwrap();
    let key = pki::request().unwrap();
    let good = JoinRequest {
        token,
        request_pem: key.request_pem.clone(),
        hostname: "one".to_owned(),
        identity: identity(1),
        now: here,
        adopt: None,
    };
    let garbage = JoinRequest { request_pem: "garbage".to_owned(), ..good.clone() };
    let refused = door.join(&garbage).await.unwrap_err().to_string();
    assert!(refused.contains("request_pem"), "{refused}");
    let lost = door.join(&good).await.expect("a bad request has not spent the token");
    let answer = door.join(&good).await.expect("who lost the answer is told again");
    assert_eq!(answer.server, lost.server);
    let thief = JoinRequest { request_pem: pki::request().unwrap().request_pem, ..good.clone() };
    let refused = door.join(&thief).await.unwrap_err().to_string();
    assert!(refused.contains("was used by"), "{refused}");

    let node = tempfile::tempdir().unwrap();
    let mut there = Settings::parse(&Settings::generate(Some(node.path())).unwrap()).unwrap();
    there.join = Some(headnode::settings::Join { headnodes: vec![address.clone()] });
    one_that_was_away_for_long_gets_another(&settings, &there, &address, answer.server).await;
    pki::enroll(&there, answer.server, &answer.authority_pem, &key, &answer.certificate_pem).unwrap();
    let (own, copied) = (link(&there, &address, identity(1)), link(&there, &address, identity(2)));
    keys_go_to_headnodes_alone(&control, answer.server, &settings, &own, &copied).await;
    only_this_machine_is_served(&control, answer.server, &own, &copied).await;
    drop((own, copied, door));
    trigger.fire();
    serving.await.unwrap();
}

/// A certificate that has ended opens nothing but the way to another, on its machine, and not for ever.
async fn one_that_was_away_for_long_gets_another(
    headnode: &Settings,
    node: &Settings,
    address: &str,
    server: ServerId,
) {
    const DAY_MS: i64 = 86_400_000;
    let key = pki::request().unwrap();
    let shows_one_of = |days: i64, machine: MachineIdentity| {
        let then = Timestamp(SystemClock.now_ms() - days * DAY_MS);
        let ended = pki::certify(headnode, &key.request_pem, server, then).unwrap();
        let authority = std::fs::read_to_string(headnode.pki_dir().join("ca.pem")).unwrap();
        pki::enroll(node, server, &authority, &key, &ended).unwrap();
        link(node, address, machine)
    };
    let request = || pki::request().unwrap().request_pem;
    let own = shows_one_of(500, identity(1));
    match own.target(held(0, None)).await {
        Err(LinkError::Refused { status: 401, message, .. }) => assert!(message.contains("ended at"), "{message}"),
        other => panic!("{other:?}"),
    }
    let another = own.certify(request()).await.unwrap();
    assert!(another.contains("BEGIN CERTIFICATE"));
    match shows_one_of(500, identity(2)).certify(request()).await {
        Err(LinkError::Refused { status: 403, message, .. }) => {
            assert!(message.contains("not the machine"), "{message}")
        }
        other => panic!("{other:?}"),
    }
    // Longer than two years after its end nobody is let in with it at all.
    let lost = shows_one_of(397 + 732, identity(1)).certify(request()).await.unwrap_err();
    assert!(matches!(lost, LinkError::Unreachable { .. }), "{lost:?}");
}

/// The link of a machine that joined.
fn link(settings: &Settings, address: &str, machine: MachineIdentity) -> Client {
    let member = pki::member(settings, Timestamp(SystemClock.now_ms())).unwrap();
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    let settings = LinkSettings {
        headnodes: vec![address.to_owned()],
        is_here: false,
        authority_pem: read(&member.authority),
        certificate_pem: read(&member.node.certificate),
        key_pem: read(&member.node.key),
        machine,
    };
    Client::new(&settings).unwrap()
}

fn held(generation: u64, target: Option<&Target>) -> Held {
    Held { generation, digest: target.map(Target::digest) }
}

/// The first target and the first report are whole, the next are what is new in them; what is not understood is said whole.
async fn what_is_new_travels_alone(server: ServerId, own: &Client) -> Target {
    let Some(TargetNews::Whole(first)) = own.target(held(0, None)).await.unwrap() else { panic!("a first target") };
    assert_eq!(first.server, server);
    let report = |sequence, underlay| Report {
        sequence,
        target_seen: first.generation,
        hardware: Hardware { identity: identity(1), ..Hardware::default() },
        underlay,
        ..Report::bare(server, "one")
    };
    let (one, two) = (report(1, None), report(2, None));
    let stray = ReportDelta::between(one.digest(), &one, &two).unwrap();
    let nothing = own.report(&ReportNews::Delta(stray.clone().into())).await.unwrap();
    assert_eq!(nothing.held, None, "nothing is held that it could follow on");
    assert_eq!(own.report(&ReportNews::Whole(Box::new(one.clone()))).await.unwrap().held, Some(one.digest()));
    assert_eq!(own.report(&ReportNews::Delta(stray.clone().into())).await.unwrap().held, Some(two.digest()));
    let foreign = ReportDelta { server: ServerId::random(), ..stray };
    let refused = own.report(&ReportNews::Delta(foreign.into())).await.unwrap_err();
    assert!(matches!(refused, LinkError::Refused { status: 403, .. }), "{refused:?}");

    // The machine gets an address between machines, which its target says back.
    let underlay = Underlay { address: [192, 0, 2, 7].into(), mtu: 1500 };
    own.report(&ReportNews::Whole(Box::new(report(3, Some(underlay))))).await.unwrap();
    let news = own.target(held(first.generation, Some(&first))).await.unwrap();
    let Some(TargetNews::Delta(delta)) = news else { panic!("{news:?}") };
    let second = delta.apply(&first).unwrap();
    assert_eq!(second.underlay, Some(underlay.address));
    // Who holds something that was never sent gets the whole.
    let other = Target { datacenter: "another".to_owned(), ..first.clone() };
    let news = own.target(held(first.generation, Some(&other))).await.unwrap();
    assert_eq!(news, Some(TargetNews::Whole(second.clone())));
    second
}

/// What a headnode needs goes to a machine that was asked to be one, as long as it is.
async fn keys_go_to_headnodes_alone(
    control: &Control,
    server: ServerId,
    headnode: &Settings,
    own: &Client,
    copied: &Client,
) {
    let told = async |wanted: Option<HeadnodeWanted>| {
        let role: Option<HeadnodeRole> =
            wanted.map(|wanted| HeadnodeRole { since: Timestamp(5), wanted, headnodes: Vec::new() });
        let told = control.store.update(|snapshot| {
            let entry = snapshot.get(&SERVERS, &server.to_string()).unwrap();
            let server = Server { headnode_role: role.clone(), ..entry.value.clone() };
            Ok::<_, control::Error>((Transaction::new().replace(&SERVERS, &entry, server), ()))
        });
        told.await.unwrap();
    };
    let refused = |answer: Result<HeadnodeKit, LinkError>| match answer.unwrap_err() {
        LinkError::Refused { status: 403, message, .. } => message,
        other => panic!("{other:?}"),
    };
    assert!(refused(own.headnode_kit().await).contains("is not to run a headnode"));
    let backups = own.backups(&[]).await.unwrap_err().to_string();
    assert!(backups.contains("backups are for headnodes alone"), "{backups}");
    let file = own.backup("dc-1-20261128T065900Z-r1.neso-backup", 0).await.err().map(|error| error.to_string());
    assert!(file.is_some_and(|why| why.contains("backups are for headnodes alone")));
    told(Some(HeadnodeWanted::Running)).await;
    let kit = own.headnode_kit().await.unwrap();
    assert_eq!((kit.since, kit.datacenter.as_str()), (Timestamp(5), headnode.datacenter.name.as_str()));
    let key = kit.files.iter().find(|file| file.name == "ca.key").unwrap();
    assert_eq!(key.content.0, std::fs::read_to_string(headnode.pki_dir().join("ca.key")).unwrap());
    assert!(refused(copied.headnode_kit().await).contains("not the machine that joined"));
    for over in [Some(HeadnodeWanted::Absent), None] {
        told(over).await;
        assert!(refused(own.headnode_kit().await).contains("is not to run a headnode"), "{over:?}");
    }
}

/// A copy of the certificate serves nobody, and the machine itself nobody any more once it was forgotten.
async fn only_this_machine_is_served(control: &Control, server: ServerId, own: &Client, copied: &Client) {
    let target = what_is_new_travels_alone(server, own).await;
    assert!(own.certify(pki::request().unwrap().request_pem).await.unwrap().contains("BEGIN CERTIFICATE"));
    let says = |error: LinkError, words: &str| match error {
        LinkError::Refused { status: 403, message, .. } => assert!(message.contains(words), "{message}"),
        other => panic!("{other:?}"),
    };
    says(copied.target(held(0, None)).await.unwrap_err(), "not the machine that joined");
    says(copied.certify(pki::request().unwrap().request_pem).await.unwrap_err(), "not the machine that joined");

    // Both waits end when it is forgotten, and nothing is answered any more.
    let forget = async {
        let given = std::collections::BTreeSet::new();
        servers::forget(control, server, &given, &model::instance::Caller::System).await.unwrap();
    };
    let door = own.headnodes().remove(0);
    let (waited, asked, ()) = tokio::join!(own.target(held(target.generation, None)), own.inquiry(&door), forget);
    says(waited.unwrap_err(), "an operator forgot it");
    says(asked.unwrap_err(), "an operator forgot it");
    says(own.image(&"0".repeat(64)).await.err().unwrap(), "an operator forgot it");
}
