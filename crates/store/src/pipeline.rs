//! Decisions on their way to the disk.
//!
//! ```text
//!   durable ──► flying group ──► queued groups ──► newest state, which the next decision sees
//! ```
//!
//! A transaction is checked against the newest state the moment it is decided, and joins the last queued group. One group flies at a
//! time; while its fsync runs, the next fills. Writes that are not durable carry *provisional* revisions; when their group lands, their
//! entries are given the real one, and so are the checks of later groups that name them. The state that a group leaves is kept until
//! then: if nobody else has written meanwhile, it becomes the durable one as it is, and no record is read or listed a second time.
//!
//! If a group does not land because another headnode was faster, what was decided before anything that is lost stays, and so does what
//! says that it rests on its checks and saw nothing that is lost; all the rest is decided again. If the disk is full, everything is. So
//! nobody is ever answered on the ground of something that did not happen, and that includes refusals, whose answers wait for what they
//! saw.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
};

use tokio::sync::oneshot;

use crate::{
    arrival::{Arrival, Name, Writes},
    engine::{Batch, EngineError, Limits},
    snapshot::{Snapshot, State},
    store::CommitError,
    table::Revision,
    transaction::{Operation, Transaction, Write, is_provisional},
};

/// Others' changes that are taken over one by one before it is written anew what is queued. A state that is patched shares less and less
/// with the durable one; that memory, and the time to give it back, are to stay small.
const TAKEN_OVER_MAX: usize = 1_000;

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
    /// Others' changes taken over since `newest` was last made of the durable state itself.
    taken_over: usize,
    /// `newest` lacks something that is durable: when the next group lands it is made anew.
    outdated: bool,
    flying: Option<Flying>,
    queue: VecDeque<Group>,
    /// This many transactions still go alone: a group did not fit on the disk, and it must be found out which of them do.
    alone: usize,
}

struct Flying {
    /// What the engine made of it, once that is known.
    revision: Option<Revision>,
    writes: Arc<Writes>,
    group: Group,
}

#[derive(Default)]
struct Group {
    admitted: Vec<Admitted>,
    /// Who only looked.
    watchers: Vec<oneshot::Sender<Landing>>,
    size: usize,
    bytes: usize,
    takes_reserve: bool,
    sealed: bool,
    /// The state once it has landed, if nobody else writes until then; known when nothing joins it any more.
    leaves: Option<State>,
}

/// What becomes of one key in a group.
struct Merged<'a> {
    expected: Option<Revision>,
    write: &'a Write,
}

/// A transaction that is on its way, and who waits for it.
struct Admitted {
    operations: Vec<Operation>,
    takes_reserve: bool,
    /// See [`Transaction::rests_on_checks`]: the provisional revisions of what was looked at. `None`: it may rest on anything.
    rests_on: Option<Vec<Revision>>,
    waiter: oneshot::Sender<Landing>,
}

#[derive(Default)]
pub(crate) struct Waiters {
    /// Whose writes are in the group.
    writers: Vec<oneshot::Sender<Landing>>,
    /// Who only looked.
    watchers: Vec<oneshot::Sender<Landing>>,
}

impl Pipeline {
    pub(crate) fn new(limits: Limits, durable: Snapshot) -> Self {
        Self { limits, newest: durable, taken_over: 0, outdated: false, flying: None, queue: VecDeque::new(), alone: 0 }
    }

    /// The state to decide on.
    pub(crate) fn newest(&mut self, durable: impl FnOnce() -> Snapshot) -> Snapshot {
        if self.flying.is_none() && self.queue.is_empty() {
            self.start_from(durable());
        }
        self.newest.clone()
    }

    /// Wait for all that [`Pipeline::newest`] shows.
    pub(crate) fn join(&mut self) -> Ticket {
        let group = match (self.queue.back_mut(), &mut self.flying) {
            (Some(group), _) => group,
            (None, Some(flying)) => &mut flying.group,
            (None, None) => return Ticket::Now(self.newest.revision()),
        };
        let (sender, receiver) = oneshot::channel();
        group.watchers.push(sender);
        Ticket::Wait(receiver)
    }

    /// Take a transaction that was decided on the newest state, of which it looked at what has these provisional revisions, or check one that
    /// was decided earlier.
    pub(crate) fn admit(
        &mut self,
        mut transaction: Transaction,
        looked_at: Vec<Revision>,
    ) -> Result<Ticket, CommitError> {
        if let Some(problem) = transaction.problem.take() {
            return Err(CommitError::Invalid(problem));
        }
        if let Some(operation) = transaction.operations.iter().find(|operation| !self.holds(operation)) {
            return Err(CommitError::Conflict { table: operation.table, key: operation.key.to_string() });
        }
        if !transaction.writes() {
            return Ok(self.join());
        }
        let (size, bytes) = weigh(&transaction.operations);
        if size > self.limits.records || bytes > self.limits.bytes {
            return Err(CommitError::TooLarge { records: size, bytes });
        }
        let (waiter, receiver) = oneshot::channel();
        let takes_reserve = transaction.takes_reserve();
        let rests_on = transaction.rests_on_checks.then_some(looked_at);
        self.enqueue(Admitted { operations: transaction.operations, takes_reserve, rests_on, waiter });
        Ok(Ticket::Wait(receiver))
    }

