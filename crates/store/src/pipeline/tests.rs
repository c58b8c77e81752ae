//! The pipeline between an engine and a mirror that wait for nothing, with another process that writes to the same engine.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::{
    arrival::{Arrived, arrive},
    engine::{Delivery, Event},
    table::{Index, Schema, Table, encode},
};

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
    /// Decide to write, or to delete, having looked at another note; on its checks alone or not.
    Decide(u8, Option<u8>, u8, bool),
    /// Let the next group fly.
    Take,
    /// The engine answers, and the mirror is told together with what others have done before.
    Land,
    /// Another process writes or deletes.
    Foreign(u8, Option<u8>),
    /// The mirror is told of others' writes.
    Show,
    /// The mirror is loaded anew.
    Lag,
}

/// `foreign`: the first key that others write; below 12 they are in each other's way.
fn act(foreign: u8) -> impl Strategy<Value = Act> {
    let text = || proptest::option::of(0_u8..4);
    prop_oneof![
        9 => (0_u8..12, text(), 0_u8..12, any::<bool>()).prop_map(|(key, text, seen, rests)| Act::Decide(key, text, seen, rests)),
        2 => Just(Act::Take),
        2 => Just(Act::Land),
        2 => (foreign..24, text()).prop_map(|(key, text)| Act::Foreign(key, text)),
        2 => Just(Act::Show),
        1 => Just(Act::Lag),
    ]
}

/// The engine, and the mirror that follows it.
struct Durable {
    engine: BTreeMap<String, (Revision, Bytes)>,
    revision: Revision,
    unseen: Vec<Event>,
    mirror: Snapshot,
}

impl Durable {
    fn new() -> Self {
        let mirror = Snapshot::new(State::empty(Arc::new(Schema::new().with(&NOTES))));
        Self { engine: BTreeMap::new(), revision: Revision(0), unseen: Vec::new(), mirror }
    }

    fn revision_of(&self, key: &str) -> Option<Revision> {
        self.engine.get(key).map(|(revision, _)| *revision)
    }

    /// The revision; `None` when a check fails.
    fn commit(&mut self, batch: &Batch) -> Option<Revision> {
        if batch.checks.iter().any(|(key, expected)| self.revision_of(key) != *expected) {
            return None;
        }
        self.revision.0 += 1;
        for (key, value) in &batch.writes {
            match value {
                Some(value) => self.engine.insert(key.clone(), (self.revision, value.clone())),
                None => self.engine.remove(key),
            };
            self.unseen.push(Event { revision: self.revision, key: key.clone(), value: value.clone() });
        }
        Some(self.revision)
    }

    /// Tells the mirror, and through it the pipeline.
    fn show(&mut self, pipeline: &mut Pipeline) {
        let delivery = Delivery { events: std::mem::take(&mut self.unseen), through: self.revision };
        if delivery.through <= self.mirror.revision() {
            return;
        }
        let own = pipeline.arrival(delivery.through);
        let arrived = arrive(self.mirror.state(), &delivery, own.as_ref()).expect("notes");
        self.publish(arrived, pipeline);
    }

    /// What is durable as `revision` is shown before the mirror is told of it, if nothing was between; whether it was.
    fn show_directly(&mut self, revision: Revision, pipeline: &mut Pipeline) -> bool {
        let own = pipeline.arrival(revision);
        let arrived = own.and_then(|own| own.directly_after(self.mirror.revision()));
        arrived.map(|arrived| self.publish(arrived, pipeline)).is_some()
    }

    fn publish(&mut self, arrived: Arrived, pipeline: &mut Pipeline) {
        self.mirror = Snapshot::new(arrived.state);
        if let Some((revision, waiters)) = pipeline.shown(&self.mirror, Some(&arrived.others)) {
            waiters.tell(&Landing::Durable(revision));
        }
    }

    /// The mirror is loaded anew.
    fn load(&mut self, pipeline: &mut Pipeline) {
        self.unseen.clear();
        let mut state = State::empty(Arc::new(Schema::new().with(&NOTES)));
        for (key, (revision, value)) in &self.engine {
            state.apply_stored(key, *revision, Some(value)).expect("a note");
        }
        state.revision = self.revision;
        self.mirror = Snapshot::new(state);
        if let Some((revision, waiters)) = pipeline.shown(&self.mirror, None) {
            waiters.tell(&Landing::Durable(revision));
        }
    }

