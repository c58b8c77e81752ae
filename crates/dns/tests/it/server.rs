//! A server on ports of its own, and the zone that most tests ask.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use base::{
    clock::{Clock, SystemClock},
    shutdown::{Shutdown, Trigger},
    watch,
};
use dns::{Change, Data, Limits, Name, Policy, Rrset, Server, Settings, Soa, View, Zone, Zones};

/// How long anything may take on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Running {
    pub(crate) server: Server,
    pub(crate) zones: watch::Sender<Arc<Zones>>,
    trigger: Trigger,
}

impl Running {
    pub(crate) async fn start(zone: Zone, policy: Policy) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), zone, policy, Limits::default()).await
    }

    pub(crate) async fn start_at(address: SocketAddr, zone: Zone, policy: Policy, limits: Limits) -> Self {
        let (zones, receiver) = watch::channel(Arc::new(Zones::new([(View::Everybody, zone)])));
        let (trigger, shutdown) = Shutdown::new();
        let settings = Settings { addresses: vec![address], threads: 2, limits, policy };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let server = Server::start(settings, receiver, clock, shutdown).await.unwrap();
        Self { server, zones, trigger }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    pub(crate) fn zone(&self) -> Zone {
        self.zones.borrow().iter().next().unwrap().1.clone()
    }

    pub(crate) fn set(&self, zone: Zone) {
        self.zones.send_replace(Arc::new(Zones::new([(View::Everybody, zone)])));
    }

    pub(crate) fn change(&self, serial: u32, changes: &[Change]) {
        self.set(self.zone().with(serial, changes).unwrap());
    }

    /// Ends it, and waits until its address is free.
    pub(crate) async fn stop(self) -> (SocketAddr, Zone) {
        let (address, zone) = (self.address(), self.zone());
        self.trigger.fire();
        until("the address is free", async || {
            std::net::UdpSocket::bind(address).is_ok() && tokio::net::TcpListener::bind(address).await.is_ok()
        })
        .await;
        (address, zone)
    }
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited too long until {what}");
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn set(ttl_s: u32, records: &[Data]) -> Rrset {
    Rrset::new(ttl_s, records).unwrap()
}

pub(crate) fn address(last: u8) -> Rrset {
    set(30, &[Data::A([192, 0, 2, last].into())])
}

pub(crate) fn srv(target: &str, port: u16) -> Data {
    Data::Srv { priority: 0, weight: 10, port, target: name(target) }
}

pub(crate) fn soa() -> Soa {
    let (primary, mailbox) = (name("ns.example"), name("hostmaster.example"));
    // A secondary that is not told of a change does not see it while a test lasts.
    Soa { primary, mailbox, refresh_s: 3600, retry_s: 600, expire_s: 86_400, negative_s: 20, ttl_s: 60 }
}

/// The zone `example`, at serial 1.
pub(crate) fn zone() -> Zone {
    // More than a datagram holds, and as many as BIND takes of one kind.
    let many: Vec<Data> = (0..100_u8).map(|last| Data::A([198, 51, 100, last].into())).collect();
    let names = [
        ("example", vec![set(3600, &[Data::Ns(name("ns.example"))])]),
        ("ns.example", vec![set(3600, &[Data::A([127, 0, 0, 1].into())])]),
        (
            "www.example",
            vec![
                address(1),
                set(30, &[Data::Aaaa("2001:db8::1".parse().unwrap())]),
                set(30, &[Data::Txt(vec![b"hello".to_vec()])]),
            ],
        ),
        ("two.example", vec![address(2)]),
        (
            "_http._tcp.web.example",
            vec![set(30, &[srv("www.example", 80), srv("two.example", 8080), srv("www.example", 81)])],
        ),
        ("alias.example", vec![set(30, &[Data::Cname(name("www.example"))])]),
        ("chain.example", vec![set(30, &[Data::Cname(name("alias.example"))])]),
        ("loop.example", vec![set(30, &[Data::Cname(name("loop.example"))])]),
        ("out.example", vec![set(30, &[Data::Cname(name("www.elsewhere"))])]),
        ("many.example", vec![set(30, &many)]),
        ("a.b.c.example", vec![address(3)]),
        ("sub.example", vec![set(3600, &[Data::Ns(name("ns.sub.example"))])]),
        ("ns.sub.example", vec![set(3600, &[Data::A([192, 0, 2, 53].into())])]),
        ("strange.example", vec![set(30, &[Data::Other(dns::Kind(65_280), vec![1, 2, 3])])]),
    ];
    let names = names.map(|(text, rrsets)| (name(text), rrsets));
    Zone::load(name("example"), soa(), 1, names, []).unwrap()
}
