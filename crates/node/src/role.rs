//! What the target says about running a headnode, passed on: the agent itself has nothing to do with headnodes.

use std::sync::Arc;

use base::watch;
use model::target::Target;

use crate::shared::Shared;

/// Follows the target until shutdown.
pub(crate) async fn follow(shared: Arc<Shared>, mut targets: watch::Receiver<Arc<Target>>) {
    loop {
        let role = targets.borrow_and_update().headnode.as_deref().cloned();
        shared.config.role.send_if_modified(|told| {
            let is_news = *told != role;
            *told = role;
            is_news
        });
        match shared.shutdown.unless(targets.changed()).await {
            Some(Ok(())) => {}
            _ => return,
        }
    }
}
