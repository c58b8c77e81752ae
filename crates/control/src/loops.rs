//! What must stay true without anybody asking.
//!
//! Everything is given back in the commit that ends its use, so these loops normally find nothing to do. They are here for what a
//! program of an older version, an operator's hand or a mistake of ours left behind: a leak is mended within minutes and said
//! aloud, instead of being found in a year.

use std::time::Duration;

use flow::{FLOWS, loops::Loop};
use model::{
    id::{InstanceId, ServerId},
    instance::{Instance, Wanted},
    placement::Demand,
    server::{Reserved, Server},
};
use store::{BoxFuture, Entry, Snapshot, Transaction};

use crate::{
    Control, Error, Result, images,
    networks::allocate,
    placement, repeats, servers,
    tables::{ADDRESSES, BY_SERVER, CLAIMS, Claim, DELETED, INSTANCES, SERVERS},
    usage,
};

/// Records deleted or mended in one commit.
const COMMIT_RECORDS: usize = 50;
/// Records deleted or mended in one pass; the next one takes the rest.
const PASS_RECORDS: usize = 10_000;

/// Adds every loop of the control plane to `loops`. Those that tidy the records up work on one headnode at a time.
pub fn add_all(loops: &mut flow::loops::Loops, control: &Control) {
    let trim = flow::trim::Trim::new(control.store.clone(), control.clock.clone()).archive(control.archive.clone());
    loops.add(OnFirst(control.clone(), trim));
    loops.add(OnFirst(control.clone(), Tombstones(control.clone())));
    loops.add(OnFirst(control.clone(), Leaks(control.clone())));
    loops.add(OnFirst(control.clone(), Repeats(control.clone())));
    loops.add(OnFirst(control.clone(), OldUsage(control.clone())));
    // About what this headnode hears.
    loops.add(Silence(control.clone()));
    // About this machine's own files.
    loops.add(ImageFiles(control.clone()));
}

/// A loop that has nothing to do where another headnode does it. Two that run it for a moment do no harm.
struct OnFirst<L>(Control, L);

impl<L: Loop> Loop for OnFirst<L> {
    fn name(&self) -> &'static str {
        self.1.name()
    }

    fn period(&self) -> Duration {
        self.1.period()
    }

    fn deadline(&self) -> Duration {
        self.1.deadline()
    }

    fn pass(&self) -> Outcome<'_> {
        Box::pin(
            async move { if self.0.headnodes.roster().is_first() { self.1.pass().await } else { Ok(String::new()) } },
        )
    }
}

type Outcome<'a> = BoxFuture<'a, Result<String, Box<dyn std::error::Error + Send + Sync>>>;

/// Forgets deleted instances after their time.
struct Tombstones(Control);

impl Loop for Tombstones {
    fn name(&self) -> &'static str {
        "tombstones"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn pass(&self) -> Outcome<'_> {
        Box::pin(async move { Ok(said(trim_tombstones(&self.0).await?, "deleted instances forgotten")) })
    }
}

/// Gives back what nobody holds, and counts what machines promised.
struct Leaks(Control);

impl Loop for Leaks {
    fn name(&self) -> &'static str {
        "leaks"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(300)
    }

    fn pass(&self) -> Outcome<'_> {
        Box::pin(async move { Ok(said(mend_leaks(&self.0).await?, "leaks mended")) })
    }
}

/// Forgets calls nobody repeats any more.
struct Repeats(Control);

impl Loop for Repeats {
    fn name(&self) -> &'static str {
        "repeats"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn pass(&self) -> Outcome<'_> {
        Box::pin(async move { Ok(said(repeats::trim(&self.0).await?, "named calls forgotten")) })
    }
}

/// Forgets what was used too long ago.
struct OldUsage(Control);

impl Loop for OldUsage {
    fn name(&self) -> &'static str {
        "old usage"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(3_600)
    }

    fn pass(&self) -> Outcome<'_> {
        Box::pin(async move { Ok(said(usage::trim(&self.0).await?, "months of usage forgotten")) })
    }
}

/// Says which machines no longer report to this headnode.
struct Silence(Control);

impl Loop for Silence {
    fn name(&self) -> &'static str {
        "silence"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn pass(&self) -> Outcome<'_> {
        Box::pin(async move { Ok(said(servers::let_go(&self.0).await?, "machines are heard here no more")) })
    }
}

/// Removes files no image has.
struct ImageFiles(Control);

impl Loop for ImageFiles {
    fn name(&self) -> &'static str {
        "image-files"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(3_600)
    }

    fn pass(&self) -> Outcome<'_> {
        Box::pin(async move { Ok(said(images::sweep_files(&self.0).await?, "files without an image removed")) })
    }
}

fn said(count: usize, what: &str) -> String {
    if count == 0 { String::new() } else { format!("{count} {what}") }
}

/// Deletes the records of instances deleted longer ago than they are kept, archiving them with their history. Returns how many.
pub async fn trim_tombstones(control: &Control) -> Result<usize> {
    let oldest_kept = control.now().plus_millis(-control.config.tombstones_kept_ms);
    let snapshot = control.snapshot();
    let stale: Vec<_> = snapshot
        .find(&INSTANCES, DELETED, DELETED)
        .filter(|entry| entry.deleted_at.is_some_and(|at| at < oldest_kept) && !entry.is_on_machine())
        .take(PASS_RECORDS)
        .collect();
    for some in stale.chunks(COMMIT_RECORDS) {
        if let Some(archive) = &control.archive {
            let lines = some.iter().filter_map(|entry| serde_json::to_string(&entry.value).ok()).collect();
            let archived = archive.append("instances", lines, control.now().0).await;
            archived.map_err(|error| Error::Unavailable(base::errors::chain(&error)))?;
        }
        let transaction = some.iter().fold(Transaction::new(), |all, entry| all.delete(&INSTANCES, entry));
        control.store.commit(transaction).await?;
    }
    Ok(stale.len())
}

