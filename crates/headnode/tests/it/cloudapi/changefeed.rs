//! The change feed as its clients see it: our own client and bare bytes, over real connections to two headnodes that share their records.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body};
use base::shutdown::{Shutdown, Trigger};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cloudapi::{
    client::{Changes, Client, ClientError, Profile, Signer},
    signature::http_date,
    types::changefeed::{Change, Cursor, Note, Registration, Since, Told},
    websocket::{CloseCode, Message, Socket},
};
use control::{
    Control, ControlConfig, Scope, accounts,
    instances::{self, changes::Feed},
};
use headnode::cloudapi::{Options, router};
use http::{Method, Request, StatusCode};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use model::{changed::SubResource, id::InstanceId, instance::Caller};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::json;
use store::Store;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tower::ServiceExt as _;

use super::stage::{IMAGE, NOW_MS, Stage, Who, keys};

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const DAY_MS: i64 = 86_400_000;

/// A headnode's door for tenants, with a wire to it that can be cut.
struct Door {
    url: String,
    wire: Arc<Mutex<Wire>>,
}

#[derive(Default)]
struct Wire {
    is_cut: bool,
    connections: Vec<JoinHandle<()>>,
}

impl Door {
    async fn open(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let wire = Arc::new(Mutex::new(Wire::default()));
        let ours = wire.clone();
        base::task::spawn("door", async move {
            while let Ok((mut outside, _)) = listener.accept().await {
                let (mut inside, server) = tokio::io::duplex(4_096);
                let service = router.clone().map_request(|request: Request<Incoming>| request.map(Body::new));
                let served = http1::Builder::new()
                    .serve_connection(TokioIo::new(server), TowerToHyperService::new(service))
                    .with_upgrades();
                base::task::spawn("served", async move { _ = served.await });
                let mut wire = ours.lock().unwrap();
                if !wire.is_cut {
                    wire.connections.push(base::task::spawn("wire", async move {
                        _ = copy_bidirectional(&mut outside, &mut inside).await;
                    }));
                }
            }
        });
        Self { url, wire }
    }

    fn cut(&self, is_cut: bool) {
        let mut wire = self.wire.lock().unwrap();
        wire.is_cut = is_cut;
        if is_cut {
            wire.connections.drain(..).for_each(|connection| connection.abort());
        }
    }
}

/// A stage with a second headnode over the same records.
struct Two {
    stage: Stage,
    doors: [Door; 2],
    _trigger: Trigger,
    _images: tempfile::TempDir,
}

impl Two {
    async fn new() -> Self {
        let stage = Stage::new().await;
        let store = Store::open(stage.engine.clone(), control::schema()).await.unwrap();
        let (trigger, shutdown): (Trigger, Shutdown) = Shutdown::new();
        let images = tempfile::tempdir().unwrap();
        let config = ControlConfig::new("home-1", images.path());
        let second = Control::start(store, stage.clock.clone(), config, shutdown);
        let options = Options { throttle: None, ..Options::new("home-1", "https://there:8443") };
        let doors = [Door::open(stage.router.clone()).await, Door::open(router(second, options)).await];
        Self { stage, doors, _trigger: trigger, _images: images }
    }

    /// Ana's client, which knows both headnodes.
    fn ana(&self) -> Client {
        self.ana_at(|| NOW_MS / 1_000)
    }

    fn ana_at(&self, clock: fn() -> i64) -> Client {
        let profile = Profile {
            name: "ana".into(),
            url: format!("{},{}", self.doors[0].url, self.doors[1].url),
            account: "ana".into(),
            act_as: None,
            key_id: String::new(),
            insecure: true,
            ca_file: None,
        };
        Client::new(&profile, Signer::from_file(&keys().join("ed25519-256")).unwrap(), clock).unwrap()
    }

