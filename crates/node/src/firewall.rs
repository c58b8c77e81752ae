//! The distributed firewall on this machine: from the target to the kernel, and the word that it is in force.
//!
//! Owned by the task that owns the filters. It takes the firewall of the newest target whenever a target comes or a NIC does, so a
//! NIC is never made before its instance is filtered. What was enforced is said in the next report, at once when it is news:
//! somebody may be waiting for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use host::filter::{Firewall, Place};
use model::{firewall::FirewallTarget, id::InstanceId, part::Part};

use crate::shared::Shared;

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Wall {
    /// Where instances have NICs.
    pub(crate) places: BTreeMap<InstanceId, Vec<Place>>,
    /// The firewall of the target that [`Wall::wanted`] was made from.
    told: Part<FirewallTarget>,
    /// What is wanted, and whether the kernel has it.
    wanted: Firewall,
    is_enforced: bool,
}

impl Wall {
    /// Notes where an instance has NICs; nowhere when it has none any more.
    pub(crate) fn place(&mut self, id: InstanceId, places: Vec<Place>) {
        if places.is_empty() {
            self.places.remove(&id);
        } else {
            self.places.insert(id, places);
        }
    }

    /// Whether an instance's traffic is to be filtered.
    pub(crate) fn filters(&self, id: InstanceId) -> bool {
        self.wanted.target.instances.contains_key(&id)
    }

    /// Whether the last application succeeded.
    pub(crate) fn is_enforced(&self) -> bool {
        self.is_enforced
    }

    /// The kernel may not have it any more: it is applied anew.
    pub(crate) fn doubt(&mut self) {
        self.is_enforced = false;
    }

    /// Makes the kernel enforce the newest target's firewall.
    pub(crate) async fn enforce(&mut self, shared: &Shared) -> Result<(), String> {
        let target = shared.target();
        let firewall = match self.told == target.firewall {
            true => self.wanted.target.clone(),
            false => {
                if let Err(error) = target.firewall.check() {
                    tracing::error!(%error, generation = target.generation, "the firewall that was sent does not fit together; keeping the one before");
                    return Err(error.to_string());
                }
                Arc::new(FirewallTarget::clone(&target.firewall))
            }
        };
        self.told = target.firewall.clone();
        let is_news = !self.is_enforced || !Arc::ptr_eq(&firewall, &self.wanted.target);
        let wanted = Firewall { target: firewall, places: self.places.clone(), separate: shared.network.separate() };
        if !self.is_enforced || wanted != self.wanted {
            self.wanted = wanted.clone();
            let applied = shared.verbs.run("firewall", move |host| host.filters.apply_firewall(&wanted)).await;
            self.is_enforced = applied.is_ok();
            if let Err(error) = applied {
                let error = base::errors::chain(&error);
                tracing::error!(error, "the firewall is not in force; trying again soon");
                return Err(format!("firewall: {error}"));
            }
        }
        let before = shared.firewall_seen.swap(target.generation, Ordering::AcqRel);
        if is_news || before == 0 {
            shared.board.nudge();
        }
        Ok(())
    }
}