/// Mends what no longer belongs to anything. Returns how many records were wrong.
pub async fn mend_leaks(control: &Control) -> Result<usize> {
    let mut mended = 0;
    for holder in leaking(&control.snapshot()) {
        control.store.update(|snapshot| Ok::<_, Error>((take_back(snapshot, &holder), ()))).await?;
        tracing::warn!(holder, "gave back what an instance that is gone still held");
        mended += 1;
    }
    let servers: Vec<ServerId> = control.snapshot().scan(&SERVERS).map(|server| server.id).collect();
    for server in servers {
        let (_, wrong) = control.store.update(|snapshot| Ok::<_, Error>(recount(control, snapshot, server))).await?;
        if wrong {
            tracing::warn!(%server, "what the machine promised was counted anew");
            mended += 1;
        }
    }
    let stuck: Vec<InstanceId> = control
        .snapshot()
        .scan(&INSTANCES)
        .filter(|entry| is_abandoned(&control.snapshot(), entry))
        .map(|entry| entry.id)
        .collect();
    for id in stuck {
        control.store.update(|snapshot| Ok::<_, Error>((give_up(control, snapshot, id), ()))).await?;
        tracing::warn!(instance = %id, "its flow had ended without a word");
        mended += 1;
    }
    Ok(mended)
}

/// Instances that hold addresses or names and have no right to.
fn leaking(snapshot: &Snapshot) -> Vec<String> {
    let instance = |id: &str| snapshot.get(&INSTANCES, id);
    let addresses = snapshot.scan(&ADDRESSES).filter_map(|address| address.instance.map(|id| id.to_string()));
    let addresses = addresses.filter(|id| instance(id).is_none_or(|entry| entry.released));
    let names = snapshot.scan(&CLAIMS).filter(|claim| {
        let holder = instance(&claim.holder);
        let mac = claim.name.starts_with(Claim::MAC) && holder.as_ref().is_none_or(|entry| entry.released);
        let alias =
            claim.name.starts_with(Claim::ALIAS) && holder.as_ref().is_none_or(|entry| entry.deleted_at.is_some());
        mac || alias
    });
    let mut holders: Vec<String> =
        addresses.chain(names.map(|claim| claim.holder.clone())).take(PASS_RECORDS).collect();
    holders.sort();
    holders.dedup();
    holders
}

fn take_back(snapshot: &Snapshot, holder: &str) -> Transaction {
    let entry = snapshot.get(&INSTANCES, holder);
    let Ok(id) = holder.parse::<InstanceId>() else { return Transaction::new() };
    let mut transaction = Transaction::new();
    if entry.as_ref().is_none_or(|entry| entry.released) {
        transaction = allocate::give_back(snapshot, id, &[], transaction);
    }
    if entry.is_none_or(|entry| entry.deleted_at.is_some()) {
        for claim in snapshot.find(&CLAIMS, crate::tables::BY_HOLDER, holder) {
            if claim.name.starts_with(Claim::ALIAS) {
                transaction = transaction.delete(&CLAIMS, &claim);
            }
        }
    }
    transaction
}

/// Counts what `server` holds for its instances; the transaction mends the record when it says something else.
fn recount(control: &Control, snapshot: &Snapshot, server: ServerId) -> (Transaction, bool) {
    let Some(entry) = snapshot.get(&SERVERS, &server.to_string()) else { return (Transaction::new(), false) };
    let instances = snapshot.find(&INSTANCES, BY_SERVER, &server.to_string()).filter(|entry| !entry.released);
    let reserved = instances.fold(Reserved::default(), |sum, entry| sum.plus(Demand::held_by(&entry)));
    // The policy may have changed too, which nobody writes into the records.
    let mended = placement::with_room(control, Server { reserved, ..entry.value.clone() });
    if mended == entry.value {
        return (Transaction::new(), false);
    }
    (Transaction::new().replace(&SERVERS, &entry, mended), true)
}

/// Whether the instance names a flow that will never do anything for it.
fn is_abandoned(snapshot: &Snapshot, entry: &Entry<Instance>) -> bool {
    entry.flow.is_some_and(|flow| snapshot.get(&FLOWS, &flow.to_string()).is_none_or(|flow| flow.state.is_ended()))
}

fn give_up(control: &Control, snapshot: &Snapshot, id: InstanceId) -> Transaction {
    let Some(entry) = snapshot.get(&INSTANCES, &id.to_string()).filter(|entry| is_abandoned(snapshot, entry)) else {
        return Transaction::new();
    };
    let mut instance = entry.value.clone();
    let mut transaction = Transaction::new();
    instance.flow = None;
    let never_ran = instance.fact.as_ref().is_none_or(|fact| fact.starts_done == 0);
    if never_ran && instance.intent.wanted == Wanted::Running && instance.failure.is_none() {
        instance.intent.wanted = Wanted::Absent;
        instance.failure = Some("its provisioning was lost; delete it and create another".to_owned());
        instance.updated_at = control.now();
        transaction = transaction.may_use_reserve();
    }
    transaction.replace(&INSTANCES, &entry, instance)
}
