//! What the public API costs per request on one core, beside a handler that only verifies the same signature.
//!
//! Both run in this process without sockets, so that the ratio is about the work and not about the network. The store is
//! the memory engine.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::Request, response::IntoResponse as _};
use base::{
    clock::{Clock as _, SystemClock},
    shutdown::Shutdown,
};
use cloudapi::signature::{Head, Keys, PublicKey, verify};
use control::{
    Control, ControlConfig,
    accounts::{self, NewAccount},
    tables,
};
use headnode::cloudapi::{Options, router};
use http_body_util::BodyExt as _;
use model::{
    account::Profile,
    id::{AccountId, ImageId, InstanceId, MacAddr, NetworkId, PackageId, ServerId},
    instance::Instance,
    network::Nic,
    target::Limits,
    time::Timestamp,
    unit::{CpuShares, Mib},
};
use store::{Store, Transaction, memory::Memory};
use tower::ServiceExt as _;

use crate::{
    report::{Row, Section},
    standing::{self, Standing},
};

/// Records in the store.
const INSTANCES: u32 = 100_000;
/// Measured rounds of each kind, interleaved.
const ROUNDS: usize = 15;
/// How long a round lasts.
const ROUND: Duration = Duration::from_millis(400);

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    runtime.block_on(async {
        let signer = TestKey::new()?;
        let (control, _trigger, some) = filled(&signer).await?;
        let mut options = Options::new("bench", "https://bench");
        options.throttle = None;
        let api = router(control, options);
        let key = PublicKey::from_openssh(&signer.openssh).map_err(|error| error.to_string())?;
        let floor = verifier(Arc::new(key));
        let get = format!("/bench/machines/{some}");
        let list = "/bench/machines?limit=1000";
        let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for round in 0..=ROUNDS {
            for (name, service, path) in
                [("verify only", &floor, get.as_str()), ("GetMachine", &api, get.as_str()), ("ListMachines", &api, list)]
            {
                let rate = per_second(service, path, &signer).await?;
                // The first round warms up.
                if round > 0 {
                    rates.entry(name).or_default().push(rate);
                }
            }
        }
        let mut row = |name: &str| Row { name: name.to_owned(), unit: "/s", samples: Ok(rates.remove(name).unwrap_or_default()) };
        Ok(vec![Section {
            about: format!("Signed requests (Ed25519) per second on one core, {INSTANCES} instances in the memory store; ListMachines is its first page of 1,000. Rounds of {} ms, interleaved.", ROUND.as_millis()),
            rows: vec![row("verify only"), row("GetMachine"), row("ListMachines")],
        }])
    })
}

async fn per_second(service: &Router, path: &str, signer: &TestKey) -> Result<f64, String> {
    let request = || signer.request(path);
    let answer = service.clone().oneshot(request()).await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        return Err(format!("{path} answers {status}: {}", String::from_utf8_lossy(&body)));
    }
    let (began, mut count) = (Instant::now(), 0_u32);
    while began.elapsed() < ROUND {
        let answer = service.clone().oneshot(request()).await.map_err(|error| error.to_string())?;
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
        std::hint::black_box(body.to_bytes());
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

/// An Ed25519 key pair that signs dates once per second, as a client that reuses its signature would.
struct TestKey {
    openssh: String,
    authorization: String,
    date: String,
}

impl TestKey {
    fn new() -> Result<Self, String> {
        let (signer, public) = crate::datacenter::fresh_key()?;
        let now = SystemClock.now_ms() / 1000;
        let date = cloudapi::signature::http_date(now);
        let signature = futures_util::FutureExt::now_or_never(signer.sign(format!("date: {date}").as_bytes()))
            .ok_or("a key in memory signs at once")?
            .map_err(|error| error.to_string())?;
        let signature = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, signature);
        let authorization = format!(
            "Signature keyId=\"/bench/keys/{}\",algorithm=\"ed25519-sha512\",headers=\"date\",signature=\"{signature}\"",
            signer.fingerprint_md5
        );
        Ok(Self { openssh: public, authorization, date })
    }

    fn request(&self, path: &str) -> Request {
        http::Request::builder()
            .uri(path)
            .header("accept", "application/json")
            .header("accept-version", "~9||~8")
            .header("date", &self.date)
            .header("authorization", &self.authorization)
            .body(Body::empty())
            .expect("a request of constant parts is well formed")
    }
}

