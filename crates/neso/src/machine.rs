//! This machine's doors to the kernel, built from the settings: for the agent, for `neso down` and for `neso clean-data`.
//!
//! A boot of the machine, as the agent sees it, has an id. It is the kernel's, with a count behind it: `neso down` raises
//! the count after it halted the instances, so that the agent of the next `neso up` starts what is wanted, exactly as
//! after a real boot. The id lies in the runtime directory; a file of an earlier boot is noticed and replaced.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base::{clock::SystemClock, shutdown::Shutdown};
use headnode::{Settings, pki, settings::local};
use host::{
    Host,
    fabric::FabricSet,
    link::{LinkNames, Links as _},
    linux::{
        dataset::LinuxDatasets,
        filter::LinuxFilters,
        hardware::Sources,
        link::LinuxLinks,
        machine::{GOES_DOWN, LinuxMachine},
        pool::{self, Backing, PoolConfig},
        zone::{LinuxZones, ZonesConfig},
    },
    zone::{IdRange, Zones},
};
use model::{
    id::InstanceId,
    server::{Underlay, Whereabouts, obvious_underlay},
    time::Timestamp,
    unit::Mib,
};
use node::{Agent, AgentConfig, IdRanges};
use nodeapi::client::{Client as LinkClient, Settings as LinkSettings};
use tokio::{sync::watch, time::Instant};

use crate::{
    context::Place,
    failure::{Failure, Outcome},
    promote::Promoter,
};

/// The kernel's own id of the running boot.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How often the agent looks whether its certificate was renewed: reads three small files.
const CERTIFICATE_PERIOD: Duration = Duration::from_secs(5);
/// Between two attempts to renew a certificate that is due.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);
/// Somewhere outside: the first of the addresses nobody has. Nothing is ever sent there.
const OUTSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
/// Instances halted or destroyed at once.
const AT_ONCE: usize = 16;

/// Runs the agent until shutdown.
pub(crate) async fn run_agent(place: &Place, settings: &Settings, shutdown: Shutdown) -> Outcome {
    let member = pki::member(settings, now())?;
    let identity = link_settings(settings, &member)?;
    let link = Arc::new(LinkClient::new(&identity)?);
    let (say, whereabouts) = watch::channel(find(settings, &identity.headnodes));
    let follower =
        Follower { settings: settings.clone(), member: member.clone(), held: identity, link: link.clone(), say };
    let (promoter, role, facts) = Promoter::new(place.clone(), settings.clone(), link.clone());
    let (end, ended) = Shutdown::new();
    let promoting = base::task::spawn("role", async move {
        // It ends when the machine's settings are others; the next process reads them.
        let _ = shutdown.unless(promoter.run()).await;
        end.fire();
    });
    let shutdown = ended;
    let following = base::task::spawn("certificate", {
        let shutdown = shutdown.clone();
        async move { shutdown.unless(follower.run()).await }
    });
    ensure_boot_id(settings)?;
    let opened = settings.clone();
    let host = base::task::blocking("open machine", move || open(&opened)).await?;
    let config = AgentConfig {
        id_ranges: IdRanges { first: settings.kernel.id_base, count: id_count(settings) },
        whereabouts,
        nic_tags: settings.fabric.nic_tags.clone(),
        role,
        headnode: facts,
        usage_dir: Some(settings.node_dir().join("usage")),
        headnode_listens: {
            let listen = &settings.listen;
            [listen.cloudapi, listen.node_link, listen.ops].into_iter().chain(listen.cmon).collect()
        },
        ..AgentConfig::new(member.server_id, settings.node_dir(), settings.paths.run.join("control"))
    };
    Agent::new(host, link, config, Arc::new(SystemClock)).run(shutdown).await?;
    // It ends with the shutdown that ended the agent.
    let _ = tokio::join!(following, promoting);
    Ok(())
}

fn now() -> Timestamp {
    Timestamp(base::clock::Clock::now_ms(&SystemClock))
}

/// How the node reaches its headnode and proves who it is, as of now.
pub(crate) fn link_settings(settings: &Settings, member: &pki::Member) -> Outcome<LinkSettings> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| Failure::new(format!("failed to read `{}`: {error}", path.display())))
    };
    let here = || vec![local(settings.listen.node_link).to_string()];
    Ok(LinkSettings {
        headnodes: settings.join.as_ref().map_or_else(here, |join| join.headnodes.clone()),
        is_here: settings.join.is_none(),
        authority_pem: read(&member.authority)?,
        certificate_pem: read(&member.node.certificate)?,
        key_pem: read(&member.node.key)?,
        machine: Sources::default().identity(),
    })
}

/// Where this machine is in the networks around it.
fn find(settings: &Settings, headnodes: &[String]) -> Whereabouts {
    let towards_headnode = || {
        let remotes = headnodes.iter().filter_map(|headnode| headnode.to_socket_addrs().ok()?.next());
        remotes.filter_map(source_towards).find(|address| !address.is_loopback())
    };
    let address = match settings.join {
        Some(_) => settings.fabric.underlay_address.or_else(towards_headnode),
        None => underlay(settings).unwrap_or(None),
    };
    let mtu = |address| Some(Underlay { address, mtu: host::linux::hardware::mtu_of(address)? });
    let outside = source_towards(OUTSIDE).filter(|address| !address.is_loopback());
    Whereabouts { underlay: address.and_then(mtu), outside }
}

