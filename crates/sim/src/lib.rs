//! A datacenter in one process from one seed: the real control plane over the memory store, the real agent over a machine in memory,
//! a link that breaks, and time that passes as fast as the processor allows.
//!
//! Each step a tenant or fate does something ([`story`]), time passes, and the invariants are checked ([`invariants`]). After
//! the last step the faults stop; then every flow must end, every instance must be what it was asked to be, and once all are
//! deleted nothing may be left.
//!
//! A seed chooses everything: what happens, when, for how long, and through [`base::random`] also the ids and the jitter of retries. So
//! a seed repeats its story step by step; [`Outcome::trace`] is the proof.

pub mod chance;
pub mod datacenter;
pub mod invariants;
pub mod story;

mod clock;
mod link;
mod trace;

use std::fmt;

/// How a run went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The seed of the run.
    pub seed: u64,
    /// Steps asked for.
    pub steps: usize,
    /// What happened, in counts.
    pub tally: story::Tally,
    /// A digest of all that happened and when, of every revision of the store, and of the records at the end: two runs of one seed
    /// have the same.
    pub trace: u64,
    /// What must never happen and did; empty for a good run.
    pub violations: Vec<String>,
    /// The last things that happened before the end, oldest first.
    pub diary: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.violations.is_empty() {
            return write!(f, "seed {}: {} steps, {}, trace {:016x}", self.seed, self.steps, self.tally, self.trace);
        }
        writeln!(f, "seed {}: FAILED; {}", self.seed, self.tally)?;
        for line in &self.diary {
            writeln!(f, "    {line}")?;
        }
        for violation in &self.violations {
            writeln!(f, "  {violation}")?;
        }
        write!(f, "  again: cargo xtask sim --seed {} --steps {}", self.seed, self.steps)
    }
}

/// Plays the story of `seed`. Blocks until it is over.
pub fn run(seed: u64, steps: usize) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime needs only what any process has");
    let _seed = base::random::seed(seed);
    let outcome = runtime.block_on(story::play(seed, steps));
    // Agents that were killed leave tasks that wait for ever.
    runtime.shutdown_background();
    outcome
}
