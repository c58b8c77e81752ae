//! The container monitor over the real control plane, asked with certificates of all kinds: who is let in, and what each sees.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cloudapi::{client::Signer, types::monitor::Containers};
use control::accounts;
use headnode::{
    cmon::{self, Monitor, certificate::PURPOSE, issue::Draft},
    inquiries::Inquiries,
    listen::Shown,
    meters::Meters,
    pki::{self, Role},
};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use model::{
    id::InstanceId,
    meters::{InstanceMeters, NodeMeters, ZoneMeters},
};
use nodeapi::inquiry::Answer as NodeAnswer;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::stage::{Stage, Who};

const DAY_MS: i64 = 86_400_000;
const SELF: &str = "cmon.home-1.example:9163";

/// A monitor beside CloudAPI, and the datacenter's authority.
struct Site {
    stage: Stage,
    router: Router,
    monitor: Monitor,
    authority: Issuer<'static, KeyPair>,
    machine: tokio::task::JoinHandle<()>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.machine.abort();
    }
}

/// What an answer was.
struct Heard {
    status: u16,
    body: String,
    headers: http::HeaderMap,
}

/// A machine that answers with the meters of every instance it has ever been given.
async fn machine(control: control::Control, inquiries: Inquiries, server: model::id::ServerId) {
    loop {
        let inquiry = inquiries.next(server).await;
        let zone = ZoneMeters { cpu_user_ns: 7, memory_bytes: 4_096, ..ZoneMeters::default() };
        let one = InstanceMeters { zone: Some(zone), ..InstanceMeters::default() };
        let snapshot = control.snapshot();
        let known = snapshot.scan(&control::tables::INSTANCES).map(|instance| (instance.id, one.clone()));
        let instances: BTreeMap<InstanceId, InstanceMeters> = known.collect();
        let meters = NodeMeters { at: control.now(), instances, ..NodeMeters::default() };
        inquiries.answered(server, inquiry.id, NodeAnswer::Meters(Box::new(meters)));
    }
}

impl Site {
    async fn new() -> Self {
        let stage = Stage::new().await;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        let inquiries = Inquiries::default();
        let monitor = Monitor::new(
            stage.control.clone(),
            Meters::new(inquiries.clone()),
            CertificateDer::from(certificate),
            None,
        );
        let machine = base::task::spawn("machine", machine(stage.control.clone(), inquiries, stage.server));
        Self { router: cmon::router(monitor.clone()), monitor, authority: Issuer::new(params, key), stage, machine }
    }

    fn now_s(&self) -> i64 {
        self.stage.control.now().0 / 1_000
    }

    /// A certificate as the triton command makes it: of `login`, by the word of `named`, signed by `signer`. Good for a day.
    async fn issue(&self, login: &str, named: &Signer, signer: &Signer) -> Vec<u8> {
        let draft = Draft::new(login, &named.fingerprint_md5, self.now_s(), 1).unwrap();
        let signature = signer.sign(&draft.to_be_signed(signer.algorithm()).unwrap()).await.unwrap();
        draft.signed(signer.algorithm(), signature).unwrap().der
    }

    async fn ask_as(&self, shown: Option<&[u8]>, host: &str, path: &str) -> Heard {
        let mut request = Request::builder().method(Method::GET).uri(path).header("host", host);
        if let Some(shown) = shown {
            request = request.extension(Shown(Arc::from(shown)));
        }
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Heard { status: parts.status.as_u16(), body, headers: parts.headers }
    }

    async fn is_let_in(&self, shown: &[u8]) -> bool {
        let heard = self.ask_as(Some(shown), SELF, "/v1/discover").await;
        assert!([200, 401].contains(&heard.status), "{} {}", heard.status, heard.body);
        if heard.status == 401 {
            assert!(heard.body.contains("\"code\":\"Unauthorized\""), "{}", heard.body);
        }
        assert_eq!(self.monitor.knows(shown), heard.status == 200, "who is no stranger to the listener");
        heard.status == 200
    }

