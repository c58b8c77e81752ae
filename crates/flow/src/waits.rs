//! Who waits for which record. The dispatcher reads the store's one feed and wakes exactly those; a waiting flow costs an entry here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use store::Change;
use tokio::sync::Notify;

type Key = (&'static str, Arc<str>);

#[derive(Default)]
pub(crate) struct Waits {
    // Leaf data, held for a few look-ups.
    waiting: Mutex<HashMap<Key, Vec<Arc<Notify>>>>,
}

/// Registered interest; dropping it ends it.
pub(crate) struct Interest {
    waits: Arc<Waits>,
    keys: Vec<Key>,
    nudge: Arc<Notify>,
}

impl Waits {
    pub(crate) fn register(self: &Arc<Self>, keys: Vec<Key>) -> Interest {
        let nudge = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &keys {
            waiting.entry(key.clone()).or_default().push(nudge.clone());
        }
        drop(waiting);
        Interest { waits: self.clone(), keys, nudge }
    }

    pub(crate) fn wake(&self, change: &Change) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if change.lagged {
            waiting.values().flatten().for_each(|nudge| nudge.notify_one());
        } else if !waiting.is_empty() {
            let woken = change.keys.iter().filter_map(|key| waiting.get(key)).flatten();
            woken.for_each(|nudge| nudge.notify_one());
        }
    }
}

impl Interest {
    /// Ends when one of the keys has changed since the registration.
    pub(crate) async fn changed(&self) {
        self.nudge.notified().await;
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut waiting = self.waits.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            if let Some(nudges) = waiting.get_mut(key) {
                nudges.retain(|nudge| !Arc::ptr_eq(nudge, &self.nudge));
                if nudges.is_empty() {
                    waiting.remove(key);
                }
            }
        }
    }
}
