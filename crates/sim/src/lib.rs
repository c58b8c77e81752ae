//! A datacenter in one process from one seed: the real control plane over the memory store, hundreds of real agents over machines in
//! memory, links that break, disks that forget, and time that passes as fast as the processor allows.
//!
//! Each step somebody or fate does something (`story`, `tenant`, `fate`), time passes, and the invariants are checked
//! (`invariants`). After the last step the faults stop; then every flow must end, every instance must be what it was asked to be, every machine must know what
//! it should and nothing else, and once all are deleted nothing may be left.
//!
//! A seed chooses everything: what happens, when, for how long, and through [`base::random`] also the ids and the jitter of retries. So
//! a seed repeats its story step by step; [`Outcome::trace`] is the proof.

mod chance;
mod clock;
mod datacenter;
mod disk;
mod fate;
mod furnish;
mod invariants;
mod link;
mod machine;
mod story;
mod tenant;
mod trace;

use std::fmt;

pub use fate::Tally;

/// What is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Where all chance comes from.
    pub seed: u64,
    /// Machines.
    pub nodes: usize,
    /// Steps before the faults stop.
    pub steps: usize,
}

/// How a run went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was played.
    pub plan: Plan,
    /// What happened, in counts.
    pub tally: Tally,
    /// A digest of all that happened and when, of every revision of the store, and of the records at the end: two runs of one plan
    /// have the same.
    pub trace: u64,
    /// What must never happen and did; empty for a good run.
    pub violations: Vec<String>,
    /// The last things that happened before the end, oldest first.
    pub diary: Vec<String>,
}

/// Violations that are printed: one mistake is often seen in hundreds of places.
const PRINTED_MAX: usize = 40;

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seed, nodes, steps } = self.plan;
        if self.violations.is_empty() {
            let (tally, trace) = (&self.tally, self.trace);
            return write!(f, "seed {seed}: {nodes} nodes, {steps} steps, {tally}, trace {trace:016x}");
        }
        writeln!(f, "seed {seed}: FAILED; {}", self.tally)?;
        for line in &self.diary {
            writeln!(f, "    {line}")?;
        }
        for violation in self.violations.iter().take(PRINTED_MAX) {
            writeln!(f, "  {violation}")?;
        }
        if self.violations.len() > PRINTED_MAX {
            writeln!(f, "  and {} more", self.violations.len() - PRINTED_MAX)?;
        }
        write!(f, "  again: cargo xtask sim --seed {seed} --nodes {nodes} --steps {steps}")
    }
}

/// Plays `plan`. Blocks until it is over.
pub fn run(plan: Plan) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime needs only what any process has");
    let _seed = base::random::seed(plan.seed);
    let outcome = runtime.block_on(story::play(plan));
    runtime.shutdown_background();
    outcome
}