/// The floor: an axum handler that verifies the same signature and says nothing.
fn verifier(key: Arc<PublicKey>) -> Router {
    struct One(Arc<PublicKey>);
    impl Keys for One {
        type Holder = ();
        fn find(&self, _login: &str, _key: &str) -> Option<(Arc<PublicKey>, ())> {
            Some((self.0.clone(), ()))
        }
    }
    let handler = move |request: Request| {
        let keys = One(key.clone());
        async move {
            let (parts, _) = request.into_parts();
            let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
            let head = Head { method: &parts.method, target, version: parts.version, headers: &parts.headers };
            match verify(head, &keys, SystemClock.now_ms() / 1000) {
                Ok(_) => http::StatusCode::OK.into_response(),
                Err(_) => http::StatusCode::UNAUTHORIZED.into_response(),
            }
        }
    };
    Router::new().fallback(handler)
}

/// A control plane over the memory store with one account and many running instances.
async fn filled(key: &TestKey) -> Result<(Control, base::shutdown::Trigger, InstanceId), String> {
    let text = |error: &dyn std::error::Error| base::errors::chain(error);
    let store = Store::open(Arc::new(Memory::default()), control::schema()).await.map_err(|error| text(&error))?;
    let now = Timestamp(SystemClock.now_ms());
    let (trigger, shutdown) = Shutdown::new();
    let config = ControlConfig::new("bench", "/nonexistent");
    let control = Control::start(store, Arc::new(SystemClock), config, shutdown);
    let account = NewAccount {
        id: None,
        login: "bench".to_owned(),
        profile: Profile { email: "bench@example.com".to_owned(), ..Profile::default() },
        operator: false,
    };
    let owner = accounts::create(&control, account).await.map_err(|error| text(&error))?.id;
    accounts::keys::add(&control, owner, None, &key.openssh).await.map_err(|error| text(&error))?;
    let (image, package, server, network) =
        (ImageId::random(), PackageId::random(), ServerId::random(), NetworkId::random());
    let mut some = InstanceId::random();
    for chunk in (0..INSTANCES).collect::<Vec<_>>().chunks(50) {
        let mut transaction = Transaction::new();
        for &index in chunk {
            let instance = instance(index, owner, image, package, server, network, now);
            some = instance.id;
            transaction = transaction.create(&tables::INSTANCES, instance);
        }
        control.store.commit(transaction).await.map_err(|error| text(&error))?;
    }
    Ok((control, trigger, some))
}

fn nic(index: u32, network: NetworkId) -> Nic {
    Nic {
        mac: MacAddr::from_suffix(index),
        interface: "net0".to_owned(),
        network,
        ip: Some(Ipv4Addr::from(0x0a00_0000 | index)),
        ip6: None,
        more6: Vec::new(),
        primary: true,
    }
}

/// A running instance with one NIC whose Ethernet and other address end in `index`.
pub(crate) fn instance(
    index: u32,
    owner: AccountId,
    image: ImageId,
    package: PackageId,
    server: ServerId,
    network: NetworkId,
    now: Timestamp,
) -> Instance {
    let limits = Limits {
        memory: Mib(128),
        swap: Mib(256),
        disk: Mib(2048),
        max_processes: 500,
        cpu_cap: None,
        cpu_shares: CpuShares(100),
    };
    let of = Standing {
        alias: format!("machine-{index}"),
        owner,
        image,
        package,
        package_name: "g1-nano",
        limits,
        server,
        nic: nic(index, network),
    };
    standing::instance(of, now)
}
