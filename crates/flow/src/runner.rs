//! One flow's task: take the journal from the store, do the next thing, write it down, until the flow has ended.
//!
//! The journal in hand runs ahead of the stored one: steps that changed no record are noted only here until something must be committed
//! (a step's own changes, the end) or until the flow has waited so long that an operator may look. If the stored journal turns out
//! to be somebody else's (cancelled, or run by a second engine), the one in hand is thrown away and the stored one taken: steps
//! are repeatable, so nothing is lost but time.

use std::{sync::Arc, time::Duration};

use base::{backoff::Backoff, shutdown::Shutdown};
use store::{CommitError, Revision, Snapshot, Store, Transaction};

use crate::{
    engine::Shared,
    kind::{AnyFlow, Call, Phase},
    record::{FLOWS, FlowId, FlowRecord, Next},
    step::{Decision, Progress, StepError, Wait},
    testing::{After, Moment},
};

/// Waits between tries of a step, or of a commit that failed.
const RETRY_FLOOR: Duration = Duration::from_millis(100);
const RETRY_CEILING: Duration = Duration::from_secs(30);
/// How long one call of a step's body may take; it is not meant to wait at all.
const BODY_TIME_MAX: Duration = Duration::from_secs(600);
/// How often an undo may fail before the flow is parked for an operator.
const UNDO_ATTEMPTS_MAX: u32 = 20;
/// How long a flow waits before what it waits for is written into its journal.
const QUIET_WAIT: Duration = Duration::from_secs(1);

pub(crate) struct Runner<C> {
    pub(crate) shared: Arc<Shared<C>>,
    pub(crate) id: FlowId,
    pub(crate) shutdown: Shutdown,
}

struct Journal {
    record: FlowRecord,
    /// Of the stored record this one grew from.
    revision: Revision,
    /// Whether `record` says more than the stored one.
    ahead: bool,
    backoff: Backoff,
}

/// Why a journal is put down.
enum Stop {
    /// The flow has ended, is parked, or is gone.
    Over,
    /// The stored journal is another one now.
    Lost,
    /// Another engine runs it.
    Elsewhere,
    /// The engine stops.
    Shutdown,
}

/// How a commit with the journal went wrong, in so far as the flow must know.
enum Refused {
    Stop(Stop),
    /// A record the step decided on has changed: run the step again.
    Conflict,
    /// The step's own decision said no.
    Step(StepError),
}

impl From<CommitError> for Refused {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict { .. } => Self::Conflict,
            CommitError::TooLarge { .. } | CommitError::Invalid(_) => Self::Step(StepError::Fail(error.to_string())),
            CommitError::Full | CommitError::Engine(_) | CommitError::Stopped(_) => {
                Self::Step(StepError::Retry(base::errors::chain(&error)))
            }
        }
    }
}

