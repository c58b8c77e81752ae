//! One headnode, from settings to listeners and back.
//!
//! ```text
//! certificates ─► store ─► control ─► flows, loops ─► listeners ─► (shutdown) ─► listeners drain ─► flows and loops end
//! ```
//! Listeners are bound before anything runs, so a port that is taken fails the start and not an hour later. At shutdown
//! everything hears of it at once; the store is the last to go, when its last user has.
//!
//! A store that has no majority yet is opened as this machine's member holds it: the doors open, reads are answered, and registering, flows and loops wait
//! for the majority ([`majority`]).

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use axum::Router;
use base::{clock::Clock, shutdown::Shutdown};
use control::{Control, ControlConfig, headnodes, names, servers};
use flow::loops::{Loop, Loops};
use model::{
    id::ServerId,
    placement::{Policy, Weights},
    role::{HeadnodeState, HeadnodeWanted},
    time::Timestamp,
    unit::Mib,
};
use store::{BoxFuture, Store};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    backup::{KeepOthers, Offers, TakeBackups},
    cloudapi,
    cmon::{self, Monitor},
    inquiries::Inquiries,
    listen::{self, Knows, Limits},
    members::{
        self, HandOver, TendMembers,
        file::ClusterFileError,
        left_behind::{self, LeftBehind},
        majority,
    },
    meters::Meters,
    monitoring::FollowFleet,
    names::{
        NameServer,
        keys::{Seal, TendKeys},
    },
    nodelink,
    ops::{self, Ops},
    pki::{self, Pki, PkiError},
    presence::{Announce, Measurements},
    rebuilding::AskForRules,
    replicas::{self, Replicas},
    role,
    settings::Settings,
    telemetry::Requests,
    tls::{Certificates, ClientCertificates, TlsError, TlsSource},
    usage::CountUsage,
};

/// How often certificates are looked at.
const CERTIFICATE_PERIOD: Duration = Duration::from_secs(3_600);

