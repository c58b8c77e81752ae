//! Every record in memory, decoded, following the engine's watch.
//!
//! One task applies changes in order and publishes a new [`Snapshot`] for each delivery. If the engine no longer keeps the history
//! the mirror needs, it loads everything again and tells its readers that anything may have changed. A value that this program
//! cannot read stops the mirror for good: from then on commits fail with that reason, and reads show the last good state.
//!
//! A commit of this process whose revision is the one after what is shown is shown as soon as the engine has answered; its watch tells of
//! it again, which is passed over. All the rest waits for the watch.
//!
//! The mirror also holds the pipeline of what is on its way to the engine, because a state becomes visible and its group lands in one
//! moment: nobody can read a record's real revision while the pipeline still knows it by a provisional one. For that the mirror
//! holds back deliveries while a commit is in the air (`air`), which is never longer than that commit.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base::{backoff::Backoff, shutdown::Shutdown};
use tokio::sync::{Notify, broadcast, watch};

use crate::{
    arrival::{Name, arrive},
    change::{Change, Changes},
    engine::{Delivery, Engine, EngineError, Record, Watch},
    pipeline::{Landing, Pipeline},
    snapshot::{Snapshot, State},
    store::Error,
    table::{Revision, Schema},
};

/// Changes a reader of the feed may be behind before it is told that it lagged. Each holds a snapshot, so not too many.
const FEED_CHANGES_MAX: usize = 256;
/// Records asked of the engine at once while loading.
const LOAD_RECORDS: usize = 1000;
/// Waits between attempts to reach an engine that fails.
const RETRY_FLOOR: Duration = Duration::from_millis(50);
const RETRY_CEILING: Duration = Duration::from_secs(5);

pub(crate) struct Mirror {
    // Held to copy or replace one pointer.
    engine: RwLock<Arc<dyn Engine>>,
    /// Another engine has taken the place of the one that is watched.
    exchanged: Notify,
    /// How often that has happened.
    exchanges: AtomicU64,
    schema: Arc<Schema>,
    // Held to copy or replace one pointer.
    current: RwLock<Snapshot>,
    applied: watch::Sender<Applied>,
    feed: broadcast::Sender<Arc<Change>>,
    // Held while a decision is made, which is pure and short, or a state is published; never across an await.
    pipeline: Mutex<Pipeline>,
    /// Held while a commit is in the air and its revision is not noted, and while deliveries are applied.
    pub(crate) air: tokio::sync::Mutex<()>,
}

/// What the one who follows the engine hears.
enum Heard {
    Changes(Result<Delivery, EngineError>),
    /// Another engine is to be followed.
    Exchanged,
}

#[derive(Clone)]
struct Applied {
    revision: Revision,
    broken: Option<Arc<Error>>,
}

