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
    snapshot::{Snapshot, State},
    store::CommitError,
    table::Revision,
    transaction::{Operation, Transaction, Write},
};

/// Changes that are remembered until a group lands: beyond, it is written anew what is queued.
const UNSEEN_MAX: usize = 10_000;
/// Changes that are taken over one by one before it is written anew what is queued. A state that is patched shares less and less with the durable
/// one; that memory, and the time to give it back, are to stay small.
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
    /// What has changed in the durable state since `newest` was last one of it and of what is on its way; `None` when that is not known.
    unseen: Option<Vec<(&'static str, Arc<str>)>>,
    /// Changes taken over since `newest` was last made of the durable state itself.
    taken_over: usize,
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
        Self {
            limits,
            newest: durable,
            unseen: Some(Vec::new()),
            taken_over: 0,
            flying: None,
            queue: VecDeque::new(),
            alone: 0,
        }
    }

    /// The state to decide on.
    pub(crate) fn newest(&mut self, durable: impl FnOnce() -> Snapshot) -> Snapshot {
        if self.flying.is_none() && self.queue.is_empty() {
            self.newest = durable();
            (self.unseen, self.taken_over) = (Some(Vec::new()), 0);
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
        // In place where nobody holds this state, so that one transaction after the other copies little.
        let state = self.newest.state_mut();
        for operation in &transaction.operations {
            write(state, operation.table, &operation.key, &operation.write);
        }

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

    /// The mirror is about to show `durable`, in which `keys` have changed; `None` when it is not known what has. If the flying group is
    /// part of it, the group has landed: its waiters may be told.
    pub(crate) fn shown(
        &mut self,
        durable: &Snapshot,
        keys: Option<&[(&'static str, Arc<str>)]>,
    ) -> Option<(Revision, Waiters)> {
        if self.flying.is_none() && self.queue.is_empty() {
            // The next to decide takes the durable state as it is.
            return None;
        }
        match (&mut self.unseen, keys) {
            (Some(unseen), Some(keys)) if unseen.len() + keys.len() <= UNSEEN_MAX => {
                unseen.extend(keys.iter().cloned());
            }
            (unseen, _) => *unseen = None,
        }
        let landed = self.flying.as_ref()?.revision.filter(|revision| *revision <= durable.revision())?;
        let flying = self.flying.take()?;
        for group in &mut self.queue {
            for merged in group.operations.values_mut() {
                if merged.expected.is_some_and(|expected| flying.provisional.contains(&expected)) {
                    merged.expected = Some(landed);
                }
            }
        }
        self.catch_up(durable);
        Some((landed, flying.waiters))
    }

    /// Makes the newest state one of `durable` and what is queued: by writing what is queued on top of `durable`, or, where that is more
    /// than what has changed in `durable`, by taking that over from it. Among a crowd much is queued, and a change would be written anew
    /// with each group that lands before its own.
    fn catch_up(&mut self, durable: &Snapshot) {
        let queued: usize = self.queue.iter().map(|group| group.operations.len()).sum();
        let unseen = self.unseen.replace(Vec::new());
        match unseen.filter(|unseen| unseen.len() < queued && self.taken_over + unseen.len() <= TAKEN_OVER_MAX) {
            None => {
                self.taken_over = 0;
                self.newest = durable.clone();
                let state = self.newest.state_mut();
                for ((table, key), merged) in self.queue.iter().flat_map(|group| &group.operations) {
                    write(state, table, key, &merged.write);
                }
            }
            Some(unseen) => {
                self.taken_over += unseen.len();
                let state = self.newest.state_mut();
                state.revision = durable.revision();
                for (table, key) in unseen {
                    let known = (table, key);
                    let merged = self.queue.iter().filter_map(|group| group.operations.get(&known));
                    if merged.map(|merged| &merged.write).all(|write| matches!(write, Write::Nothing)) {
                        state.take_from(durable.state(), known.0, &known.1);
                    }
                }
            }
        }
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
        (self.unseen, self.taken_over) = (Some(Vec::new()), 0);
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

fn write(state: &mut State, table: &'static str, key: &Arc<str>, write: &Write) {
    match write {
        Write::Nothing => {}
        Write::Put { entry, .. } => state.table_named(table).put_entry(key, entry),
        Write::Delete => state.table_named(table).remove(key),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::table::{Index, Schema, Table, encode};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Note {
        key: String,
        text: u8,
    }

    static NOTES: Table<Note> = Table {
        name: "notes",
        version: 1,
        key: |note| note.key.clone(),
        indexes: &[Index { name: "text", keys: |note| vec![note.text.to_string()] }],
        upgrade: |_, value| Ok(value),
    };

    #[derive(Debug, Clone)]
    enum Act {
        /// Decide to write, or to delete, and be admitted.
        Decide(u8, Option<u8>),
        /// Let the next group fly.
        Take,
        /// It is committed, and shown together with what others have done before.
        Land,
        /// Another process writes or deletes; shown at once.
        Foreign(u8, Option<u8>),
        /// The mirror was loaded anew.
        Lag,
    }

    fn act() -> impl Strategy<Value = Act> {
        let text = || proptest::option::of(0_u8..4);
        prop_oneof![
            8 => (0_u8..12, text()).prop_map(|(key, text)| Act::Decide(key, text)),
            2 => Just(Act::Take),
            2 => Just(Act::Land),
            // Keys of its own: else the group would not land.
            2 => (20_u8..24, text()).prop_map(|(key, text)| Act::Foreign(key, text)),
            1 => Just(Act::Lag),
        ]
    }

    /// The engine and the mirror, without waiting.
    struct Durable {
        state: State,
    }

    impl Durable {
        fn shown(&self) -> Snapshot {
            Snapshot::new(self.state.clone())
        }

        fn apply(&mut self, writes: &[(String, Option<bytes::Bytes>)]) -> Vec<(&'static str, Arc<str>)> {
            let revision = Revision(self.state.revision.0 + 1);
            self.state.revision = revision;
            let apply = |(key, value): &(String, Option<bytes::Bytes>)| {
                let (_, key) = self.state.apply(key, revision, value.as_deref()).expect("a note");
                (NOTES.name, key)
            };
            writes.iter().map(apply).collect()
        }
    }

    fn notes(snapshot: &Snapshot) -> BTreeMap<String, u8> {
        snapshot.scan(&NOTES).map(|note| (note.key.clone(), note.text)).collect()
    }

    fn put(notes: &mut BTreeMap<String, u8>, key: String, text: Option<u8>) {
        match text {
            Some(text) => notes.insert(key, text),
            None => notes.remove(&key),
        };
    }

    proptest! {
        #[test]
        fn the_newest_state_is_the_durable_one_and_what_is_on_its_way(
            acts in proptest::collection::vec(act(), 1..120),
            operations in 4_usize..40,
        ) {
            let mut durable = Durable { state: State::empty(Arc::new(Schema::new().with(&NOTES))) };
            let mut pipeline = Pipeline::new(Limits { operations, bytes: 1 << 20 }, durable.shown());
            // What should be seen: groups in their order, on top of what is durable.
            let mut flying: Option<Batch> = None;
            let mut wanted: BTreeMap<String, u8> = BTreeMap::new();
            for act in acts {
                let newest = pipeline.newest(|| durable.shown());
                match act {
                    Act::Decide(key, text) => {
                        let key = format!("n{key}");
                        let known = newest.get(&NOTES, &key);
                        let note = text.map(|text| Note { key: key.clone(), text });
                        drop(newest);
                        let transaction = match (&known, note) {
                            (Some(known), Some(note)) => Transaction::new().replace(&NOTES, known, note),
                            (Some(known), None) => Transaction::new().delete(&NOTES, known),
                            (None, Some(note)) => Transaction::new().create(&NOTES, note),
                            (None, None) => continue,
                        };
                        prop_assert!(pipeline.admit(&transaction).is_ok());
                        put(&mut wanted, key, text);
                    }
                    Act::Take => flying = pipeline.take().or(flying),
                    Act::Land => {
                        let Some(batch) = flying.take() else { continue };
                        for (key, expected) in &batch.checks {
                            let key = key.strip_prefix("notes/").expect("a note");
                            prop_assert_eq!(durable.shown().revision_of("notes", key), *expected, "{}", key);
                        }
                        let keys = durable.apply(&batch.writes);
                        pipeline.committed(durable.state.revision);
                        prop_assert!(pipeline.shown(&durable.shown(), Some(&keys)).is_some());
                    }
                    Act::Foreign(key, text) => {
                        let key = format!("n{key}");
                        let value = text.map(|text| encode(&NOTES, &Note { key: key.clone(), text }).expect("plain data"));
                        let keys = durable.apply(&[(format!("notes/{key}"), value)]);
                        prop_assert!(pipeline.shown(&durable.shown(), Some(&keys)).is_none());
                        put(&mut wanted, key, text);
                    }
                    Act::Lag => prop_assert!(pipeline.shown(&durable.shown(), None).is_none()),
                }
            }
            // Whatever is on its way lands, and then all is seen, under every key of the index too.
            while let Some(batch) = flying.take().or_else(|| pipeline.take()) {
                let keys = durable.apply(&batch.writes);
                pipeline.committed(durable.state.revision);
                prop_assert!(pipeline.shown(&durable.shown(), Some(&keys)).is_some());
                let newest = pipeline.newest.clone();
                prop_assert_eq!(&notes(&newest), &wanted);
                for text in 0..4 {
                    let found: Vec<String> =
                        newest.find(&NOTES, "text", &text.to_string()).map(|note| note.key.clone()).collect();
                    let listed = wanted.iter().filter(|(_, of)| **of == text).map(|(key, _)| key.clone());
                    prop_assert_eq!(&found, &listed.collect::<Vec<_>>());
                    prop_assert_eq!(newest.count_of(&NOTES, "text", &text.to_string()), found.len());
                }
            }
            prop_assert_eq!(notes(&pipeline.newest(|| durable.shown())), wanted.clone());
            prop_assert_eq!(notes(&durable.shown()), wanted);
        }
    }
}
