//! A value that many look at and wait for, as tokio's `watch` with one difference: who waits is woken in the order in which the
//! waiting began. Tokio spreads waiters by chance over several lists, and that chance has no seed; a simulation in which a
//! change wakes two tasks would not repeat its run.
//!
//! Shared by one [`Sender`] and any number of [`Receiver`]s. The lock is held to look or to replace, never across an await.

use std::{
    ops::Deref,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

/// Nobody will change the value any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value will not change any more")]
pub struct Closed;

/// Changes the value. When it is dropped, who waits is told so.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// Looks at the value and waits for changes. A clone has seen what its original has.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value, as long as it is looked at. Nobody can change it meanwhile.
#[derive(Debug)]
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<T>,
    /// Rises with each change; written under the lock.
    version: AtomicU64,
    closed: AtomicBool,
    changed: Notify,
}

/// A value with its two ends.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Shared<T> {
    fn read(&self) -> Ref<'_, T> {
        // A panic while the value was changed leaves a value all the same.
        Ref(self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

// === impl Sender ===

impl<T> Sender<T> {
    /// A value that nobody looks at yet.
    pub fn new(value: T) -> Self {
        let (version, closed) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { shared: Arc::new(Shared { value: RwLock::new(value), version, closed, changed: Notify::new() }) }
    }

    /// One more who looks; it has seen the value as it is now.
    pub fn subscribe(&self) -> Receiver<T> {
        let value = self.shared.read();
        let seen = self.shared.version();
        drop(value);
        Receiver { shared: self.shared.clone(), seen }
    }

    /// The value.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.read()
    }

    /// Replaces the value, tells everybody, and returns what it was.
    pub fn send_replace(&self, value: T) -> T {
        let mut value = value;
        self.send_modify(|old| std::mem::swap(old, &mut value));
        value
    }

    /// Changes the value and tells everybody.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Changes the value; everybody is told if `change` says so.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = {
            let mut value = self.shared.value.write().unwrap_or_else(PoisonError::into_inner);
            let modified = change(&mut value);
            if modified {
                self.shared.version.fetch_add(1, Ordering::Release);
            }
            modified
        };
        if modified {
            self.shared.changed.notify_waiters();
        }
        modified
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.changed.notify_waiters();
    }
}

// === impl Receiver ===

impl<T> Receiver<T> {
    /// The value; whether it was seen stays as it is.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.read()
    }

    /// The value, which counts as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.read();
        self.seen = self.shared.version();
        value
    }

    /// Whether there is something that was not seen; an error when nothing new can come.
    pub fn has_changed(&self) -> Result<bool, Closed> {
        if self.shared.is_closed() { Err(Closed) } else { Ok(self.shared.version() != self.seen) }
    }

    /// Waits for a value that was not seen, which counts as seen then.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            // Listening begins before the look, so that no change falls between the two.
            let changed = self.shared.changed.notified();
            let version = self.shared.version();
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if self.shared.is_closed() {
                return Err(Closed);
            }
            changed.await;
        }
    }

    /// Waits until the value is so; at once when it is.
    pub async fn wait_for(&mut self, mut so: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        loop {
            let changed = self.shared.changed.notified();
            let closed = self.shared.is_closed();
            {
                let value = self.shared.read();
                self.seen = self.shared.version();
                if so(&value) {
                    return Ok(value);
                }
            }
            if closed {
                return Err(Closed);
            }
            changed.await;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn everybody_hears_of_a_change_in_the_order_of_waiting() {
        let sender = Sender::new(0);
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiting: Vec<_> = (0..50)
            .map(|number| {
                let (mut receiver, order) = (sender.subscribe(), order.clone());
                crate::task::spawn("watch-test", async move {
                    assert!(receiver.wait_for(|value| *value == 7).await.is_ok());
                    order.lock().unwrap().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(sender.send_replace(7), 0);
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_was_seen_is_not_told_again() {
        let (sender, mut receiver) = channel(1);
        assert_eq!(receiver.has_changed(), Ok(false));
        sender.send_modify(|value| *value += 1);
        assert_eq!(receiver.clone().changed().await, Ok(()), "a clone has not seen it either");
        assert_eq!(receiver.has_changed(), Ok(true));
        assert_eq!(*receiver.borrow(), 2);
        assert_eq!(*receiver.borrow_and_update(), 2);
        assert_eq!(receiver.has_changed(), Ok(false));
        assert!(!sender.send_if_modified(|_| false));
        assert_eq!(receiver.has_changed(), Ok(false));
    }

    #[tokio::test]
    async fn the_end_is_told_and_the_last_value_stays() {
        let (sender, mut receiver) = channel(1);
        sender.send_replace(5);
        drop(sender);
        assert_eq!(receiver.has_changed(), Err(Closed));
        assert_eq!(receiver.changed().await, Ok(()), "the last change first");
        assert_eq!(receiver.changed().await, Err(Closed));
        assert!(receiver.wait_for(|value| *value == 6).await.is_err());
        assert_eq!(receiver.wait_for(|value| *value == 5).await.map(|value| *value), Ok(5));
    }
}
