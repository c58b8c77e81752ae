//! The network of this machine: bridges as zones need them, and the one rule set all zones share.
//!
//! The rule set has one owner, a task. Zones send it what they need; it takes everything that is waiting, changes its copy of
//! the [`FilterSet`] and applies it once, so that thirty zones that start together cost one transaction in the kernel.
//! Rules come before NICs and go after them: no frame leaves unfiltered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base::channel::{Receiver, Sender};
use host::{
    filter::{BridgeFilter, FilterSet, NicFilter, Place},
    link::NetworkSetup,
};
use model::{
    diff::Wiring,
    id::{InstanceId, MacAddr},
    target::{NetworkTarget, NicTarget},
};
use tokio::sync::oneshot;

use crate::{error::StepError, firewall::Wall, shared::Shared, verbs::Verbs};

/// Changes waiting for the owner of the rule set. More than zones that are worked on at once, so nobody waits long.
const CHANGES: usize = 256;

/// Between looks at whether somebody else took away rules, bridges or NICs. Until then a flushed rule set leaves zones
/// unfiltered, so it is short; a look costs one question to the kernel for the rules and one list for the links.
pub(crate) const PATROL_PERIOD: Duration = Duration::from_secs(5);

/// A change of the rule set, and whom to tell.
pub(crate) struct Change {
    what: What,
    done: oneshot::Sender<Result<(), String>>,
}

enum What {
    /// The NICs of an instance from now on.
    Instance(InstanceId, BTreeMap<MacAddr, NicFilter>, Vec<Place>),
    /// Only these bridges are still there.
    Bridges(BTreeSet<String>),
}

/// See the head of this file.
pub(crate) struct Network {
    changes: Sender<Change>,
    /// Bridges made in this run of the agent.
    bridges: Mutex<Vec<Bridge>>,
}

#[derive(Clone)]
struct Bridge {
    network: NetworkTarget,
    /// What it is called in the kernel.
    name: String,
    /// Nothing went wrong since it was made or looked at.
    trusted: bool,
}

impl Network {
    /// The handle for zones, and the other end for [`own_filters`].
    pub(crate) fn new() -> (Self, Receiver<Change>) {
        let (changes, receiver) = base::channel::bounded("filter changes", CHANGES);
        (Self { changes, bridges: Mutex::default() }, receiver)
    }

    /// Makes bridges and rules for a zone; its NICs may be made afterwards.
    pub(crate) async fn admit(&self, verbs: &Verbs, id: InstanceId, wiring: &Wiring) -> Result<(), StepError> {
        for (_, network) in &wiring.nics {
            self.ensure_bridge(verbs, network).await?;
        }
        self.change(What::Instance(id, nic_filters(id, wiring), self.places(wiring))).await
    }

    /// Removes the rules for a zone; its NICs must be gone.
    pub(crate) async fn dismiss(&self, id: InstanceId) -> Result<(), StepError> {
        self.change(What::Instance(id, BTreeMap::new(), Vec::new())).await
    }

    /// Removes bridges that belong to none of `needed`, and their rules.
    pub(crate) async fn sweep(&self, verbs: &Verbs, needed: Vec<NetworkTarget>) -> Result<(), StepError> {
        let gone = |network: &NetworkTarget| !needed.iter().any(|needed| same_segment(needed, network));
        let known: BTreeSet<String> = {
            let mut bridges = self.bridges();
            bridges.retain(|bridge| !gone(&bridge.network));
            bridges.iter().map(|bridge| bridge.name.clone()).collect()
        };
        verbs
            .run("bridge sweep", move |host| host.links.remove_bridges_except(&needed))
            .await
            .map_err(|source| StepError::Host { doing: "remove bridges that no zone needs", source })?;
        self.change(What::Bridges(known)).await
    }

    /// Makes sure of every bridge made so far and says whose NICs are not as `expected`: gone, down, or ports of another.
    pub(crate) async fn patrol(
        &self,
        verbs: &Verbs,
        expected: Vec<(InstanceId, Wiring)>,
    ) -> Result<Vec<InstanceId>, host::Error> {
        let known = self.bridges().clone();
        verbs
            .run("patrol", move |host| {
                for bridge in &known {
                    host.links.ensure_bridge(&bridge.network)?;
                }
                let seen = host.links.nics()?;
                let seen: BTreeMap<_, _> = seen.iter().map(|nic| ((nic.instance, nic.mac), &nic.bridge)).collect();
                let whole = |id: InstanceId, (nic, network): &(NicTarget, NetworkTarget)| {
                    let bridge = known.iter().find(|bridge| same_segment(&bridge.network, network));
                    let bridge = bridge.map(|bridge| &bridge.name);
                    seen.get(&(id, nic.mac)).is_some_and(|port| bridge.is_none() || port.as_ref() == bridge)
                };
                let broken = expected.iter().filter(|(id, wiring)| !wiring.nics.iter().all(|nic| whole(*id, nic)));
                Ok(broken.map(|(id, _)| *id).collect())
            })
            .await
    }

