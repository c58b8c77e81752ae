//! Decisions on their way to the disk.
//!
//! ```text
//!   durable ──► flying group ──► queued groups ──► newest state, which the next decision sees
//! ```
//!
//! A transaction is checked against the newest state the moment it is decided, and joins the last queued group. One group flies at a
//! time; while its fsync runs, the next fills. Writes that are not durable carry *provisional* revisions; when their group lands, the
//! checks of later groups that name them are rewritten to the real one. If a group does not land (another headnode was faster, the disk
//! is full), everything decided on top of it is decided again: nobody is ever answered on the ground of something that did not happen,
//! and that includes refusals, whose answers wait for what they saw.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
};

use tokio::sync::oneshot;

use crate::{
    engine::{Batch, EngineError, Limits},
    snapshot::Snapshot,
    store::CommitError,
    table::Revision,
    transaction::{Operation, Transaction, Write},
};

/// How a group ended, as each of its callers learns it.
#[derive(Clone)]
pub(crate) enum Landing {
    Durable(Revision),
    /// What was seen did not come true: decide again.
    Again,
    Failed(Arc<EngineError>),
}

/// What a caller holds until its group has landed.
pub(crate) enum Ticket {
    /// There is nothing to wait for.
    Now(Revision),
    Wait(oneshot::Receiver<Landing>),
}

pub(crate) struct Pipeline {
    limits: Limits,
    newest: Snapshot,
    flying: Option<Flying>,
    queue: VecDeque<Group>,
    /// This many transactions still go alone: a group did not fit on the disk, and it must be found out which of them do.
    alone: usize,
}

struct Flying {
    /// What the engine made of it, once that is known.
    revision: Option<Revision>,
    provisional: HashSet<Revision>,
    waiters: Waiters,
}

#[derive(Default)]
struct Group {
    operations: BTreeMap<(&'static str, Arc<str>), Merged>,
    size: usize,
    bytes: usize,
    takes_reserve: bool,
    waiters: Waiters,
    sealed: bool,
}

#[derive(Default)]
pub(crate) struct Waiters {
    /// Whose writes are in the group.
    writers: Vec<oneshot::Sender<Landing>>,
    /// Who only looked.
    watchers: Vec<oneshot::Sender<Landing>>,
}

struct Merged {
    expected: Option<Revision>,
    write: Write,
}

impl Pipeline {
    pub(crate) fn new(limits: Limits, durable: Snapshot) -> Self {
        Self { limits, newest: durable, flying: None, queue: VecDeque::new(), alone: 0 }
    }

    /// The state to decide on.
    pub(crate) fn newest(&mut self, durable: impl FnOnce() -> Snapshot) -> Snapshot {
        if self.flying.is_none() && self.queue.is_empty() {
            self.newest = durable();
        }
        self.newest.clone()
    }

    /// Wait for all that [`Pipeline::newest`] shows.
    pub(crate) fn join(&mut self) -> Ticket {
        let waiters = match (self.queue.back_mut(), &mut self.flying) {
            (Some(group), _) => &mut group.waiters,
            (None, Some(flying)) => &mut flying.waiters,
            (None, None) => return Ticket::Now(self.newest.revision()),
        };
        let (sender, receiver) = oneshot::channel();
        waiters.watchers.push(sender);
        Ticket::Wait(receiver)
    }

    /// Take a transaction that was decided on the newest state, or check one that was decided earlier.
    pub(crate) fn admit(&mut self, transaction: &Transaction) -> Result<Ticket, CommitError> {
        if let Some(problem) = &transaction.problem {
            return Err(CommitError::Invalid(problem.clone()));
        }
        for operation in &transaction.operations {
            if self.newest.revision_of(operation.table, &operation.key) != operation.expected {
                return Err(CommitError::Conflict { table: operation.table, key: operation.key.to_string() });
            }
        }
        if !transaction.writes() {
            return Ok(self.join());
        }
        let (size, bytes) = weigh(&transaction.operations);
        if size > self.limits.operations || bytes > self.limits.bytes {
            return Err(CommitError::TooLarge { operations: size, bytes });
        }
        let mut state = self.newest.state().clone();
        write(
            &mut state,
            transaction.operations.iter().map(|operation| (operation.table, &operation.key, &operation.write)),
        );
        self.newest = Snapshot::new(state);

        let group = self.group_for(size, bytes);
        if group.waiters.writers.is_empty() {
            group.takes_reserve = true;
        }
        group.takes_reserve &= transaction.takes_reserve();
        group.size += size;
        group.bytes += bytes;
        for operation in &transaction.operations {
            group.merge(operation);
        }
        let (sender, receiver) = oneshot::channel();
        group.waiters.writers.push(sender);
        Ok(Ticket::Wait(receiver))
    }

    /// How many wait for their own writes, flying or queued.
    pub(crate) fn writers(&self) -> usize {
        let flying = self.flying.as_ref().map_or(0, |flying| flying.waiters.writers.len());
        flying + self.queue.iter().map(|group| group.waiters.writers.len()).sum::<usize>()
    }