    async fn rename(&self, id: &str, name: &str) {
        let body = json!({"action": "rename", "name": name});
        let answer = self.stage.ask(Who::Ana, Method::POST, &format!("/ana/machines/{id}"), body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{:?}", answer.body);
    }

    /// Deletes an instance of Ana's, with the machine's help.
    async fn delete(&self, id: &str) {
        let path = format!("/ana/machines/{id}");
        let answer = self.stage.ask(Who::Ana, Method::DELETE, &path, json!(null)).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{:?}", answer.body);
        self.stage.converge().await;
        let is_gone = async || self.stage.get(Who::Ana, &path).await.status == StatusCode::GONE;
        self.stage.until(is_gone).await;
    }
}

async fn next(changes: &mut Changes<'_>) -> Told {
    timeout(PATIENCE, changes.next()).await.expect("it is told in time").expect("it is told")
}

/// The next change that is not just a place.
async fn change(changes: &mut Changes<'_>) -> Change<'static> {
    loop {
        if let Told::Change(change) = next(changes).await {
            return *change;
        }
    }
}

/// What a client knows that believes all it is told: names and states by id.
#[derive(Debug, Default, PartialEq)]
struct Known(BTreeMap<InstanceId, (String, String)>);

impl Known {
    fn learn(&mut self, told: &Told) {
        match told {
            Told::Note(Note::List { .. }) => self.0.clear(),
            Told::Note(Note::Current { .. }) => {}
            Told::Change(change) if change.resource_state == "deleted" => {
                _ = self.0.remove(&change.changed_resource_id)
            }
            Told::Change(change) => {
                let seen = (change.resource_object.name.to_string(), change.resource_state.to_string());
                self.0.insert(change.changed_resource_id, seen);
            }
        }
    }

    /// Reads until it knows what a list shows; panics when it never does.
    async fn catch_up(&mut self, changes: &mut Changes<'_>, two: &Two) {
        let truth = two.stage.get(Who::Ana, "/ana/machines").await.json();
        let truth = truth.as_array().unwrap().iter().map(|machine| {
            let text = |field: &str| machine[field].as_str().unwrap().to_owned();
            (text("id").parse().unwrap(), (text("name"), text("state")))
        });
        let truth = Self(truth.collect());
        let reading = async {
            while *self != truth {
                self.learn(&next(changes).await);
            }
        };
        assert!(timeout(PATIENCE, reading).await.is_ok(), "the client never comes to know {truth:?}");
    }
}

#[tokio::test]
async fn changes_are_told_as_triton_tells_them_and_to_their_owner_alone() {
    let two = Two::new().await;
    let client = two.ana();
    let mut changes = client.changes(Registration::everything(Some(Since::Nothing)));
    assert!(matches!(next(&mut changes).await, Told::Note(Note::List { .. })));
    assert!(matches!(next(&mut changes).await, Told::Note(Note::Current { .. })));
    let bobs = json!({"name": "bobs", "package": "small", "image": IMAGE});
    let made = two.stage.ask(Who::Bob, Method::POST, "/bob/machines", bobs).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let id = two.stage.running("web").await;
    let first = change(&mut changes).await;
    assert_eq!((first.changed_resource_id.to_string(), &*first.resource_state), (id.clone(), "provisioning"));
    assert_eq!(first.change_kind.resource, "vm");
    assert!(first.change_kind.sub_resources.contains(&SubResource::Alias));
    assert!(!first.change_kind.sub_resources.contains(&SubResource::Destroyed));
    assert_eq!(first.published, NOW_MS.to_string());
    assert_eq!(first.resource_object.name, "web");
    loop {
        let seen = change(&mut changes).await;
        assert_eq!(seen.changed_resource_id.to_string(), id, "nothing of Bob's is told");
        if seen.resource_state == "running" {
            assert!(seen.change_kind.sub_resources.contains(&SubResource::State));
            break;
        }
    }
    two.rename(&id, "www").await;
    let renamed = change(&mut changes).await;
    assert_eq!(
        (&*renamed.resource_object.name, &renamed.change_kind.sub_resources[..]),
        ("www", &[SubResource::Alias][..])
    );
    two.delete(&id).await;
    loop {
        let seen = change(&mut changes).await;
        if seen.change_kind.sub_resources.contains(&SubResource::Destroyed) {
            assert_eq!(seen.resource_state, "deleted");
            break;
        }
    }
}

#[tokio::test]
async fn who_was_away_goes_on_at_another_headnode_and_misses_nothing() {
    let two = Two::new().await;
    let (client, mut known) = (two.ana(), Known::default());
    let mut changes = client.changes(Registration::everything(Some(Since::Nothing)));
    let (one, other) = (two.stage.running("one").await, two.stage.running("other").await);
    known.catch_up(&mut changes, &two).await;
    two.doors[0].cut(true);
    two.rename(&one, "first").await;
    two.delete(&other).await;
    two.stage.running("late").await;
    // No list comes: what is known stays known.
    let mut told = Vec::new();
    while !told.iter().any(|told| matches!(told, Told::Note(Note::Current { .. }))) {
        told.push(next(&mut changes).await);
        known.learn(told.last().unwrap());
    }
    assert!(!told.iter().any(|told| matches!(told, Told::Note(Note::List { .. }))), "{told:?}");
    known.catch_up(&mut changes, &two).await;
}

#[test]
fn however_often_the_wire_is_cut_nothing_is_missed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let deeds = proptest::collection::vec((0..6u8, any::<prop::sample::Index>()), 1..14);
    let mut runner = TestRunner::new(Config { cases: 6, max_shrink_iters: 20, ..Config::default() });
    let outcome = runner.run(&deeds, |deeds| {
        runtime.block_on(async {
            let two = Two::new().await;
            let (client, mut known) = (two.ana(), Known::default());
            let mut changes = client.changes(Registration::everything(Some(Since::Nothing)));
            let mut ids: Vec<String> = Vec::new();
            for (number, (deed, which)) in deeds.iter().enumerate() {
                match deed {
                    0 | 1 => ids.push(two.stage.running(&format!("i{number}")).await),
                    2 if !ids.is_empty() => two.rename(&ids[which.index(ids.len())], &format!("r{number}")).await,
                    3 if !ids.is_empty() => two.delete(&ids.remove(which.index(ids.len()))).await,
                    4 => {
                        // One of the two always answers.
                        let down = which.index(2);
                        two.doors[1 - down].cut(false);
                        two.doors[down].cut(true);
                    }
                    // Some of it is read now, the rest later.
                    _ => known.learn(&next(&mut changes).await),
                }
            }
            known.catch_up(&mut changes, &two).await;
        });
        Ok(())
    });
    outcome.unwrap();
}

#[tokio::test]
async fn a_place_that_is_not_known_any_more_begins_with_a_list() {
    let two = Two::new().await;
    let id = two.stage.running("web").await;
    let newest = two.stage.control.snapshot().revision().0;
    let now = NOW_MS.unsigned_abs() / 1_000;
    let first = async |client: &Client, revision, seconds| {
        let since = Since::Cursor(Cursor { revision, seconds });
        next(&mut client.changes(Registration::everything(Some(since)))).await
    };
    let client = two.ana();
    assert!(matches!(first(&client, newest, now).await, Told::Note(Note::Current { .. })), "nothing happened since");
    assert!(matches!(first(&client, newest - 1, now).await, Told::Change(_) | Told::Note(Note::Current { .. })));
    let Told::Change(all) = first(&client, 0, now).await else { panic!("all is newer than nothing") };
    assert_eq!(all.changed_resource_id.to_string(), id);
    let beyond = first(&client, newest + 1_000, now).await;
    assert!(matches!(&beyond, Told::Note(Note::List { reason }) if reason.contains("do not reach")), "{beyond:?}");
    two.stage.clock.set(NOW_MS + 8 * DAY_MS);
    let client = two.ana_at(|| (NOW_MS + 8 * DAY_MS) / 1_000);
    let late = first(&client, newest, now).await;
    assert!(matches!(&late, Told::Note(Note::List { reason }) if reason.contains("not remembered")), "{late:?}");
}

#[tokio::test]
async fn each_cursor_stands_for_what_was_told_and_no_more() {
    let two = Two::new().await;
    let mut left: BTreeSet<InstanceId> = BTreeSet::new();
    for name in ["one", "two", "three"] {
        left.insert(two.stage.running(name).await.parse().unwrap());
    }
    let client = two.ana();
    let mut changes = client.changes(Registration::everything(Some(Since::Nothing)));
    while !left.is_empty() {
        // Left after this, as if its wire was cut here.
        let told = change(&mut changes).await;
        left.remove(&told.changed_resource_id);
        let since = Since::Cursor(told.cursor.expect("it asked for cursors"));
        let mut after = client.changes(Registration::everything(Some(since)));
        let mut missed = BTreeSet::new();
        while let Told::Change(change) = next(&mut after).await {
            missed.insert(change.changed_resource_id);
        }
        assert_eq!(missed, left);
    }
}

#[tokio::test]
async fn who_is_cut_while_it_catches_up_is_told_of_what_was_deleted_meanwhile() {
    let two = Two::new().await;
    let (kept, gone) = (two.stage.running("kept").await, two.stage.running("gone").await);
    let seconds = |ms: i64| ms.unsigned_abs() / 1_000;
    let place = Cursor { revision: two.stage.control.snapshot().revision().0, seconds: seconds(NOW_MS) };
    two.rename(&kept, "renamed").await;
    two.delete(&gone).await;
    two.stage.clock.set(NOW_MS + 4 * DAY_MS);
    let client = two.ana_at(|| (NOW_MS + 4 * DAY_MS) / 1_000);
    let mut changes = client.changes(Registration::everything(Some(Since::Cursor(place))));
    let first = change(&mut changes).await;
    assert_eq!(first.changed_resource_id.to_string(), kept);
    assert!(!first.change_kind.sub_resources.contains(&SubResource::Destroyed), "it lives: {first:?}");
    // The other one's deletion is not told yet: this place is as old as that it came from.
    assert_eq!(first.cursor.unwrap().seconds, place.seconds);
    let second = change(&mut changes).await;
    assert_eq!((second.changed_resource_id.to_string(), &*second.resource_state), (gone, "deleted"));
    assert!(second.change_kind.sub_resources.contains(&SubResource::Destroyed), "{second:?}");
    assert_eq!(second.cursor.unwrap().seconds, seconds(NOW_MS + 4 * DAY_MS), "all was told");
}

#[tokio::test]
async fn a_client_that_asks_for_less_is_told_less() {
    let two = Two::new().await;
    let (id, other) = (two.stage.running("web").await, two.stage.running("db").await);
    let client = two.ana();
    let registration = Registration {
        sub_resources: [SubResource::Tags].into(),
        vms: Some([id.parse().unwrap()].into()),
        since: Some(Since::Nothing),
    };
    let mut changes = client.changes(registration);
    assert_eq!(change(&mut changes).await.changed_resource_id.to_string(), id, "the list holds what was asked for");
    two.rename(&id, "www").await;
    for instance in [&other, &id] {
        let path = format!("/ana/machines/{instance}/tags");
        assert_eq!(two.stage.ask(Who::Ana, Method::POST, &path, json!({"a": 1})).await.status, StatusCode::OK);
    }
    let seen = change(&mut changes).await;
    assert_eq!(
        (seen.changed_resource_id.to_string(), &seen.change_kind.sub_resources[..]),
        (id, &[SubResource::Tags][..])
    );
}

#[tokio::test]
async fn too_many_feeds_and_strangers_are_refused() {
    let two = Two::new().await;
    two.doors[1].cut(true);
    let client = two.ana();
    let mut held = Vec::new();
    for _ in 0..16 {
        let mut changes = client.changes(Registration::everything(Some(Since::Nothing)));
        next(&mut changes).await;
        held.push(changes);
    }
    // Told to wait, it would try again for minutes.
    let mut late = client.changes(Registration::everything(Some(Since::Nothing)));
    assert!(timeout(Duration::from_secs(2), late.next()).await.is_err(), "a seventeenth is not taken");
    drop(held.pop());
    assert!(matches!(next(&mut late).await, Told::Note(Note::List { .. })), "a place that is given back is taken");

    let profile_of_nobody = Profile {
        name: "eve".into(),
        url: two.doors[0].url.clone(),
        account: "ana".into(),
        act_as: None,
        key_id: String::new(),
        insecure: true,
        ca_file: None,
    };
    let eve = Signer::from_file(&keys().join("ecdsa-384")).unwrap();
    let eve = Client::new(&profile_of_nobody, eve, || NOW_MS / 1_000).unwrap();
    let refused = eve.changes(Registration::everything(None)).next().await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused { status: StatusCode::UNAUTHORIZED, .. }), "{refused:?}");
    let plain = two.stage.get(Who::Ana, "/ana/changefeed").await;
    assert_eq!((plain.status, &*plain.code()), (StatusCode::BAD_REQUEST, "UpgradeRequiredError"));
}

