//! Which flows an engine runs when several run over one store.
//!
//! Whoever starts an engine may give it a [`Share`], and another one whenever that changes. An engine runs the flows that are its own by the
//! newest share, lets go of one that no longer is when its step has ended, and picks up what has become its own. For a moment two engines may
//! run one flow, or none: the journal's revision keeps the first from doing harm, the next share ends the second.
//!
//! Flows of one subject belong to one engine, so that they still run one after the other; a share is asked by the subject, and by the flow's id
//! where there is none.

use std::sync::Arc;

use base::watch;

use crate::record::FlowRecord;

/// A part of all flows.
pub trait Share: Send + Sync + 'static {
    /// Whether what has this name is in it.
    fn is_mine(&self, what: &str) -> bool;
}

/// All of them.
struct All;

impl Share for All {
    fn is_mine(&self, _what: &str) -> bool {
        true
    }
}

/// The share of one engine.
pub(crate) struct Shares {
    newest: watch::Receiver<Arc<dyn Share>>,
    /// Of an engine that has all, so that the value's end is not taken for news.
    _all: Option<watch::Sender<Arc<dyn Share>>>,
}

impl Shares {
    pub(crate) fn all() -> Self {
        let (all, newest) = watch::channel::<Arc<dyn Share>>(Arc::new(All));
        Self { newest, _all: Some(all) }
    }

    pub(crate) fn follow(newest: watch::Receiver<Arc<dyn Share>>) -> Self {
        Self { newest, _all: None }
    }

    pub(crate) fn has(&self, flow: &FlowRecord) -> bool {
        let share = self.newest.borrow().clone();
        match flow.subject.is_empty() {
            true => share.is_mine(&flow.id.to_string()),
            false => share.is_mine(&flow.subject),
        }
    }

    pub(crate) fn has_subject(&self, subject: &str) -> bool {
        let share = self.newest.borrow().clone();
        share.is_mine(subject)
    }

    /// Waits for the next share, in turn with others who wait.
    pub(crate) fn watch(&self) -> Watch {
        Watch(self.newest.clone())
    }
}

/// Waits for shares.
pub(crate) struct Watch(watch::Receiver<Arc<dyn Share>>);

impl Watch {
    /// Ends with the next share; never when there will be none.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
