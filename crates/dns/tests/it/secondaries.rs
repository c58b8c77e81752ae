//! Debian's BIND, Knot and NSD as secondaries: through many changes and restarts of both sides each has what we have, and its serial only
//! grows. Zones refresh after an hour, so whatever a secondary learns within a test it learns because it was told.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use base::{random::Chance, task};
use dns::{Change, Data, Difference, Limits, NotifyTarget, Policy, Rrset, Zone};

use crate::{
    dig::raw,
    server::{Running, name, set, soa, until, zone},
    transfers::{SECRET, key, records, rule},
};

/// Names that are changed by chance.
const NAMES: u64 = 40;

/// One of Debian's name servers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Bind,
    Knot,
    Nsd,
}

impl Kind {
    /// Writes its configuration, and returns how it is started.
    fn configure(self, directory: &Path, port: u16, ours: SocketAddr) -> (&'static str, Vec<String>) {
        let (path, from) = (directory.display(), ours.port());
        let (program, arguments, text) = match self {
            Self::Bind => (
                "named",
                vec!["-g".to_owned(), "-c".to_owned()],
                format!(
                    "options {{ directory \"{path}\"; pid-file \"{path}/pid\"; session-keyfile \"{path}/session\"; recursion no; \
                     listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; allow-transfer {{ 127.0.0.1; }}; notify no; \
                     dnssec-validation no; empty-zones-enable no; transfers-in 10; }};\ncontrols {{ }};\n\
                     key \"transfer\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
                     zone \"example\" {{ type secondary; file \"{path}/zone\"; allow-notify {{ key transfer; }}; \
                     primaries {{ 127.0.0.1 port {from} key transfer; }}; min-refresh-time 1; }};\n"
                ),
            ),
            Self::Knot => (
                "knotd",
                vec!["-c".to_owned()],
                format!(
                    "server:\n    rundir: {path}\n    listen: 127.0.0.1@{port}\n\
                     database:\n    storage: {path}\n\
                     key:\n  - id: transfer\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
                     remote:\n  - id: ours\n    address: 127.0.0.1@{from}\n    key: transfer\n\
                     acl:\n  - id: told\n    address: 127.0.0.1\n    key: transfer\n    action: notify\n\
                     \x20 - id: asked\n    address: 127.0.0.1\n    action: transfer\n\
                     zone:\n  - domain: example\n    storage: {path}\n    master: ours\n    acl: [told, asked]\n"
                ),
            ),
            Self::Nsd => (
                "nsd",
                vec!["-d".to_owned(), "-c".to_owned()],
                format!(
                    "server:\n    ip-address: 127.0.0.1@{port}\n    username: \"\"\n    chroot: \"\"\n    zonesdir: {path}\n    \
                     database: \"\"\n    pidfile: {path}/pid\n    xfrdfile: {path}/xfrd\n    xfrdir: {path}\n    zonelistfile: {path}/list\n    \
                     xfrd-reload-timeout: 0\n    zonefiles-write: 1\n\
                     remote-control:\n    control-enable: no\n\
                     key:\n    name: transfer\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
                     zone:\n    name: example\n    zonefile: {path}/zone\n    allow-notify: 127.0.0.1 transfer\n    \
                     request-xfr: 127.0.0.1@{from} transfer\n    provide-xfr: 127.0.0.1 NOKEY\n"
                ),
            ),
        };
        let file = directory.join("conf");
        std::fs::write(&file, text).unwrap();
        (program, arguments.into_iter().chain([file.display().to_string()]).collect())
    }
}

/// A secondary that runs.
pub(crate) struct Secondary {
    child: tokio::process::Child,
    address: SocketAddr,
}

