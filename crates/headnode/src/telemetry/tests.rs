//! Everything in the list is told, nothing else is, and it is told of what is so.

use std::collections::BTreeSet;

use base::{
    clock::{Clock, ManualClock},
    shutdown::{Shutdown, Trigger},
};
use control::{
    ControlConfig,
    headnodes::{
        Announcement,
        members::{MemberFacts, MemberState},
    },
    servers,
};
use flow::{
    FLOWS, FlowId, FlowRecord, FlowState, Notes,
    loops::{Loop, Loops},
};
use http::{Method, StatusCode};
use model::{
    headnode::{Beat, Health},
    id::ServerId,
    part::Digest,
};
use store::{BoxFuture, Store, Transaction, memory::Memory};

use super::*;
use crate::{names, pki};

const NOW: i64 = 1_800_000_000_000;

/// A loop that is only listed.
struct Idle;

impl Loop for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async { Ok(String::new()) })
    }
}

struct Place {
    sources: Sources,
    clock: Arc<ManualClock>,
    me: ServerId,
    _trigger: Trigger,
    _root: tempfile::TempDir,
}

fn parked(kind: &str) -> FlowRecord {
    FlowRecord {
        id: FlowId::new(NOW - 90_000),
        kind: kind.to_owned(),
        subject: String::new(),
        group: String::new(),
        input: serde_json::Value::Null,
        notes: Notes::default(),
        steps: Vec::new(),
        state: FlowState::Parked,
        error: Some("it needs a person".to_owned()),
        created_at: NOW - 90_000,
        ended_at: None,
    }
}

impl Place {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        std::fs::create_dir_all(settings.headnode_dir()).unwrap();
        let me = pki::ensure(&settings, Timestamp(NOW)).unwrap().0.server_id;
        let clock = Arc::new(ManualClock::new(NOW));
        let (trigger, shutdown) = Shutdown::new();
        let store = Store::open(Arc::new(Memory::new()), control::schema()).await.unwrap();
        let config = ControlConfig { headnode: Some(me), ..ControlConfig::new("dc-1", root.path()) };
        let control = Control::start(store, clock.clone() as Arc<dyn Clock>, config, shutdown);
        let new = servers::NewServer { hostname: "one".to_owned(), headnode: true, comments: String::new() };
        servers::register(&control, me, new).await.unwrap();
        let announcement = Announcement {
            hostname: "one".to_owned(),
            cloudapi: "one:1".to_owned(),
            node_link: "one:2".to_owned(),
            ops: "one:3".to_owned(),
            member: None,
            shared_settings: Digest::of_bytes(b""),
            release: "0.1.0".to_owned(),
        };
        headnodes(&control, me, &announcement).await;
        control.store.commit(Transaction::new().create(&FLOWS, parked("instance create"))).await.unwrap();
        let mut loops = Loops::new(clock.clone());
        loops.add(Idle);
        let names = NameServer::default();
        names.note(names::Status { counters: Some(Arc::default()), ..names::Status::default() });
        let certificates = NodeCertificates::default();
        certificates.note(me, "01", Timestamp(NOW + 5_000));
        let offers = Offers::new(&settings);
        let sources = Sources {
            control,
            settings,
            requests: Requests::default(),
            inquiries: Inquiries::default(),
            certificates,
            loops: loops.board(),
            flow_kinds: vec!["instance create", "image create"],
            names,
            offers,
            started_at: Timestamp(NOW - 1_000),
        };
        Self { sources, clock, me, _trigger: trigger, _root: root }
    }
}

/// Registers it, and has it beat once, with every measurement there is.
async fn headnodes(control: &Control, me: ServerId, announcement: &Announcement) {
    control::headnodes::register(control, me, announcement).await.unwrap();
    let health = Health {
        commit_ms: 5,
        lag_ms: 20,
        clock_offset_ms: Some(-1_500),
        sync_ms: Some(2),
        member_behind_ms: Some(3_000),
        mirror_behind_ms: Some(40),
        images_missing: 1,
        own_fault: true,
        sick: Some("its disk is slow".to_owned()),
    };
    let beat = Beat { headnode: me, sequence: 1, at: Timestamp(NOW), started_at: Timestamp(NOW), health };
    control::headnodes::beat(control, &beat).await.unwrap();
    let heard = async {
        while control.headnodes.heard_ms(me).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), heard).await.expect("the beat arrives");
}