    /// The mirror shows what the engine has, each under its revision.
    fn check(&self) -> Result<(), TestCaseError> {
        let shown = self.mirror.scan(&NOTES).map(|note| (format!("notes/{}", note.key), note.revision()));
        let stored = self.engine.iter().map(|(key, (revision, _))| (key.clone(), *revision));
        prop_assert_eq!(shown.collect::<Vec<_>>(), stored.collect::<Vec<_>>());
        check_index(&self.mirror)
    }
}

/// One decision on its way.
struct Pending {
    key: String,
    text: Option<u8>,
    /// The decision that wrote what it looked at, if that was on its way.
    seen: Option<usize>,
    rests: bool,
    receiver: tokio::sync::oneshot::Receiver<Landing>,
}

fn notes(snapshot: &Snapshot) -> BTreeMap<String, u8> {
    snapshot.scan(&NOTES).map(|note| (note.key.clone(), note.text)).collect()
}

fn check_index(snapshot: &Snapshot) -> Result<(), TestCaseError> {
    let all = notes(snapshot);
    for text in 0..4 {
        let found: Vec<String> =
            snapshot.find(&NOTES, "text", &text.to_string()).map(|note| note.key.clone()).collect();
        let listed = all.iter().filter(|(_, of)| **of == text).map(|(key, _)| key.clone());
        prop_assert_eq!(&found, &listed.collect::<Vec<_>>());
        prop_assert_eq!(snapshot.count_of(&NOTES, "text", &text.to_string()), found.len());
    }
    Ok(())
}

/// Everything that happens in one run.
struct Run {
    durable: Durable,
    pipeline: Pipeline,
    pending: BTreeMap<usize, Pending>,
    batch: Option<Batch>,
    number: usize,
}

impl Run {
    fn newest(&mut self) -> Snapshot {
        let mirror = self.durable.mirror.clone();
        self.pipeline.newest(|| mirror)
    }

    fn decide(&mut self, key: u8, text: Option<u8>, seen: u8, rests: bool) -> Result<(), TestCaseError> {
        let (key, seen) = (format!("n{key}"), format!("n{seen}"));
        let (newest, looked_at) = self.newest().noted();
        let known = newest.get(&NOTES, &key);
        // Who is known by a provisional revision was written by the last one that wrote it.
        let is_on_its_way = newest.get(&NOTES, &seen).is_some_and(|note| is_provisional(note.revision()));
        let by = self.pending.iter().rev().find(|(_, pending)| pending.key == seen).map(|(number, _)| *number);
        drop(newest);
        let note = text.map(|text| Note { key: key.clone(), text });
        let mut transaction = match (&known, note) {
            (Some(known), Some(note)) => Transaction::new().replace(&NOTES, known, note),
            (Some(known), None) => Transaction::new().delete(&NOTES, known),
            (None, Some(note)) => Transaction::new().create(&NOTES, note),
            (None, None) => return Ok(()),
        };
        if rests {
            transaction = transaction.rests_on_checks();
        }
        let Ok(Ticket::Wait(receiver)) = self.pipeline.admit(transaction, looked_at.take()) else {
            return Err(TestCaseError::fail("what was decided on the newest state is admitted, and waits"));
        };
        let seen = by.filter(|_| is_on_its_way);
        self.pending.insert(self.number, Pending { key, text, seen, rests, receiver });
        self.number += 1;
        Ok(())
    }

