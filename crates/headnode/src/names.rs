//! The name server on this machine: what the store's records say, as the zones that the crate [`dns`] answers from.
//!
//! ```text
//! tables `zones`, `names` ──(every change, in the store's order)──► Feed ──(watched value)──► dns::Server
//! ```
//! Every headnode puts the same records together, so all of them answer the same at the same serial. A zone carries its differences since this
//! process began; a secondary that asks for older ones is handed the whole zone. Nothing here decides what names there are: that is
//! [`control::names`].

mod policy;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base::{clock::Clock, shutdown::Shutdown, watch};
use control::{
    Control, names,
    tables::{NAMES, ZONES},
};
use dns::{Change, Data, Name, Rrset, Soa, View, Zone, Zones};
use model::names::{self as nouns, Group, Published, ZoneHead};
use store::{Entry, Snapshot};

use crate::settings::{Names, Settings};

/// After a start that did not work.
const AGAIN: Duration = Duration::from_secs(10);
/// Timers of the zones: how often secondaries look, and how long they go on alone. Changes are told to those that are named in the settings.
const REFRESH_SECONDS: u32 = 60;
const RETRY_SECONDS: u32 = 20;
const EXPIRE_SECONDS: u32 = 14 * 24 * 3_600;
/// Threads that answer over UDP, an address: one answers more than a datacenter asks, and a machine has instances to run.
const THREADS_MAX: usize = 4;

/// The name server on this machine, for who wants to see how it is. Cheap to clone.
#[derive(Clone, Default)]
pub struct NameServer {
    // A leaf lock: written when the server starts, read by operators.
    status: Arc<Mutex<Status>>,
}

/// How it is.
#[derive(Clone, Default)]
pub struct Status {
    /// Where it answers.
    pub addresses: Vec<SocketAddr>,
    /// Where it should and does not, and why.
    pub refused: Vec<(SocketAddr, String)>,
    /// Why it does not run at all.
    pub error: Option<String>,
    /// What it has done; `None` while it does not run.
    pub counters: Option<Arc<dns::Counters>>,
}

impl NameServer {
    /// How it is now.
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note(&self, status: Status) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// Follows the records and answers from them until `shutdown`. `own` is where other machines reach this one, as far as that is known.
pub async fn serve(
    control: Control,
    settings: Settings,
    own: Option<IpAddr>,
    clock: Arc<dyn Clock>,
    server: NameServer,
    shutdown: Shutdown,
) {
    if !settings.names.shared.enabled {
        return;
    }
    // Listening begins before the first look, so that no change falls between the two.
    let mut changes = control.store.changes();
    let mut feed = Feed::new(control.snapshot());
    let zones = watch::Sender::new(feed.zones());
    let (receiver, names, ended) = (zones.subscribe(), settings.names.clone(), shutdown.clone());
    let starting = base::task::spawn("name server", async move {
        loop {
            let error = match start(&names, own, receiver.clone(), clock.clone(), &server, ended.clone()).await {
                Ok(()) => return,
                Err(error) => error,
            };
            tracing::warn!(error, "the name server does not run; trying again");
            if ended.unless(clock.sleep(AGAIN)).await.is_none() {
                return;
            }
        }
    });
    while let Some(change) = shutdown.unless(changes.next()).await {
        let concerns = |table: &str| table == NAMES.name || table == ZONES.name;
        if !change.lagged && !change.keys.iter().any(|(table, _)| concerns(table)) {
            continue;
        }
        let keys = (!change.lagged).then_some(change.keys.as_slice());
        feed.follow(&change.snapshot, keys);
        zones.send_replace(feed.zones());
    }
    // It ends by the same word.
    let _ = starting.await;
}

async fn start(
    names: &Names,
    own: Option<IpAddr>,
    zones: watch::Receiver<Arc<Zones>>,
    clock: Arc<dyn Clock>,
    server: &NameServer,
    shutdown: Shutdown,
) -> Result<(), String> {
    let policy = policy::policy(names).map_err(|error| base::errors::chain(&error));
    let wanted = names.addresses(own);
    let (free, refused): (Vec<_>, Vec<_>) =
        wanted.into_iter().map(|address| (address, is_free(address))).partition(|(_, outcome)| outcome.is_ok());
    let refused: Vec<(SocketAddr, String)> =
        refused.into_iter().map(|(address, outcome)| (address, outcome.err().unwrap_or_default())).collect();
    for (address, why) in &refused {
        tracing::warn!(%address, why, "names are not answered for there; `neso doctor` says what to do");
    }
    let addresses: Vec<SocketAddr> = free.into_iter().map(|(address, _)| address).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let outcome = match (policy, addresses.is_empty()) {
        (Err(why), _) => Err(why),
        (Ok(_), true) => Err("nowhere to answer: every address is taken".to_owned()),
        (Ok(policy), false) => {
            let settings = dns::Settings { addresses, threads, limits: dns::Limits::default(), policy };
            dns::Server::start(settings, zones, clock, shutdown).await.map_err(|error| base::errors::chain(&error))
        }
    };
    match outcome {
        Ok(running) => {
            let addresses = running.addresses().to_vec();
            tracing::info!(?addresses, "names are answered for");
            server.note(Status { addresses, refused, error: None, counters: Some(running.counters()) });
            Ok(())
        }
        Err(error) => {
            server.note(Status { refused, error: Some(error.clone()), ..Status::default() });
            Err(error)
        }
    }
}

/// Whether nobody listens at an address, for connections or datagrams.
fn is_free(address: SocketAddr) -> Result<(), String> {
    let connections = TcpListener::bind(address).map(drop);
    connections.and_then(|()| UdpSocket::bind(address).map(drop)).map_err(|error| error.to_string())
}

/// The zones as they are, and what they were made of.
struct Feed {
    snapshot: Snapshot,
    served: BTreeMap<String, Served>,
}

/// Names whose answers may be others than before, each with the record it is found in when no other instance has it.
type Touched = BTreeMap<String, Option<Arc<Entry<Published>>>>;

struct Served {
    head: ZoneHead,
    view: View,
    zone: Zone,
}

impl Feed {
    fn new(snapshot: Snapshot) -> Self {
        let mut feed = Self { snapshot: snapshot.clone(), served: BTreeMap::new() };
        feed.follow(&snapshot, None);
        feed
    }

