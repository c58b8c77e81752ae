//! One test for every flow: at each of its steps fail it, repeat it, and stop the program, in doing and in undoing.
//!
//! The owner of a kind gives [`exercise`] a way to make a fresh world with one flow in it, and a check of what must hold when the flow has
//! ended. The harness finds the steps by itself, so a new step is covered the day it is written. The worlds' outside (a node that
//! reports, say) is the owner's: a task that watches the store and answers, kept in [`World::helpers`].

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base::{clock::Clock, shutdown::Shutdown};
use store::Store;
use tokio::sync::Notify;

use crate::{
    engine::Engine,
    record::{FLOWS, FlowId, FlowRecord, FlowState},
    step::StepError,
};

pub use crate::kind::Phase;

/// Real time one scenario may take.
const SCENARIO_TIME_MAX: Duration = Duration::from_secs(60);

/// What is done to one step, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injection {
    /// Nothing.
    Nothing,
    /// It fails without having been called.
    FailBefore,
    /// It is called, and then fails.
    FailAfter,
    /// It is called twice.
    Repeat,
    /// The program stops before it is called, and starts again.
    HaltBefore,
    /// The program stops after it was called and before its changes and journal are committed, and starts again.
    HaltAfter,
    /// The program stops right after the commit (nothing happens when the step commits nothing), and starts again.
    HaltCommitted,
}

/// One run of the harness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// What is done.
    pub injection: Injection,
    /// In doing or in undoing.
    pub phase: Phase,
    /// To which step, counted from 0.
    pub step: usize,
    /// The step's name.
    pub name: String,
    /// Whether the flow is made to fail, at its last step, so that there is something to undo.
    pub fails: bool,
}

/// A fresh world with one flow in it, committed and not begun.
pub struct World<C> {
    /// Where the flow is.
    pub store: Store,
    /// Its time. With a clock that stands still, waits never end by deadline and retries never come: helpers must turn it.
    pub clock: Arc<dyn Clock>,
    /// What the flow's steps use.
    pub context: C,
    /// The flow.
    pub flow: FlowId,
    /// Whatever must live as long as the world.
    pub helpers: Box<dyn Any>,
}

/// Run every scenario. `make` makes a world; `register` makes the kind known; `check` is called after each with the world and the ended
/// flow. Returns how many scenarios there were.
///
/// # Panics
/// When a flow does not end as its scenario must, or not in time.
pub async fn exercise<C: Clone + Send + Sync + 'static>(
    make: impl AsyncFn() -> World<C>,
    register: impl Fn(Engine<C>) -> Engine<C>,
    check: impl AsyncFn(&Scenario, &World<C>, &FlowRecord),
) -> usize {
    let world = make().await;
    let first = flow_of(&world).expect("the world holds the flow it names");
    drop(world);
    let scenarios = scenarios(&first.steps.iter().map(|step| step.name.clone()).collect::<Vec<_>>());
    for scenario in &scenarios {
        let world = make().await;
        let ended = tokio::time::timeout(SCENARIO_TIME_MAX, run(&world, &register, scenario)).await;
        let flow = ended.unwrap_or_else(|_| panic!("{scenario:?}: the flow has not ended: {:#?}", flow_of(&world)));
        let wanted = if scenario.fails { FlowState::Failed } else { FlowState::Succeeded };
        assert_eq!(flow.state, wanted, "{scenario:?}: {flow:#?}");
        check(scenario, &world, &flow).await;
    }
    scenarios.len()
}

fn scenarios(steps: &[String]) -> Vec<Scenario> {
    use Injection::{FailAfter, FailBefore, HaltAfter, HaltBefore, HaltCommitted, Nothing, Repeat};
    let mut all = Vec::new();
    for (step, name) in steps.iter().enumerate() {
        let mut add = |injection, phase, fails| {
            all.push(Scenario { injection, phase, step, name: name.clone(), fails });
        };
        if step == 0 {
            add(Nothing, Phase::Run, false);
        }
        for injection in [Repeat, HaltBefore, HaltAfter, HaltCommitted] {
            add(injection, Phase::Run, false);
            add(injection, Phase::Undo, true);
        }
        add(FailBefore, Phase::Run, true);
        add(FailAfter, Phase::Run, true);
    }
    all
}