    /// Something is wrong with the network: whoever needs a bridge makes sure of it anew.
    pub(crate) fn distrust(&self) {
        self.bridges().iter_mut().for_each(|bridge| bridge.trusted = false);
    }

    async fn ensure_bridge(&self, verbs: &Verbs, network: &NetworkTarget) -> Result<(), StepError> {
        if self.bridges().iter().any(|bridge| bridge.trusted && bridge.network == *network) {
            return Ok(());
        }
        let wanted = network.clone();
        let name = verbs
            .run("bridge", move |host| host.links.ensure_bridge(&wanted))
            .await
            .map_err(|source| StepError::Host { doing: "make a bridge", source })?;
        let mut bridges = self.bridges();
        bridges.retain(|bridge| !same_segment(&bridge.network, network));
        bridges.push(Bridge { network: network.clone(), name, trusted: true });
        Ok(())
    }

    /// Rules of all bridges made so far.
    fn bridge_filters(&self) -> BTreeMap<String, BridgeFilter> {
        let bridges = self.bridges();
        bridges.iter().map(|bridge| (bridge.name.clone(), BridgeFilter::of(&bridge.network))).collect()
    }

    /// Where a zone has its addresses, on bridges made so far.
    fn places(&self, wiring: &Wiring) -> Vec<Place> {
        let bridges = self.bridges();
        let place = |(nic, network): &(NicTarget, NetworkTarget)| {
            let bridge = bridges.iter().find(|bridge| same_segment(&bridge.network, network))?;
            let at = |address| Place { bridge: bridge.name.clone(), mac: nic.mac, address };
            Some(nic.addresses().map(|net| at(net.addr())).collect::<Vec<_>>())
        };
        wiring.nics.iter().filter_map(place).flatten().collect()
    }

    /// Bridges that lead nowhere but to their own segment: the same addresses may be in use on several.
    pub(crate) fn separate(&self) -> BTreeSet<String> {
        let bridges = self.bridges();
        let is_separate =
            |network: &NetworkTarget| !network.nat && network.host_address.is_none() && network.host_address6.is_none();
        bridges.iter().filter(|bridge| is_separate(&bridge.network)).map(|bridge| bridge.name.clone()).collect()
    }

    async fn change(&self, what: What) -> Result<(), StepError> {
        let (done, word) = oneshot::channel();
        if self.changes.send(Change { what, done }).await.is_err() {
            return Err(StepError::Ending);
        }
        match word.await {
            Ok(result) => result.map_err(StepError::Filters),
            Err(_) => Err(StepError::Ending),
        }
    }

