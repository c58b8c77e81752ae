//! The distributed firewall in nftables: tables of its own beside those against spoofing.
//!
//! What differs goes to the kernel in one transaction of netlink messages; should that be refused, or our tables not be the ones we
//! made, everything is written again with `nft`. Bridges with a filtered NIC hand their frames to the IP hooks, others do not and pay nothing.

use std::collections::BTreeSet;

use super::{
    bridge_calls, command,
    filter::handle_of,
    filter_watch as watch,
    firewall_change::{Difference, difference},
    firewall_rules::{self as rules, Scope},
    link_wire,
    netlink::Socket,
    nft_wire::{NFPROTO_BRIDGE, NFPROTO_INET},
};
use crate::{error::Result, filter::Firewall};

/// What is in the kernel.
pub(super) struct Enforced {
    firewall: Firewall,
    handles: Vec<Option<Vec<u8>>>,
    stamp: u32,
    /// Where its rules log to.
    log_group: Option<u16>,
    /// Our rules as the kernel showed them when they were last found whole, and its count of changes then.
    seen: Option<(u32, Vec<Vec<u8>>)>,
}

/// Makes the kernel's tables equal to `wanted`; `held` is what they were made equal to before.
pub(super) fn apply(
    scope: &Scope<'_>,
    held: &mut Option<Enforced>,
    wanted: &Firewall,
    socket: &mut Socket,
) -> Result<()> {
    let (table, log_group) = (scope.table, scope.log_group);
    let enforced = |handles, stamp| Enforced { firewall: wanted.clone(), handles, stamp, log_group, seen: None };
    let before = held.as_ref().map(|held| bridges(&held.firewall)).unwrap_or_default();
    let after = bridges(wanted);
    if after.is_empty() {
        if held.as_ref().is_none_or(|held| !bridges(&held.firewall).is_empty()) {
            command::run("nft", &["-f", "-"], &rules::removal(table))?;
        }
        track(&before, false)?;
        *held = Some(enforced(handles(table, socket)?, 0));
        return Ok(());
    }
    if let Some(known) = held.as_mut()
        && !before.is_empty()
        && known.logs_to(log_group)
        && handles(table, socket)? == known.handles
    {
        let stamp = known.stamp.wrapping_add(1).max(1);
        match difference(scope, &known.firewall, wanted, stamp) {
            Difference::Nothing => {
                (known.firewall, known.log_group) = (wanted.clone(), log_group);
                return Ok(());
            }
            Difference::Some(batch) => match batch.send(socket) {
                Ok(()) => {
                    *known = enforced(known.handles.clone(), stamp);
                    track(&after, true)?;
                    return track(&before.difference(&after).cloned().collect(), false);
                }
                Err(refusal) => {
                    tracing::warn!(?refusal, table, "a change of the firewall was refused; writing all of it again");
                }
            },
            Difference::Everything => {}
        }
    }
    // Connections that bear a stamp of ours from before must not pass for judged.
    let stamp = held.as_ref().map_or_else(first_stamp, |held| held.stamp.wrapping_add(1).max(1));
    *held = None;
    bridge_calls::make_possible()?;
    command::run("nft", &["-f", "-"], &rules::whole(scope, wanted, stamp))?;
    track(&after, true)?;
    track(&before.difference(&after).cloned().collect(), false)?;
    *held = Some(enforced(handles(table, socket)?, stamp));
    Ok(())
}

impl Enforced {
    /// Whether what its rules log goes there, as far as any does.
    fn logs_to(&self, group: Option<u16>) -> bool {
        self.log_group == group || !self.firewall.target.rules.values().any(|rule| rule.log)
    }
}

/// Whether the kernel still has what was applied, and its rules log to where they should by now; `generation` is its count of changes.
pub(super) fn intact(scope: &Scope<'_>, held: &mut Enforced, generation: u32, socket: &mut Socket) -> Result<bool> {
    let table = scope.table;
    let walled = bridges(&held.firewall);
    if walled.is_empty() {
        return Ok(true);
    }
    if !held.logs_to(scope.log_group) {
        return Ok(false);
    }
    // Somebody may have made a bridge anew.
    track(&walled, true)?;
    if held.seen.as_ref().is_some_and(|(at, _)| *at == generation) {
        return Ok(true);
    }
    if handles(table, socket)? != held.handles {
        return Ok(false);
    }
    let now = watch::rules(socket, table)?;
    let is_whole = held.seen.as_ref().is_none_or(|(_, before)| *before == now);
    held.seen = is_whole.then_some((generation, now));
    Ok(is_whole)
}

/// Removes both tables.
pub(super) fn clear(table: &str, held: &mut Option<Enforced>) -> Result<()> {
    command::run("nft", &["-f", "-"], &rules::removal(table))?;
    let walled = held.take().map(|held| bridges(&held.firewall)).unwrap_or_default();
    track(&walled, false)
}

/// Bridges with a filtered NIC.
fn bridges(firewall: &Firewall) -> BTreeSet<String> {
    let filtered = firewall.places.iter().filter(|(id, _)| firewall.target.instances.contains_key(id));
    filtered.flat_map(|(_, places)| places.iter().map(|place| place.bridge.clone())).collect()
}

/// Lets the frames of these bridges pass the IP hooks, or no longer. A bridge that is gone has none.
fn track(bridges: &BTreeSet<String>, on: bool) -> Result<()> {
    if bridges.is_empty() {
        return Ok(());
    }
    let mut socket = super::link::open()?;
    for bridge in bridges {
        let Some(link) = super::link::one_link(&mut socket, bridge)? else { continue };
        super::link::tolerate(socket.request(link_wire::set_bridge_calls(link.index, on)), nix::errno::Errno::ENODEV)
            .map_err(|refusal| refusal.doing(format!("hand frames of bridge `{bridge}` to the packet filter")))?;
    }
    Ok(())
}

fn handles(table: &str, socket: &mut Socket) -> Result<Vec<Option<Vec<u8>>>> {
    [NFPROTO_BRIDGE, NFPROTO_INET].into_iter().map(|family| handle_of(socket, family, table)).collect()
}

/// Unlike those of an agent that ran before.
fn first_stamp() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    let number = RandomState::new().hash_one(0_u8);
    u32::try_from(number & 0x7fff_ffff).unwrap_or(1).max(1)
}
