//! The name server on this machine: what the store's records say, as the zones that the crate [`dns`] answers from.
//!
//! ```text
//! tables `zones`, `names` ──(every change, in the store's order)──► Feed ──(watched value)──► dns::Server
//! table  `zone_keys`      ──(opened: [`keys`])────────────────────►
//! ```
//! Every headnode puts the same records together, and signs them with the same keys as of the time of their serial, so all of them answer the same
//! at the same serial. A zone carries its differences since this
//! process began; a secondary that asks for older ones is handed the whole zone. Nothing here decides what names there are: that is
//! [`control::names`].

pub(crate) mod keys;
mod policy;
mod server;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use base::{clock::Clock, shutdown::Shutdown, watch};
use control::{
    Control, names,
    tables::{NAMES, ZONE_KEYS, ZONES},
};
use dns::{Change, Data, Name, Rrset, Soa, View, Zone, ZoneKey, Zones};
use model::names::{self as nouns, Group, Published, ZoneHead, dnssec::ZoneKeys};
use store::{Entry, Snapshot};

use self::server::Serving;
pub use self::{
    keys::Seal,
    server::{NameServer, Status},
};
use crate::settings::Settings;

/// Timers of the zones: how often secondaries look, and how long they go on alone. Changes are told to those that are named in the settings.
const REFRESH_SECONDS: u32 = 60;
const RETRY_SECONDS: u32 = 20;
const EXPIRE_SECONDS: u32 = 14 * 24 * 3_600;

/// Follows the records and answers from them until `shutdown`. `own` is where other machines reach this one, as far as that is known.
pub async fn serve(
    control: Control,
    settings: Settings,
    own: Option<IpAddr>,
    seal: Option<Seal>,
    clock: Arc<dyn Clock>,
    server: NameServer,
    shutdown: Shutdown,
) {
    if !settings.names.shared.enabled {
        return;
    }
    // Listening begins before the first look, so that no change falls between the two.
    let mut changes = control.store.changes();
    // A zone with many names takes a while to sign, during which others have their turn.
    let snapshot = control.snapshot();
    let mut feed = base::task::blocking("zones", move || Feed::new(seal, snapshot)).await;
    let zones = watch::Sender::new(feed.zones());
    let Settings { names, file, .. } = settings;
    let serving = Serving { names, file, own, zones: zones.subscribe(), clock, shutdown: shutdown.clone() };
    let serving = base::task::spawn("name server", serving.keep(server));
    while let Some(change) = shutdown.unless(changes.next()).await {
        // Keys change together with their zone.
        let concerns = |table: &str| table == NAMES.name || table == ZONES.name;
        if !change.lagged && !change.keys.iter().any(|(table, _)| concerns(table)) {
            continue;
        }
        feed = base::task::blocking("zones", move || {
            let keys = (!change.lagged).then_some(change.keys.as_slice());
            feed.follow(&change.snapshot, keys);
            feed
        })
        .await;
        zones.send_replace(feed.zones());
    }
    // It ends by the same word.
    let _ = serving.await;
}

/// The zones as they are, and what they were made of.
struct Feed {
    /// What opens keys; none where there is no authority's key, and so no zone that is signed.
    seal: Option<Seal>,
    snapshot: Snapshot,
    served: BTreeMap<String, Served>,
    /// Zones that cannot be, and why, as it was logged.
    unanswered: BTreeMap<String, String>,
}

/// Names whose answers may be others than before, each with the record it is found in when no other instance has it.
type Touched = BTreeMap<String, Option<Arc<Entry<Published>>>>;

struct Served {
    head: ZoneHead,
    signing: Option<Signing>,
    view: View,
    zone: Zone,
}

/// The keys of a zone, as they are recorded and as they sign.
#[derive(Clone)]
struct Signing {
    record: Arc<Entry<ZoneKeys>>,
    keys: Arc<[ZoneKey]>,
}

/// A zone's records as they are to be served.
struct Wanted<'a> {
    snapshot: &'a Snapshot,
    apex: &'a str,
    serial: u32,
    /// When it got that serial, seconds.
    at_s: u64,
    head: &'a ZoneHead,
    signing: Option<Signing>,
}