/// The address this machine has towards another. Nothing is sent: connecting a datagram socket only asks the routing table.
fn source_towards(remote: SocketAddr) -> Option<IpAddr> {
    let any = if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Where other machines meet a headnode's own machine, which reaches itself over the loopback device: as the settings say, or where
/// its node link listens, or the only address it has. `None` where no other machine can join; all addresses that might be
/// meant where that cannot be told.
pub(crate) fn underlay(settings: &Settings) -> Result<Option<IpAddr>, Vec<IpAddr>> {
    let listen = settings.listen.node_link.ip();
    match settings.fabric.underlay_address {
        Some(address) => Ok(Some(address)),
        None if listen.is_loopback() => Ok(None),
        None if !listen.is_unspecified() => Ok(Some(listen)),
        None => {
            let is_ours = |name: &str| names(settings).is_ok_and(|names| names.is_ours(name));
            obvious_underlay(&host::linux::hardware::addresses(), is_ours).map(Some)
        }
    }
}

/// What changes while the agent runs: its certificate, and its addresses in the networks around it.
struct Follower {
    settings: Settings,
    member: pki::Member,
    held: LinkSettings,
    link: Arc<LinkClient>,
    say: watch::Sender<Whereabouts>,
}

impl Follower {
    async fn run(mut self) {
        let mut quiet_until = Instant::now();
        loop {
            tokio::time::sleep(CERTIFICATE_PERIOD).await;
            let now_at = find(&self.settings, &self.held.headnodes);
            self.say.send_if_modified(|known| std::mem::replace(known, now_at) != now_at);
            if self.settings.join.is_some()
                && Instant::now() >= quiet_until
                && self.member.is_due(now()).unwrap_or(false)
            {
                quiet_until = Instant::now() + RENEWAL_PAUSE;
                if let Err(failure) = crate::join::obtain(&self.member, &self.link).await {
                    tracing::warn!(error = failure.message, "the certificate could not be renewed; trying again later");
                }
            }
            self.take_up();
        }
    }

    /// Shows the node's renewed certificate from the next request on. A key that does not fit yet (the two are written one
    /// after the other) is looked at again.
    fn take_up(&mut self) {
        // What the machine is made of does not change while it runs, and is shown as it was found.
        let machine = self.held.machine.clone();
        let fresh = link_settings(&self.settings, &self.member).map(|fresh| LinkSettings { machine, ..fresh });
        let fresh = match fresh {
            Ok(fresh) if fresh == self.held => return,
            Ok(fresh) => fresh,
            Err(failure) => {
                tracing::warn!(error = failure.message, "the node's certificate cannot be read; keeping the one held");
                return;
            }
        };
        match self.link.renew(&fresh) {
            Ok(()) => {
                let serial = self.member.node.serial().unwrap_or_default();
                tracing::info!(serial, "the node's certificate was renewed");
                self.held = fresh;
            }
            Err(error) => {
                tracing::warn!(error = %base::errors::chain(&error), "the renewed certificate does not work yet");
            }
        }
    }
}

/// How many zones' id ranges fit between the base and the end of what this datacenter may use.
fn id_count(settings: &Settings) -> u32 {
    let fitting = (u32::MAX - settings.kernel.id_base) / IdRange::COUNT;
    settings.kernel.id_ranges.map_or(fitting, |most| most.min(fitting))
}

fn names(settings: &Settings) -> Outcome<LinkNames> {
    Ok(LinkNames::new(&settings.kernel.link_prefix)?)
}

fn pool_config(settings: &Settings) -> PoolConfig {
    let backing = match (&settings.pool.device, settings.pool_file()) {
        (Some(device), _) => Backing::Device(device.clone()),
        (None, Some(path)) => Backing::File { path, size: Mib(settings.pool.size_gib << 10) },
        (None, None) => Backing::Directory,
    };
    PoolConfig { dir: settings.pool_dir(), backing }
}

fn open_zones(settings: &Settings) -> Outcome<LinuxZones> {
    let program = std::env::current_exe()?;
    Ok(LinuxZones::new(ZonesConfig {
        run_dir: settings.paths.run.clone(),
        log_dir: settings.paths.log.join("zones"),
        cgroup_parent: settings.kernel.cgroup.clone(),
        supervisor: vec![program.into(), "zone-supervisor".into()],
    })?)
}

/// All five doors. Blocks: the pool may have to be made.
fn open(settings: &Settings) -> Outcome<Host> {
    let pool = pool_config(settings);
    let datasets = LinuxDatasets::open(&pool)?;
    let names = names(settings)?;
    Ok(Host {
        zones: Arc::new(open_zones(settings)?),
        datasets: Arc::new(datasets),
        links: Arc::new(LinuxLinks::new(names.clone())),
        filters: Arc::new(LinuxFilters::new(&settings.kernel.nft_table, names)),
        machine: Arc::new(LinuxMachine::new(Arc::new(SystemClock), pool.dir, Some(boot_id_path(settings)))),
    })
}

fn boot_id_path(settings: &Settings) -> PathBuf {
    settings.paths.run.join("boot-id")
}

/// The kernel's id and the count of `neso down` since.
fn read_boot_id(settings: &Settings) -> Outcome<(String, u64)> {
    let kernel = fs::read_to_string(KERNEL_BOOT_ID)?.trim().to_owned();
    let written = fs::read_to_string(boot_id_path(settings)).unwrap_or_default();
    let count = written.trim().strip_prefix(kernel.as_str()).and_then(|rest| rest.strip_prefix('.')?.parse().ok());
    Ok((kernel, count.unwrap_or(0)))
}

fn write_boot_id(settings: &Settings, kernel: &str, count: u64) -> Outcome {
    let path = boot_id_path(settings);
    let fail = |error: std::io::Error| Failure::new(format!("failed to write `{}`: {error}", path.display()));
    fs::create_dir_all(&settings.paths.run).map_err(fail)?;
    let beside = path.with_extension("new");
    fs::write(&beside, format!("{kernel}.{count}\n")).map_err(fail)?;
    fs::rename(&beside, &path).map_err(fail)
}

fn ensure_boot_id(settings: &Settings) -> Outcome {
    let (kernel, count) = read_boot_id(settings)?;
    write_boot_id(settings, &kernel, count)?;
    // This boot has just begun, whatever was meant before.
    let _ = fs::remove_file(boot_id_path(settings).with_extension(GOES_DOWN));
    Ok(())
}

/// From now on the agent, when it ends, ends with its machine: see [`halt`].
pub(crate) fn begin_end(settings: &Settings) -> Outcome {
    let path = boot_id_path(settings).with_extension(GOES_DOWN);
    let fail = |error: std::io::Error| Failure::new(format!("failed to write `{}`: {error}", path.display()));
    fs::create_dir_all(&settings.paths.run).map_err(fail)?;
    fs::write(&path, "").map_err(fail)
}

/// Halts every instance, as a machine that shuts down does, and takes down what they stood on. Returns how many ran.
pub(crate) async fn halt(settings: &Settings, grace: Duration) -> Outcome<usize> {
    let settings = settings.clone();
    base::task::blocking("halt", move || {
        let running = close(&settings, |zones, instance| zones.stop(instance, grace).map(|_| ()))?;
        let (kernel, count) = read_boot_id(&settings)?;
        write_boot_id(&settings, &kernel, count + 1)?;
        Ok(running)
    })
    .await
}

/// Destroys every instance and takes down what they stood on. Returns how many ran. Roots and images go with the pool's
/// file; in a pool that is a directory or a disk they are removed one by one.
pub(crate) async fn wipe(settings: &Settings) -> Outcome<usize> {
    let settings = settings.clone();
    base::task::blocking("wipe", move || {
        if settings.pool_file().is_none() {
            empty_pool(&settings)?;
        }
        close(&settings, |zones, instance| zones.destroy(instance))
    })
    .await
}

fn empty_pool(settings: &Settings) -> Outcome {
    use host::dataset::Datasets as _;
    let zones = open_zones(settings)?;
    for status in zones.list()? {
        zones.destroy(status.instance)?;
    }
    let datasets = LinuxDatasets::open(&pool_config(settings))?;
    for root in datasets.roots()? {
        datasets.remove_root(root)?;
    }
    for image in datasets.images()? {
        datasets.remove_image(image)?;
    }
    Ok(())
}

/// Ends zones with `end`, then removes namespaces, NICs, bridges, filters and the pool's mount. Data stays.
fn close(
    settings: &Settings,
    end: impl Fn(&LinuxZones, InstanceId) -> host::error::Result<()> + Sync,
) -> Outcome<usize> {
    use host::filter::Filters as _;
    let zones = open_zones(settings)?;
    let present = zones.list()?;
    let running = present.iter().filter(|status| status.running).count();
    let ids: Vec<InstanceId> = present.iter().map(|status| status.instance).collect();
    let links = LinuxLinks::new(names(settings)?);
    for batch in ids.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let work: Vec<_> = batch
                .iter()
                .map(|instance| {
                    let (zones, links, end) = (&zones, &links, &end);
                    scope.spawn(move || {
                        end(zones, *instance)?;
                        zones.destroy(*instance)?;
                        links.detach(*instance)
                    })
                })
                .collect();
            for thread in work {
                thread.join().map_err(|_| Failure::new("ending an instance broke"))??;
            }
            Ok::<_, Failure>(())
        })?;
    }
    links.program(&FabricSet::default())?;
    links.remove_bridges_except(&[])?;
    LinuxFilters::new(&settings.kernel.nft_table, names(settings)?).clear()?;
    zones.remove_parent();
    pool::release(&pool_config(settings))?;
    Ok(running)
}
