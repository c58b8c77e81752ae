//! Where waiting happens: verbs of the host and writes of files that must reach the disk.

use host::Host;

use crate::config::Execution;

/// The host together with the place where its verbs run.
#[derive(Clone)]
pub(crate) struct Verbs {
    host: Host,
    execution: Execution,
}

impl Verbs {
    pub(crate) fn new(host: Host, execution: Execution) -> Self {
        Self { host, execution }
    }

    /// Runs `verb` where it may wait. Dropping the future does not interrupt a verb that has begun; that is why every
    /// verb may be repeated.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        verb: impl FnOnce(&Host) -> T + Send + 'static,
    ) -> T {
        match self.execution {
            Execution::Inline => {
                // A place for other tasks to get in between, as they would with threads.
                tokio::task::yield_now().await;
                verb(&self.host)
            }
            Execution::Threads => {
                let host = self.host.clone();
                base::task::blocking(name, move || verb(&host)).await
            }
        }
    }
}
