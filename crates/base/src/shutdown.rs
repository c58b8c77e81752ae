//! Ending in order: one trigger, any number of listeners.

use crate::watch;

/// Dropping it, or calling [`Trigger::fire`], ends everybody who listens.
#[derive(Debug)]
pub struct Trigger {
    set: watch::Sender<bool>,
}

impl Trigger {
    /// Say that the end has come. Saying it twice changes nothing.
    pub fn fire(&self) {
        self.set.send_replace(true);
    }

    /// Another listener.
    pub fn shutdown(&self) -> Shutdown {
        Shutdown { set: self.set.subscribe() }
    }
}

/// A listener. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    set: watch::Receiver<bool>,
}

impl Shutdown {
    /// A trigger and its first listener.
    pub fn new() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (Trigger { set: sender }, Self { set: receiver })
    }

    /// Ends when the trigger fired or was dropped.
    pub async fn wait(&self) {
        let mut set = self.set.clone();
        // An error means the trigger was dropped, which is the same message.
        let _ = set.wait_for(|set| *set).await;
    }

    /// Whether the trigger fired or was dropped.
    pub fn is_set(&self) -> bool {
        *self.set.borrow() || self.set.has_changed().is_err()
    }

    /// `future`'s output, or `None` when the end comes first.
    pub async fn unless<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.wait() => None,
            output = future => Some(output),
        }
    }
}

/// A signal that asks this process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
}

/// Wait for SIGTERM or SIGINT. Fails only when the handlers cannot be installed.
pub async fn signal() -> std::io::Result<Signal> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(Signal::Terminate),
        _ = interrupt.recv() => Ok(Signal::Interrupt),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn listeners_end_when_fired_or_dropped() {
        let (trigger, shutdown) = Shutdown::new();
        assert!(!shutdown.is_set());
        assert_eq!(shutdown.unless(std::future::ready(7)).await, Some(7));
        trigger.fire();
        shutdown.wait().await;
        assert_eq!(shutdown.unless(std::future::ready(7)).await, None);

        let (trigger, shutdown) = Shutdown::new();
        drop(trigger);
        shutdown.wait().await;
        assert!(shutdown.is_set());
    }
}