    /// How many wait for their own writes, flying or queued.
    pub(crate) fn writers(&self) -> usize {
        let flying = self.flying.as_ref().map_or(0, |flying| flying.group.admitted.len());
        flying + self.queue.iter().map(|group| group.admitted.len()).sum::<usize>()
    }

    /// The next group to commit, if there is one and none is flying.
    pub(crate) fn take(&mut self) -> Option<Batch> {
        if self.flying.is_some() {
            return None;
        }
        let mut group = self.queue.pop_front()?;
        if self.queue.is_empty() && !self.outdated {
            group.leaves = Some(self.newest.state().clone());
        }
        let mut batch = Batch { may_use_reserve: group.takes_reserve, ..Batch::default() };
        let mut writes = Writes::default();
        for ((table, key), Merged { expected, write }) in group.merged() {
            let full_key = format!("{table}/{key}");
            match write {
                Write::Nothing => {}
                Write::Put { bytes, .. } => batch.writes.push((full_key.clone(), Some(bytes.clone()))),
                Write::Delete => batch.writes.push((full_key.clone(), None)),
            }
            if !matches!(write, Write::Nothing) {
                writes.push(table, key, write);
            }
            batch.checks.push((full_key, expected));
        }
        self.flying = Some(Flying { revision: None, writes: Arc::new(writes), group });
        Some(batch)
    }

    /// The flying group is durable as `revision`: its entries, and whatever was decided on them, are given that. It lands when the
    /// mirror shows it.
    pub(crate) fn committed(&mut self, revision: Revision) {
        let Some(flying) = &mut self.flying else { return };
        flying.revision = Some(revision);
        let mut provisional = HashSet::new();
        for operation in flying.group.admitted.iter().flat_map(|admitted| &admitted.operations) {
            if let Write::Put { entry, provisional: known, .. } = &operation.write {
                entry.settle(revision);
                provisional.insert(*known);
            }
        }
        let queued = self.queue.iter_mut().flat_map(|group| &mut group.admitted);
        for operation in queued.flat_map(|admitted| &mut admitted.operations) {
            if operation.expected.is_some_and(|expected| provisional.contains(&expected)) {
                operation.expected = Some(revision);
            }
        }
    }

    /// The flying group, if what the engine delivers up to `through` has it in it.
    pub(crate) fn arrival(&self, through: Revision) -> Option<Arrival> {
        let flying = self.flying.as_ref().filter(|flying| flying.is_part_of(through))?;
        let (revision, leaves) = (flying.revision?, flying.group.leaves.clone());
        Some(Arrival { revision, writes: flying.writes.clone(), leaves })
    }

    /// The mirror is about to show `durable`, in which others have changed `keys`; `None` when it is not known what has changed. If the flying
    /// group is part of it, the group has landed: its waiters may be told.
    pub(crate) fn shown(&mut self, durable: &Snapshot, keys: Option<&[Name]>) -> Option<(Revision, Waiters)> {
        if self.flying.is_none() && self.queue.is_empty() {
            // The next to decide takes the durable state as it is.
            return None;
        }
        let is_landed = self.flying.as_ref().is_some_and(|flying| flying.is_part_of(durable.revision()));
        let landed = self.flying.take_if(|_| is_landed);
        match keys {
            Some([]) => {}
            Some(keys) if !self.outdated && self.taken_over + keys.len() <= TAKEN_OVER_MAX => {
                self.take_over(durable, keys)
            }
            _ => self.outdated = true,
        }
        if keys.is_none_or(|keys| !keys.is_empty()) {
            let flying = self.flying.iter_mut().map(|flying| &mut flying.group);
            flying.chain(&mut self.queue).for_each(|group| group.leaves = None);
        }
        if landed.is_some() && self.outdated {
            self.start_from(durable.clone());
            for group in std::mem::take(&mut self.queue) {
                if let Some(before) = self.queue.back_mut() {
                    before.leaves = Some(self.newest.state().clone());
                }
                group.admitted.iter().for_each(|admitted| write(self.newest.state_mut(), &admitted.operations));
                self.queue.push_back(group);
            }
        }
        self.newest.state_mut().revision = durable.revision();
        landed.and_then(|flying| Some((flying.revision?, flying.group.into_waiters())))
    }

    /// Makes the newest state show what others have changed, but for what is about to be changed here: that will not land.
    fn take_over(&mut self, durable: &Snapshot, keys: &[Name]) {
        self.taken_over += keys.len();
        for (table, key) in keys {
            if !self.newest.revision_of(table, key).is_some_and(is_provisional) {
                self.newest.state_mut().take_from(durable.state(), table, key);
            }
        }
    }

