//! The agent's life: read what is written, look at what is there, adopt it, then run its tasks until told to end.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64},
    },
};

use base::{clock::Clock, shutdown::Shutdown, watch};
use host::Host;
use model::{diff::Wiring, id::InstanceId};
use nodeapi::link::HeadnodeLink;

use crate::{
    activity::Activity,
    board::Board,
    config::AgentConfig,
    dispatch::{self, Dispatcher, Survey},
    error::AgentError,
    fabrics, firewall_log,
    ids::IdPool,
    images::Images,
    inquiries,
    keeper::Keeper,
    ledger::{Ledger, Ledgers},
    link::{self, Identity},
    metadata::{self, Metadata},
    network::{self, Network},
    role,
    shared::{self, Shared},
    usage,
    verbs::Verbs,
    wires,
};

/// The agent of one machine. See the crate's own words for what it does.
pub struct Agent {
    host: Host,
    link: Arc<dyn HeadnodeLink>,
    config: AgentConfig,
    clock: Arc<dyn Clock>,
}

impl Agent {
    /// An agent that will act through `host` and listen to `link`.
    pub fn new(host: Host, link: Arc<dyn HeadnodeLink>, config: AgentConfig, clock: Arc<dyn Clock>) -> Self {
        Self { host, link, config, clock }
    }

    /// Runs until shutdown. Ends early only when it cannot begin: its files or the machine cannot be read. Zones run on in any
    /// case.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), AgentError> {
        let server = self.config.server;
        let ledgers = Ledgers::new(&self.config.data_dir, self.config.disk.clone());
        let images = Images::new(&self.config.data_dir);
        make_directories(&self.config, &images)?;
        let (keeper, target) = Keeper::open(self.config.disk.clone(), &self.config.data_dir, server)?;
        let remembered = ledgers.load()?;
        let verbs = Verbs::new(self.host.clone(), self.config.execution);
        let (boot_id, identity) = identify(&verbs, &self.config).await?;
        let survey = survey(&verbs).await?;
        let generation = target.as_ref().map_or(0, |target| target.generation);
        tracing::info!(%server, generation, ledgers = remembered.len(), seen = survey.observed.len(), "the agent starts");

        let (events, started_ms) = (self.host.zones.events(), self.clock.now_ms());
        // Asked for before any rule is made: those that exist log to whoever reads.
        let (firewall_log, news) = firewall_log::open(&verbs, &self.config, self.clock.now_ms()).await;
        let metadata = Metadata::new(&self.config.control_dir, ledgers.directory(), self.config.disk.clone());
        let (network, changes) = Network::new();
        let board = board(&survey);
        let (target, targets) = watch::channel(target.unwrap_or_else(|| Arc::new(shared::empty_target(server))));
        let shared = Arc::new(Shared {
            ids: Mutex::new(IdPool::new(self.config.id_ranges, remembered.iter().filter_map(|(_, ledger)| ledger.ids))),
            config: self.config,
            boot_id,
            verbs,
            link: self.link,
            clock: self.clock,
            clock_ahead_ms: AtomicI64::new(0),
            clock_told: shared::ClockTold::default(),
            shutdown,
            target,
            seen: AtomicU64::new(0),
            firewall_seen: AtomicU64::new(0),
            firewall_log,
            confirmed: AtomicBool::new(false),
            ledgers,
            board,
            images,
            network,
            wires: watch::Sender::new(wires::Found::default()),
            metadata,
            meters: crate::meters::Meters::default(),
            activity: Activity::new(started_ms),
            usage: usage::Usage::default(),
            making: shared::making_permits(identity.hardware.cpus),
            ending: shared::ending_permits(),
        });

