//! Taking in what a machine says.
//!
//! A report is the whole of what its machine knows, sent every few seconds (as what is new in it, where the last one is still known:
//! [`super::reports`]), and almost always says nothing new. It is compared with the records in memory; only differences that matter become a commit, many instances in one. Passing states
//! (preparing, starting, stopping) are not written down: they follow from the intent, and a write for each would double the
//! cost of making an instance.
//!
//! Facts never touch the intent. But the fact that nothing is left of an instance that was to be gone gives back what it
//! held, in the same commit ([`crate::instances::release`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use model::{
    clock,
    delta::{ReportDelta, ReportNews},
    diff::Ended,
    id::{InstanceId, NetworkId, ServerId},
    instance::{AuditEntry, Caller, Instance},
    placement::Demand,
    rules,
    server::{Reserved, Server, Word},
    target::{Report, ZoneFact, ZoneState, is_internal_key},
    time::Timestamp,
    wire::WIRES_MAX,
};
use nodeapi::ReportAnswer;
use store::{CommitError, Entry, Snapshot, Transaction};

use crate::{
    Control, Error, Result,
    instances::release,
    liveness::{Heard, STRANGERS_MAX},
    networks::allocate,
    placement, rebuild,
    servers::{
        reports::{Taken, Worth},
        targets::Knowledge,
    },
    tables::{ADDRESSES, BY_HOLDER, INSTANCES, SERVERS},
};

/// Instances whose facts go into one commit: bounds its size and the loss when it has to be decided again.
const FACTS_PER_COMMIT: usize = 24;
/// How often a report is looked at while records it speaks of are being changed. The next report says it all again.
const LOOKS_MAX: usize = 8;
/// Instances one machine may report: more than it could run.
const ZONES_MAX: usize = 10_000;
/// How old a change of metadata is at least when it counts as served, milliseconds. Clients that wait for it look for a line in
/// the history that is younger, by their own clock, than the answer they got; the line must not be written before that
/// answer is with them, nor be taken for older because their clock is a little ahead.
const SERVED_AFTER_MS: i64 = 1_000;
/// How often a heartbeat is written down, milliseconds.
const LAST_SEEN_EVERY_MS: i64 = 60_000;

/// Takes in what the machine whose certificate says it is `id` says, in either form. What a delta starts from may not be what is
/// held here; then nothing is taken in, and the answer says so.
pub async fn apply_news(control: &Control, id: ServerId, news: &ReportNews) -> Result<ReportAnswer> {
    let received = control.now();
    check_sender(id, news.server())?;
    match news {
        ReportNews::Whole(report) => take_in_all(control, id, Report::clone(report), None).await?,
        ReportNews::Delta(delta) => {
            let Some(before) = control.reports.get(id) else { return Ok(answer(control, id, received)) };
            match delta.apply(before.digest, &before.report) {
                Ok(report) => take_in_all(control, id, report, Some((&before, delta.as_ref()))).await?,
                Err(why) => {
                    tracing::info!(server = %id, %why, "a report does not follow on the one held; asking for all of it");
                }
            }
        }
    }
    Ok(answer(control, id, received))
}

/// Takes in a whole report of the machine whose certificate says it is `id`.
pub async fn apply_report(control: &Control, id: ServerId, report: &Report) -> Result<ReportAnswer> {
    let received = control.now();
    check_sender(id, report.server)?;
    take_in_all(control, id, report.clone(), None).await?;
    Ok(answer(control, id, received))
}

fn check_sender(id: ServerId, says: ServerId) -> Result<()> {
    match says == id {
        true => Ok(()),
        false => Err(Error::invalid("server", format!("is {says}, but the certificate says {id}"))),
    }
}

fn answer(control: &Control, id: ServerId, received: Timestamp) -> ReportAnswer {
    ReportAnswer {
        generation: control.targets.generation(id),
        held: control.reports.digest(id),
        received_at: Some(received),
        answered_at: Some(control.now()),
    }
}

