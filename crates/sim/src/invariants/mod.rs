//! What must never happen, checked at every tick ([`tick`]), and what must be so at rest ([`rest`]).
//!
//! Nothing here asks the code that is tried how things should be: what a machine should hear of is worked out from the records in
//! the plainest way there is ([`expected`]).

pub(crate) mod expected;
pub(crate) mod rest;
pub(crate) mod tick;

use std::collections::BTreeSet;

use model::id::InstanceId;

use crate::machine::Node;

/// Instances of which there is anything on a machine.
fn on_machine(node: &Node) -> BTreeSet<InstanceId> {
    let host = node.machine.host();
    let mut there: BTreeSet<_> = host.zones.list().unwrap_or_default().iter().map(|zone| zone.instance).collect();
    there.extend(host.datasets.roots().unwrap_or_default());
    there.extend(host.links.nics().unwrap_or_default().iter().map(|nic| nic.instance));
    there
}