    fn zones(&self) -> Arc<Zones> {
        Arc::new(Zones::new(self.served.values().map(|served| (served.view.clone(), served.zone.clone()))))
    }

    /// Becomes what `snapshot` says; `keys` are the records that changed, or `None` when that is not known.
    fn follow(&mut self, snapshot: &Snapshot, keys: Option<&[(&'static str, Arc<str>)]>) {
        let touched = keys.map(|keys| self.touched(snapshot, keys));
        let mut before = std::mem::take(&mut self.served);
        for record in snapshot.scan(&ZONES) {
            let Some(head) = &record.head else { continue };
            let served = match before.remove(&record.apex) {
                Some(old) if old.head == *head && old.zone.serial() == record.serial => Ok(old),
                Some(old) if old.head == *head => {
                    let names = touched.as_ref().map(|touched| touched.get(record.apex.as_str()));
                    let changes = match names {
                        Some(names) => changes(snapshot, &record.apex, head, &old.zone, names),
                        None => differences(snapshot, &record.apex, head, &old.zone),
                    };
                    let next = changes.and_then(|changes| old.zone.with(record.serial, &changes).map_err(said));
                    next.map(|zone| Served { zone, ..old }).or_else(|why| {
                        tracing::error!(
                            zone = record.apex,
                            why,
                            "a zone did not follow from the one before; it is read anew"
                        );
                        load(snapshot, &record.apex, head, record.serial)
                    })
                }
                _ => load(snapshot, &record.apex, head, record.serial),
            };
            match served {
                Ok(served) => {
                    self.served.insert(record.apex.clone(), served);
                }
                Err(why) => tracing::error!(zone = record.apex, why, "a zone cannot be answered for"),
            }
        }
        self.snapshot = snapshot.clone();
    }

    /// What a change of records may concern, by zone.
    fn touched(&self, snapshot: &Snapshot, keys: &[(&'static str, Arc<str>)]) -> HashMap<String, Touched> {
        let mut touched: HashMap<String, Touched> = HashMap::new();
        for (_, key) in keys.iter().filter(|(table, _)| *table == NAMES.name) {
            let (old, new) = (self.snapshot.get(&NAMES, key), snapshot.get(&NAMES, key));
            for entry in [&old, &new].into_iter().flatten() {
                for (apex, groups) in entry.parts.iter() {
                    let names = touched.entry(apex.clone()).or_default();
                    for name in groups.iter().flat_map(|group| &group.names) {
                        names.insert(name.clone(), new.clone());
                    }
                }
            }
        }
        touched
    }
}

/// What is new in a zone, of the names that may have changed.
fn changes(
    snapshot: &Snapshot,
    apex: &str,
    head: &ZoneHead,
    zone: &Zone,
    names: Option<&Touched>,
) -> Result<Vec<Change>, String> {
    let mut changes = Vec::new();
    for (name, published) in names.into_iter().flatten() {
        let published = published.as_ref().map(|entry| &entry.value);
        let data = names::data_of(snapshot, apex, name, published);
        push_change(&mut changes, zone, whole(apex, name)?, rrsets(head, &data)?);
    }
    Ok(changes)
}

/// What is new in a zone, of all names.
fn differences(snapshot: &Snapshot, apex: &str, head: &ZoneHead, zone: &Zone) -> Result<Vec<Change>, String> {
    let mut wanted = content(snapshot, apex, head)?;
    let mut changes = Vec::new();
    let known: Vec<Name> = zone.names().map(|(name, _)| name.clone()).collect();
    for name in known {
        let after = wanted.remove(&name).unwrap_or_default();
        push_change(&mut changes, zone, name, after);
    }
    for (name, after) in wanted {
        push_change(&mut changes, zone, name, after);
    }
    Ok(changes)
}

fn push_change(changes: &mut Vec<Change>, zone: &Zone, name: Name, mut after: Vec<Rrset>) {
    let before = zone.rrsets(&name).to_vec();
    after.sort_by_key(Rrset::kind);
    if before != after {
        changes.push(Change { name, before, after });
    }
}

/// A zone as the records say, without what led to it.
fn load(snapshot: &Snapshot, apex: &str, head: &ZoneHead, serial: u32) -> Result<Served, String> {
    let name = parse(apex)?;
    let primary = head.name_servers.first().ok_or("it has no name server")?;
    let soa = Soa {
        primary: parse(primary)?,
        mailbox: parse(&head.hostmaster)?,
        refresh_s: REFRESH_SECONDS,
        retry_s: RETRY_SECONDS,
        expire_s: EXPIRE_SECONDS,
        negative_s: head.ttl_seconds,
        ttl_s: head.ttl_seconds,
    };
    let zone = Zone::load(name, soa, serial, content(snapshot, apex, head)?, []).map_err(said)?;
    let view = match head.clients.is_empty() {
        true => View::Everybody,
        false => View::Networks(head.clients.clone().into()),
    };
    Ok(Served { head: head.clone(), view, zone })
}

/// Every name of a zone, its apex and its name servers among them.
fn content(snapshot: &Snapshot, apex: &str, head: &ZoneHead) -> Result<BTreeMap<Name, Vec<Rrset>>, String> {
    let mut all = BTreeMap::new();
    for (name, data) in names::content(snapshot, apex) {
        all.insert(whole(apex, &name)?, rrsets(head, &data)?);
    }
    let glue: BTreeSet<&String> = head.glue.iter().flat_map(|group: &Group| &group.names).collect();
    for name in glue {
        all.insert(whole(apex, name)?, rrsets(head, &nouns::merged(name, head.glue.iter()))?);
    }
    let servers: Result<Vec<Data>, String> =
        head.name_servers.iter().map(|server| parse(server).map(Data::Ns)).collect();
    all.insert(parse(apex)?, vec![Rrset::new(head.ns_ttl_seconds, &servers?).map_err(said)?]);
    Ok(all)
}

/// Record sets of data that is in order.
fn rrsets(head: &ZoneHead, data: &[nouns::Data]) -> Result<Vec<Rrset>, String> {
    let kinds = data.chunk_by(|one, other| std::mem::discriminant(one) == std::mem::discriminant(other));
    kinds
        .map(|same| {
            let records: Result<Vec<Data>, String> = same.iter().map(record).collect();
            Rrset::new(head.ttl_seconds, &records?).map_err(said)
        })
        .collect()
}

fn record(data: &nouns::Data) -> Result<Data, String> {
    Ok(match data {
        nouns::Data::A(address) => Data::A(*address),
        nouns::Data::Aaaa(address) => Data::Aaaa(*address),
        nouns::Data::Txt(text) => Data::Txt(vec![text.as_bytes().to_vec()]),
        nouns::Data::Srv { priority, weight, port, target } => {
            Data::Srv { priority: *priority, weight: *weight, port: *port, target: parse(target)? }
        }
        nouns::Data::Ptr(target) => Data::Ptr(parse(target)?),
    })
}

fn whole(apex: &str, name: &str) -> Result<Name, String> {
    parse(&format!("{name}.{apex}"))
}

fn parse(name: &str) -> Result<Name, String> {
    name.parse().map_err(|error| format!("{name}: {error}"))
}

fn said(error: impl std::error::Error) -> String {
    base::errors::chain(&error)
}

#[cfg(test)]
mod tests;
