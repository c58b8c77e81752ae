//! Named calls that are under way in this process, so that a repetition that comes too early waits for the first one's answer instead
//! of running beside it. It only saves work: what keeps a call from being carried out twice is its record in the store.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base::clock::Clock;
use model::{id::AccountId, repeat::RepeatKey};
use tokio::sync::watch;

type Name = (AccountId, RepeatKey);

/// Who is under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Each with what its end is seen by. As many as there are requests, whose number the door bounds. Leaf data.
    running: Mutex<HashMap<Name, watch::Receiver<()>>>,
    answered: AtomicUsize,
}

/// The right to run a call; given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    name: Name,
    /// Dropped after the name is free.
    _ends: watch::Sender<()>,
}

impl Turns {
    /// Waits until no call of this name is under way; `None` after `patience`.
    pub(super) async fn take(
        &self,
        clock: &dyn Clock,
        account: AccountId,
        key: &RepeatKey,
        patience: Duration,
    ) -> Option<Turn> {
        let mut deadline = None;
        loop {
            let mut running = match self.try_take((account, key.clone())) {
                Ok(turn) => return Some(turn),
                Err(running) => running,
            };
            let deadline = deadline.get_or_insert_with(|| clock.sleep(patience));
            tokio::select! {
                biased;
                // Fails when the sender is dropped, which is what is waited for.
                _ = running.changed() => {}
                () = deadline => return None,
            }
        }
    }

    /// Counts one more answered call of this process.
    pub(super) fn count_answered(&self) -> usize {
        self.0.answered.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn try_take(&self, name: Name) -> Result<Turn, watch::Receiver<()>> {
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = running.get(&name) {
            return Err(other.clone());
        }
        let (ends, seen) = watch::channel(());
        running.insert(name.clone(), seen);
        Ok(Turn { turns: self.clone(), name, _ends: ends })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.0.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}
