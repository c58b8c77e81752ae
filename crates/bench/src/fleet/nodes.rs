//! The agents: the real ones, over machines in memory, each with a certificate, a directory and a connection of its own.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base::{
    clock::{Clock as _, SystemClock},
    shutdown::Shutdown,
};
use headnode::{Settings, pki};
use host::fake::FakeMachine;
use model::{
    delta::{Held, ReportNews, TargetNews},
    id::{InquiryId, ServerId},
    server::MachineIdentity,
    time::Timestamp,
};
use node::{Agent, AgentConfig, Execution};
use nodeapi::{
    ReportAnswer,
    client::{Client, Settings as LinkSettings},
    inquiry::{Answer, Inquiry},
    link::{BoxFuture, Chunks, HeadnodeLink, LinkError},
};

/// How often it says who has reported when.
const WORD: Duration = Duration::from_millis(50);

/// The process: `fleet-nodes ROOT`. Ends with its input.
pub(crate) fn child(arguments: &[String]) -> Result<(), String> {
    let [root] = arguments else { return Err("the agents need the datacenter's directory".to_owned()) };
    let root = PathBuf::from(root);
    let settings = Settings::load(&root.join("etc/neso/neso.toml")).map_err(|error| error.to_string())?;
    let listed = fs::read_to_string(root.join("servers")).map_err(|error| format!("cannot read servers: {error}"))?;
    let servers: Vec<ServerId> = listed.lines().filter_map(|line| line.parse().ok()).collect();
    let links = fs::read_to_string(root.join("links")).map_err(|error| format!("cannot read links: {error}"))?;
    let links: Vec<String> = links.lines().map(str::to_owned).collect();
    // In memory: the disks of a thousand machines are not one disk.
    let disks = PathBuf::from(format!("/dev/shm/neso-bench-fleet-{}", std::process::id()));
    let result = crate::runtime()?.block_on(run(&settings, &servers, &links, &disks));
    let _ = fs::remove_dir_all(&disks);
    result
}

async fn run(settings: &Settings, servers: &[ServerId], links: &[String], disks: &Path) -> Result<(), String> {
    let authority = fs::read_to_string(settings.pki_dir().join("ca.pem")).map_err(|error| error.to_string())?;
    let (trigger, shutdown) = Shutdown::new();
    let mut last: Vec<Arc<Reports>> = Vec::new();
    let told: Arc<Mutex<Vec<Told>>> = Arc::default();
    for (number, server) in servers.iter().enumerate() {
        let reports: Arc<Reports> = Arc::default();
        // Each begins at another headnode, so that all have their share.
        let mut own = links.to_vec();
        own.rotate_left(number % links.len().max(1));
        let inner = Client::new(&identity(settings, *server, &authority, own)?).map_err(|error| error.to_string())?;
        let link = Counted { inner, number, reports: reports.clone(), told: told.clone() };
        let directory = disks.join(number.to_string());
        let config = AgentConfig {
            execution: Execution::Inline,
            ..AgentConfig::new(*server, directory.join("data"), directory.join("control"))
        };
        let machine = FakeMachine::new();
        machine.set_hostname(&format!("node{number}"));
        let agent = Agent::new(machine.host(), Arc::new(link), config, Arc::new(SystemClock));
        base::task::spawn("agent", agent.run(shutdown.clone()));
        last.push(reports);
    }
    let ended = base::task::spawn(
        "end",
        base::task::blocking("input", || {
            let mut rest = Vec::new();
            let _ = std::io::stdin().read_to_end(&mut rest);
        }),
    );
    while !ended.is_finished() {
        let times = last.iter().map(|reports| reports.at_ms.load(Ordering::Relaxed));
        let oldest = times.min().unwrap_or(0);
        let count: u64 = last.iter().map(|reports| reports.count.load(Ordering::Relaxed)).sum();
        let told = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
        let told: String =
            told.iter().map(|told| format!("{} {} {}\n", told.machine, told.generation, told.at_ms)).collect();
        let mut output = std::io::stdout().lock();
        if writeln!(output, "{told}{oldest} {count}").and_then(|()| output.flush()).is_err() {
            break;
        }
        drop(output);
        tokio::time::sleep(WORD).await;
    }
    trigger.fire();
    Ok(())
}

/// Who a machine is, with a certificate made as a headnode makes it when a machine joins.
fn identity(
    settings: &Settings,
    server: ServerId,
    authority: &str,
    headnodes: Vec<String>,
) -> Result<LinkSettings, String> {
    let request = pki::request().map_err(|error| error.to_string())?;
    let now = Timestamp(SystemClock.now_ms());
    let certificate = pki::certify(settings, &request.request_pem, server, now).map_err(|error| error.to_string())?;
    Ok(LinkSettings {
        headnodes,
        is_here: false,
        authority_pem: authority.to_owned(),
        certificate_pem: certificate,
        key_pem: request.key_pem().to_owned(),
        machine: MachineIdentity::default(),
    })
}

/// Answered reports of one machine.
#[derive(Default)]
struct Reports {
    /// When the last was answered, milliseconds since 1970.
    at_ms: AtomicU64,
    count: AtomicU64,
}

/// A machine was told something.
struct Told {
    machine: usize,
    generation: u64,
    at_ms: f64,
}

/// The link over the network, counted.
struct Counted {
    inner: Client,
    number: usize,
    reports: Arc<Reports>,
    // A leaf lock, held to add one or to take all.
    told: Arc<Mutex<Vec<Told>>>,
}

impl HeadnodeLink for Counted {
    fn target(&self, held: Held) -> BoxFuture<'_, Result<Option<TargetNews>, LinkError>> {
        Box::pin(async move {
            let answer = self.inner.target(held).await;
            if let Ok(Some(news)) = &answer {
                let generation = match news {
                    TargetNews::Whole(target) => target.generation,
                    TargetNews::Delta(delta) => delta.generation,
                };
                let told = Told { machine: self.number, generation, at_ms: crate::datacenter::now_ms() };
                self.told.lock().unwrap_or_else(PoisonError::into_inner).push(told);
            }
            answer
        })
    }

    fn report<'a>(&'a self, report: &'a ReportNews) -> BoxFuture<'a, Result<ReportAnswer, LinkError>> {
        Box::pin(async move {
            let answer = self.inner.report(report).await;
            if answer.is_ok() {
                self.reports.at_ms.store(SystemClock.now_ms().unsigned_abs(), Ordering::Relaxed);
                self.reports.count.fetch_add(1, Ordering::Relaxed);
            }
            answer
        })
    }

    fn image<'a>(&'a self, sha256: &'a str) -> BoxFuture<'a, Result<Box<dyn Chunks>, LinkError>> {
        self.inner.image(sha256)
    }

    fn know(&self, machine: ServerId, headnodes: &[String]) {
        self.inner.know(machine, headnodes);
    }

    fn headnodes(&self) -> Vec<String> {
        self.inner.headnodes()
    }

    fn inquiry<'a>(&'a self, headnode: &'a str) -> BoxFuture<'a, Result<Option<Inquiry>, LinkError>> {
        self.inner.inquiry(headnode)
    }

    fn answer<'a>(
        &'a self,
        headnode: &'a str,
        id: InquiryId,
        answer: &'a Answer,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        self.inner.answer(headnode, id, answer)
    }
}