async fn run<C: Clone + Send + Sync + 'static>(
    world: &World<C>,
    register: &impl Fn(Engine<C>) -> Engine<C>,
    scenario: &Scenario,
) -> FlowRecord {
    let last = flow_of(world).map_or(0, |flow| flow.steps.len().saturating_sub(1));
    let fault = Arc::new(Fault {
        scenario: scenario.clone(),
        // To have something to undo, the last step fails after it was called.
        failing: (scenario.phase == Phase::Undo).then_some(last),
        fired: AtomicBool::new(false),
        halted: Notify::new(),
    });
    loop {
        let mut changes = world.store.changes();
        let (trigger, shutdown) = Shutdown::new();
        let engine = Engine::new(world.store.clone(), world.clock.clone(), world.context.clone());
        let engine = register(engine).with_fault(fault.clone());
        let running = base::task::spawn("flow-engine", engine.run(shutdown));
        let ended = loop {
            match flow_of(world) {
                Some(flow) if flow.state == FlowState::Parked => panic!("{scenario:?}: parked: {flow:#?}"),
                Some(flow) if flow.state.is_ended() => break Some(flow),
                Some(_) => {}
                None => panic!("{scenario:?}: the flow has vanished"),
            }
            tokio::select! {
                biased;
                _ = changes.next() => {}
                () = fault.halted.notified() => break None,
            }
        };
        trigger.fire();
        running.await.expect("the engine does not panic");
        if let Some(flow) = ended {
            return flow;
        }
    }
}

fn flow_of<C>(world: &World<C>) -> Option<FlowRecord> {
    world.store.snapshot().get(&FLOWS, &world.flow.to_string()).map(|entry| entry.value.clone())
}

/// What an engine under test does to a step.
pub(crate) struct Fault {
    scenario: Scenario,
    failing: Option<usize>,
    fired: AtomicBool,
    halted: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    After,
    Committed,
}

pub(crate) enum After {
    Repeat,
    Answer(StepError),
}

impl Fault {
    pub(crate) fn halts(&self, phase: Phase, step: usize, moment: Moment) -> bool {
        let wanted = match self.scenario.injection {
            Injection::HaltBefore => Moment::Before,
            Injection::HaltAfter => Moment::After,
            Injection::HaltCommitted => Moment::Committed,
            _ => return false,
        };
        let halts = wanted == moment && self.fires(phase, step);
        if halts {
            self.halted.notify_one();
        }
        halts
    }

    /// The answer of a step that is not called at all.
    pub(crate) fn instead(&self, phase: Phase, step: usize) -> Option<StepError> {
        let fires = self.scenario.injection == Injection::FailBefore && self.fires(phase, step);
        fires.then(|| StepError::Fail("made to fail before".to_owned()))
    }

    pub(crate) fn after(&self, phase: Phase, step: usize) -> Option<After> {
        // Every time: a failure that no undo has followed yet is not journaled, and a restart runs the step again.
        if phase == Phase::Run && self.failing == Some(step) {
            return Some(After::Answer(StepError::Fail("made to fail at the end".to_owned())));
        }
        match self.scenario.injection {
            Injection::FailAfter if self.fires(phase, step) => {
                Some(After::Answer(StepError::Fail("made to fail after".to_owned())))
            }
            Injection::Repeat if self.fires(phase, step) => Some(After::Repeat),
            _ => None,
        }
    }

    fn fires(&self, phase: Phase, step: usize) -> bool {
        phase == self.scenario.phase && step == self.scenario.step && !self.fired.swap(true, Ordering::SeqCst)
    }
}
