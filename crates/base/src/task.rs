//! Tasks and threads with names. One registry says what runs now, and a task that panics is logged with its name.
//!
//! A simulation runs many programs in one process. What one of them starts belongs to a [`Group`], which can be stopped, let go
//! on, and ended on the spot, as a kernel does with a process.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::task::{AbortHandle, JoinHandle};

thread_local! {
    /// The group of the task that is being run on this thread.
    static CURRENT: RefCell<Option<Group>> = const { RefCell::new(None) };
}

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
    let task = async move {
        let _entry = entry;
        future.await
    };
    match CURRENT.with_borrow(Clone::clone) {
        None => tokio::spawn(task),
        Some(group) => {
            let handle = tokio::spawn(Member { group: group.clone(), task: Box::pin(task) });
            group.note(handle.abort_handle());
            handle
        }
    }
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

/// Tasks that one program of a simulation has started, and those they have started in turn. Clones are one group.
#[derive(Clone, Default)]
pub struct Group(Arc<GroupState>);

#[derive(Default)]
struct GroupState {
    stopped: AtomicBool,
    /// Who was due while it was stopped.
    due: Mutex<Vec<Waker>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// Tasks of a group between two looks for those that have ended.
const NOTED_TASKS: usize = 64;

impl Group {
    /// Starts a task in the group.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let _inside = self.enter();
        spawn(name, future)
    }

    /// Stops every task where it is, as SIGSTOP does. Time goes on.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
    }

    /// Lets stopped tasks go on.
    pub fn go_on(&self) {
        self.0.stopped.store(false, Ordering::SeqCst);
        let due = std::mem::take(&mut *self.0.due.lock().unwrap_or_else(PoisonError::into_inner));
        due.into_iter().for_each(Waker::wake);
    }

    /// Ends every task, as SIGKILL does: none of them runs again. What they held is dropped when the runtime next turns.
    pub fn end(&self) {
        let tasks = std::mem::take(&mut *self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.iter().for_each(AbortHandle::abort);
    }

    fn note(&self, task: AbortHandle) {
        let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.len() % NOTED_TASKS == NOTED_TASKS - 1 {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task);
    }

    fn enter(&self) -> Inside {
        Inside { before: CURRENT.replace(Some(self.clone())) }
    }
}

/// What is started meanwhile belongs to a group.
struct Inside {
    before: Option<Group>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        CURRENT.replace(self.before.take());
    }
}

/// A task of a group.
struct Member<F> {
    group: Group,
    task: Pin<Box<F>>,
}

impl<F: Future> Future for Member<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.group.0.stopped.load(Ordering::SeqCst) {
            self.group.0.due.lock().unwrap_or_else(PoisonError::into_inner).push(context.waker().clone());
            return Poll::Pending;
        }
        let _inside = self.group.enter();
        self.task.as_mut().poll(context)
    }
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

    #[tokio::test(start_paused = true)]
    async fn a_group_stops_goes_on_and_ends_with_all_it_started() {
        use std::{sync::atomic::AtomicU32, time::Duration};
        let (group, ticks) = (Group::default(), Arc::new(AtomicU32::new(0)));
        let counted = ticks.clone();
        group.spawn("parent", async move {
            spawn("child", async move {
                loop {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            });
        });
        let seen = async |seconds: u64| {
            tokio::time::sleep(Duration::from_millis(seconds * 1000 + 500)).await;
            ticks.load(Ordering::SeqCst)
        };
        assert_eq!(seen(3).await, 3);
        group.stop();
        assert_eq!(seen(10).await, 3, "nothing happens to what is stopped");
        group.go_on();
        assert_eq!(seen(2).await, 6, "what was due meanwhile happens once");
        group.end();
        assert_eq!(seen(10).await, 6);
        let outside = spawn("outside", async { 7 });
        assert_eq!(outside.await.unwrap(), 7, "others are in no group");
    }
}