    async fn names(&self, shown: &[u8], path: &str) -> Vec<String> {
        let heard = self.ask_as(Some(shown), SELF, path).await;
        assert_eq!(heard.status, 200, "{}", heard.body);
        let listed: Containers<'_> = serde_json::from_str(&heard.body).unwrap();
        let mut names: Vec<String> = listed.containers.iter().map(|one| one.vm_alias.to_string()).collect();
        names.sort();
        names
    }

    async fn tag(&self, id: &str, groups: &str) -> u16 {
        let body = json!({"triton.cmon.groups": groups});
        self.stage.ask(Who::Ana, Method::POST, &format!("/ana/machines/{id}/tags"), body).await.status.as_u16()
    }
}

/// A key of P-256 as OpenSSH writes it.
fn openssh(key: &KeyPair) -> String {
    let mut blob = Vec::new();
    for part in [b"ecdsa-sha2-nistp256".as_slice(), b"nistp256", key.der_bytes()] {
        blob.extend_from_slice(&u32::try_from(part.len()).unwrap().to_be_bytes());
        blob.extend_from_slice(part);
    }
    format!("ecdsa-sha2-nistp256 {}", BASE64.encode(blob))
}

/// A certificate that any tool makes of a key for itself, long ended.
fn old_style(login: &str, key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, login);
    params.not_before = rcgen::date_time_ymd(2015, 1, 1);
    params.not_after = rcgen::date_time_ymd(2016, 1, 1);
    params.self_signed(key).unwrap().der().to_vec()
}

#[tokio::test]
async fn the_accounts_key_must_have_signed_and_the_certificate_be_alive() {
    let site = Site::new().await;
    let Stage { ana, bob, ops, .. } = &site.stage;
    for (login, signer) in [("ana", ana), ("bob", bob), ("ops", ops)] {
        let good = site.issue(login, signer, signer).await;
        assert!(site.is_let_in(&good).await, "{login} with {}", signer.algorithm());
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert!(!site.is_let_in(&forged).await, "{login}, a bit of the signature turned");
    }
    assert_eq!(site.ask_as(None, SELF, "/v1/discover").await.status, 401);
    assert!(!site.is_let_in(b"nonsense").await);
    assert!(!site.is_let_in(&site.issue("ana", bob, bob).await).await, "of another account's key");
    assert!(!site.is_let_in(&site.issue("ana", ana, bob).await).await, "a key is named that did not sign");
    assert!(!site.is_let_in(&site.issue("nosuch", ana, ana).await).await);

    // For nothing else than what it says: a certificate made by a key of the account for something else is not taken.
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "ana");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut issuer = CertificateParams::default();
    let (by, own) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let account = accounts::by_login(&site.stage.control, "ana").unwrap().id;
    let added = accounts::keys::add(&site.stage.control, account, None, &openssh(&by)).await.unwrap();
    issuer.distinguished_name.push(DnType::CommonName, format!("MD5:{}", added.fingerprint_md5));
    let made =
        |params: &CertificateParams| params.signed_by(&own, &Issuer::from_params(&issuer, &by)).unwrap().der().to_vec();
    assert!(!site.is_let_in(&made(&params)).await, "without the purpose");
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::Other(PURPOSE.to_vec()));
    assert!(site.is_let_in(&made(&params)).await, "with it");

    // A key that is taken away opens nothing, also for who was let in before.
    let (good, other) = (site.issue("ana", ana, ana).await, site.issue("bob", bob, bob).await);
    assert!(site.is_let_in(&good).await && site.is_let_in(&other).await);
    accounts::keys::remove(&site.stage.control, account, &ana.fingerprint_md5).await.unwrap();
    assert!(!site.is_let_in(&good).await && site.is_let_in(&other).await);
    let bobs = accounts::by_login(&site.stage.control, "bob").unwrap().id;
    accounts::set_disabled(&site.stage.control, bobs, true).await.unwrap();
    assert!(!site.is_let_in(&other).await, "a disabled account");

    let last = site.issue("ops", ops, ops).await;
    assert!(site.is_let_in(&last).await);
    site.stage.clock.advance(Duration::from_millis(u64::try_from(DAY_MS).unwrap()));
    assert!(!site.is_let_in(&last).await, "it has ended");
}

