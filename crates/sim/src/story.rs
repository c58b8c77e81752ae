//! What happens: people who want things, and fate.
//!
//! Requests are carried out beside each other, as tasks of the headnode: one that crashes leaves those who asked without an answer.

use std::{collections::VecDeque, time::Duration};

use control::{Error, tables::INSTANCES};
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::{
    Outcome, Plan,
    chance::Chance,
    datacenter::Datacenter,
    fate::{self, Tally},
    invariants,
    tenant::{self, Request},
    trace::Trace,
};

/// Instances at once, per machine; a few more than there is room for, so that it runs out.
const INSTANCES_PER_NODE: usize = 24;

/// Instances at once in all: each has a socket of its own, and a process has not many files.
const INSTANCES_MAX: usize = 260;

/// Longest pause between two steps, milliseconds.
const PAUSE_MS: u64 = 3000;

/// Machines for which one thing happens in a step.
const NODES_PER_EVENT: usize = 12;

/// How long after the faults everything may take to come to rest, virtual time. Longer than the longest deadline of a flow.
const REST: Duration = Duration::from_secs(25 * 60);

/// Between two looks while waiting for rest.
const LOOK: Duration = Duration::from_secs(5);

/// Lines of the diary that are kept.
const DIARY_LINES: usize = 200;

struct Story {
    datacenter: Datacenter,
    plan: Plan,
    chance: Chance,
    tally: Tally,
    asked: Vec<(String, JoinHandle<Result<String, Error>>)>,
    diary: VecDeque<String>,
    trace: Trace,
    begun: tokio::time::Instant,
}

/// Plays what `plan` says on a paused runtime.
pub(crate) async fn play(plan: Plan) -> Outcome {
    let outcome = |tally, violations, diary: VecDeque<String>, trace: Trace| {
        let (trace, diary) = (trace.digest(), diary.into());
        Outcome { plan, tally, trace, violations, diary }
    };
    let datacenter = match Datacenter::start(plan.seed, plan.nodes).await {
        Ok(datacenter) => datacenter,
        Err(error) => {
            let why = vec![base::errors::chain(&error)];
            return outcome(Tally::default(), why, VecDeque::new(), Trace::new());
        }
    };
    let mut story = Story {
        datacenter,
        plan,
        chance: Chance::new(plan.seed),
        tally: Tally::default(),
        asked: Vec::new(),
        diary: VecDeque::new(),
        trace: Trace::new(),
        begun: tokio::time::Instant::now(),
    };
    let violations = story.tell().await;
    story.trace_records();
    outcome(story.tally, violations, story.diary, story.trace)
}

impl Story {
    /// The whole story; what went wrong in it.
    async fn tell(&mut self) -> Vec<String> {
        // Machines say what they are before anybody asks for anything.
        tokio::time::sleep(LOOK).await;
        for _ in 0..self.plan.steps {
            if let Err(violation) = self.step().await {
                return vec![violation];
            }
            let pause = self.chance.below(PAUSE_MS);
            let wrong = self.pass(Duration::from_millis(pause)).await;
            if !wrong.is_empty() {
                return wrong;
            }
        }
        self.note("the faults stop".to_owned());
        fate::rest(&mut self.datacenter);
        let open = self.rest(invariants::rest::open).await;
        if !open.is_empty() {
            return open;
        }
        self.note("everything is deleted".to_owned());
        let mut wrong = tenant::delete_instances(&self.datacenter.control).await;
        if wrong.is_empty() {
            wrong = self.rest(invariants::rest::left).await;
        }
        if wrong.is_empty() {
            wrong = tenant::delete_networks(&self.datacenter.control).await;
            wrong.extend(invariants::rest::claimed(&self.datacenter));
        }
        wrong
    }

    fn note(&mut self, what: String) {
        let at = self.begun.elapsed().as_secs_f64();
        let line = format!("{at:9.3} s  {what}");
        self.trace.take(&line);
        self.diary.push_back(line);
        if self.diary.len() > DIARY_LINES {
            self.diary.pop_front();
        }
    }