        shared.link.know(server, &shared.target().headnodes);
        open_metadata(&shared, &remembered);
        let connected = connected(&remembered, &survey);
        let filters = base::task::spawn("filters", network::own_filters(shared.clone(), changes, connected.clone()));
        let reports = base::task::spawn("reports", link::send_reports(shared.clone(), identity));
        let answering = base::task::spawn("inquiries", inquiries::answer_all(shared.clone()));
        let logging = base::task::spawn("firewall log", firewall_log::keep(shared.clone(), news));
        let billing = base::task::spawn("usage", usage::keep(shared.clone()));
        let watching = base::task::spawn("memory", link::watch_memory(shared.clone()));
        let fabrics = base::task::spawn("fabrics", fabrics::follow(shared.clone(), targets.clone()));
        let roles = base::task::spawn("role", role::follow(shared.clone(), targets.clone()));
        let wires = base::task::spawn("wires", wires::follow(shared.clone(), targets.clone()));
        let fetching = base::task::spawn("targets", link::fetch_targets(shared.clone(), keeper));
        network::adopt(&shared, &connected).await;
        Dispatcher::new(shared.clone(), remembered, &survey).run(targets, events).await;
        // Each ends at shutdown; a panic was told where it happened.
        let _ = futures_util::join!(
            filters, fabrics, roles, wires, reports, fetching, answering, logging, billing, watching
        );
        tracing::info!("the agent ends; zones run on");
        Ok(())
    }
}

async fn survey(verbs: &Verbs) -> Result<Survey, AgentError> {
    let survey = verbs.run("survey", dispatch::survey).await;
    survey.map_err(|source| AgentError::Host { doing: "list what is on this machine", source })
}

/// On which nothing is said but which images are here.
fn board(survey: &Survey) -> Arc<Board> {
    let board = Board::default();
    board.images(|images| images.extend(survey.images.iter().copied()));
    Arc::new(board)
}

fn make_directories(config: &AgentConfig, images: &Images) -> Result<(), AgentError> {
    make_directory(&config.data_dir)?;
    make_directory(&config.control_dir)?;
    let incoming = config.data_dir.join("incoming");
    images.clear().map_err(|source| AgentError::File { doing: "clear", path: incoming, source })
}

fn make_directory(path: &Path) -> Result<(), AgentError> {
    fs::create_dir_all(path).map_err(|source| AgentError::File { doing: "create", path: path.to_owned(), source })
}

async fn identify(verbs: &Verbs, config: &AgentConfig) -> Result<(String, Identity), AgentError> {
    let machine = |doing| move |source| AgentError::Host { doing, source };
    let (boot_id, hostname, hardware) =
        verbs.run("identify", |host| (host.machine.boot_id(), host.machine.hostname(), host.machine.hardware())).await;
    let mut hardware = hardware.map_err(machine("read the machine's hardware"))?;
    hardware.agent_version.clone_from(&config.version);
    hardware.nic_tags.clone_from(&config.nic_tags);
    let hostname = hostname.map_err(machine("read the host name"))?;
    Ok((boot_id.map_err(machine("read the boot id"))?, Identity { hostname, hardware }))
}

/// Serves every zone that may run; a zone that is being removed asks nothing any more.
fn open_metadata(shared: &Arc<Shared>, remembered: &[(InstanceId, Ledger)]) {
    for (id, ledger) in remembered {
        let Some(ids) = ledger.ids.filter(|_| !ledger.remembered.removing) else { continue };
        if let Err(error) = metadata::open(shared, *id, ids.first) {
            // Starting the zone tries again and then says so in its fact.
            tracing::error!(instance = %id, %error, "failed to open a zone's metadata service");
        }
    }
}

/// Zones that have NICs now, and how they are wired.
fn connected(remembered: &[(InstanceId, Ledger)], survey: &Survey) -> Vec<(InstanceId, Wiring)> {
    let has_nics = |id: &InstanceId| survey.observed.get(id).is_some_and(|observed| observed.connected);
    let wired = remembered.iter().filter(|(id, _)| has_nics(id));
    wired.filter_map(|(id, ledger)| Some((*id, ledger.remembered.wiring.clone()?))).collect()
}
