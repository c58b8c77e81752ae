//! Who keeps the store, where that is nobody of neso's: a file of this headnode alone, or a cluster that somebody else runs. Headnodes of such a
//! cluster come and go without members.

use control::headnodes::members::{Cluster, Invitation, KeptIn, Members, MembersError, Moved, NewMember, Promotion};
use model::id::ServerId;
use store::BoxFuture;

use crate::settings::{Settings, StoreEngine};

/// See the head of this file.
pub(crate) struct Kept(KeptIn);

impl Kept {
    /// As the settings say.
    pub(crate) fn of(settings: &Settings) -> Self {
        Self(match settings.store.engine {
            StoreEngine::Sqlite => KeptIn::File,
            StoreEngine::Etcd => KeptIn::ElsewhereKept,
        })
    }

    fn refused<T: Send + 'static>(&self) -> BoxFuture<'_, Result<T, MembersError>> {
        let why = match self.0 {
            KeptIn::File => {
                "its store is a file, which only one headnode can use; keep the records in etcd (`[store]` in the settings) to have \
                 several"
            }
            KeptIn::Members | KeptIn::ElsewhereKept => {
                "its store is kept by somebody else, who adds and removes members"
            }
        };
        Box::pin(std::future::ready(Err(MembersError::Refused(why.to_owned()))))
    }
}

impl Members for Kept {
    fn kept_in(&self) -> KeptIn {
        self.0
    }

    fn check(&self) -> BoxFuture<'_, Result<(), MembersError>> {
        self.refused()
    }

    fn move_store(&self) -> BoxFuture<'_, Result<Moved, MembersError>> {
        self.refused()
    }

    fn add_learner(&self, _: NewMember) -> BoxFuture<'_, Result<Invitation, MembersError>> {
        self.refused()
    }

    fn promote(&self, _: ServerId) -> BoxFuture<'_, Result<Promotion, MembersError>> {
        self.refused()
    }

    fn remove(&self, _: ServerId) -> BoxFuture<'_, Result<(), MembersError>> {
        self.refused()
    }

    fn status(&self) -> BoxFuture<'_, Result<Cluster, MembersError>> {
        self.refused()
    }
}
