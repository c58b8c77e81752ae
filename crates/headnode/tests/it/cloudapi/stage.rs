//! A datacenter with one machine whose reports are written by hand.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use axum::{Router, body::Body};
use base::{
    clock::ManualClock,
    shutdown::{Shutdown, Trigger},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use cloudapi::{client::Signer, signature::http_date};
use control::{Control, ControlConfig, accounts, images, networks, packages, servers};
use headnode::cloudapi::{Options, router};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use model::{
    account::Profile,
    id::ServerId,
    instance::Wanted,
    layout::Layout,
    server::Hardware,
    target::{Report, Target, ZoneFact, ZoneState},
    unit::{CpuShares, Mib},
};
use serde_json::{Value, json};
use store::{Store, memory::Memory};
use tower::ServiceExt as _;

/// Tue, 24 Nov 2026 15:06:00 GMT.
pub(super) const NOW_MS: i64 = 1_795_532_760_000;
pub(super) const IMAGE: &str = "6f1a0ad3-0f4a-4a63-9d3c-5d8b5f1f6a01";

pub(super) struct Stage {
    pub(super) control: Control,
    pub(super) clock: Arc<ManualClock>,
    /// What keeps the records; another headnode may use it too.
    pub(super) engine: Arc<Memory>,
    pub(super) router: Router,
    pub(super) external: String,
    pub(super) private: String,
    pub(super) server: ServerId,
    pub(super) ana: Signer,
    pub(super) bob: Signer,
    pub(super) ops: Signer,
    _images: tempfile::TempDir,
    _trigger: Trigger,
}

/// Who signs.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Who {
    Ana,
    Bob,
    Ops,
    /// Ana's key id over Bob's signature.
    Forger,
    Nobody,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.body))
    }

    #[track_caller]
    pub(super) fn code(&self) -> String {
        self.json()["code"].as_str().expect("an error body has a code").to_owned()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

pub(super) fn keys() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cloudapi/tests/it/keys")
}

fn signer(name: &str) -> Signer {
    Signer::from_file(&keys().join(name)).expect("test keys are readable")
}