impl Secondary {
    pub(crate) fn start(kind: Kind, directory: &Path, port: u16, ours: SocketAddr) -> Self {
        let (program, arguments) = kind.configure(directory, port, ours);
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let mut command = base::process::command(Path::new("/usr/sbin").join(program));
        command.args(arguments).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("the tests need Debian's {kind:?}: {error}"));
        Self { child, address: ([127, 0, 0, 1], port).into() }
    }

    /// Ends it as its service manager would.
    pub(crate) async fn stop(mut self) {
        let process = i32::try_from(self.child.id().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGTERM).unwrap();
        tokio::time::timeout(crate::server::PATIENCE, self.child.wait()).await.unwrap().unwrap();
    }

    /// What it has, if it answers.
    pub(crate) async fn records(&self) -> BTreeSet<String> {
        records(&raw(self.address, "example AXFR +onesoa").await)
            .into_iter()
            .map(|record| record.to_lowercase())
            .collect()
    }

    pub(crate) async fn serial(&self) -> Option<u32> {
        let text = raw(self.address, "example SOA +short +time=1").await;
        text.split_whitespace().nth(2)?.parse().ok()
    }

    /// Waits until it has this serial.
    pub(crate) async fn reaches(&self, serial: u32, directory: &Path) {
        let reached = async {
            while self.serial().await != Some(serial) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(crate::server::PATIENCE, reached).await.is_err() {
            let log = std::fs::read_to_string(directory.join("log")).unwrap();
            panic!("it has {:?} and not {serial}: {log}", self.serial().await);
        }
    }

    async fn has(&self, zone: &Zone, directory: &Path) {
        let wanted = wanted(zone);
        self.reaches(zone.serial(), directory).await;
        let held = self.records().await;
        let differ: Vec<_> = held.symmetric_difference(&wanted).collect();
        assert!(differ.is_empty(), "at serial {}: {differ:?}", zone.serial());
    }
}

/// The zone's records as `dig` writes them.
fn wanted(zone: &Zone) -> BTreeSet<String> {
    let soa = zone.soa();
    let own = format!(
        "{}. {} soa {}. {}. {} {} {} {} {}",
        zone.apex(),
        soa.ttl_s,
        soa.primary,
        soa.mailbox,
        zone.serial(),
        soa.refresh_s,
        soa.retry_s,
        soa.expire_s,
        soa.negative_s
    );
    let records = zone.names().flat_map(|(name, rrsets)| {
        rrsets.iter().flat_map(move |rrset| {
            rrset.texts().map(move |text| {
                // What has no form of its own is written with larger letters by some.
                format!("{name}. {} {} {text}", rrset.ttl_s(), rrset.kind()).to_lowercase()
            })
        })
    });
    records.chain([own]).collect()
}

/// The zone after some changes by chance, at the next serial.
fn changed(zone: &Zone, chance: &mut Chance) -> Zone {
    let mut changes: Vec<Change> = Vec::new();
    for _ in 0..1 + chance.bits() % 5 {
        let name = name(&format!("n{}.m{}.example", chance.bits() % NAMES, chance.bits() % 3));
        if changes.iter().any(|change| change.name == name) {
            continue;
        }
        let before = zone.rrsets(&name).to_vec();
        let after: Vec<Rrset> = match chance.bits() % 4 {
            0 => vec![],
            1 => vec![set(30, &addresses(chance))],
            2 => vec![set(60, &addresses(chance)), set(30, &[Data::Txt(vec![chance.bits().to_string().into_bytes()])])],
            _ => {
                let port = chance.bits().to_be_bytes();
                let (priority, weight, port) = (u16::from(port[0]), 1, u16::from(port[1]));
                vec![set(30, &[Data::Srv { priority, weight, port, target: self::name("www.example") }])]
            }
        };
        if before != after {
            changes.push(Change { name, before, after });
        }
    }
    zone.with(zone.serial() + 1, &changes).unwrap()
}

fn addresses(chance: &mut Chance) -> Vec<Data> {
    (0..1 + chance.bits() % 6).map(|_| Data::A([192, 0, 2, chance.bits().to_be_bytes()[0]].into())).collect()
}

/// A zone as whoever starts anew reads it from what is stored.
fn stored(zone: &Zone) -> Zone {
    let names: Vec<_> = zone.names().map(|(name, rrsets)| (name.clone(), rrsets.to_vec())).collect();
    let history: Vec<Difference> = zone.since(1).map_or(Vec::new(), |all| all.cloned().collect());
    Zone::load(zone.apex().clone(), soa(), zone.serial(), names, history).unwrap()
}