impl Feed {
    fn new(seal: Option<Seal>, snapshot: Snapshot) -> Self {
        let mut feed = Self { seal, snapshot: snapshot.clone(), served: BTreeMap::new(), unanswered: BTreeMap::new() };
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
        let known = std::mem::take(&mut self.unanswered);
        for record in snapshot.scan(&ZONES) {
            let Some(head) = &record.head else { continue };
            let old = match before.remove(&record.apex) {
                Some(old) if old.head == *head && old.zone.serial() == record.serial => {
                    self.served.insert(record.apex.clone(), old);
                    continue;
                }
                old => old,
            };
            let wanted = self.signing(snapshot, &record.apex, old.as_ref()).map(|signing| Wanted {
                snapshot,
                apex: &record.apex,
                serial: record.serial,
                at_s: u64::try_from(record.changed_at.0 / 1_000).unwrap_or(0),
                head,
                signing,
            });
            let served = wanted.and_then(|wanted| match old {
                Some(old) if wanted.follows(&old) => {
                    let names = touched.as_ref().map(|touched| touched.get(record.apex.as_str()));
                    wanted.after(&old, names).or_else(|why| {
                        tracing::error!(
                            zone = record.apex,
                            why,
                            "a zone did not follow from the one before; it is read anew"
                        );
                        wanted.load()
                    })
                }
                _ => wanted.load(),
            });
            match served {
                Ok(served) => {
                    self.served.insert(record.apex.clone(), served);
                }
                Err(why) => {
                    if known.get(&record.apex) != Some(&why) {
                        tracing::error!(zone = record.apex, why, "a zone cannot be answered for");
                    }
                    self.unanswered.insert(record.apex.clone(), why);
                }
            }
        }
        self.snapshot = snapshot.clone();
    }

    /// The keys a zone is signed with: those it had, where they are the same.
    fn signing(&self, snapshot: &Snapshot, apex: &str, old: Option<&Served>) -> Result<Option<Signing>, String> {
        let Some(record) = snapshot.get(&ZONE_KEYS, apex) else { return Ok(None) };
        if let Some(held) = old.and_then(|old| old.signing.as_ref())
            && held.record.value == record.value
        {
            return Ok(Some(held.clone()));
        }
        let seal = self.seal.as_ref().ok_or("it is signed, and this machine has no key of the authority")?;
        let keys = seal.open_all(&record)?.into();
        Ok(Some(Signing { record, keys }))
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

impl Wanted<'_> {
    /// Whether it can be made of what was served before by changing names.
    fn follows(&self, old: &Served) -> bool {
        old.head == *self.head && old.signing.is_some() == self.signing.is_some()
    }

    /// It, after what was served before. `names` are those that may have changed; all when that is not known.
    fn after(&self, old: &Served, names: Option<Option<&Touched>>) -> Result<Served, String> {
        let Self { snapshot, apex, head, .. } = *self;
        let changes = match names {
            Some(names) => changes(snapshot, apex, head, &old.zone, names)?,
            None => differences(snapshot, apex, head, &old.zone)?,
        };
        let zone = match &self.signing {
            None => old.zone.with(self.serial, &changes).map_err(said)?,
            Some(signing) => dns::sign(&old.zone, &changes, self.serial, &signing.keys, self.at_s).map_err(said)?,
        };
        Ok(Served { head: head.clone(), signing: self.signing.clone(), view: old.view.clone(), zone })
    }

    /// It, as the records say, without what led to it.
    fn load(&self) -> Result<Served, String> {
        let Self { snapshot, apex, head, .. } = *self;
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
        let mut zone = Zone::load(parse(apex)?, soa, self.serial, content(snapshot, apex, head)?, []).map_err(said)?;
        if let Some(signing) = &self.signing {
            zone = dns::sign_whole(&zone, &signing.keys, self.at_s).map_err(said)?;
        }
        let view = match head.clients.is_empty() {
            true => View::Everybody,
            false => View::Networks(head.clients.clone().into()),
        };
        Ok(Served { head: head.clone(), signing: self.signing.clone(), view, zone })
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
    let before = zone.unsigned(&name);
    after.sort_by_key(Rrset::kind);
    if before != after {
        changes.push(Change { name, before, after });
    }
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
mod rolls;
#[cfg(test)]
mod tests;
