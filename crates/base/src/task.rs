//! Tasks and threads with names. One registry says what runs now, and a task that panics is logged with its name.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Mutex, PoisonError},
};

use tokio::task::JoinHandle;

// Leaf data, held for a few instructions.
static RUNNING: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());

/// Start `future` on the current runtime under `name`. Dropping the handle does not end it: give it a `Shutdown`.
#[expect(clippy::disallowed_methods, reason = "this is the door to the runtime's tasks")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let entry = Entry::new(name);
    tokio::spawn(async move {
        let _entry = entry;
        future.await
    })
}

/// Run `work` on a thread that may wait, and return what it returned. Ends early only when `work` panics, which is passed on.
#[expect(clippy::disallowed_methods, reason = "this is the door to the runtime's waiting threads")]
pub async fn blocking<T: Send + 'static>(name: &'static str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let entry = Entry::new(name);
    let running = tokio::task::spawn_blocking(move || {
        let _entry = entry;
        work()
    });
    match running.await {
        Ok(output) => output,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being torn down: nobody is left to receive an answer.
            Err(_) => std::future::pending().await,
        },
    }
}

/// A thread of its own, for work that waits all its life. Fails when the kernel refuses a thread.
pub fn thread(
    name: &'static str,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let entry = Entry::new(name);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _entry = entry;
        work();
    })
}

/// The names of what runs now, each with how many.
pub fn running() -> Vec<(&'static str, usize)> {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    running.iter().map(|(name, count)| (*name, *count)).collect()
}

struct Entry {
    name: &'static str,
}

impl Entry {
    fn new(name: &'static str) -> Self {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_insert(0) += 1;
        Self { name }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.name, "task panicked");
        }
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn running_names_follow_their_tasks() {
        let (trigger, shutdown) = crate::shutdown::Shutdown::new();
        let task = spawn("task-registry-test", async move { shutdown.wait().await });
        assert!(running().iter().any(|(name, _)| *name == "task-registry-test"));
        trigger.fire();
        task.await.unwrap();
        assert!(!running().iter().any(|(name, _)| *name == "task-registry-test"));
        assert_eq!(blocking("add", || 1 + 1).await, 2);
    }
}