/// Why a headnode could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory could not be made.
    #[error("failed to make directory `{path}`")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A port could not be had.
    #[error("failed to listen on {address} for {what}")]
    Listen {
        /// Which listener.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Certificates.
    #[error("failed to prepare certificates")]
    Pki(#[from] PkiError),
    /// TLS.
    #[error("failed to prepare the listeners")]
    Tls(#[from] TlsError),
    /// The store could not be opened.
    #[error("failed to open the store")]
    Store(#[from] store::Error),
    /// The store's engine could not be opened.
    #[error("failed to open store file `{path}`")]
    Engine {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: store::EngineError,
    },
    /// It is not known where the store is.
    #[error("failed to find out where the store is")]
    Cluster(#[from] ClusterFileError),
    /// The store in etcd could not be opened.
    #[error(
        "failed to open the store in etcd (`[store]` in the settings, or cluster.json among the headnode's files, says where it is)"
    )]
    Etcd(#[from] etcd::OpenError),
    /// The control plane refused this machine's own server record.
    #[error("failed to register this machine")]
    Register(#[source] control::Error),
    /// The store refused this headnode's own record.
    #[error("failed to register this headnode")]
    Announce(#[source] control::Error),
    /// Its release does not fit those of the others.
    #[error("failed to start beside the other headnodes")]
    Release(#[source] control::Error),
    /// It is a headnode no more.
    #[error("this machine was taken out of the headnodes; its node puts away what is left of one")]
    TakenOut,
    /// The store was begun anew without it.
    #[error(transparent)]
    LeftBehind(#[from] LeftBehind),
    /// The first firewall rules cannot be written.
    #[error("failed to make the firewall's first rules")]
    Seed(#[source] control::Error),
}

/// Runs a headnode until `shutdown`.
pub async fn run(settings: Settings, clock: Arc<dyn Clock>, shutdown: Shutdown) -> Result<(), RunError> {
    let started_at = Timestamp(clock.now_ms());
    let (pki, _) = pki::ensure(&settings, started_at)?;
    let sockets = Sockets::bind(&settings).await?;
    let (control, keeper) = start_control(&settings, &pki, clock.clone(), &shutdown).await?;
    control.keep_store_with(keeper.clone());
    let is_waiting = enter(&settings, &pki, &control, &keeper).await?;
    let images_missing = Arc::new(AtomicU64::new(0));
    let measurements = Measurements::new(&settings, &keeper, images_missing.clone());
    let doors = Doors::open(&pki)?;
    let mut loops = Loops::new(clock.clone());
    control::loops::add_all(&mut loops, &control);
    let certificates = doors.certificates(&settings, clock.clone());
    let (name_server, zones) = answer_names(&settings, &pki, &control, &mut loops, clock.clone(), &shutdown);
    loops.add(RenewCertificates(certificates.clone()));
    loops.add(FollowFleet::new(control.clone(), settings.clone()));
    let news = [
        loops.add(announce(&settings, &pki, &control)),
        loops.add(Replicas::new(&control, &pki, &images_missing)),
        loops.add(TendMembers::new(keeper.clone())),
    ];
    loops.add(HandOver::new(keeper.clone(), control.clone(), measurements.clone()));
    let (offers, inquiries) = add_backups(&mut loops, &control, &settings, &pki);
    let shown = nodelink::NodeCertificates::default();
    let flows = register_flows(&control, clock);
    let ops = Ops::new(ops::Inner {
        requests: Requests::default(),
        node_certificates: shown.clone(),
        flow_kinds: flows.kinds().into_iter().map(|(kind, _)| kind).collect(),
        offers: offers.clone(),
        control: control.clone(),
        inquiries: inquiries.clone(),
        meters: Meters::new(inquiries.clone()),
        settings: settings.clone(),
        pki: pki.clone(),
        certificates,
        names: name_server,
        loops: loops.board(),
        started_at,
    });
    let beats = headnodes::keep_beating(control.clone(), pki.server_id, measurements.clone(), shutdown.clone());

    let work = async {
        if is_waiting && !begin_with_majority(&settings, &pki, &control, &keeper, &shutdown).await? {
            return Ok(());
        }
        let background = [
            base::task::spawn("beats", beats),
            base::task::spawn("measurements", measurements.measure(control.clone(), shutdown.clone())),
            base::task::spawn("image news", replicas::follow(control.clone(), news, shutdown.clone())),
            base::task::spawn("names", names::keep_published(control.clone(), shutdown.clone())),
            base::task::spawn("flows", flows.run(shutdown.clone())),
            base::task::spawn("loops", loops.run(shutdown.clone())),
        ];
        end_of(background).await;
        Ok(())
    };
    let watch = async { majority::watch(control.clone(), keeper.clone(), shutdown.clone()).await };
    tracing::info!(cloudapi = %settings.listen.cloudapi, node_link = %settings.listen.node_link, ops = %settings.listen.ops, "headnode is up");
    let routers = Routers {
        tenants: tenants_router(&control, &settings, &ops, sockets.cmon.is_some()),
        nodes: nodelink::router(control.clone(), settings.clone(), inquiries, offers, shown, shutdown.clone()),
        watchers: monitor(&control, &pki, &ops)?,
        operators: ops::router(ops),
    };
    let serving = serve(sockets, doors, routers, zones, &shutdown);
    tokio::try_join!(serving, work, watch)?;
    tracing::info!("headnode has ended");
    Ok(())
}

/// Every kind of flow, and who carries them out.
fn register_flows(control: &Control, clock: Arc<dyn Clock>) -> flow::Engine<Control> {
    let engine = flow::Engine::new(control.store.clone(), clock, control.clone());
    control::flows::register(engine.sharing(control.headnodes.share()))
}

/// Waits until all have ended.
async fn end_of(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    for task in tasks {
        // A task that panicked has been logged by its name.
        let _ = task.await;
    }
}

/// What is behind each listener.
struct Routers {
    tenants: Router,
    nodes: Router,
    operators: Router,
    watchers: Monitor,
}

/// Serves until shutdown.
async fn serve(
    sockets: Sockets,
    doors: Doors,
    routers: Routers,
    zones: JoinHandle<()>,
    shutdown: &Shutdown,
) -> Result<(), RunError> {
    let serve =
        |name, socket, tls, router, limits| listen::serve(name, socket, tls, router, limits, None, shutdown.clone());
    tokio::join!(
        serve("cloudapi", sockets.cloudapi, doors.tenants, routers.tenants, Limits::TENANTS),
        serve("node link", sockets.node_link, doors.nodes, routers.nodes, Limits::NODES),
        serve("ops", sockets.ops, doors.members, routers.operators, Limits::OPERATORS),
        async {
            if let Some(socket) = sockets.cmon {
                let (tls, knows) = (doors.watchers, Some(knows(&routers.watchers)));
                let router = cmon::router(routers.watchers);
                listen::serve("cmon", socket, tls, router, Limits::WATCHERS, knows, shutdown.clone()).await;
            }
        },
    );
    // A task that panicked has been logged by its name.
    let _ = zones.await;
    Ok(())
}

/// What comes before any door is open. Returns whether the store waits for a majority, and the rest with it.
async fn enter(settings: &Settings, pki: &Pki, control: &Control, keeper: &members::Keeper) -> Result<bool, RunError> {
    left_behind::refuse(control, settings, pki.server_id).await?;
    if !keeper.is_waiting() {
        begin(settings, pki, control).await?;
        return Ok(false);
    }
    // What it says may be past; that this machine is no headnode any more does not become untrue by itself.
    refuse_who_was_taken_out(settings, pki, control)?;
    majority::say_at_start(control, keeper).await;
    Ok(true)
}

/// Begins when there is a majority. Returns whether that came to be before shutdown.
async fn begin_with_majority(
    settings: &Settings,
    pki: &Pki,
    control: &Control,
    keeper: &members::Keeper,
    shutdown: &Shutdown,
) -> Result<bool, RunError> {
    majority::await_majority(control, keeper, shutdown).await;
    if shutdown.is_set() {
        return Ok(false);
    }
    begin(settings, pki, control).await?;
    Ok(true)
}

/// What this headnode says of itself.
fn announce(settings: &Settings, pki: &Pki, control: &Control) -> Announce {
    let settings = Arc::new(settings.clone());
    Announce { control: control.clone(), id: pki.server_id, settings, hostname: hostname() }
}

/// Writes down that this headnode is there, if it may be.
async fn begin(settings: &Settings, pki: &Pki, control: &Control) -> Result<(), RunError> {
    headnodes::admit_release(control, pki.server_id, base::release::name()).await.map_err(RunError::Release)?;
    let new = servers::NewServer { hostname: hostname(), headnode: true, comments: String::new() };
    servers::register(control, pki.server_id, new).await.map_err(RunError::Register)?;
    control::firewall::seed(control).await.map_err(RunError::Seed)?;
    refuse_who_was_taken_out(settings, pki, control)?;
    let announce = announce(settings, pki, control);
    headnodes::register(control, pki.server_id, &announce.now()).await.map_err(RunError::Announce)
}

/// One that was taken out while it could not hear of it does not come back: its node is told to put it away.
fn refuse_who_was_taken_out(settings: &Settings, pki: &Pki, control: &Control) -> Result<(), RunError> {
    let server = match servers::get(control, pki.server_id) {
        Ok(view) => view.server,
        // Of an old state that did not know it yet.
        Err(control::Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(RunError::Register(error)),
    };
    match &server.headnode_role {
        Some(role) if role.wanted == HeadnodeWanted::Absent => {
            role::write(settings, role.since, HeadnodeState::Leaving, &role.headnodes)?;
            Err(RunError::TakenOut)
        }
        _ => Ok(()),
    }
}

/// Takes backups, keeps those of others, and asks machines for what one may lack that was restored and for what is to be billed; what
/// others are offered, and who asks.
fn add_backups(loops: &mut Loops, control: &Control, settings: &Settings, pki: &Pki) -> (Offers, Inquiries) {
    let inquiries = Inquiries::default();
    loops.add(TakeBackups::new(control.clone(), settings.clone()));
    loops.add(KeepOthers::new(control, settings, pki));
    loops.add(AskForRules::new(control, &inquiries));
    loops.add(CountUsage::new(control, &inquiries));
    (Offers::new(settings), inquiries)
}

/// What each listener proves and asks for.
struct Doors {
    tenants: TlsSource,
    nodes: TlsSource,
    members: TlsSource,
    watchers: TlsSource,
}

impl Doors {
    fn open(pki: &Pki) -> Result<Self, TlsError> {
        Ok(Self {
            tenants: TlsSource::open(pki, ClientCertificates::NotAsked)?,
            nodes: TlsSource::open(pki, ClientCertificates::Optional)?,
            members: TlsSource::open(pki, ClientCertificates::Required)?,
            watchers: TlsSource::open(pki, ClientCertificates::Any)?,
        })
    }

    /// What renews their certificates.
    fn certificates(&self, settings: &Settings, clock: Arc<dyn Clock>) -> Arc<Certificates> {
        Arc::new(Certificates {
            settings: settings.clone(),
            clock,
            tenants: self.tenants.clone(),
            nodes: self.nodes.clone(),
            members: self.members.clone(),
            watchers: self.watchers.clone(),
        })
    }
}

/// The container monitor. It asks machines together with the ops API.
fn monitor(control: &Control, pki: &Pki, ops: &Ops) -> Result<Monitor, PkiError> {
    let telemetry = Some(ops.telemetry().clone());
    Ok(Monitor::new(control.clone(), ops.meters.clone(), pki.authority()?, telemetry))
}

/// Whom it lets in.
fn knows(monitor: &Monitor) -> Knows {
    let monitor = monitor.clone();
    Arc::new(move |shown| monitor.knows(shown))
}

/// CloudAPI's routes.
fn tenants_router(control: &Control, settings: &Settings, ops: &Ops, has_monitor: bool) -> Router {
    let url = settings.cloudapi_url();
    let mut options = cloudapi::Options::new(&settings.datacenter.name, &url);
    let monitor = settings.monitor_url().filter(|_| has_monitor);
    options.services.extend(monitor.map(|url| ("cmon".to_owned(), url)));
    settings.cloudapi.apply(&mut options);
    options.requests = ops.requests.clone();
    options.meters = Some(ops.meters.clone());
    cloudapi::router(control.clone(), options)
}

async fn start_control(
    settings: &Settings,
    pki: &Pki,
    clock: Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> Result<(Control, Arc<members::Keeper>), RunError> {
    let images_dir = settings.headnode_dir().join("images");
    std::fs::create_dir_all(&images_dir).map_err(|source| RunError::Directory { path: images_dir.clone(), source })?;
    let (engine, keeper) = members::open_store(settings, pki.server_id, clock.clone()).await?;
    let store = Store::open(engine, control::schema()).await?;
    keeper.attach(store.clone());
    if keeper.is_waiting()
        && let Some(beat) = majority::newest_beat(&store)
    {
        store.opened_old(Duration::from_millis(Timestamp(clock.now_ms()).millis_since(beat)));
    }
    Ok((Control::start(store, clock, control_config(settings, pki, images_dir), shutdown.clone()), keeper))
}

/// The control plane's own settings.
pub(crate) fn control_config(settings: &Settings, pki: &Pki, images_dir: PathBuf) -> ControlConfig {
    let datacenter = &settings.datacenter;
    let placement = &settings.placement;
    ControlConfig {
        headnode: Some(pki.server_id),
        region: datacenter.region.clone(),
        names: settings.names.config(datacenter),
        guest_dns_domain: Some(datacenter.dns_suffix.clone()),
        placement: Policy {
            headnode_takes_instances: placement.headnode_takes_instances,
            memory_kept: Mib(placement.memory_kept_mib),
            memory_percent: placement.memory_percent,
            cpu_percent: placement.cpu_percent,
            disk_percent: placement.disk_percent,
            instances_max: placement.instances_max,
            uncapped_apart: placement.uncapped_apart,
            weights: Weights {
                memory: placement.weights.memory,
                disk: placement.weights.disk,
                cpu: placement.weights.cpu,
                owner_spread: placement.weights.owner_spread,
                rack_spread: placement.weights.rack_spread,
                soft_rules: placement.weights.soft_rules,
            },
        },
        fabric: settings.fabric.config(),
        archive_dir: Some(settings.headnode_dir().join("archive")),
        asks_for_rules: true,
        ..ControlConfig::new(datacenter.name.clone(), images_dir)
    }
}

/// Answers for names, and keeps what they are signed with, also while the store takes nothing.
fn answer_names(
    settings: &Settings,
    pki: &Pki,
    control: &Control,
    loops: &mut Loops,
    clock: Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> (NameServer, JoinHandle<()>) {
    let seal = Seal::of_authority(&pki.ca.key);
    let seal = seal.inspect_err(|why| tracing::error!(why, "zones cannot be signed here")).ok();
    if let Some(seal) = &seal {
        loops.add(TendKeys::new(control, seal.clone()));
    }
    let server = NameServer::default();
    let own = own_address(settings, control, pki.server_id);
    let (control, settings, shutdown) = (control.clone(), settings.clone(), shutdown.clone());
    let zones = crate::names::serve(control, settings, own, seal, clock, server.clone(), shutdown);
    (server, base::task::spawn("zones", zones))
}

/// Where other machines reach this one, as far as that is known when it starts.
fn own_address(settings: &Settings, control: &Control, id: ServerId) -> Option<IpAddr> {
    let reported = servers::get(control, id).ok().and_then(|view| view.server.underlay);
    settings.fabric.underlay_address.or(reported).or_else(|| {
        let listens = settings.listen.node_link.ip();
        Some(listens).filter(|ip| !ip.is_unspecified())
    })
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

struct Sockets {
    cloudapi: TcpListener,
    node_link: TcpListener,
    ops: TcpListener,
    cmon: Option<TcpListener>,
}

impl Sockets {
    async fn bind(settings: &Settings) -> Result<Self, RunError> {
        let bind = async |what, address| {
            TcpListener::bind(address).await.map_err(|source| RunError::Listen { what, address, source })
        };
        Ok(Self {
            cloudapi: bind("CloudAPI", settings.listen.cloudapi).await?,
            node_link: bind("the node link", settings.listen.node_link).await?,
            ops: bind("the ops API", settings.listen.ops).await?,
            cmon: match settings.listen.cmon {
                Some(address) => Some(bind("the container monitor", address).await?),
                // A file of an older release: nobody has chosen the port, so what else has it stops nothing.
                None => {
                    let address = settings.monitor_address();
                    let refused = |error: &std::io::Error| tracing::warn!(%address, %error, "there is no container monitor; set listen.cmon in the settings");
                    TcpListener::bind(address).await.inspect_err(refused).ok()
                }
            },
        })
    }
}

/// Keeps certificates in their life.
struct RenewCertificates(Arc<Certificates>);

impl Loop for RenewCertificates {
    fn name(&self) -> &'static str {
        "renew certificates"
    }

    fn period(&self) -> Duration {
        CERTIFICATE_PERIOD
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async {
            let certificates = self.0.clone();
            // It waits for the disk.
            let made = base::task::blocking("renew certificates", move || certificates.keep()).await?;
            Ok(if made.is_empty() { String::new() } else { format!("renewed {}", made.join(", ")) })
        })
    }
}