    /// The engine answers what flies.
    fn answer(&mut self) -> Result<(), TestCaseError> {
        let Some(batch) = self.batch.take() else { return Ok(()) };
        if let Some(revision) = self.durable.commit(&batch) {
            self.pipeline.committed(revision);
            if !self.durable.show_directly(revision, &mut self.pipeline) {
                self.durable.show(&mut self.pipeline);
            }
            return self.durable.check();
        }
        self.durable.show(&mut self.pipeline);
        self.pipeline.overtaken(self.durable.mirror.clone()).tell(&Landing::Again);
        // Only what was decided before all that is lost, or without a look at it, is still on its way; and it is seen in its order.
        let mut lost = Vec::new();
        for (number, pending) in &mut self.pending {
            match pending.receiver.try_recv() {
                Ok(Landing::Again) => lost.push(*number),
                Err(TryRecvError::Empty) => {
                    let is_good = lost.is_empty() || pending.rests;
                    prop_assert!(is_good, "decision {} rests on anything", number);
                    prop_assert!(
                        pending.seen.is_none_or(|seen| !lost.contains(&seen)),
                        "decision {} saw a lost one",
                        number
                    );
                }
                _ => {} // landed before
            }
        }
        prop_assert!(!lost.is_empty(), "somebody must have been overtaken");
        self.pending.retain(|number, _| !lost.contains(number));
        let mut wanted = notes(&self.durable.mirror);
        for pending in self.pending.values() {
            match pending.text {
                Some(text) => wanted.insert(pending.key.clone(), text),
                None => wanted.remove(&pending.key),
            };
        }
        prop_assert_eq!(notes(&self.newest()), wanted);
        let newest = self.newest();
        check_index(&newest)
    }

    fn act(&mut self, act: Act) -> Result<(), TestCaseError> {
        match act {
            Act::Decide(key, text, seen, rests) => self.decide(key, text, seen, rests)?,
            Act::Take => self.batch = self.pipeline.take().or(self.batch.take()),
            Act::Land => self.answer()?,
            Act::Foreign(key, text) => {
                let name = format!("n{key}");
                let value = text.map(|text| encode(&NOTES, &Note { key: name.clone(), text }).expect("plain data"));
                let writes = vec![(format!("notes/{name}"), value)];
                self.durable.commit(&Batch { writes, ..Batch::default() });
            }
            Act::Show => self.durable.show(&mut self.pipeline),
            Act::Lag => self.durable.load(&mut self.pipeline),
        }
        self.pending.retain(|_, pending| !matches!(pending.receiver.try_recv(), Ok(Landing::Durable(_))));
        Ok(())
    }
}

fn run(acts: Vec<Act>, records: usize) -> Result<(), TestCaseError> {
    let durable = Durable::new();
    let limits = Limits { records, bytes: 1 << 20 };
    let pipeline = Pipeline::new(limits, durable.mirror.clone());
    let mut run = Run { durable, pipeline, pending: BTreeMap::new(), batch: None, number: 0 };
    for act in acts {
        run.act(act)?;
    }
    // Whatever is on its way lands or is told to decide again, and then all that is durable is seen.
    loop {
        run.act(Act::Take)?;
        if run.batch.is_none() {
            break;
        }
        run.act(Act::Land)?;
    }
    run.durable.show(&mut run.pipeline);
    run.durable.check()?;
    prop_assert!(run.pending.is_empty(), "nobody waits for ever");
    let newest = run.newest();
    prop_assert_eq!(notes(&newest), notes(&run.durable.mirror));
    Ok(())
}

/// Others delete what is not there yet, it is written and then deleted here, and the mirror is told of the first two at once.
#[test]
fn what_is_deleted_on_top_of_what_others_had_deleted_stays_so() {
    let decide = |key, text| Act::Decide(key, text, 0, false);
    let acts = [
        decide(10, Some(0)),
        Act::Take,
        decide(10, None),
        decide(0, Some(0)),
        Act::Foreign(10, None),
        decide(0, Some(1)),
    ];
    run(acts.to_vec(), 2).expect("all of it lands");
}

proptest! {
    #[test]
    fn what_is_decided_lands_while_others_write_elsewhere(
        acts in proptest::collection::vec(act(20), 1..160),
        records in 2_usize..20,
    ) {
        run(acts, records)?;
    }

    #[test]
    fn what_is_overtaken_is_lost_with_what_was_seen_of_it_and_nothing_else(
        acts in proptest::collection::vec(act(6), 1..160),
        records in 2_usize..20,
    ) {
        run(acts, records)?;
    }
}
