//! The server: its sockets, its threads and tasks, and what they share.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
};

use base::{clock::Clock, shutdown::Shutdown, task, watch};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    counters::Counters,
    limit::Limiter,
    notify::Notifier,
    peers::{Peer, Peers},
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
pub struct Server {
    /// Leaf data: grows when one more is listened at.
    addresses: Mutex<Vec<SocketAddr>>,
    policy: watch::Sender<Arc<Policy>>,
    threads: usize,
    service: Service,
}

/// What all of a server's threads and tasks share.
pub(crate) struct Shared {
    pub(crate) counters: Arc<Counters>,
    pub(crate) limiter: Limiter,
    pub(crate) strangers: Strangers,
    pub(crate) peers: Peers,
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
            peers: Peers::default(),
            places: Places::default(),
            transfers: Semaphore::new(limits.transfers.max(1)),
        });
        let service = Service { shared, zones, policy: policy.subscribe(), clock, shutdown, limits };
        let server = Self { addresses: Mutex::default(), policy, threads: settings.threads.max(1), service };
        let mut sockets = Vec::new();
        for address in settings.addresses {
            sockets.push(listen(address, server.threads).await?);
        }
        for sockets in sockets {
            server.answer(sockets)?;
        }
        let Service { shared, zones, policy, clock, shutdown, .. } = server.service.clone();
        task::spawn("dns-notifier", Notifier { shared, zones, policy, clock, shutdown }.run());
        Ok(server)
    }

    /// From now on it listens there too, with the same limits and counters.
    pub async fn also_listen(&self, address: SocketAddr) -> Result<(), StartError> {
        let sockets = listen(address, self.threads).await?;
        self.answer(sockets)
    }

    fn answer(&self, (address, listener, datagrams): Sockets) -> Result<(), StartError> {
        let service = &self.service;
        let datagram_bytes = service.limits.datagram_bytes.clamp(*DATAGRAM_BYTES.start(), *DATAGRAM_BYTES.end());
        for socket in datagrams {
            let Service { shared, zones, clock, shutdown, .. } = service.clone();
            let policy = self.policy.subscribe();
            let worker = Worker { socket, shared, zones, policy, clock, shutdown, datagram_bytes };
            task::thread("dns-udp", move || worker.run()).map_err(StartError::Thread)?;
        }
        task::spawn("dns-tcp", tcp::accept(listener, service.clone()));
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).push(address);
        Ok(())
    }

    /// Where it listens; with the ports that the kernel chose where any would do.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it has done so far.
    pub fn counters(&self) -> Arc<Counters> {
        self.service.shared.counters.clone()
    }

    /// Secondaries, since it was started.
    pub fn peers(&self) -> Vec<Peer> {
        self.service.shared.peers.list()
    }

    /// From now on it follows this policy.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.send_replace(Arc::new(policy));
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Server").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

/// The sockets of one address: one for connections, which nobody else can have at the same time, and one a thread for datagrams.
type Sockets = (SocketAddr, TcpListener, Vec<UdpSocket>);

async fn listen(wanted: SocketAddr, threads: usize) -> Result<Sockets, StartError> {
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
