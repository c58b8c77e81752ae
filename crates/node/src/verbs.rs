//! Where waiting happens: verbs of the host and writes of files that must reach the disk.

use host::Host;

use crate::{activity::VerbTimes, config::Execution};

/// The host together with the place where its verbs run.
#[derive(Clone)]
pub(crate) struct Verbs {
    host: Host,
    execution: Execution,
    times: VerbTimes,
}

impl Verbs {
    pub(crate) fn new(host: Host, execution: Execution) -> Self {
        Self { host, execution, times: VerbTimes::default() }
    }

    /// How often each verb was done, and how long that took.
    pub(crate) fn times(&self) -> &VerbTimes {
        &self.times
    }

    /// Runs `verb` where it may wait. Dropping the future does not interrupt a verb that has begun; that is why every
    /// verb may be repeated.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        verb: impl FnOnce(&Host) -> T + Send + 'static,
    ) -> T {
        let running = self.times.begin(name);
        match self.execution {
            Execution::Inline => {
                // A place for other tasks to get in between, as they would with threads.
                tokio::task::yield_now().await;
                let done = verb(&self.host);
                drop(running);
                done
            }
            Execution::Threads => {
                let host = self.host.clone();
                let timed = move || {
                    let done = verb(&host);
                    drop(running);
                    done
                };
                base::task::blocking(name, timed).await
            }
        }
    }
}