    /// Another headnode was faster than the flying group, and `durable` shows with what: what does not depend on that flies again. Returns
    /// those who have to decide again.
    pub(crate) fn overtaken(&mut self, durable: Snapshot) -> Waiters {
        let flying = self.flying.take().map(|flying| flying.group);
        let groups: Vec<Group> = flying.into_iter().chain(std::mem::take(&mut self.queue)).collect();
        self.start_from(durable);
        let (mut lost, mut again) = (HashSet::new(), Waiters::default());
        for group in groups {
            again.watchers.extend(group.watchers);
            for admitted in group.admitted {
                let saw_none = |seen: &Vec<Revision>| !seen.iter().any(|revision| lost.contains(revision));
                let is_good = lost.is_empty() || admitted.rests_on.as_ref().is_some_and(saw_none);
                if is_good && admitted.operations.iter().all(|operation| self.holds(operation)) {
                    self.enqueue(admitted);
                    continue;
                }
                lost.extend(admitted.operations.iter().map(|operation| match operation.write {
                    Write::Put { provisional, .. } => provisional,
                    // Stands for itself: that something was lost counts, also where nothing can have been seen of it.
                    Write::Nothing | Write::Delete => Revision::default(),
                }));
                again.writers.push(admitted.waiter);
            }
        }
        again
    }

    /// The flying group did not land: forget everything that is not durable. Its waiters first, then all the others.
    pub(crate) fn crashed(&mut self, durable: Snapshot) -> (Waiters, Waiters) {
        let flying = self.flying.take().map(|flying| flying.group.into_waiters()).unwrap_or_default();
        let mut queued = Waiters::default();
        for group in self.queue.drain(..) {
            let waiters = group.into_waiters();
            queued.writers.extend(waiters.writers);
            queued.watchers.extend(waiters.watchers);
        }
        self.start_from(durable);
        (flying, queued)
    }

    /// Another engine keeps the store from now on, and what it holds is `durable`. Nothing may be flying. What is queued names revisions of the engine
    /// before and is forgotten; its waiters are to decide again.
    pub(crate) fn moved(&mut self, limits: Limits, durable: Snapshot) -> Waiters {
        self.limits = limits;
        let (flying, queued) = self.crashed(durable);
        debug_assert!(flying.writers.is_empty() && flying.watchers.is_empty(), "commits wait while a store moves");
        queued
    }

    /// Let each of the next `transactions` fly alone.
    pub(crate) fn fly_alone(&mut self, transactions: usize) {
        self.alone = transactions;
    }

    fn start_from(&mut self, durable: Snapshot) {
        self.newest = durable;
        (self.taken_over, self.outdated) = (0, false);
    }

    fn holds(&self, operation: &Operation) -> bool {
        self.newest.revision_of(operation.table, &operation.key) == operation.expected
    }

    fn enqueue(&mut self, admitted: Admitted) {
        let (size, bytes) = weigh(&admitted.operations);
        let alone = self.alone > 0;
        self.alone = self.alone.saturating_sub(1);
        let limits = self.limits;
        let fits =
            |group: &Group| !group.sealed && group.size + size <= limits.records && group.bytes + bytes <= limits.bytes;
        if alone || !self.queue.back().is_some_and(fits) {
            if let Some(full) = self.queue.back_mut().filter(|_| !self.outdated) {
                full.leaves = Some(self.newest.state().clone());
            }
            self.queue.push_back(Group { sealed: alone, takes_reserve: true, ..Group::default() });
        }
        // In place where nobody holds this state, so that one transaction after the other copies little.
        write(self.newest.state_mut(), &admitted.operations);
        let group = self.queue.back_mut().expect("a group was just made sure of");
        group.takes_reserve &= admitted.takes_reserve;
        group.size += size;
        group.bytes += bytes;
        group.admitted.push(admitted);
    }
}

impl Flying {
    fn is_part_of(&self, through: Revision) -> bool {
        self.revision.is_some_and(|revision| revision <= through)
    }
}

impl Group {
    /// Each key once: with what the first transaction expects, since what later ones do was checked against the newest state already,
    /// and what the last one writes.
    fn merged(&self) -> BTreeMap<(&'static str, &Arc<str>), Merged<'_>> {
        let mut merged = BTreeMap::new();
        for operation in self.admitted.iter().flat_map(|admitted| &admitted.operations) {
            let of_key = merged.entry((operation.table, &operation.key));
            let key = of_key.or_insert(Merged { expected: operation.expected, write: &operation.write });
            if !matches!(operation.write, Write::Nothing) {
                key.write = &operation.write;
            }
        }
        merged
    }

    fn into_waiters(self) -> Waiters {
        let writers = self.admitted.into_iter().map(|admitted| admitted.waiter).collect();
        Waiters { writers, watchers: self.watchers }
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
    let mut bytes = 0;
    for operation in operations {
        bytes += operation.key.len();
        if let Write::Put { bytes: value, .. } = &operation.write {
            bytes += value.len();
        }
    }
    (operations.len(), bytes)
}

fn write(state: &mut State, operations: &[Operation]) {
    for operation in operations {
        state.write(operation.table, &operation.key, &operation.write);
    }
}

#[cfg(test)]
mod tests;