/// Takes in `report`, which a delta made of the one before or which was sent whole.
async fn take_in_all(
    control: &Control,
    id: ServerId,
    report: Report,
    news: Option<(&Taken, &ReportDelta)>,
) -> Result<()> {
    if report.zones.len() > ZONES_MAX {
        return Err(Error::invalid("zones", format!("has more than {ZONES_MAX} entries")));
    }
    if report.wires.facts.len() > WIRES_MAX {
        return Err(Error::invalid("wires", format!("has more than {WIRES_MAX} entries")));
    }
    let now = control.now();
    let snapshot = control.snapshot();
    control.targets.caught_up(snapshot.revision().0).await;
    let stirred = control.targets.take_stirred(id);
    let worth = news.map_or(Worth::All, |(before, delta)| before.worth(delta, stirred, now));
    // Until all is written down nothing is held: who hears of an error says everything again.
    control.reports.forget(id);
    let heard = Heard {
        at: now,
        target_seen: report.target_seen,
        leaving: report.leaving,
        goes_down: report.goes_down,
        firewall_seen: report.firewall_seen,
        strangers: strangers(control, &snapshot, &report, &worth),
        wires: report.wires.clone(),
        clock: report.clock,
    };
    control.nodes.note(id, heard);
    lift_generation(control, id, report.target_seen).await?;
    for _ in 0..LOOKS_MAX {
        if take(control, id, &report, &worth, now).await? == Look::Enough {
            break;
        }
    }
    rebuild::compare(control, id, &report).await?;
    let looked_at = match (&worth, news) {
        (Worth::Some(_), Some((before, _))) => before.looked_at,
        _ => now,
    };
    let snapshot = control.snapshot();
    let open = looked_at_in(&report, &worth).filter(|zone| is_open(&snapshot, &report, *zone)).collect();
    let digest = news.map_or_else(|| report.digest(), |(_, delta)| delta.digest);
    control.reports.keep(id, Taken { report, digest, open, looked_at });
    Ok(())
}

/// Instances of `report` that are worth a look.
fn looked_at_in<'a>(report: &'a Report, worth: &'a Worth) -> Box<dyn Iterator<Item = InstanceId> + Send + 'a> {
    match worth {
        Worth::All => Box::new(report.zones.keys().copied()),
        Worth::Some(ids) => Box::new(ids.iter().copied().filter(|id| report.zones.contains_key(id))),
    }
}

/// Whether what is said of an instance may become news without being said differently and without a change of its record.
fn is_open(snapshot: &Snapshot, report: &Report, id: InstanceId) -> bool {
    let Some(entry) = snapshot.get(&INSTANCES, &id.to_string()) else { return false };
    let Some(fact) = report.zones.get(&id).filter(|_| entry.server == report.server) else { return false };
    entry.metadata_edits_served < entry.metadata_edits
        || fact.state == ZoneState::Absent && release::is_wanted(&entry)
        || !entry.released && has_strays(snapshot, &entry, fact)
}

/// A machine that has seen a generation which this store never made has lived through a later history: the store was restored
/// from an older copy. From here on its generations are counted from above what it has seen, so that it listens again.
async fn lift_generation(control: &Control, id: ServerId, seen: u64) -> Result<()> {
    // What is durable now is below every revision to come, also while the state to decide on runs ahead of it.
    let durable = || control.snapshot().revision().0;
    let is_foreign = |server: &Server| seen > durable().saturating_add(server.generation_base);
    let server = control.snapshot().get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
    if !is_foreign(&server) {
        return Ok(());
    }
    // Another headnode may have told it of commits that are still on their way to the mirror here.
    control.store.fresh().await.map_err(|stale| Error::Unavailable(stale.to_string()))?;
    if !is_foreign(&server) {
        return Ok(());
    }
    let (_, lifted) = control
        .store
        .update(|snapshot| {
            let server = snapshot.get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
            if !is_foreign(&server) {
                return Ok((Transaction::new(), false));
            }
            let generation_base = seen.saturating_sub(durable());
            let lifted = Server { generation_base, generation_floor: seen, ..server.value.clone() };
            let transaction = Transaction::new().may_use_reserve().replace(&SERVERS, &server, lifted);
            Ok::<_, Error>((transaction, true))
        })
        .await?;
    if lifted {
        tracing::warn!(server = %id, seen, revision = durable(), "the store is older than what this machine has seen, as after a restore: its targets are counted from above that");
    }
    Ok(())
}