    /// The next group to commit, if there is one and none is flying.
    pub(crate) fn take(&mut self) -> Option<Batch> {
        if self.flying.is_some() {
            return None;
        }
        let group = self.queue.pop_front()?;
        let mut batch = Batch { may_use_reserve: group.takes_reserve, ..Batch::default() };
        let mut provisional_revisions = HashSet::new();
        for ((table, key), merged) in group.operations {
            let full_key = format!("{table}/{key}");
            match merged.write {
                Write::Nothing => {}
                Write::Put { bytes, provisional, .. } => {
                    provisional_revisions.insert(provisional);
                    batch.writes.push((full_key.clone(), Some(bytes)));
                }
                Write::Delete => batch.writes.push((full_key.clone(), None)),
            }
            batch.checks.push((full_key, merged.expected));
        }
        self.flying = Some(Flying { revision: None, provisional: provisional_revisions, waiters: group.waiters });
        Some(batch)
    }

    /// The flying group is durable as `revision`; it lands when the mirror shows it.
    pub(crate) fn committed(&mut self, revision: Revision) {
        if let Some(flying) = &mut self.flying {
            flying.revision = Some(revision);
        }
    }

    /// The mirror is about to show `durable`. If the flying group is part of it, the group has landed: its waiters may be told.
    pub(crate) fn shown(&mut self, durable: &Snapshot) -> Option<(Revision, Waiters)> {
        let revision = self.flying.as_ref()?.revision.filter(|revision| *revision <= durable.revision())?;
        let flying = self.flying.take()?;
        let mut state = durable.state().clone();
        for group in &mut self.queue {
            for merged in group.operations.values_mut() {
                if merged.expected.is_some_and(|expected| flying.provisional.contains(&expected)) {
                    merged.expected = Some(revision);
                }
            }
            write(&mut state, group.operations.iter().map(|((table, key), merged)| (*table, key, &merged.write)));
        }
        self.newest = Snapshot::new(state);
        Some((revision, flying.waiters))
    }

    /// The flying group did not land: forget everything that is not durable. Its waiters first, then all the others.
    pub(crate) fn crashed(&mut self, durable: Snapshot) -> (Waiters, Waiters) {
        let flying = self.flying.take().map(|flying| flying.waiters).unwrap_or_default();
        let mut queued = Waiters::default();
        for group in self.queue.drain(..) {
            queued.writers.extend(group.waiters.writers);
            queued.watchers.extend(group.waiters.watchers);
        }
        self.newest = durable;
        (flying, queued)
    }

    /// Let each of the next `transactions` fly alone.
    pub(crate) fn fly_alone(&mut self, transactions: usize) {
        self.alone = transactions;
    }

    fn group_for(&mut self, size: usize, bytes: usize) -> &mut Group {
        let alone = self.alone > 0;
        self.alone = self.alone.saturating_sub(1);
        let limits = self.limits;
        let fits = |group: &Group| {
            !group.sealed && group.size + size <= limits.operations && group.bytes + bytes <= limits.bytes
        };
        if alone || !self.queue.back().is_some_and(fits) {
            self.queue.push_back(Group { sealed: alone, ..Group::default() });
        }
        self.queue.back_mut().expect("a group was just made sure of")
    }
}

impl Group {
    fn merge(&mut self, operation: &Operation) {
        use std::collections::btree_map::Entry;
        match self.operations.entry((operation.table, operation.key.clone())) {
            Entry::Vacant(vacant) => {
                vacant.insert(Merged { expected: operation.expected, write: operation.write.clone() });
            }
            // Checked against the newest state already; towards the engine the first expectation of the group is the one that counts.
            Entry::Occupied(mut occupied) => {
                if !matches!(operation.write, Write::Nothing) {
                    occupied.get_mut().write = operation.write.clone();
                }
            }
        }
    }
}

impl Waiters {
    /// How many wait for their own writes.
    pub(crate) fn writers(&self) -> usize {
        self.writers.len()
    }

    /// Tell everybody. Who has gone away does not mind.
    pub(crate) fn tell(self, landing: &Landing) {
        for waiter in self.writers.into_iter().chain(self.watchers) {
            let _ = waiter.send(landing.clone());
        }
    }

    /// Tell writers one thing and those who only looked to decide again.
    pub(crate) fn tell_writers(self, landing: &Landing) {
        for waiter in self.writers {
            let _ = waiter.send(landing.clone());
        }
        for waiter in self.watchers {
            let _ = waiter.send(Landing::Again);
        }
    }
}

fn weigh(operations: &[Operation]) -> (usize, usize) {
    let mut size = 0;
    let mut bytes = 0;
    for operation in operations {
        // The check, and the write if there is one.
        size += if matches!(operation.write, Write::Nothing) { 1 } else { 2 };
        bytes += operation.key.len();
        if let Write::Put { bytes: value, .. } = &operation.write {
            bytes += value.len();
        }
    }
    (size, bytes)
}

fn write<'a>(
    state: &mut crate::snapshot::State,
    writes: impl Iterator<Item = (&'static str, &'a Arc<str>, &'a Write)>,
) {
    for (table, key, write) in writes {
        let position = state.schema.position(table).expect("the table was found when the transaction was checked");
        match write {
            Write::Nothing => {}
            Write::Put { entry, .. } => state.table_mut(position).put_entry(key, entry),
            Write::Delete => state.table_mut(position).remove(key),
        }
    }
}
