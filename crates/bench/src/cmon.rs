//! The container monitor: what it costs to watch a machine full of instances, and how large and how slow a list of many is.
//!
//! The first part is a real datacenter with real zones, watched by Debian's Prometheus through TLS with a tenant's certificate, as tenants do;
//! latencies are those Prometheus measures itself, CPU time is the kernel's count for our two processes. Names lead to the loopback address by
//! a hosts file that only this Prometheus sees. The second part asks the monitor's routes in this process, over records.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use control::accounts;
use headnode::{
    cmon::{self, Monitor, issue::Draft},
    inquiries::Inquiries,
    listen::Shown,
    meters::Meters,
};
use http::Request;
use http_body_util::BodyExt as _;
use model::id::AccountId;
use serde_json::Value;
use tower::ServiceExt as _;

use crate::{
    datacenter::{Datacenter, fresh_key, now_ms},
    fleet::number,
    names::Place,
    report::{Row, Section},
};

/// Instances on the machine, unless `NESO_BENCH_INSTANCES` says otherwise.
const INSTANCES: usize = 300;
/// Made at once.
const AT_ONCE: usize = 8;
/// Instances in the list.
const LISTED: usize = 10_000;
/// How often the list is asked for.
const LISTS: usize = 50;
/// How long each state is watched.
const WINDOW: Duration = Duration::from_secs(60);
/// Prometheus gets this long to find everything.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    let count = number("NESO_BENCH_INSTANCES", INSTANCES)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start a runtime: {error}"))?;
    let mut sections = runtime.block_on(async { base::task::spawn("list", list()).await.map_err(text)? })?;
    sections.extend(runtime.block_on(async { base::task::spawn("watch", watch(count)).await.map_err(text)? })?);
    Ok(sections)
}

/// A list of many instances.
async fn list() -> Result<Vec<Section>, String> {
    let place = Place::filled(LISTED, 1).await?;
    let (id, login) = place.logins.first_key_value().ok_or("there is no account")?;
    let shown = certificate(&place, *id, login).await?;
    let meters = Meters::new(Inquiries::default());
    let monitor = Monitor::new(place.control.clone(), meters, shown.clone().into(), None);
    let router = cmon::router(monitor);
    let (plain, packed, mut lengths) = (true, false, Vec::new());
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..LISTS {
        for (at, plain) in [plain, packed].into_iter().enumerate() {
            let begun = Instant::now();
            let length = ask(&router, &shown, plain).await?;
            times[at].push(begun.elapsed().as_secs_f64() * 1_000.0);
            lengths.push(length);
        }
    }
    let [plain, packed] = times;
    #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
    let mib = |at: usize| lengths[at] as f64 / 1_048_576.0;
    Ok(vec![
        Section {
            about: format!("Discovery of {LISTED} instances of one account: the answer's making, in process."),
            rows: vec![
                Row { name: "as it is".to_owned(), unit: "ms", samples: Ok(plain) },
                Row { name: "compressed, as Prometheus asks for it".to_owned(), unit: "ms", samples: Ok(packed) },
            ],
        },
        Section {
            about: "The same answer's size.".to_owned(),
            rows: vec![Row::one("as it is", "MiB", mib(0)), Row::one("compressed", "MiB", mib(1))],
        },
    ])
}

async fn ask(router: &Router, shown: &[u8], plain: bool) -> Result<usize, String> {
    let mut request = Request::builder().uri("/v1/discover").header("host", "cmon.bench.example");
    if !plain {
        request = request.header("accept-encoding", "gzip");
    }
    let request = request.extension(Shown(Arc::from(shown))).body(Body::empty()).map_err(text)?;
    let response = router.clone().oneshot(request).await.map_err(text)?;
    if !response.status().is_success() {
        return Err(format!("the list is refused with {}", response.status()));
    }
    Ok(response.into_body().collect().await.map_err(text)?.to_bytes().len())
}

async fn certificate(place: &Place, account: AccountId, login: &str) -> Result<Vec<u8>, String> {
    let (signer, public) = fresh_key()?;
    accounts::keys::add(&place.control, account, None, &public).await.map_err(text)?;
    #[expect(clippy::cast_possible_truncation, reason = "seconds since 1970")]
    let draft = Draft::new(login, &signer.fingerprint_md5, (now_ms() / 1_000.0) as i64, 1).map_err(text)?;
    let to_sign = draft.to_be_signed(signer.algorithm()).map_err(text)?;
    let signature = signer.sign(&to_sign).await.map_err(text)?;
    let issued = draft.signed(signer.algorithm(), signature).map_err(text)?;
    Ok(issued.der)
}