impl Mirror {
    /// Load everything.
    pub(crate) async fn open(engine: Arc<dyn Engine>, schema: Schema) -> Result<(Arc<Self>, Box<dyn Watch>), Error> {
        let schema = Arc::new(schema);
        let (state, watch) = load(engine.as_ref(), &schema).await?;
        let applied = watch::Sender::new(Applied { revision: state.revision, broken: None });
        let feed = broadcast::Sender::new(FEED_CHANGES_MAX);
        let snapshot = Snapshot::new(state);
        let pipeline = Mutex::new(Pipeline::new(engine.limits(), snapshot.clone()));
        let air = tokio::sync::Mutex::default();
        let mirror = Self {
            engine: RwLock::new(engine),
            exchanged: Notify::new(),
            exchanges: AtomicU64::new(0),
            schema,
            current: RwLock::new(snapshot),
            applied,
            feed,
            pipeline,
            air,
        };
        Ok((Arc::new(mirror), watch))
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn engine(&self) -> Arc<dyn Engine> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What `engine` holds.
    pub(crate) async fn read(&self, engine: &dyn Engine) -> Result<State, Error> {
        Ok(load(engine, &self.schema).await?.0)
    }

    /// `engine`, which holds `state`, takes the place of the one before. No commit is in the air.
    pub(crate) async fn exchange(&self, engine: Arc<dyn Engine>, state: State) {
        let _air = self.air.lock().await;
        let limits = engine.limits();
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = engine;
        self.exchanges.fetch_add(1, Ordering::SeqCst);
        self.publish(state, Vec::new(), None);
        let queued = self.pipeline().moved(limits, self.snapshot());
        queued.tell(&Landing::Again);
        self.exchanged.notify_one();
    }

    pub(crate) fn pipeline(&self) -> MutexGuard<'_, Pipeline> {
        // A decision that panicked changed nothing: it is given the state to look at, and the pipeline changes after it returned.
        self.pipeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changes(self: &Arc<Self>) -> Changes {
        Changes::new(self.feed.subscribe(), self.clone())
    }

    /// Ends when the mirror shows `revision`, or will never show it.
    pub(crate) async fn reached(&self, revision: Revision) -> Result<(), Arc<Error>> {
        let mut applied = self.applied.subscribe();
        let seen = applied.wait_for(|applied| applied.revision >= revision || applied.broken.is_some()).await;
        let seen = seen.expect("the mirror owns the sender").clone();
        match seen.broken {
            Some(error) if seen.revision < revision => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn broken(&self) -> Option<Arc<Error>> {
        self.applied.borrow().broken.clone()
    }

    /// Follow the engine until shutdown.
    pub(crate) async fn follow(self: Arc<Self>, mut watch: Box<dyn Watch>, shutdown: Shutdown) {
        let mut backoff = Backoff::new(RETRY_FLOOR, RETRY_CEILING);
        let mut watched = self.exchanges.load(Ordering::SeqCst);
        while let Some(heard) = shutdown.unless(self.hear(watch.as_mut())).await {
            let trouble = match heard {
                Heard::Changes(Ok(delivery)) => {
                    backoff.reset();
                    let _air = self.air.lock().await;
                    match self.exchanges.load(Ordering::SeqCst) == watched {
                        true => self.apply(&delivery).err(),
                        // They are of an engine that is not ours any more; that is what is heard next.
                        false => None,
                    }
                }
                Heard::Changes(Err(error)) => Some(Error::Engine(error)),
                Heard::Exchanged => {
                    watched = self.exchanges.load(Ordering::SeqCst);
                    match self.rewatch().await {
                        Ok(again) => {
                            watch = again;
                            None
                        }
                        Err(error) => Some(error),
                    }
                }
            };
            let Some(trouble) = trouble else { continue };
            match self.recover(trouble, &mut backoff, &shutdown).await {
                Some(again) => watch = again,
                None => return,
            }
        }
    }

    async fn hear(&self, watch: &mut dyn Watch) -> Heard {
        tokio::select! {
            biased;
            () = self.exchanged.notified() => Heard::Exchanged,
            delivered = watch.next() => Heard::Changes(delivered),
        }
    }

    /// The group in the air is durable as `revision`. It is shown at once if nothing else was committed since what is shown, so that its callers
    /// need not wait until the watch tells of it as well.
    pub(crate) fn committed(&self, revision: Revision) {
        let own = {
            let mut pipeline = self.pipeline();
            pipeline.committed(revision);
            pipeline.arrival(revision)
        };
        if let Some(arrived) = own.and_then(|own| own.directly_after(self.snapshot().revision())) {
            self.publish(arrived.state, arrived.names, Some(&arrived.others));
        }
    }

    fn apply(&self, delivery: &Delivery) -> Result<(), Error> {
        if delivery.through <= self.snapshot().revision() {
            return Ok(());
        }
        let own = self.pipeline().arrival(delivery.through);
        let arrived = arrive(self.snapshot().state(), delivery, own.as_ref()).map_err(Error::Decode)?;
        self.publish(arrived.state, arrived.names, Some(&arrived.others));
        Ok(())
    }

    /// Show `state`, in which `keys` have changed, `others` by the hand of others; not given when anything may have changed. Readers of the
    /// feed are told also when it only has a later number: some wait until they have been told of a snapshot's revision.
    fn publish(&self, state: State, keys: Vec<Name>, others: Option<&[Name]>) {
        let revision = state.revision;
        let snapshot = Snapshot::new(state);
        let (previous, landed) = {
            let mut pipeline = self.pipeline();
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            (std::mem::replace(&mut *current, snapshot.clone()), pipeline.shown(&snapshot, others))
        };
        // No receiver is no error.
        let _ = self.feed.send(Arc::new(Change { revision, snapshot, keys, lagged: others.is_none() }));
        self.applied.send_modify(|applied| applied.revision = revision);
        if let Some((revision, waiters)) = landed {
            waiters.tell(&Landing::Durable(revision));
        }
        drop(previous);
    }

    /// A new watch after `trouble`; `None` when there is nothing more to follow.
    async fn recover(&self, trouble: Error, backoff: &mut Backoff, shutdown: &Shutdown) -> Option<Box<dyn Watch>> {
        let mut trouble = trouble;
        loop {
            match &trouble {
                Error::Decode(_) | Error::Engine(EngineError::Closed) => {
                    tracing::error!(error = base::errors::chain(&trouble), "the mirror of the store has stopped");
                    let broken = Some(Arc::new(trouble));
                    self.applied.send_modify(|applied| applied.broken = broken);
                    return None;
                }
                Error::Engine(error) => {
                    tracing::warn!(error = base::errors::chain(error), "the mirror of the store lost its watch");
                }
            }
            shutdown.unless(tokio::time::sleep(backoff.next_delay())).await?;
            let compacted = matches!(trouble, Error::Engine(EngineError::Compacted(_)));
            let again = if compacted { self.reload().await } else { self.rewatch().await };
            match again {
                Ok(watch) => return Some(watch),
                Err(error) => trouble = error,
            }
        }
    }

    async fn rewatch(&self) -> Result<Box<dyn Watch>, Error> {
        self.engine().watch(self.snapshot().revision()).await.map_err(Error::Engine)
    }

    async fn reload(&self) -> Result<Box<dyn Watch>, Error> {
        let _air = self.air.lock().await;
        let (state, watch) = load(self.engine().as_ref(), &self.schema).await?;
        self.publish(state, Vec::new(), None);
        Ok(watch)
    }
}

async fn load(engine: &dyn Engine, schema: &Arc<Schema>) -> Result<(State, Box<dyn Watch>), Error> {
    let mut state = State::empty(schema.clone());
    let mut page = engine.load("", LOAD_RECORDS).await.map_err(Error::Engine)?;
    state.revision = page.revision;
    let mut watch = engine.watch(page.revision).await.map_err(Error::Engine)?;
    let mut newest = Revision(0);
    loop {
        newest = newest.max(page.revision);
        let after = page.records.last().filter(|_| page.more).map(|record| record.key.clone());
        let next = async {
            match &after {
                Some(after) => engine.load(after, LOAD_RECORDS).await.map(Some),
                None => Ok(None),
            }
        };
        let read = async {
            let apply = |record: &Record| state.apply_stored(&record.key, record.revision, Some(&record.value));
            page.records.iter().try_for_each(apply)
        };
        // The next page is asked for first, and is on its way while this one is read.
        let (next, read) = tokio::join!(biased; next, read);
        read.map_err(Error::Decode)?;
        match next.map_err(Error::Engine)? {
            Some(next) => page = next,
            None => break,
        }
    }
    // Records were written while we read: catch up before anybody sees a state that never was.
    while state.revision < newest {
        let delivery = watch.next().await.map_err(Error::Engine)?;
        for event in &delivery.events {
            state.apply_stored(&event.key, event.revision, event.value.as_deref()).map_err(Error::Decode)?;
        }
        state.revision = state.revision.max(delivery.through);
    }
    Ok((state, watch))
}
