//! The process with the agents, as seen from outside: it prints now and then who has reported when.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two looks at what it printed.
const LOOK: Duration = Duration::from_millis(20);

/// See the head of this file; the process is gone when this is dropped.
pub(crate) struct Watched {
    process: Child,
    said: Arc<Mutex<Said>>,
    // A leaf lock.
    told: Arc<Mutex<Vec<Told>>>,
}

/// A machine was told something.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    /// Its number.
    pub(crate) machine: usize,
    /// Of the document it holds then.
    pub(crate) generation: u64,
    /// Milliseconds since 1970.
    pub(crate) at_ms: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Said {
    /// When the last report of the agent was answered that was answered longest ago, milliseconds since 1970; 0 as long as there is one
    /// without any.
    oldest_ms: f64,
    /// Answered reports in all.
    reports: f64,
}

impl Watched {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Result<Self, String> {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = spawned.map_err(|error| format!("cannot start the agents: {error}"))?;
        let output = process.stdout.take().ok_or("the agents have no output")?;
        let said: Arc<Mutex<Said>> = Arc::default();
        let heard = said.clone();
        let told: Arc<Mutex<Vec<Told>>> = Arc::default();
        let heard_told = told.clone();
        let listening = base::task::thread("agents' words", move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
                match numbers[..] {
                    [oldest_ms, reports] => {
                        *heard.lock().unwrap_or_else(PoisonError::into_inner) = Said { oldest_ms, reports };
                    }
                    [machine, generation, at_ms] => {
                        let told = Told { machine: machine as usize, generation: generation as u64, at_ms };
                        heard_told.lock().unwrap_or_else(PoisonError::into_inner).push(told);
                    }
                    _ => {}
                }
            }
        });
        listening.map_err(|error| format!("cannot listen to the agents: {error}"))?;
        Ok(Self { process, said, told })
    }

    /// Waits until every agent has had an answer to a report after `since`, and says when that was seen.
    pub(crate) fn all_report_after(&self, since: f64, patience: Duration) -> Result<f64, String> {
        let begun = Instant::now();
        loop {
            let said = self.said();
            if said.oldest_ms > since {
                return Ok(crate::datacenter::now_ms());
            }
            if begun.elapsed() > patience {
                return Err(format!("after {} s some machines have not reported: {said:?}", patience.as_secs()));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Answered reports so far.
    pub(crate) fn reports(&self) -> f64 {
        self.said().reports
    }

    /// What machines were told since this was last asked.
    pub(crate) fn take_told(&self) -> Vec<Told> {
        std::mem::take(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn said(&self) -> Said {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