pub(crate) fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// A policy with one secondary on this machine.
pub(crate) fn following(port: u16) -> Policy {
    let notify = vec![NotifyTarget { address: ([127, 0, 0, 1], port).into(), key: Some(name("transfer")) }];
    let transfers = vec![rule("127.0.0.1/32", Some("transfer"))];
    Policy { transfers, keys: vec![key()], notify, rate: None }
}

async fn follows(kind: Kind) {
    let directory = tempfile::Builder::new().prefix("dns-it-").tempdir().unwrap();
    let port = free_port();
    let policy = following(port);
    let mut chance = Chance::new(5);
    let mut running = Running::start(zone(), policy.clone()).await;
    let mut secondary = Secondary::start(kind, directory.path(), port, running.address());
    secondary.has(&running.zone(), directory.path()).await;

    // Its serial is watched all the time: it never falls.
    let highest = std::sync::Arc::new(AtomicU32::new(0));
    let (address, seen) = (secondary.address, highest.clone());
    let watcher = task::spawn("serial-watcher", async move {
        loop {
            let text = raw(address, "example SOA +short +time=1").await;
            if let Some(serial) = text.split_whitespace().nth(2).and_then(|word| word.parse::<u32>().ok()) {
                let before = seen.fetch_max(serial, Ordering::SeqCst);
                assert!(serial >= before, "serial {serial} after {before}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
    for round in 0..12 {
        // A burst, of which the secondary is told once or a few times.
        for _ in 0..chance.bits() % 12 {
            running.set(changed(&running.zone(), &mut chance));
        }
        match round {
            // It is away while the zone changes.
            3 | 7 => {
                secondary.stop().await;
                running.set(changed(&running.zone(), &mut chance));
                if matches!(kind, Kind::Nsd) {
                    // It writes what it has only now and then, and begins again from that.
                    highest.store(0, Ordering::SeqCst);
                }
                secondary = Secondary::start(kind, directory.path(), port, running.address());
            }
            // We are away; afterwards there is something new.
            5 | 9 => {
                let (at, zone) = running.stop().await;
                running = Running::start_at(at, stored(&zone), policy.clone(), Limits::default()).await;
                running.set(changed(&running.zone(), &mut chance));
            }
            _ => {}
        }
        secondary.has(&running.zone(), directory.path()).await;
    }
    let last = running.zone().serial();
    until("the last serial was seen", async || watcher.is_finished() || highest.load(Ordering::SeqCst) == last).await;
    assert!(!watcher.is_finished(), "the serial fell");
    watcher.abort();
    let counters = running.server.counters();
    let sent = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert!(sent(&counters.transfers_differences) > 0, "differences are enough: {counters:?}");
    assert!(sent(&counters.notify_answered) > 0, "{counters:?}");
    assert_eq!(sent(&counters.transfers_refused), 0);
    secondary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bind_follows() {
    follows(Kind::Bind).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn knot_follows() {
    follows(Kind::Knot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nsd_follows() {
    follows(Kind::Nsd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secondary_that_does_not_answer_is_given_up_until_the_next_change() {
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let notify = vec![NotifyTarget { address: silent.local_addr().unwrap(), key: None }];
    let running = Running::start(zone(), Policy { notify, ..Policy::default() }).await;
    let counters = running.server.counters();
    until("it was given up", async || counters.notify_failed.load(Ordering::Relaxed) == 1).await;
    let sent = counters.notify_sent.load(Ordering::Relaxed);
    assert!((2..=6).contains(&sent), "{sent}");
    let mut buffer = [0; 512];
    let len = silent.recv(&mut buffer).await.unwrap();
    assert_eq!(&buffer[2..12], [0x24, 0, 0, 1, 0, 1, 0, 0, 0, 0], "a request of opcode 4 with a hint");
    assert!(len > 40);
    running.set(changed(&running.zone(), &mut Chance::new(1)));
    until("it is told again", async || counters.notify_sent.load(Ordering::Relaxed) > sent).await;
}