/// A connection as a program makes it that is no client of ours.
async fn upgraded(two: &Two) -> TcpStream {
    let signer = Signer::from_file(&keys().join("ed25519-256")).unwrap();
    let date = http_date(NOW_MS / 1_000);
    let signature = BASE64.encode(signer.sign(format!("date: {date}").as_bytes()).await.unwrap());
    let address = two.doors[0].url.trim_start_matches("http://");
    let authorization = format!(
        r#"Signature keyId="/ana/keys/{}",algorithm="{}",headers="date",signature="{signature}""#,
        signer.fingerprint_md5,
        signer.algorithm(),
    );
    let lines = [
        "GET /ana/changefeed HTTP/1.1".to_owned(),
        format!("host: {address}"),
        format!("date: {date}"),
        format!("authorization: {authorization}"),
        "connection: upgrade".to_owned(),
        "upgrade: websocket".to_owned(),
        "sec-websocket-version: 13".to_owned(),
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==".to_owned(),
    ];
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await.expect("it answers").unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    stream
}

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;

/// A frame as RFC 6455 has it, section 5.2.
fn frame(kind: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let is_masked = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![0x80 | kind];
    match payload.len() {
        short @ 0..=125 => frame.push(is_masked | u8::try_from(short).unwrap()),
        long => {
            frame.push(is_masked | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend(mask.into_iter().flatten());
    let mask = mask.unwrap_or_default();
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The next message that is not the server's ping.
async fn read(socket: &mut Socket<TcpStream>) -> Message {
    loop {
        let message = timeout(PATIENCE, socket.read()).await.expect("something comes").unwrap();
        match message.expect("it is said why it ends") {
            Message::Ping(_) => {}
            message => return message,
        }
    }
}

#[tokio::test]
async fn what_breaks_the_rules_is_closed_with_a_reason() {
    let two = Two::new().await;
    let mask = Some([1, 2, 3, 4]);
    let long = "x".repeat(70_000);
    let quoted = format!("\"{}\"", "é".repeat(300));
    let cases: [(u8, &[u8], _, _, _); 7] = [
        (TEXT, quoted.as_bytes(), mask, CloseCode::Policy, "registration"),
        (TEXT, br#"{"resource":"vm","subResources":["package"]}"#, mask, CloseCode::Policy, "subResources"),
        (TEXT, b"{", mask, CloseCode::Policy, "registration"),
        (BINARY, &[1], mask, CloseCode::Unsupported, "text"),
        (TEXT, long.as_bytes(), mask, CloseCode::Size, "too large"),
        (PING, b"", None, CloseCode::Protocol, "masked"),
        (CLOSE, &[0x03, 0xe8], mask, CloseCode::Normal, ""),
    ];
    for (kind, said, mask, code, reason) in cases {
        let mut stream = upgraded(&two).await;
        stream.write_all(&frame(kind, said, mask)).await.unwrap();
        let closed = read(&mut Socket::of_client(stream, 1 << 20).await).await;
        let Message::Close(Some(told)) = closed else { panic!("{kind} {reason}: {closed:?}") };
        assert!(told.code == code && told.reason.contains(reason), "{kind} {reason}: {told:?}");
    }
}

#[tokio::test]
async fn a_client_of_tritons_is_told_what_triton_tells_and_nothing_else() {
    let two = Two::new().await;
    let mut socket = Socket::of_client(upgraded(&two).await, 1 << 20).await;
    let words = SubResource::ALL.map(SubResource::as_str);
    let registration = json!({"resource": "vm", "subResources": words}).to_string();
    socket.send(Message::text(registration)).await.unwrap();
    // What is sent first is heard first.
    socket.send(Message::Ping(b"heard?".to_vec().into())).await.unwrap();
    assert_eq!(read(&mut socket).await, Message::Pong(b"heard?".to_vec().into()));
    let id = two.stage.running("web").await;
    let Message::Text(told) = read(&mut socket).await else { panic!("no text") };
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let fields: BTreeSet<_> = told.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["changedResourceId", "published", "resourceState", "changeKind", "resourceObject"];
    assert_eq!((fields, &told["changedResourceId"]), (expected.into(), &json!(id)));
    assert_eq!(told["changeKind"]["resource"], "vm");
    assert_eq!(told["resourceObject"]["name"], "web");
}

#[tokio::test]
async fn a_reader_that_is_far_behind_is_told_the_last_of_each() {
    let two = Two::new().await;
    let id: InstanceId = two.stage.running("web").await.parse().unwrap();
    let ana = accounts::by_login(&two.stage.control, "ana").unwrap().id;
    let mut feed = Feed::open(&two.stage.control, ana);
    let caller = Caller::Signature { ip: None, key_id: String::new() };
    // More than the store keeps for those who are behind.
    for number in 0..300 {
        let name = format!("n{number}");
        instances::rename(&two.stage.control, &caller, Scope::Account(ana), id, &name).await.unwrap();
    }
    let mut names = Vec::new();
    while names.last().map(String::as_str) != Some("n299") {
        let changed = timeout(PATIENCE, feed.next()).await.expect("the last one is told");
        names.extend(changed.into_iter().map(|changed| changed.instance.alias.clone()));
    }
    assert!(names.len() < 300, "{} were kept for it", names.len());
}