/// Machines in one commit that says they are silent.
const SILENT_PER_COMMIT: usize = 50;

/// Takes this headnode's name out of the records of machines that no longer report to it, so that the others know. Returns how many.
pub(crate) async fn let_go(control: &Control) -> Result<usize> {
    let roster = control.headnodes.roster();
    let Some(me) = roster.me().filter(|me| !roster.is_alone() && roster.is_fresh(*me)) else { return Ok(0) };
    let is_silent =
        |server: &Server| server.heard_by == Some(me) && control.nodes.is_silent_here(server.id, control.now());
    let silent: Vec<ServerId> =
        control.snapshot().scan(&SERVERS).filter(|server| is_silent(server)).map(|server| server.id).collect();
    for some in silent.chunks(SILENT_PER_COMMIT) {
        let decided = control.store.update(|snapshot| {
            let entries = some.iter().filter_map(|id| snapshot.get(&SERVERS, &id.to_string()));
            let transaction = entries.filter(|entry| is_silent(entry)).fold(Transaction::new(), |all, entry| {
                let unheard = Server { heard_by: None, ..entry.value.clone() };
                all.replace(&SERVERS, &entry, unheard)
            });
            Ok::<_, Error>((transaction.may_use_reserve(), ()))
        });
        decided.await?;
    }
    Ok(silent.len())
}

/// Whether a report has to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Everything it says is written down.
    Enough,
    /// A record was being changed at the same time.
    Again,
}