impl<C: Send + Sync + 'static> Runner<C> {
    pub(crate) async fn run(self) {
        loop {
            let Some(entry) = self.shared.store.snapshot().get(&FLOWS, &self.id.to_string()) else { return };
            let mut journal = Journal {
                record: entry.value.clone(),
                revision: entry.revision(),
                ahead: false,
                backoff: Backoff::new(RETRY_FLOOR, RETRY_CEILING),
            };
            drop(entry);
            match self.drive(&mut journal).await {
                Stop::Over | Stop::Elsewhere | Stop::Shutdown => return,
                Stop::Lost => {}
            }
        }
    }

    async fn drive(&self, journal: &mut Journal) -> Stop {
        if !journal.record.state.is_open() {
            return Stop::Over;
        }
        let kind = self.shared.kinds.get(journal.record.kind.as_str());
        let loaded = match kind {
            Some(kind) => kind.load(&journal.record),
            None => Err(format!("this program knows no flows of kind `{}`", journal.record.kind)),
        };
        let flow = match loaded {
            Ok(flow) => flow,
            Err(why) => return self.park(journal, &why).await,
        };
        loop {
            if !self.shared.shares.has(&journal.record) {
                return Stop::Elsewhere;
            }
            let (phase, step) = match journal.record.next() {
                Next::Run(step) => (Phase::Run, step),
                Next::Undo(step) => (Phase::Undo, step),
                Next::End(_) => {
                    journal.record.end_if_over(self.shared.clock.now_ms());
                    journal.ahead = true;
                    match self.write(journal).await {
                        Some(stop) => return stop,
                        None => continue,
                    }
                }
                Next::Nothing if journal.ahead => match self.write(journal).await {
                    Some(stop) => return stop,
                    None => continue,
                },
                Next::Nothing => return Stop::Over,
            };
            if let Err(stop) = self.step(journal, flow.as_ref(), phase, step).await {
                return stop;
            }
        }
    }

    /// Call one step once and do what its answer asks for.
    async fn step(&self, journal: &mut Journal, flow: &dyn AnyFlow<C>, phase: Phase, step: usize) -> Result<(), Stop> {
        let name = flow.step_name(step);
        journal.record.steps[step].started_at.get_or_insert(self.shared.clock.now_ms());
        self.moment(journal, phase, step, "before", Moment::Before)?;
        let snapshot = self.shared.store.snapshot();
        let mut answer = self.call(journal, flow, phase, step, &snapshot).await?;
        self.moment(journal, phase, step, "after", Moment::After)?;
        if let (Some(fault), false) = (&self.shared.fault, matches!(answer, Ok(Progress::Wait(_)))) {
            answer = match fault.after(phase, step) {
                None => answer,
                Some(After::Repeat) => self.call(journal, flow, phase, step, &snapshot).await?,
                Some(After::Answer(error)) => Err(error),
            };
        }
        let outcome = match answer {
            Ok(Progress::Done) => {
                let now = self.shared.clock.now_ms();
                journal.record.finish_step(step, now);
                journal.ahead = true;
                journal.backoff.reset();
                return Ok(());
            }
            Ok(Progress::Commit(transaction)) => self.finish_with_transaction(journal, step, transaction).await,
            Ok(Progress::Decide(decision)) => self.finish_with_decision(journal, step, decision).await,
            Ok(Progress::Wait(wait)) => return self.wait(journal, phase, step, wait, &snapshot).await,
            Err(error) => Err(Refused::Step(error)),
        };
        match outcome {
            Ok(()) => {
                journal.backoff.reset();
                self.moment(journal, phase, step, "committed", Moment::Committed)
            }
            Err(Refused::Stop(stop)) => Err(stop),
            Err(Refused::Conflict) => {
                tracing::debug!(flow = %self.id, step = name, "a record changed under the step; running it again");
                Ok(())
            }
            Err(Refused::Step(error)) => self.failed(journal, flow, phase, step, error).await,
        }
    }

    async fn call(
        &self,
        journal: &mut Journal,
        flow: &dyn AnyFlow<C>,
        phase: Phase,
        step: usize,
        snapshot: &Snapshot,
    ) -> Result<Result<Progress, StepError>, Stop> {
        if let Some(error) = self.shared.fault.as_ref().and_then(|fault| fault.instead(phase, step)) {
            return Ok(Err(error));
        }
        let _place = self.shared.steps.acquire().await.expect("the semaphore is never closed");
        let mut notes = journal.record.notes.clone();
        let body = flow.call(Call {
            phase,
            step,
            context: &self.shared.context,
            notes: &mut notes,
            flow: &journal.record,
            snapshot,
            now: self.shared.clock.now_ms(),
        });
        let answer = match self.shutdown.unless(tokio::time::timeout(BODY_TIME_MAX, body)).await {
            None => return Err(Stop::Shutdown),
            Some(Ok(answer)) => answer,
            Some(Err(_)) => Err(StepError::Retry(format!("the step took longer than {} s", BODY_TIME_MAX.as_secs()))),
        };
        journal.record.notes = notes;
        Ok(answer)
    }

    async fn finish_with_transaction(
        &self,
        journal: &mut Journal,
        step: usize,
        transaction: Transaction,
    ) -> Result<(), Refused> {
        let mut record = journal.record.clone();
        record.finish_step(step, self.shared.clock.now_ms());
        let entry = self.stored(&self.shared.store.snapshot(), journal)?;
        let journaled = transaction.replace(&FLOWS, &entry, record.clone()).may_use_reserve();
        match self.store(journal).commit(journaled).await {
            Ok(revision) => {
                journal.written(record, revision);
                Ok(())
            }
            Err(CommitError::Conflict { table, .. }) if table == FLOWS.name => Err(Refused::Stop(Stop::Lost)),
            Err(error) => Err(error.into()),
        }
    }

    async fn finish_with_decision(
        &self,
        journal: &mut Journal,
        step: usize,
        mut decision: Decision,
    ) -> Result<(), Refused> {
        let mut record = journal.record.clone();
        record.finish_step(step, self.shared.clock.now_ms());
        let store = self.store(journal);
        let decided = store.update(|newest| {
            let entry = self.stored(newest, journal)?;
            let transaction = decision(newest).map_err(Refused::Step)?;
            Ok::<_, Refused>((transaction.replace(&FLOWS, &entry, record.clone()).may_use_reserve(), ()))
        });
        let (revision, ()) = decided.await?;
        journal.written(record, revision);
        Ok(())
    }

    /// Commit the journal in hand. `Some` when the flow must be put down.
    async fn write(&self, journal: &mut Journal) -> Option<Stop> {
        let store = self.store(journal);
        loop {
            let written = store.update(|newest| {
                let entry = self.stored(newest, journal)?;
                let transaction = Transaction::new().replace(&FLOWS, &entry, journal.record.clone());
                Ok::<_, Refused>((transaction.may_use_reserve(), ()))
            });
            match written.await {
                Ok((revision, ())) => {
                    journal.written(journal.record.clone(), revision);
                    return None;
                }
                Err(Refused::Stop(stop)) => return Some(stop),
                Err(Refused::Conflict) => return Some(Stop::Lost),
                Err(Refused::Step(error)) => {
                    tracing::warn!(flow = %self.id, %error, "the journal of a flow cannot be written; trying again");
                    if self.sleep(journal.backoff.next_delay()).await.is_err() {
                        return Some(Stop::Shutdown);
                    }
                    if !self.shared.shares.has(&journal.record) {
                        return Some(Stop::Elsewhere);
                    }
                }
            }
        }
    }

    /// The store, in the line of those the flow works for.
    fn store(&self, journal: &Journal) -> Store {
        self.shared.store.in_line(&journal.record.group)
    }

    fn stored(&self, snapshot: &Snapshot, journal: &Journal) -> Result<Arc<store::Entry<FlowRecord>>, Refused> {
        let entry = snapshot.get(&FLOWS, &self.id.to_string()).ok_or(Refused::Stop(Stop::Over))?;
        if entry.revision() == journal.revision { Ok(entry) } else { Err(Refused::Stop(Stop::Lost)) }
    }

    async fn failed(
        &self,
        journal: &mut Journal,
        flow: &dyn AnyFlow<C>,
        phase: Phase,
        step: usize,
        error: StepError,
    ) -> Result<(), Stop> {
        let name = flow.step_name(step);
        let (why, attempts_max) = match (&error, phase) {
            (StepError::Retry(why), Phase::Run) => (why, flow.attempts_max(step)),
            (StepError::Retry(why), Phase::Undo) => (why, UNDO_ATTEMPTS_MAX),
            (StepError::Fail(why), _) => (why, 0),
        };
        journal.record.note_attempt(step, why);
        journal.ahead = true;
        if journal.record.steps[step].attempts < attempts_max {
            tracing::info!(flow = %self.id, step = name, why, "a step will be tried again");
            let delay = journal.backoff.next_delay();
            return self.pause(journal, delay).await;
        }
        journal.backoff.reset();
        match phase {
            Phase::Run => {
                tracing::warn!(flow = %self.id, kind = journal.record.kind, step = name, why, "a step failed; undoing the flow");
                journal.record.fail_step(step, why, self.shared.clock.now_ms());
                self.begin_undoing(journal).await
            }
            Phase::Undo => Err(self.park(journal, &format!("undoing {name}: {why}")).await),
        }
    }

    /// Write the failure down before the first undo: a flow whose steps are half undone must not go forward again.
    async fn begin_undoing(&self, journal: &mut Journal) -> Result<(), Stop> {
        journal.ahead = true;
        self.write(journal).await.map_or(Ok(()), Err)
    }

    async fn park(&self, journal: &mut Journal, why: &str) -> Stop {
        tracing::error!(flow = %self.id, kind = journal.record.kind, why, "a flow is parked and needs an operator");
        journal.record.park(why);
        journal.ahead = true;
        self.write(journal).await.unwrap_or(Stop::Over)
    }

    /// Sleep until a named record differs from `seen`, or the deadline.
    async fn wait(
        &self,
        journal: &mut Journal,
        phase: Phase,
        step: usize,
        wait: Wait,
        seen: &Snapshot,
    ) -> Result<(), Stop> {
        let now = self.shared.clock.now_ms();
        let started_at = journal.record.steps[step].started_at.unwrap_or(now);
        let within_ms = i64::try_from(wait.within.as_millis()).unwrap_or(i64::MAX);
        let deadline = started_at.saturating_add(within_ms);
        if now >= deadline && phase == Phase::Run {
            let why = format!("waited {} s for {}", wait.within.as_secs_f64(), wait.reason);
            journal.record.fail_step(step, &why, now);
            return self.begin_undoing(journal).await;
        }
        if journal.record.steps[step].error.as_deref() != Some(&wait.reason) {
            journal.record.steps[step].error = Some(wait.reason);
            journal.ahead = true;
        }
        // An undo does not give up: what it waits for must come true, or an operator looks.
        let until = if phase == Phase::Run { deadline } else { now.saturating_add(within_ms) };
        self.until_changed(journal, &wait.keys, seen, until).await
    }

    async fn until_changed(
        &self,
        journal: &mut Journal,
        named: &[(&'static str, String)],
        seen: &Snapshot,
        until: i64,
    ) -> Result<(), Stop> {
        let mut keys: Vec<(&'static str, Arc<str>)> =
            named.iter().map(|(table, key)| (*table, Arc::from(key.as_str()))).collect();
        keys.push((FLOWS.name, self.id.to_string().into()));
        let interest = self.shared.waits.register(keys);
        let mut shares = self.shared.shares.watch();
        let differs = |newest: &Snapshot| {
            named.iter().any(|(table, key)| newest.revision_of(table, key) != seen.revision_of(table, key))
        };
        if differs(&self.shared.store.snapshot()) {
            return Ok(());
        }
        let quiet_until = self.shared.clock.now_ms().saturating_add(i64::try_from(QUIET_WAIT.as_millis()).unwrap_or(0));
        loop {
            if !self.is_mine(journal) {
                return Err(Stop::Lost);
            }
            if !self.shared.shares.has(&journal.record) {
                return Err(Stop::Elsewhere);
            }
            tokio::select! {
                biased;
                () = self.shutdown.wait() => return Err(Stop::Shutdown),
                () = shares.changed() => {}
                () = interest.changed() => {
                    // Our own quiet write wakes us too.
                    let newest = self.shared.store.snapshot();
                    if differs(&newest) {
                        return if self.is_mine(journal) { Ok(()) } else { Err(Stop::Lost) };
                    }
                }
                () = self.shared.clock.sleep_until(until) => return Ok(()),
                () = self.shared.clock.sleep_until(quiet_until), if journal.ahead => {
                    if let Some(stop) = self.write(journal).await {
                        return Err(stop);
                    }
                }
            }
        }
    }

    /// Wait before another try, unless the flow is taken away meanwhile.
    async fn pause(&self, journal: &mut Journal, delay: Duration) -> Result<(), Stop> {
        let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        let until = self.shared.clock.now_ms().saturating_add(delay_ms);
        let seen = self.shared.store.snapshot();
        self.until_changed(journal, &[], &seen, until).await
    }

    async fn sleep(&self, delay: Duration) -> Result<(), Stop> {
        self.shutdown.unless(self.shared.clock.sleep(delay)).await.ok_or(Stop::Shutdown)
    }

    fn is_mine(&self, journal: &Journal) -> bool {
        self.shared.store.snapshot().revision_of(FLOWS.name, &self.id.to_string()) == Some(journal.revision)
    }

    fn moment(&self, journal: &Journal, phase: Phase, step: usize, word: &str, moment: Moment) -> Result<(), Stop> {
        if cfg!(any(feature = "crash-points", debug_assertions)) {
            // flow.<kind>.<step>.before | after | committed, and flow.<kind>.<step>.undo.before …
            let undo = if phase == Phase::Undo { "undo." } else { "" };
            let name = &journal.record.steps[step].name;
            base::crash::point(&format!("flow.{}.{name}.{undo}{word}", journal.record.kind));
        }
        match &self.shared.fault {
            Some(fault) if fault.halts(phase, step, moment) => Err(Stop::Shutdown),
            _ => Ok(()),
        }
    }
}

impl Journal {
    fn written(&mut self, record: FlowRecord, revision: Revision) {
        self.record = record;
        self.revision = revision;
        self.ahead = false;
    }
}
