//! Queues with a name and a limit. A full queue says so; it does not grow.

use tokio::sync::mpsc;

/// The sending end. Cheap to clone.
#[derive(Debug)]
pub struct Sender<T> {
    name: &'static str,
    inner: mpsc::Sender<T>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { name: self.name, inner: self.inner.clone() }
    }
}

/// The receiving end; one owner.
#[derive(Debug)]
pub struct Receiver<T> {
    inner: mpsc::Receiver<T>,
}

/// Why a message was not taken. The message comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError<T> {
    /// The queue holds as many messages as it may.
    #[error("queue `{name}` is full")]
    Full {
        /// The queue's name.
        name: &'static str,
        /// What was to be sent.
        message: T,
    },
    /// Nobody will ever read it.
    #[error("queue `{name}` is closed")]
    Closed {
        /// The queue's name.
        name: &'static str,
        /// What was to be sent.
        message: T,
    },
}

/// A queue of at most `capacity` messages.
pub fn bounded<T>(name: &'static str, capacity: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel(capacity);
    (Sender { name, inner: sender }, Receiver { inner: receiver })
}

impl<T> Sender<T> {
    /// Wait for room and send. Fails only when the receiver is gone.
    pub async fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.inner.send(message).await.map_err(|error| SendError::Closed { name: self.name, message: error.0 })
    }

    /// Send now or fail.
    pub fn try_send(&self, message: T) -> Result<(), SendError<T>> {
        self.inner.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(message) => SendError::Full { name: self.name, message },
            mpsc::error::TrySendError::Closed(message) => SendError::Closed { name: self.name, message },
        })
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    /// The queue's name.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl<T> Receiver<T> {
    /// The next message; `None` when every sender is gone and the queue is empty.
    pub async fn recv(&mut self) -> Option<T> {
        self.inner.recv().await
    }

    /// A message that is already there.
    pub fn try_recv(&mut self) -> Option<T> {
        self.inner.try_recv().ok()
    }

    /// The next message, waiting on the calling thread; never call it on a runtime's thread.
    pub fn blocking_recv(&mut self) -> Option<T> {
        self.inner.blocking_recv()
    }
}