impl Stage {
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let images_dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(NOW_MS));
        let engine = Arc::new(Memory::new());
        let store = Store::open(engine.clone(), control::schema()).await.unwrap();
        let (trigger, shutdown): (Trigger, Shutdown) = Shutdown::new();
        let mut config = ControlConfig::new("home-1", images_dir.path());
        config.placement.headnode_takes_instances = true;
        let control = Control::start(store, clock.clone(), config, shutdown.clone());
        let flows = control::flows::register(flow::Engine::new(control.store.clone(), clock.clone(), control.clone()));
        base::task::spawn("flows", flows.run(shutdown));
        for (login, key, operator) in
            [("ana", "ed25519-256", false), ("bob", "ecdsa-256", false), ("ops", "rsa-2048", true)]
        {
            let profile = Profile { email: format!("{login}@example.com"), ..Profile::default() };
            let new =
                accounts::NewAccount { login: login.into(), profile, operator, ..accounts::NewAccount::default() };
            let account = accounts::create(&control, new).await.unwrap();
            let text = std::fs::read_to_string(keys().join(format!("{key}.pub"))).unwrap();
            accounts::keys::add(&control, account.id, Some("laptop".into()), &text).await.unwrap();
        }
        let server = ServerId::random();
        let new = servers::NewServer { hostname: "one".into(), headnode: true, comments: String::new() };
        servers::register(&control, server, new).await.unwrap();
        let mut options = Options::new("home-1", "https://here:8443");
        options.throttle = None;
        change(&mut options);
        let mut stage = Self {
            router: router(control.clone(), options),
            control,
            clock,
            engine,
            external: String::new(),
            private: String::new(),
            server,
            ana: signer("ed25519-256"),
            bob: signer("ecdsa-256"),
            ops: signer("rsa-2048"),
            _images: images_dir,
            _trigger: trigger,
        };
        stage.furnish().await;
        stage
    }

    async fn furnish(&mut self) {
        self.report(BTreeMap::new()).await;
        for (name, memory) in [("small", 128), ("large", 256)] {
            let new = packages::NewPackage {
                id: None,
                name: name.into(),
                version: "1.0.0".into(),
                group: Some("test".into()),
                description: None,
                memory: Mib(memory),
                swap: None,
                disk: Mib(1_024),
                max_processes: 500,
                vcpus: 0,
                cpu_cap: None,
                cpu_shares: CpuShares(100),
                traits: std::collections::BTreeMap::new(),
                brand: None,
            };
            packages::create(&self.control, new).await.unwrap();
        }
        self.external = self.network("external", "10.88.0.0/24", true).await;
        self.private = self.network("private", "10.89.0.0/24", false).await;
        self.image().await;
    }

    async fn network(&self, name: &str, subnet: &str, public: bool) -> String {
        let new = networks::NewNetwork {
            name: name.into(),
            public,
            nic_tag: if public { "ext".into() } else { "priv".into() },
            host_gateway: public,
            layout: Layout {
                subnet: Some(subnet.parse().unwrap()),
                gateway: public.then(|| "10.88.0.1".parse().unwrap()),
                ..Layout::default()
            },
            ..networks::NewNetwork::default()
        };
        networks::create(&self.control, new).await.unwrap().id.to_string()
    }

    async fn image(&self) {
        let owner = accounts::by_login(&self.control, "ops").unwrap().id;
        // SHA-1 and SHA-256 of the five bytes "image".
        let manifest = json!({
            "v": 2, "uuid": IMAGE, "owner": owner.to_string(), "name": "tiny", "version": "1", "os": "linux",
            "type": "lx-dataset", "public": true, "description": "for tests",
            "files": [{
                "sha1": "0e76292794888d4f1fa75fb3aff4ca27c58f56a6",
                "size": 5, "compression": "none",
            }],
        });
        let manifest = model::image::manifest::parse(manifest.to_string().as_bytes()).unwrap();
        let image = images::create(&self.control, owner, manifest).await.unwrap();
        let content = futures_util::stream::iter([Ok(Bytes::from_static(b"image"))]);
        images::add_file(&self.control, image.id, content).await.unwrap();
    }

    /// One report of the machine.
    async fn report(&self, zones: BTreeMap<model::id::InstanceId, ZoneFact>) {
        let target = servers::target_for(&self.control.config, &self.control.snapshot(), self.server);
        let generation = target.map_or(0, |target| target.generation);
        let report = Report {
            target_seen: generation,
            firewall_seen: generation,
            hardware: Hardware { memory: Mib(65_536), cpus: 8, pool_size: Mib(1 << 20), ..Hardware::default() },
            zones: zones.into_iter().map(|(id, fact)| (id, fact.into())).collect(),
            ..Report::bare(self.server, "one")
        };
        servers::apply_report(&self.control, self.server, &report).await.unwrap();
    }

    /// What the machine is told.
    pub(super) fn document(&self) -> Target {
        servers::target_for(&self.control.config, &self.control.snapshot(), self.server).expect("it is known")
    }

    /// The machine does at once all it is told.
    pub(super) async fn converge(&self) {
        let target = self.document();
        let fact = |zone: &model::target::ZoneTarget| ZoneFact {
            state: match zone.wanted {
                Wanted::Running => ZoneState::Running,
                Wanted::Stopped => ZoneState::Stopped,
                Wanted::Absent => ZoneState::Absent,
            },
            starts_done: zone.starts,
            reboots_done: zone.reboots,
            started_at: None,
            exit: None,
            error: None,
            timeline: Vec::new(),
            limits: Some(zone.limits.clone()),
            nics: zone.nics.iter().map(|nic| nic.mac).collect(),
            addresses6: zone.nics.iter().filter_map(model::target::NicTarget::held6).collect(),
            gave_up: false,
            oom_kills: 0,
            guest_metadata: Vec::new(),
        };
        self.report(target.zones.iter().map(|(id, zone)| (*id, fact(zone))).collect()).await;
    }

    /// Waits until something is so.
    pub(super) async fn until(&self, so: impl AsyncFn() -> bool) {
        let mut changes = self.control.store.changes();
        let waiting = async {
            while !so().await {
                changes.next().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await.expect("it comes to be so");
    }

    /// A request with a JSON body.
    pub(super) async fn ask(&self, who: Who, method: Method, target: &str, body: Value) -> Answer {
        let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        self.send(who, method, target, &[("content-type", "application/json")], bytes).await
    }

    pub(super) async fn get(&self, who: Who, target: &str) -> Answer {
        self.ask(who, Method::GET, target, Value::Null).await
    }

    pub(super) async fn send(
        &self,
        who: Who,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        use base::clock::Clock as _;
        let date = http_date(self.clock.now_ms() / 1_000);
        let mut request = Request::builder().method(method.clone()).uri(target).header("date", &date);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let signed = match who {
            Who::Ana => Some(("ana", &self.ana, &self.ana)),
            Who::Bob => Some(("bob", &self.bob, &self.bob)),
            Who::Ops => Some(("ops", &self.ops, &self.ops)),
            Who::Forger => Some(("ana", &self.ana, &self.bob)),
            Who::Nobody => None,
        };
        if let Some((login, named, signer)) = signed {
            let message = format!("(request-target): {} {target}\ndate: {date}", method.as_str().to_lowercase());
            let signature = BASE64.encode(signer.sign(message.as_bytes()).await.unwrap());
            let authorization = format!(
                r#"Signature keyId="/{login}/keys/{}",algorithm="{}",headers="(request-target) date",signature="{signature}""#,
                named.fingerprint_md5,
                signer.algorithm(),
            );
            request = request.header("authorization", authorization);
        }
        let response = self.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    /// An instance of Ana's that runs; its id.
    pub(super) async fn running(&self, name: &str) -> String {
        let body = json!({"name": name, "package": "small", "image": IMAGE});
        let made = self.ask(Who::Ana, Method::POST, "/ana/machines", body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
        self.converge().await;
        made.json()["id"].as_str().unwrap().to_owned()
    }
}