    fn bridges(&self) -> std::sync::MutexGuard<'_, Vec<Bridge>> {
        self.bridges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two descriptions of one segment, whatever else they say.
fn same_segment(one: &NetworkTarget, other: &NetworkTarget) -> bool {
    one.nic_tag == other.nic_tag && one.vlan == other.vlan
}

fn nic_filters(id: InstanceId, wiring: &Wiring) -> BTreeMap<MacAddr, NicFilter> {
    let filter =
        |nic: &NicTarget| NicFilter { instance: id, addresses: nic.addresses().map(|net| net.addr()).collect() };
    wiring.nics.iter().map(|(nic, _)| (nic.mac, filter(nic))).collect()
}

/// Makes sure of the bridges and rules of zones that had NICs before this agent started.
pub(crate) async fn adopt(shared: &Shared, connected: &[(InstanceId, Wiring)]) {
    // All bridges first: the first change applies the whole rule set, and no bridge may be missing from it.
    for (_, network) in connected.iter().flat_map(|(_, wiring)| &wiring.nics) {
        if let Err(error) = shared.network.ensure_bridge(&shared.verbs, network).await {
            tracing::error!(error = %base::errors::chain(&error), "failed to adopt a bridge");
        }
    }
    for (id, wiring) in connected {
        if let Err(error) = shared.network.admit(&shared.verbs, *id, wiring).await {
            // The zones run on as they are; the next change of any NIC applies all rules again.
            tracing::error!(instance = %id, error = %base::errors::chain(&error), "failed to adopt a zone's network");
        }
    }
}

/// A wiring as the host wants it.
pub(crate) fn setup(wiring: &Wiring) -> NetworkSetup {
    NetworkSetup { nics: wiring.nics.clone(), routes: wiring.routes.clone() }
}

/// Owns the rule set until every handle is gone. `connected` are the zones that have NICs at the start of the agent.
pub(crate) async fn own_filters(
    shared: Arc<Shared>,
    mut changes: Receiver<Change>,
    connected: Vec<(InstanceId, Wiring)>,
) {
    let mut wanted = FilterSet::default();
    for (id, wiring) in &connected {
        wanted.nics.extend(nic_filters(*id, wiring));
    }
    let mut applied: Option<FilterSet> = None;
    let mut wall = Wall::default();
    let mut targets = shared.target.subscribe();
    // Nothing is put in the kernel before a zone needs it.
    let mut begun = false;
    loop {
        let first = tokio::select! {
            biased;
            () = shared.shutdown.wait() => return,
            first = changes.recv() => match first {
                Some(first) => first,
                None => return,
            },
            changed = targets.changed() => {
                // Before the zones of an earlier run are adopted, what that run enforced stays.
                if changed.is_ok() && (begun || connected.is_empty()) {
                    let _ = wall.enforce(&shared).await;
                }
                continue;
            }
            () = tokio::time::sleep(PATROL_PERIOD) => {
                if begun {
                    keep(&shared, &wanted, &mut applied, &mut wall).await;
                }
                continue;
            }
        };
        if !begun {
            // All of them at once: none may be without its filters while the others get theirs back.
            wall.places = connected.iter().map(|(id, wiring)| (*id, shared.network.places(wiring))).collect();
        }
        begun = true;
        let mut waiting = Vec::new();
        wanted.bridges = shared.network.bridge_filters();
        let more = std::iter::from_fn(|| changes.try_recv());
        for Change { what, done } in std::iter::once(first).chain(more) {
            let whose = if let What::Instance(id, ..) = &what { Some(*id) } else { None };
            match what {
                What::Instance(id, nics, places) => {
                    wanted.nics.retain(|_, filter| filter.instance != id);
                    wanted.nics.extend(nics);
                    wall.place(id, places);
                }
                What::Bridges(known) => wanted.bridges.retain(|name, _| known.contains(name)),
            }
            waiting.push((whose, done));
        }
        let result =
            if applied.as_ref() == Some(&wanted) { Ok(()) } else { apply(&shared.verbs, wanted.clone()).await };
        applied = result.is_ok().then(|| wanted.clone());
        let enforced = wall.enforce(&shared).await;
        for (whose, done) in waiting {
            // An instance that is to be filtered gets no NIC before it is.
            let firewall = if whose.is_some_and(|id| wall.filters(id)) { enforced.clone() } else { Ok(()) };
            // Who waited may have died meanwhile.
            let _ = done.send(result.clone().and(firewall));
        }
    }
}

/// Puts the rules back when somebody took them away, or when the last application failed.
async fn keep(shared: &Shared, wanted: &FilterSet, applied: &mut Option<FilterSet>, wall: &mut Wall) {
    let verbs = &shared.verbs;
    if applied.is_some() && wall.is_enforced() {
        match verbs.run("filter look", |host| host.filters.intact()).await {
            Ok(true) => return,
            Ok(false) => tracing::warn!("somebody changed the packet filter's rules for instances; putting them back"),
            Err(error) => {
                tracing::warn!(error = %base::errors::chain(&error), "failed to look at the packet filter");
                return;
            }
        }
    }
    let result = apply(verbs, wanted.clone()).await;
    if let Err(error) = &result {
        tracing::error!(error, "failed to put the packet filter's rules back; trying again soon");
    }
    *applied = result.is_ok().then(|| wanted.clone());
    wall.doubt();
    let _ = wall.enforce(shared).await;
}

async fn apply(verbs: &Verbs, wanted: FilterSet) -> Result<(), String> {
    verbs.run("filters", move |host| host.filters.apply(&wanted)).await.map_err(|error| base::errors::chain(&error))
}
