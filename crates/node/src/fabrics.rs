//! The fabrics of this machine: one task makes the kernel's segments, peers and routers those of the target.
//!
//! Peers change far more often than this machine's own zones: each zone of a tenant that is made, moved or removed anywhere
//! changes the peers of every machine with another of its segment. So this does not wait for zones and zones do not wait for it:
//! a bridge may be there before its peers, and a peer before any zone that speaks to it.
//!
//! From the same file as everything else, so with no headnode there peers and routers come back after a boot.

use std::{sync::Arc, time::Duration};

use base::watch;
use host::fabric::FabricSet;
use model::target::Target;

use crate::shared::Shared;

/// Between looks at whether somebody else took away devices, entries or rules.
const LOOK_PERIOD: Duration = Duration::from_secs(30);

/// Until the next attempt after one that failed.
const AGAIN: Duration = Duration::from_secs(2);

/// Follows the target until shutdown.
pub(crate) async fn follow(shared: Arc<Shared>, mut targets: watch::Receiver<Arc<Target>>) {
    let mut done: Option<FabricSet> = None;
    loop {
        let target = targets.borrow_and_update().clone();
        let wanted = FabricSet::of(&target);
        // A machine that was never told anything leaves everything alone; one without fabrics has nothing to look after.
        let idle = target.generation == 0 || done.as_ref() == Some(&wanted) && wanted == FabricSet::default();
        let mut pause = LOOK_PERIOD;
        if !idle {
            let told = wanted.clone();
            match shared.verbs.run("fabrics", move |host| host.links.program(&told)).await {
                Ok(()) => done = Some(wanted.clone()),
                Err(error) => {
                    tracing::warn!(error = %base::errors::chain(&error), "failed to make this machine's fabrics");
                    (done, pause) = (None, AGAIN);
                }
            }
        }
        // Only what concerns fabrics wakes before the pause is over.
        let changed = async {
            while targets.changed().await.is_ok() {
                if FabricSet::of(&targets.borrow_and_update()) != wanted {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        if shared.shutdown.unless(tokio::time::timeout(pause, changed)).await.is_none() {
            return;
        }
    }
}