/// A machine full of instances, watched by Prometheus every 15 s.
async fn watch(count: usize) -> Result<Vec<Section>, String> {
    if Command::new("prometheus").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return Ok(vec![Section {
            about: format!("A machine with {count} instances watched by Prometheus."),
            rows: vec![Row {
                name: "one scrape".to_owned(),
                unit: "ms",
                samples: Err("Debian's package prometheus is not installed".to_owned()),
            }],
        }]);
    }
    let datacenter = Datacenter::start("cmon").await?;
    let mut names = Vec::new();
    for _ in 0..count.div_ceil(AT_ONCE) {
        let made = futures_util::future::try_join_all((0..AT_ONCE).map(|_| datacenter.create())).await?;
        names.extend(made.into_iter().map(|one| one.id.to_string()));
    }
    let pids = [datacenter.pid("headnode")?, datacenter.pid("node")?];
    let rest = shares(pids).await?;
    let prometheus = Prometheus::start(&datacenter, &names)?;
    let begun = Instant::now();
    while prometheus.values("up == 1")?.len() < names.len() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("Prometheus watches {} of {}", prometheus.values("up == 1")?.len(), names.len()));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let watched = shares(pids).await?;
    let latencies = prometheus.values("scrape_duration_seconds * 1000")?;
    let sizes = prometheus.values("scrape_samples_scraped")?;
    drop(prometheus);
    Ok(vec![
        Section {
            about: format!(
                "A machine with {} running instances, each scraped every 15 s by Debian's Prometheus over TLS with a tenant's certificate, for {} s. Percent of one CPU.",
                names.len(),
                WINDOW.as_secs()
            ),
            rows: vec![
                Row::one("node, at rest", "%", rest[1]),
                Row::one("node, watched", "%", watched[1]),
                Row::one("headnode, at rest", "%", rest[0]),
                Row::one("headnode, watched", "%", watched[0]),
            ],
        },
        Section {
            about: "One scrape, as Prometheus measures it, connection and all.".to_owned(),
            rows: vec![Row { name: "one instance".to_owned(), unit: "ms", samples: Ok(latencies) }],
        },
        Section {
            about: "Numbers in one scrape.".to_owned(),
            rows: vec![Row { name: "one instance".to_owned(), unit: "samples", samples: Ok(sizes) }],
        },
    ])
}

/// Share of one CPU that each process used in the next [`WINDOW`], percent.
async fn shares(pids: [u32; 2]) -> Result<[f64; 2], String> {
    let before = [cpu_s(pids[0])?, cpu_s(pids[1])?];
    let begun = Instant::now();
    tokio::time::sleep(WINDOW).await;
    let seconds = begun.elapsed().as_secs_f64();
    let share = |at: usize| Ok::<_, String>((cpu_s(pids[at])? - before[at]) / seconds * 100.0);
    Ok([share(0)?, share(1)?])
}

/// CPU time of a process and of the children it has waited for, seconds.
fn cpu_s(pid: u32) -> Result<f64, String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(text)?;
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().skip(11).take(4).filter_map(|field| field.parse().ok()).collect())
        .unwrap_or_default();
    if fields.len() < 4 {
        Err(format!("/proc/{pid}/stat is not what it was"))
    } else {
        Ok(fields.iter().sum::<f64>() / 100.0)
    }
}

/// Debian's Prometheus with the configuration that `neso instance cert` writes.
struct Prometheus {
    child: Child,
    address: String,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn start(datacenter: &Datacenter, names: &[String]) -> Result<Self, String> {
        let directory = datacenter.scratch().join("watching");
        let path = |path: &Path| path.display().to_string();
        datacenter.as_tenant(&["instance", "cert", "--directory", &path(&directory)])?;
        let host = datacenter.settings.monitor_names().into_iter().next().ok_or("the monitor has no name")?;
        let hosts: String = names.iter().map(|name| format!("127.0.0.1 {name}.{host}\n")).collect();
        let hosts_file = directory.join("hosts");
        fs::write(&hosts_file, format!("127.0.0.1 localhost {host}\n{hosts}")).map_err(text)?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(text)?;
        let address = listener.local_addr().map_err(text)?.to_string();
        drop(listener);
        let configuration = directory.join(format!("cmon-{}-prometheus.yml", datacenter.settings.first_run.tenant));
        let script = "mount --bind \"$1\" /etc/hosts && shift && exec prometheus \"$@\"";
        let child = Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh"])
            .arg(&hosts_file)
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("log")).map_err(text)?)
            .spawn()
            .map_err(text)?;
        Ok(Self { child, address })
    }

    /// The numbers a query finds; none while Prometheus does not answer.
    fn values(&self, query: &str) -> Result<Vec<f64>, String> {
        let url = format!("http://{}/api/v1/query", self.address);
        let output =
            Command::new("curl").args(["-s", "-G", &url, "--data-urlencode", &format!("query={query}")]).output();
        let answer: Value = serde_json::from_slice(&output.map_err(text)?.stdout).unwrap_or_default();
        let found = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        Ok(found.iter().filter_map(|one| one["value"][1].as_str()?.parse().ok()).collect())
    }
}

fn text(error: impl std::error::Error) -> String {
    base::errors::chain(&error)
}