/// Takes in what can be judged now.
async fn take(control: &Control, id: ServerId, report: &Report, worth: &Worth, now: Timestamp) -> Result<Look> {
    let snapshot = control.snapshot();
    let server = snapshot.get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
    control.targets.caught_up(snapshot.revision().0).await;
    let known = looked_at_in(report, worth).filter_map(|zone| snapshot.get(&INSTANCES, &zone.to_string()));
    let news: Vec<InstanceId> =
        known.filter(|entry| news_of(control, &snapshot, entry, report).is_some()).map(|entry| entry.id).collect();
    let here = Here::of(control, report);
    if news.is_empty() && refreshed(&server, report, here, now).is_some() {
        write(control, id, report, &[], now).await?;
    }
    let mut look = Look::Enough;
    let mut waiting: Vec<&[InstanceId]> = news.chunks(FACTS_PER_COMMIT).collect();
    while let Some(some) = waiting.pop() {
        match write(control, id, report, some, now).await {
            Ok(Look::Enough) => {}
            Ok(Look::Again) => look = Look::Again,
            // Instances with many NICs or much metadata: fewer at once.
            Err(Error::Store(CommitError::TooLarge { .. })) if some.len() > 1 => {
                let (one, other) = some.split_at(some.len() / 2);
                waiting.extend([one, other]);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(look)
}

/// Commits what `report` says of the machine itself and of the instances in `some`.
async fn write(control: &Control, id: ServerId, report: &Report, some: &[InstanceId], now: Timestamp) -> Result<Look> {
    let here = Here::of(control, report);
    let (_, look) = control
        .store
        .update(|snapshot| {
            let Some(server) = snapshot.get(&SERVERS, &id.to_string()) else {
                return Err(Error::not_found("server", id));
            };
            let mut transaction = Transaction::new().may_use_reserve();
            let (mut reserved, mut look, mut left) = (server.reserved.clone(), Look::Enough, false);
            for instance in some {
                let Some(entry) = snapshot.get(&INSTANCES, &instance.to_string()) else { continue };
                let Some(news) = news_of(control, snapshot, &entry, report) else { continue };
                if news.unclear {
                    look = Look::Again;
                    continue;
                }
                let instance = take_in(snapshot, &entry, news, &mut reserved, now, &mut transaction);
                left |= entry.is_on_machine() && !instance.is_on_machine();
                transaction = transaction.replace(&INSTANCES, &entry, instance);
            }
            let refreshed = refreshed(&server, report, here, now).unwrap_or_else(|| server.value.clone());
            let changed = placement::with_room(control, Server { reserved, ..refreshed });
            // What leaves the machine's document leaves a mark in a record that stays, so that generations never fall.
            if changed != server.value || left {
                transaction = transaction.replace(&SERVERS, &server, changed);
            }
            Ok((transaction, look))
        })
        .await?;
    Ok(look)
}

/// What a report says of one instance that its record does not say yet.
struct News {
    fact: Option<ZoneFact>,
    /// Nothing is left of what was to be gone.
    gone: bool,
    /// It holds addresses of NICs that are gone.
    strays: bool,
    /// Its machine serves the newest metadata.
    served: bool,
    /// What its machine knows matters, and cannot be said yet.
    unclear: bool,
}

fn news_of(control: &Control, snapshot: &Snapshot, entry: &Entry<Instance>, report: &Report) -> Option<News> {
    let fact = report.zones.get(&entry.id).filter(|_| entry.server == report.server)?;
    // That nothing is there counts only from a machine that knows it must stay so: under an older target it may just be
    // about to make it.
    let awaited = fact.state == ZoneState::Absent && release::is_wanted(entry);
    let edited = entry.metadata_edits_served < entry.metadata_edits
        && control.now().millis_since(entry.updated_at) >= SERVED_AFTER_MS.unsigned_abs();
    let knowledge = control.targets.knowledge(report.server, entry, report.target_seen);
    let gone = awaited && knowledge == Knowledge::Current;
    let served = edited && knowledge == Knowledge::Current;
    let unclear = (awaited || edited) && knowledge == Knowledge::Unclear;
    let strays = !entry.released && has_strays(snapshot, entry, fact);
    let fact = (gone || matters(entry, fact)).then(|| ZoneFact::clone(fact));
    (fact.is_some() || strays || served || unclear).then_some(News { fact, gone, strays, served, unclear })
}

/// Whether `fact` is worth a commit.
fn matters(instance: &Instance, fact: &ZoneFact) -> bool {
    let known = instance.fact.as_ref();
    if instance.released {
        // It was gone. If its machine made it again under an older target, it is told once more.
        return (fact.state == ZoneState::Absent) != known.is_none_or(|known| known.state == ZoneState::Absent);
    }
    if instance.lost_at.is_some() && rebuild::is_there(fact) {
        return true;
    }
    if fact.guest_metadata.iter().any(|change| change.sequence > instance.guest_metadata_seen) {
        return true;
    }
    let passing =
        matches!(fact.state, ZoneState::Preparing | ZoneState::Starting | ZoneState::Stopping | ZoneState::Removing);
    let Some(known) = known else {
        // Not made yet and nothing to say of that: as if nothing had been said.
        return fact.error.is_some() || !(passing || fact.state == ZoneState::Absent);
    };
    let comparable = ZoneFact {
        state: if passing { known.state } else { fact.state },
        timeline: known.timeline.clone(),
        guest_metadata: Vec::new(),
        ..fact.clone()
    };
    comparable != *known
}

/// Whether the instance still holds addresses that it has lost on its machine too.
fn has_strays(snapshot: &Snapshot, instance: &Instance, fact: &ZoneFact) -> bool {
    let in_force = |mac| instance.nics.iter().any(|nic| nic.mac == mac);
    let is_given = |mac, ip| instance.nics.iter().any(|nic| nic.mac == mac && nic.addresses6().any(|own| own == ip));
    let mut six = fact.addresses6.iter().flat_map(|(mac, ips)| ips.iter().map(|ip| (*mac, *ip)));
    let addresses: usize = instance.nics.iter().map(|nic| nic.addresses().count()).sum();
    snapshot.find(&ADDRESSES, BY_HOLDER, &instance.id.to_string()).count() > addresses
        && fact.nics.iter().all(|mac| in_force(*mac))
        && six.all(|(mac, ip)| is_given(mac, ip))
}

/// The record with `news` in it; what else goes with that is added to `transaction`.
fn take_in(
    snapshot: &Snapshot,
    entry: &Entry<Instance>,
    news: News,
    reserved: &mut Reserved,
    now: Timestamp,
    transaction: &mut Transaction,
) -> Instance {
    let mut instance = entry.value.clone();
    if let Some(mut fact) = news.fact {
        count_up(&mut instance, &fact);
        if instance.lost_at.is_some() && rebuild::is_there(&fact) {
            rebuild::found(&mut instance, now);
        }
        merge_guest_metadata(&mut instance, &mut fact, now);
        if let Some(entry) = ended_by_itself(&instance, &fact, now) {
            instance.record(entry);
        }
        if instance.fact.as_ref().map(|known| known.state) != Some(fact.state) {
            instance.updated_at = now;
        }
        instance.fact = Some(fact);
    }
    if news.served {
        instance.metadata_edits_served = instance.metadata_edits;
    }
    if news.gone {
        *transaction = release::release(snapshot, &mut instance, now, std::mem::take(transaction));
    } else if news.strays {
        *transaction = allocate::give_back(snapshot, instance.id, &instance.nics, std::mem::take(transaction));
    }
    let held = |instance: &Instance| (!instance.released).then(|| Demand::held_by(instance));
    let (before, after) = (held(entry), held(&instance));
    if before != after {
        let without = before.map_or_else(|| reserved.clone(), |demand| reserved.minus(demand));
        *reserved = after.map_or_else(|| without.clone(), |demand| without.plus(demand));
    }
    instance
}

/// An entry for the history about an end nobody outside asked for: halted or rebooted from inside, or died.
fn ended_by_itself(instance: &Instance, fact: &ZoneFact, now: Timestamp) -> Option<AuditEntry> {
    let exit = fact.exit.as_ref().filter(|exit| !exit.asked)?;
    if instance.fact.as_ref().and_then(|known| known.exit.as_ref()) == Some(exit) {
        return None;
    }
    let ended = Ended::of(exit);
    Some(AuditEntry {
        action: if ended == Ended::Rebooted { "reboot" } else { "stop" }.to_owned(),
        success: ended != Ended::Died,
        // The machine's clock may be ahead of ours.
        time: exit.at.min(now),
        caller: Caller::System,
        error: (ended == Ended::Died).then(|| exit.reason.clone()),
        timeline: Vec::new(),
    })
}

/// Counters only rise. A machine can be ahead of them when the store was restored from an older copy; the next start must count
/// further than what was carried out then.
fn count_up(instance: &mut Instance, fact: &ZoneFact) {
    instance.intent.starts = instance.intent.starts.max(fact.starts_done);
    instance.intent.reboots = instance.intent.reboots.max(fact.reboots_done);
}

/// Takes over what the guest changed in its metadata. A change that would break the rules is acknowledged and dropped:
/// the guest cannot be told any more.
fn merge_guest_metadata(instance: &mut Instance, fact: &mut ZoneFact, now: Timestamp) {
    for change in std::mem::take(&mut fact.guest_metadata) {
        if change.sequence <= instance.guest_metadata_seen {
            continue;
        }
        instance.guest_metadata_seen = change.sequence;
        let internal = is_internal_key(&change.key);
        let half = if internal { &mut instance.internal_metadata } else { &mut instance.metadata };
        let mut metadata = half.to_map();
        match change.value {
            Some(value) => metadata.insert(change.key.clone(), value),
            None => metadata.remove(&change.key),
        };
        match rules::check_metadata(&metadata) {
            Ok(()) => {
                *half = metadata.into();
                instance.updated_at = now;
            }
            Err((field, why)) => {
                tracing::info!(instance = %instance.id, %field, %why, "dropped a change of metadata from inside");
            }
        }
    }
}

/// Who takes a report in.
#[derive(Debug, Clone, Copy)]
struct Here {
    headnode: Option<ServerId>,
    /// What the others must be told, where there are any.
    said: Option<Word>,
}

impl Here {
    fn of(control: &Control, report: &Report) -> Self {
        let said = (!control.headnodes.roster().is_alone()).then(|| Word {
            firewall_seen: control.targets.covered(report.server, report.firewall_seen),
            leaving: report.leaving,
            goes_down: report.goes_down,
        });
        Self { headnode: control.headnodes.me(), said }
    }

    /// Whether what is written down tells the others enough: a number that is covered by now is good for a minute more.
    fn is_told(&self, server: &Server, report: &Report) -> bool {
        let Some(said) = self.said else { return true };
        let known = server.word;
        (known.leaving, known.goes_down) == (said.leaving, said.goes_down)
            && known.firewall_seen >= report.firewall_seen
    }
}

/// The machine's own part of the record, if the report changes it.
fn refreshed(server: &Server, report: &Report, here: Here, now: Timestamp) -> Option<Server> {
    let heard_by = here.headnode.or(server.heard_by);
    let word = here.said.unwrap_or(server.word);
    let (address, mtu) =
        (report.underlay.map(|underlay| underlay.address), report.underlay.map(|underlay| underlay.mtu));
    let same = server.hostname == report.hostname
        && server.hardware == report.hardware
        && server.boot_id.as_ref() == Some(&report.boot_id)
        && server.nic_tags == report.hardware.nic_tags
        && server.identity.is_some()
        && server.clock_ahead_ms == clock::noted(server, report.clock)
        && server.heard_by == heard_by
        && here.is_told(server, report)
        && (server.underlay, server.underlay_mtu, server.outside) == (address, mtu, report.outside)
        && server.headnode_fact == report.headnode;
    let fresh = server.last_seen_at.is_some_and(|at| now.0.saturating_sub(at.0) < LAST_SEEN_EVERY_MS);
    (!same || !fresh).then(|| Server {
        hostname: report.hostname.clone(),
        hardware: report.hardware.clone(),
        nic_tags: report.hardware.nic_tags.clone(),
        boot_id: Some(report.boot_id.clone()),
        last_seen_at: Some(now),
        identity: Some(server.identity.clone().unwrap_or_else(|| report.hardware.identity.clone())),
        underlay: address,
        underlay_mtu: mtu,
        outside: report.outside,
        clock_ahead_ms: clock::noted(server, report.clock),
        headnode_fact: report.headnode.clone(),
        target_seen: report.target_seen,
        heard_by,
        word,
        ..server.clone()
    })
}

/// What nobody here asked this machine to have. It is left alone: only an explicit target destroys.
fn strangers(
    control: &Control,
    snapshot: &Snapshot,
    report: &Report,
    worth: &Worth,
) -> BTreeMap<InstanceId, Vec<(NetworkId, IpAddr)>> {
    let is_own =
        |id: &InstanceId| snapshot.get(&INSTANCES, &id.to_string()).is_some_and(|entry| entry.server == report.server);
    let known = match worth {
        Worth::All => BTreeSet::new(),
        // Those of the report before stay strangers until they are worth a look.
        Worth::Some(_) => {
            let before = control.nodes.heard_here(report.server);
            before.map(|heard| heard.strangers.into_keys().collect()).unwrap_or_default()
        }
    };
    let candidates: BTreeSet<InstanceId> = looked_at_in(report, worth).chain(known).collect();
    let present = candidates
        .into_iter()
        .filter(|id| report.zones.get(id).is_some_and(|fact| fact.state != ZoneState::Absent) && !is_own(id));
    let held = |id: &InstanceId| report.untold_addresses.get(id).cloned().unwrap_or_default();
    present.take(STRANGERS_MAX).map(|id| (id, held(&id))).collect()
}