fn cluster() -> Cluster {
    let facts =
        MemberFacts { leads: true, size_bytes: 7, alarms: vec!["NOSPACE".to_owned()], ..MemberFacts::default() };
    let member = |name: &str, said| MemberState {
        server: None,
        name: name.to_owned(),
        voting: true,
        clients: Vec::new(),
        peers: Vec::new(),
        said,
    };
    Cluster { members: vec![member("a", Ok(facts)), member("b", Err("silent".to_owned()))] }
}

fn names_in(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

#[tokio::test]
async fn all_that_is_listed_is_told_and_nothing_else() {
    let place = Place::new().await;
    let sources = &place.sources;
    sources.requests.begin(Door::Ops).end(&Method::GET, Some("/v1/loops"), StatusCode::OK);
    // Where a backup lies is the settings' business, what counts as one the file's.
    let taken = crate::backup::take(&sources.settings, sources.control.snapshot(), Timestamp(NOW - 60_000), None).await;
    taken.unwrap();
    // A machine tells its clock with its reports, which are tried elsewhere.
    let key = place.me.to_string();
    let server = sources.control.snapshot().get(&control::tables::SERVERS, &key).unwrap();
    let set = model::server::Server {
        boot_id: Some("a boot".to_owned()),
        clock_ahead_ms: Some(250),
        last_seen_at: Some(Timestamp(NOW - 3_000)),
        ..server.value.clone()
    };
    sources.control.store.commit(Transaction::new().replace(&control::tables::SERVERS, &server, set)).await.unwrap();

    let text = sources.write(Some(&cluster()));
    let listed: BTreeSet<&str> = families::ALL.iter().map(|family| family.name).collect();
    assert_eq!(names_in(&text), listed, "{text}");
    let one = format!("headnode=\"one\",server=\"{}\"", place.me);
    let node = format!("node=\"one\",server=\"{}\"", place.me);
    for line in [
        "neso_flows{kind=\"instance create\",state=\"parked\"} 1".to_owned(),
        "neso_flows{kind=\"image create\",state=\"running\"} 0".to_owned(),
        "neso_flow_oldest_age_seconds{kind=\"instance create\",state=\"parked\"} 90".to_owned(),
        "neso_loop_age_seconds{loop=\"idle\"} 1".to_owned(),
        "neso_loop_period_seconds{loop=\"idle\"} 60".to_owned(),
        format!("neso_headnode_sick{{{one}}} 1"),
        format!("neso_headnode_clock_offset_seconds{{{one}}} -1.5"),
        format!("neso_headnode_images_missing{{{one}}} 1"),
        format!("neso_headnode_behind_seconds{{{one}}} 3"),
        format!("neso_node_report_age_seconds{{{node}}} 3"),
        format!("neso_node_clock_offset_seconds{{{node}}} 0.25"),
        format!("neso_node_certificate_left_seconds{{{node}}} 5"),
        "neso_member_up{member=\"b\"} 0".to_owned(),
        "neso_member_alarms{member=\"a\"} 1".to_owned(),
        "neso_store_majority 1".to_owned(),
        "neso_instances{state=\"running\"} 0".to_owned(),
        "neso_backup_age_seconds 60".to_owned(),
        "neso_backup_overdue 0".to_owned(),
        "neso_dns_queries_total{transport=\"udp\"} 0".to_owned(),
    ] {
        assert!(text.lines().any(|told| told == line), "{line} is missing in\n{text}");
    }
    let authority =
        text.lines().find_map(|line| line.strip_prefix("neso_certificate_left_seconds{certificate=\"authority\"} "));
    let left: f64 = authority.expect("the authority's certificate").parse().unwrap();
    assert!(left > 365.0 * 86_400.0, "{left}");
}

#[tokio::test]
async fn a_text_is_made_once_for_all_who_ask_at_once() {
    let place = Place::new().await;
    let telemetry = Telemetry::new(place.sources.clone());
    let before = telemetry.text().await;
    place.clock.advance(Duration::from_secs(7));
    assert_eq!(telemetry.text().await, before);
    *telemetry.0.made.lock().await = None;
    assert_ne!(telemetry.text().await, before, "a new one tells of other ages");
}
