//! The server: its sockets, its threads and tasks, and what they share.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

use base::{clock::Clock, shutdown::Shutdown, task, watch};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    counters::Counters,
    limit::Limiter,
    notify::Notifier,
    settings::{Policy, Settings},
    strangers::Strangers,
    tcp::{self, Places, Service},
    udp::{self, Worker},
    zones::Zones,
};

/// Tries to find a port that is free for both transports, when any port will do.
const PORT_ATTEMPTS: usize = 20;
/// Bytes of an answer over UDP at least, and at most: what everybody must take, and what fits one packet of Ethernet.
const DATAGRAM_BYTES: std::ops::RangeInclusive<usize> = 512..=1452;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("listen for DNS on {address} over {transport}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// UDP or TCP.
        transport: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a thread.
    #[error("start a thread for DNS")]
    Thread(#[source] io::Error),
}

/// A running server. It ends when its shutdown says so; dropping this does not end it.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    policy: watch::Sender<Arc<Policy>>,
    shared: Arc<Shared>,
}

/// What all of a server's threads and tasks share.
pub(crate) struct Shared {
    pub(crate) counters: Arc<Counters>,
    pub(crate) limiter: Limiter,
    pub(crate) strangers: Strangers,
    pub(crate) places: Places,
    /// Turns of zone transfers.
    pub(crate) transfers: Semaphore,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens, and answers from whatever `zones` is at the time, until `shutdown` says that the end has come. Everything that may be refused
    /// is tried before this returns.
    pub async fn start(
        settings: Settings,
        zones: watch::Receiver<Arc<Zones>>,
        clock: Arc<dyn Clock>,
        shutdown: Shutdown,
    ) -> Result<Self, StartError> {
        let limits = settings.limits;
        let policy = watch::Sender::new(Arc::new(settings.policy));
        let shared = Arc::new(Shared {
            counters: Arc::default(),
            limiter: Limiter::new(),
            strangers: Strangers::default(),
            places: Places::default(),
            transfers: Semaphore::new(limits.transfers.max(1)),
        });
        let mut sockets = Vec::new();
        for address in settings.addresses {
            sockets.push(listen(address, settings.threads.max(1)).await?);
        }
        let addresses = sockets.iter().map(|(address, ..)| *address).collect();
        for (_, listener, datagrams) in sockets {
            for socket in datagrams {
                let worker = Worker {
                    socket,
                    shared: shared.clone(),
                    zones: zones.clone(),
                    policy: policy.subscribe(),
                    clock: clock.clone(),
                    shutdown: shutdown.clone(),
                    datagram_bytes: limits.datagram_bytes.clamp(*DATAGRAM_BYTES.start(), *DATAGRAM_BYTES.end()),
                };
                task::thread("dns-udp", move || worker.run()).map_err(StartError::Thread)?;
            }
            let (shared, zones, policy) = (shared.clone(), zones.clone(), policy.subscribe());
            let (clock, shutdown) = (clock.clone(), shutdown.clone());
            task::spawn("dns-tcp", tcp::accept(listener, Service { shared, zones, policy, clock, shutdown, limits }));
        }
        let notifier = Notifier { shared: shared.clone(), zones, policy: policy.subscribe(), clock, shutdown };
        task::spawn("dns-notifier", notifier.run());
        Ok(Self { addresses, policy, shared })
    }

    /// Where it listens; with the ports that the kernel chose where any would do.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it has done so far.
    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }

    /// From now on it follows this policy.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.send_replace(Arc::new(policy));
    }
}

/// The sockets of one address: one for connections, which nobody else can have at the same time, and one a thread for datagrams.
async fn listen(wanted: SocketAddr, threads: usize) -> Result<(SocketAddr, TcpListener, Vec<UdpSocket>), StartError> {
    let refused = |transport| move |source| StartError::Listen { address: wanted, transport, source };
    let mut attempts = 0;
    loop {
        let listener = TcpListener::bind(wanted).await.map_err(refused("TCP"))?;
        let address = listener.local_addr().map_err(refused("TCP"))?;
        match datagram_sockets(address, threads) {
            Ok(sockets) => return Ok((address, listener, sockets)),
            // Any port would do, and this one is taken for datagrams.
            Err(_) if wanted.port() == 0 && attempts < PORT_ATTEMPTS => attempts += 1,
            Err(source) => return Err(refused("UDP")(source)),
        }
    }
}

fn datagram_sockets(address: SocketAddr, threads: usize) -> io::Result<Vec<UdpSocket>> {
    // Sockets of several threads share an address, so the kernel would let another process of ours share it too: see that nobody has it.
    drop(UdpSocket::bind(address)?);
    (0..threads).map(|_| udp::bind(address)).collect()
}