#[tokio::test]
async fn an_old_certificate_counts_for_its_key_and_not_for_its_end() {
    let site = Site::new().await;
    let key = KeyPair::generate().unwrap();
    let shown = old_style("bob", &key);
    assert!(!site.is_let_in(&shown).await, "the account does not have the key");
    let bob = accounts::by_login(&site.stage.control, "bob").unwrap().id;
    accounts::keys::add(&site.stage.control, bob, None, &openssh(&key)).await.unwrap();
    assert!(site.is_let_in(&shown).await);
    assert!(!site.is_let_in(&old_style("ana", &key)).await, "another account has not");
}

#[tokio::test]
async fn each_account_sees_its_own_instances_and_no_others() {
    let site = Site::new().await;
    let Stage { ana, bob, ops, .. } = &site.stage;
    let (ana, bob, ops) =
        (site.issue("ana", ana, ana).await, site.issue("bob", bob, bob).await, site.issue("ops", ops, ops).await);
    let (web, db) = (site.stage.running("web").await, site.stage.running("db").await);
    site.stage.running("spare").await;
    assert_eq!((site.tag(&web, "front,all").await, site.tag(&db, "back,all").await), (200, 200));
    assert_eq!(site.tag(&db, "back,,all").await, 409, "no list");

    assert_eq!(site.names(&ana, "/v1/discover").await, ["db", "spare", "web"]);
    assert_eq!(site.names(&ana, "/v1/discover?groups=front").await, ["web"]);
    assert_eq!(site.names(&ana, "/v1/discover?groups=front,back,other").await, ["db", "web"]);
    assert!(site.names(&bob, "/v1/discover").await.is_empty());
    for (query, status) in [("groups=a%20b", 400), ("groups=", 400), ("groups=a&groups=b", 400), ("other=1", 200)] {
        assert_eq!(site.ask_as(Some(&ana), SELF, &format!("/v1/discover?{query}")).await.status, status, "{query}");
    }
    let told = site.ask_as(Some(&ana), SELF, "/v1/discover?groups=front").await;
    let told: Value = serde_json::from_str(&told.body).unwrap();
    let one = &told["containers"][0];
    assert_eq!((&one["vm_uuid"], &one["groups"]), (&json!(web), &json!(["front", "all"])));
    assert_eq!(one["server_uuid"], json!(site.stage.server.to_string()));

    let host = format!("{web}.cmon.home-1.example:9163");
    let own = site.ask_as(Some(&ana), &host, "/metrics").await;
    assert_eq!(own.status, 200, "{}", own.body);
    assert!(own.body.contains("\ncpu_user_usage 7\n") && own.body.contains("\nmem_agg_usage 4096\n"), "{}", own.body);
    assert_eq!(own.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    for (who, name) in [(&bob, "bob"), (&ops, "an operator")] {
        assert_eq!(site.ask_as(Some(who), &host, "/metrics").await.status, 404, "{name}");
    }
    assert_eq!(site.ask_as(None, &host, "/metrics").await.status, 401);
    assert_eq!(site.ask_as(None, &host, "/_ping").await.body, "OK");

    // One that does not run is not there.
    let body = json!({"action": "stop"});
    let stopped = site.stage.ask(Who::Ana, Method::POST, &format!("/ana/machines/{web}"), body).await;
    assert_eq!(stopped.status, StatusCode::ACCEPTED);
    site.stage.converge().await;
    assert_eq!(site.ask_as(Some(&ana), &host, "/metrics").await.status, 404);
    assert_eq!(site.names(&ana, "/v1/discover").await, ["db", "spare"]);
    for host in ["www.example.com", "home-1.example", ""] {
        assert_eq!(site.ask_as(Some(&ana), host, "/v1/discover").await.status, 404, "{host}");
    }
}

#[tokio::test]
async fn machines_are_for_operators() {
    let site = Site::new().await;
    let Stage { ana, ops, server, .. } = &site.stage;
    let (tenant, operator) = (site.issue("ana", ana, ana).await, site.issue("ops", ops, ops).await);
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.distinguished_name.push(DnType::OrganizationalUnitName, Role::Operator.unit());
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    let own = KeyPair::generate().unwrap();
    let by_authority = params.signed_by(&own, &site.authority).unwrap().der().to_vec();
    let mut watching = params.clone();
    watching.distinguished_name.push(DnType::OrganizationalUnitName, Role::Watcher.unit());
    let watching = watching.signed_by(&own, &site.authority).unwrap().der().to_vec();
    let by_itself = params.self_signed(&own).unwrap().der().to_vec();
    assert!(pki::Peer::of(&CertificateDer::from(by_itself.clone())).is_some(), "it says it is an operator");
    let web = site.stage.running("web").await;
    let host = format!("{server}.cmon.home-1.example");
    for (who, machines, one, all, headnode) in [
        (&tenant, 403, 404, 404, 404),
        (&operator, 200, 200, 200, 200),
        (&by_authority, 200, 200, 200, 200),
        (&watching, 200, 200, 200, 200),
        (&by_itself, 401, 401, 401, 401),
    ] {
        let asked = async |host: &str, path: &str| site.ask_as(Some(who), host, path).await.status;
        let heard = (
            asked(SELF, "/v1/gz/discover").await,
            asked(&host, "/metrics").await,
            asked(&host, "/metrics/instances").await,
            asked("10.0.0.1:9163", "/metrics").await,
        );
        assert_eq!(heard, (machines, one, all, headnode));
    }
    let listed = site.ask_as(Some(&operator), SELF, "/v1/gz/discover").await.body;
    assert_eq!(listed, format!("{{\"cns\":[{{\"server_uuid\":\"{server}\",\"server_hostname\":\"one\"}}]}}"));
    let all = site.ask_as(Some(&operator), &host, "/metrics/instances").await.body;
    assert!(all.contains(&format!("cpu_user_usage{{vm_uuid=\"{web}\",vm_alias=\"web\",vm_owner_uuid=\"")), "{all}");
    let counted = site.ask_as(Some(&operator), SELF, "/metrics").await.body;
    for line in
        ["neso_monitor_refusals_total{why=\"stranger\"} 4", "neso_monitor_refusals_total{why=\"not operator\"} 1"]
    {
        assert!(counted.lines().any(|told| told == line), "{line} is missing in\n{counted}");
    }
    // Machines' certificates of the same authority open nothing.
    let mut node = CertificateParams::default();
    node.distinguished_name.push(DnType::CommonName, server.to_string());
    node.distinguished_name.push(DnType::OrganizationalUnitName, Role::Node.unit());
    node.not_after = rcgen::date_time_ymd(2030, 1, 1);
    let node = node.signed_by(&own, &site.authority).unwrap().der().to_vec();
    assert!(!site.is_let_in(&node).await);
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_again() {
    let site = Site::new().await;
    let Stage { ana, bob, .. } = &site.stage;
    let (ana, bob) = (site.issue("ana", ana, ana).await, site.issue("bob", bob, bob).await);
    for _ in 0..cmon::RATE.burst {
        assert_eq!(site.ask_as(Some(&ana), SELF, "/v1/discover").await.status, 200);
    }
    let refused = site.ask_as(Some(&ana), SELF, "/v1/discover").await;
    assert_eq!((refused.status, refused.headers["retry-after"].to_str().unwrap()), (429, "1"));
    assert_eq!(site.ask_as(Some(&bob), SELF, "/v1/discover").await.status, 200, "another account");
    site.stage.clock.advance(Duration::from_secs(1));
    assert_eq!(site.ask_as(Some(&ana), SELF, "/v1/discover").await.status, 200);
}