    fn trace_records(&mut self) {
        for instance in self.datacenter.control.snapshot().scan(&INSTANCES) {
            self.trace.take(&format!("{:?}", instance.value));
        }
    }

    /// Lets time pass and looks.
    async fn pass(&mut self, time: Duration) -> Vec<String> {
        tokio::time::sleep(time).await;
        self.datacenter.tick();
        self.trace.take(&self.datacenter.control.snapshot().revision().0.to_string());
        let mut wrong = self.hear();
        wrong.extend(invariants::tick::look(&mut self.datacenter));
        wrong.extend(invariants::tick::documents(&mut self.datacenter, &mut self.chance).await);
        wrong
    }

    /// Waits until `open` finds nothing; what it still finds at the end.
    async fn rest(&mut self, open: impl AsyncFn(&Datacenter) -> Vec<String>) -> Vec<String> {
        let until = tokio::time::Instant::now() + REST;
        loop {
            let wrong = self.pass(LOOK).await;
            if !wrong.is_empty() {
                return wrong;
            }
            let left = open(&self.datacenter).await;
            if left.is_empty() || tokio::time::Instant::now() >= until {
                return left;
            }
        }
    }

    /// One thing happens, or several where there are many machines. An error is something that must not happen.
    async fn step(&mut self) -> Result<(), String> {
        for _ in 0..=self.plan.nodes / NODES_PER_EVENT {
            match self.chance.below(100) {
                0..70 => self.ask(),
                70..98 => {
                    let what = fate::strike(&mut self.datacenter, &mut self.chance, &mut self.tally)?;
                    self.note(what);
                }
                _ if self.chance.percent(100 / (1 + self.plan.nodes as u64 / 50)) => self.restart_headnode().await?,
                _ => {}
            }
        }
        Ok(())
    }

    async fn restart_headnode(&mut self) -> Result<(), String> {
        let in_order = self.chance.percent(50);
        if in_order {
            self.tally.headnode_restarts += 1;
        } else {
            self.tally.headnode_crashes += 1;
        }
        self.note(format!("the headnode starts again; its end was in order: {in_order}"));
        let again = self.datacenter.restart_headnode(in_order).await;
        again.map_err(|error| format!("the headnode does not start: {}", base::errors::chain(&error)))
    }

    /// Somebody asks for something.
    fn ask(&mut self) {
        let instances_max = (self.plan.nodes * INSTANCES_PER_NODE).min(INSTANCES_MAX);
        let Some(Request { what, wish }) = tenant::draw(&self.datacenter, &mut self.chance, instances_max) else {
            return;
        };
        self.tally.requests += 1;
        self.note(format!("asked: {what}"));
        self.asked.push((what, self.datacenter.group().spawn("request", wish)));
    }

    /// Hears the answers there are. What no answer may be, in words.
    fn hear(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (what, mut asked) in std::mem::take(&mut self.asked) {
            let answer = match (&mut asked).now_or_never() {
                None => {
                    self.asked.push((what, asked));
                    continue;
                }
                Some(Ok(Ok(answer))) => {
                    self.tally.created += usize::from(what == "create");
                    answer
                }
                Some(Ok(Err(error))) => {
                    self.tally.refused += 1;
                    let text = base::errors::chain(&error);
                    if matches!(error, Error::Store(_) | Error::File { .. } | Error::Unavailable(_)) {
                        wrong.push(format!("{what}: {text}"));
                    }
                    text
                }
                Some(Err(error)) if error.is_panic() => {
                    wrong.push(format!("{what}: the headnode panicked"));
                    "a panic".to_owned()
                }
                Some(Err(_)) => {
                    self.tally.unanswered += 1;
                    "no answer".to_owned()
                }
            };
            self.note(format!("{what}: {answer}"));
        }
        wrong
    }
}
